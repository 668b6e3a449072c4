//! How tokens are scored for eviction: a scorer, the queries it looks at, pooling, and what becomes
//! of the query heads of a group.
//!
//! Evidence is one number per token of a KV head, the larger the more worth keeping. Scorers of
//! attention gather it from softmax weights ([`PromptEvidence`], then [`Scoring::observe`]),
//! scorers of keys from rows ([`key_norm`], [`key_diff`], [`ExpectedQueries`]). [`Scoring::scores`]
//! makes scores of it, by which [`keep_best`](crate::keep_best) keeps.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, words};

/// Tokens that are worked on at a time, so that what comes between passes is near.
const BLOCK_TOKENS: usize = 1024;

mod evidence;
mod expected;
mod keys;
mod pool;

pub use evidence::{PromptEvidence, per_query};
pub use expected::{ExpectedQueries, ExpectedScores, RotaryTurns};
pub use keys::{key_diff, key_norm};
pub use pool::Pool;

/// What tokens are scored by.
///
/// As words, for [`FromStr`] and [`Display`](fmt::Display): `window`, `accumulated`, `last-query`,
/// `squared`, `votes`, `votes-seen`, `key-norm`, `key-diff`, `expected`, `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scorer {
    /// Attention of the prompt's last queries to the tokens before them, summed (SnapKV, arXiv
    /// 2404.14469, §4.1; kvpress takes the mean, which orders them alike). A prompt no longer than
    /// the window gives no evidence.
    Window,
    /// Attention of all queries, summed (heavy hitters: H2O, arXiv 2306.14048, §4).
    Accumulated,
    /// Attention of the latest query alone (TOVA, arXiv 2401.06104, §3.2; there, the mean over all
    /// query heads of a layer: a group of that size).
    LastQuery,
    /// Squared attention, summed (KV-Compress, arXiv 2410.00161, §3; there, with [`Gqa::Sum`]).
    Squared,
    /// The latest step at which some query head gave a token at least an equal share of the tokens
    /// that are **held** (CORM, arXiv 2404.15949, §3; which tokens count it leaves open).
    Votes,
    /// [`Scorer::Votes`] with an equal share of the tokens **seen** so far, evicted ones too: a
    /// lower bar.
    VotesSeen,
    /// A small key norm (Devoto et al., arXiv 2406.11430): [`key_norm`].
    KeyNorm,
    /// A key unlike the mean key (KeyDiff, arXiv 2504.15364): [`key_diff`].
    KeyDiff,
    /// Attention that future queries are expected to give (expected attention, NVIDIA kvpress):
    /// [`ExpectedQueries`].
    Expected,
    /// The position: later tokens first; with sinks, StreamingLLM (arXiv 2309.17453, §3).
    Position,
}

const SCORERS: [(&str, Scorer); 10] = [
    ("window", Scorer::Window),
    ("accumulated", Scorer::Accumulated),
    ("last-query", Scorer::LastQuery),
    ("squared", Scorer::Squared),
    ("votes", Scorer::Votes),
    ("votes-seen", Scorer::VotesSeen),
    ("key-norm", Scorer::KeyNorm),
    ("key-diff", Scorer::KeyDiff),
    ("expected", Scorer::Expected),
    ("position", Scorer::Position),
];

impl Scorer {
    /// Whether evidence comes from attention weights.
    #[must_use]
    pub fn sees_attention(self) -> bool {
        !matches!(self, Self::KeyNorm | Self::KeyDiff | Self::Expected | Self::Position)
    }
}

impl fmt::Display for Scorer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        words::write(f, self, &SCORERS)
    }
}

impl FromStr for Scorer {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        words::find("scorer", word, &SCORERS)
    }
}

/// What becomes of the query heads that share a KV head.
///
/// As words: `mean`, `max`, `sum`, `sum-squares`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gqa {
    /// Their mean (kvpress, KVCache-Factory).
    Mean,
    /// The largest (HeteroCache, arXiv 2601.13684, while generating).
    Max,
    /// Their sum (PQCache, KV-Compress).
    Sum,
    /// The sum of their squares.
    SumSquares,
}

const GQAS: [(&str, Gqa); 4] =
    [("mean", Gqa::Mean), ("max", Gqa::Max), ("sum", Gqa::Sum), ("sum-squares", Gqa::SumSquares)];

impl Gqa {
    /// Takes in what one of `num_heads` heads has for each token; `all [n]` is 0 before the first.
    fn add(self, num_heads: usize, terms: impl Iterator<Item = f32>, all: &mut [f32]) {
        let scale = 1.0 / num_heads as f32;
        let pairs = all.iter_mut().zip(terms);
        match self {
            Self::Mean => pairs.for_each(|(all, x)| *all += x * scale),
            Self::Sum => pairs.for_each(|(all, x)| *all += x),
            Self::Max => pairs.for_each(|(all, x)| *all = if x > *all { x } else { *all }),
            Self::SumSquares => pairs.for_each(|(all, x)| *all += x * x),
        }
    }
}

impl fmt::Display for Gqa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        words::write(f, self, &GQAS)
    }
}

impl FromStr for Gqa {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        words::find("aggregation", word, &GQAS)
    }
}

/// How tokens are scored.
///
/// ```
/// use heterokv_evict::{Gqa, Pool, PromptEvidence, Scorer, Scoring, keep_best};
///
/// // SnapKV over a window of one query: what it attends to, smoothed over neighbours.
/// let scoring =
///     Scoring { scorer: Scorer::Window, window: 1, pool: Pool::Mean(3), gqa: Gqa::Mean };
/// let mut evidence = PromptEvidence::new(scoring, 1, 6)?;
/// evidence.add(0, 5, &[0.1, 0.0, 0.6, 0.0, 0.1, 0.2])?;
/// let scores = scoring.scores(&evidence.finish());
/// let kept = keep_best(&scores, 4, 0, scoring.own_recent())?;
/// assert_eq!(kept, [1, 2, 3, 5]);
/// # Ok::<(), heterokv_evict::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// What tokens are scored by.
    pub scorer: Scorer,
    /// The last queries of a prompt that are looked at; `usize::MAX`: all. [`Scorer::LastQuery`]
    /// looks at one whatever is asked for.
    pub window: usize,
    /// How the evidence of a token is spread over its neighbours.
    pub pool: Pool,
    /// What becomes of the query heads of a group.
    pub gqa: Gqa,
}

impl Scoring {
    /// The first query position of a prompt of `num_tokens` that is looked at.
    #[must_use]
    pub fn first_query(&self, num_tokens: usize) -> usize {
        num_tokens.saturating_sub(self.num_observed_queries())
    }

    /// How many of a prompt's last queries are looked at, where it has so many.
    #[must_use]
    pub fn num_observed_queries(&self) -> usize {
        if self.scorer == Scorer::LastQuery { 1 } else { self.window }
    }

    /// The last tokens of a prompt that the published method keeps whatever their scores, since
    /// their own queries are the evidence: the window of [`Scorer::Window`], one of
    /// [`Scorer::LastQuery`], else 0. Ask [`keep_best`](crate::keep_best) for at least as many
    /// recent ones.
    #[must_use]
    pub fn own_recent(&self) -> usize {
        match self.scorer {
            Scorer::Window => self.window,
            Scorer::LastQuery => 1,
            _ => 0,
        }
    }

    /// Scores `[n]` of evidence `[n]`, f32: the evidence pooled; of [`Scorer::Position`], whose
    /// evidence is not looked at, the index. Evidence that is not a number gives scores that are
    /// none.
    #[must_use]
    pub fn scores(&self, evidence: &[f32]) -> Vec<f32> {
        match self.scorer {
            // Exact up to 2^24 tokens.
            Scorer::Position => (0..evidence.len()).map(|token| token as f32).collect(),
            _ => self.pool.apply(evidence),
        }
    }

    /// Scores `[n]` of one query's softmax weights `[group_size, n]`, f32, each query head pooled
    /// *before* they are aggregated, as HeteroCache does for the last query of a prompt and for
    /// those that it monitors (arXiv 2601.13684, §3). Scorer and window are not looked at.
    ///
    /// # Errors
    /// [`Error::Weight`]; [`Error::Zero`] and [`Error::Rows`] where there is not one row for each
    /// of the `group_size` query heads.
    pub fn scores_of_query(&self, group_size: usize, weights: &[f32]) -> Result<Vec<f32>> {
        let mut scores = vec![0.0; evidence::len_of(group_size, weights)?];
        for (block, scores) in scores.chunks_mut(BLOCK_TOKENS).enumerate() {
            self.scores_from(block * BLOCK_TOKENS, group_size, weights, scores)?;
        }
        Ok(scores)
    }

    /// [`Scoring::scores_of_query`] of the tokens from `first` on, as many as `scores` has. Whoever
    /// asks for some thousands at a time can ask on several threads; the scores are the same.
    /// Weights of other tokens are not checked.
    ///
    /// # Errors
    /// As there, and [`Error::Index`] for a token that there is not.
    pub fn scores_from(
        &self,
        first: usize,
        group_size: usize,
        weights: &[f32],
        scores: &mut [f32],
    ) -> Result<()> {
        let n = evidence::len_of(group_size, weights)?;
        let end = first.saturating_add(scores.len());
        if end > n {
            return Err(Error::Index { what: "token", index: end - 1, count: n });
        }
        let mut pooled = [0.0; BLOCK_TOKENS];
        let blocks = (first..end).step_by(BLOCK_TOKENS);
        for (first, scores) in blocks.zip(scores.chunks_mut(BLOCK_TOKENS)) {
            let pooled = &mut pooled[..scores.len()];
            scores.fill(0.0);
            for head in weights.chunks_exact(n) {
                evidence::check_from(first, &head[first..][..scores.len()])?;
                self.pool.apply_from(first, head, pooled);
                self.gqa.add(group_size, pooled.iter().copied(), scores);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
