//! Evidence from attention: of a prompt's queries, and of each step while generating.

use super::{BLOCK_TOKENS, Gqa, Scorer, Scoring};
use crate::select::check;
use crate::{Error, Result};

/// Evidence of one KV head from the attention of a prompt's queries.
///
/// Query heads are summed over the queries first and aggregated then, as published; while
/// generating, [`Scoring::observe`] has one number per token and aggregates at each step.
#[derive(Clone, Debug)]
pub struct PromptEvidence {
    scoring: Scoring,
    group_size: usize,
    num_tokens: usize,
    /// `[group_size, num_tokens]`.
    sums: Vec<f64>,
}

impl PromptEvidence {
    /// For the `group_size` query heads of a KV head over a prompt of `num_tokens`: holds a number
    /// of f64 for each head and token.
    ///
    /// # Errors
    /// [`Error::NoAttention`] for a scorer of keys or positions, [`Error::Zero`] for a group of
    /// none.
    pub fn new(scoring: Scoring, group_size: usize, num_tokens: usize) -> Result<Self> {
        if !scoring.scorer.sees_attention() {
            return Err(Error::NoAttention { scorer: scoring.scorer });
        }
        if group_size == 0 {
            return Err(Error::Zero { what: "query heads of a group" });
        }
        Ok(Self { scoring, group_size, num_tokens, sums: vec![0.0; group_size * num_tokens] })
    }

    /// The first query position that is looked at; queries before it may be left out.
    #[must_use]
    pub fn first_query(&self) -> usize {
        self.scoring.first_query(self.num_tokens)
    }

    /// Adds what query head `head` of the group gives at `position`: softmax weights
    /// `[position + 1]`, f32, over the tokens up to its own. Every (head, position) once, in any
    /// order. A query before [`PromptEvidence::first_query`] adds nothing.
    ///
    /// # Errors
    /// [`Error::Weight`] for a weight that is NaN, infinite or negative; [`Error::Index`] for a
    /// head or a position that there is not, [`Error::Length`] for another number of weights.
    /// Nothing is added then.
    pub fn add(&mut self, head: usize, position: usize, weights: &[f32]) -> Result<()> {
        if position >= self.num_tokens {
            let count = self.num_tokens;
            return Err(Error::Index { what: "query position", index: position, count });
        }
        if head >= self.group_size {
            return Err(Error::Index { what: "query head", index: head, count: self.group_size });
        }
        if weights.len() != position + 1 {
            let (actual, expected) = (weights.len(), position + 1);
            return Err(Error::Length { what: "weights of a query", actual, expected });
        }
        let first_query = self.first_query();
        if position < first_query {
            return Ok(());
        }
        check(weights)?;
        let sums = &mut self.sums[head * self.num_tokens..][..self.num_tokens];
        let weights = weights.iter().map(|&weight| f64::from(weight));
        match self.scoring.scorer {
            // The window's own tokens are kept in any case; beside them, as beyond the end, there
            // are zeros.
            Scorer::Window => {
                sums[..first_query].iter_mut().zip(weights).for_each(|(sum, x)| *sum += x);
            }
            Scorer::Squared => sums.iter_mut().zip(weights).for_each(|(sum, x)| *sum += x * x),
            Scorer::Votes | Scorer::VotesSeen => {
                let step = (position + 1) as f64;
                let voted = sums.iter_mut().zip(weights).filter(|(_, x)| *x >= 1.0 / step);
                voted.for_each(|(latest, _)| *latest = latest.max(step));
            }
            _ => sums.iter_mut().zip(weights).for_each(|(sum, x)| *sum += x),
        }
        Ok(())
    }

    /// The evidence `[num_tokens]`, f32, query heads aggregated, not pooled; 0 for a token that
    /// nothing was added to. Votes are the number of tokens up to the latest query that gave one,
    /// whatever the aggregation: f32 has them exactly up to 2^24.
    #[must_use]
    pub fn finish(&self) -> Vec<f32> {
        let Self { scoring, num_tokens, sums, .. } = self;
        let gqa = match scoring.scorer {
            Scorer::Votes | Scorer::VotesSeen => Gqa::Max,
            _ => scoring.gqa,
        };
        let mut evidence = vec![0.0; *num_tokens];
        for sums in sums.chunks_exact((*num_tokens).max(1)) {
            gqa.add(self.group_size, sums.iter().map(|&sum| sum as f32), &mut evidence);
        }
        evidence
    }
}

impl Scoring {
    /// Adds what one decode step says about the tokens that a KV head holds.
    ///
    /// - `step`: tokens of the sequence, this step's own included, evicted ones too.
    /// - `weights`: softmax weights `[group_size, n]`, f32, over the `n` tokens held.
    /// - `evidence`: `[n]`, f32, one number per token held; 0 for a new one. [`Scorer::Window`],
    ///   [`Scorer::Accumulated`] and [`Scorer::Squared`] add to it (set it to 0 to begin anew),
    ///   [`Scorer::LastQuery`] overwrites it, and votes set it to `step` where a query head gives at
    ///   least an equal share. Query heads are aggregated at every step, as there is one number per
    ///   token.
    ///
    /// # Errors
    /// [`Error::NoAttention`] for a scorer of keys or positions; [`Error::Weight`];
    /// [`Error::Zero`], [`Error::Rows`] and [`Error::Length`] where there is not one weight per
    /// query head and token. The evidence is then as before.
    pub fn observe(
        &self,
        step: usize,
        group_size: usize,
        weights: &[f32],
        evidence: &mut [f32],
    ) -> Result<()> {
        if !self.scorer.sees_attention() {
            return Err(Error::NoAttention { scorer: self.scorer });
        }
        let n = len_of(group_size, weights)?;
        if evidence.len() != n {
            return Err(Error::Length { what: "evidence", actual: evidence.len(), expected: n });
        }
        weights.chunks_exact(n.max(1)).try_for_each(|head| check_from(0, head))?;
        let mut block = [0.0; BLOCK_TOKENS];
        let firsts = (0..n).step_by(BLOCK_TOKENS);
        for (first, evidence) in firsts.zip(evidence.chunks_mut(BLOCK_TOKENS)) {
            let terms = &mut block[..evidence.len()];
            terms.fill(0.0);
            for head in weights.chunks_exact(n) {
                let weights = head[first..][..terms.len()].iter();
                match self.scorer {
                    Scorer::Votes | Scorer::VotesSeen => {
                        Gqa::Max.add(group_size, weights.copied(), terms);
                    }
                    Scorer::Squared => self.gqa.add(group_size, weights.map(|x| x * x), terms),
                    _ => self.gqa.add(group_size, weights.copied(), terms),
                }
            }
            let pairs = evidence.iter_mut().zip(&*terms);
            match self.scorer {
                Scorer::LastQuery => evidence.copy_from_slice(terms),
                Scorer::Votes | Scorer::VotesSeen => {
                    let tokens = if self.scorer == Scorer::Votes { n } else { step };
                    let share = 1.0 / tokens.max(1) as f64;
                    let voted = pairs.filter(|(_, x)| f64::from(**x) >= share);
                    voted.for_each(|(evidence, _)| *evidence = step as f32);
                }
                _ => pairs.for_each(|(evidence, x)| *evidence += x),
            }
        }
        Ok(())
    }
}

/// The mean attention per query that saw a token, of accumulated attention:
/// `evidence[i] / (num_seen - positions[i])`, f32. H2O compares the sums, in which early tokens
/// have more terms; kvpress's "observed attention" compares these.
///
/// `positions [n]` are the tokens' own in the sequence, and `num_seen` its length, of which every
/// query was looked at. Empty: empty.
///
/// # Errors
/// [`Error::Length`] for another number of positions, [`Error::Index`] for one at or beyond
/// `num_seen`.
pub fn per_query(evidence: &[f32], positions: &[u32], num_seen: usize) -> Result<Vec<f32>> {
    if positions.len() != evidence.len() {
        let (actual, expected) = (positions.len(), evidence.len());
        return Err(Error::Length { what: "positions", actual, expected });
    }
    let mean = |(&sum, &position): (&f32, &u32)| {
        let index = position as usize;
        match num_seen.checked_sub(index) {
            None | Some(0) => Err(Error::Index { what: "position", index, count: num_seen }),
            Some(queries) => Ok((f64::from(sum) / queries as f64) as f32),
        }
    };
    evidence.iter().zip(positions).map(mean).collect()
}

/// The tokens of weights `[group_size, n]`.
pub(super) fn len_of(group_size: usize, weights: &[f32]) -> Result<usize> {
    if group_size == 0 {
        return Err(Error::Zero { what: "query heads of a group" });
    }
    if !weights.len().is_multiple_of(group_size) {
        return Err(Error::Length {
            what: "weights of a step",
            actual: weights.len(),
            expected: weights.len() / group_size * group_size,
        });
    }
    Ok(weights.len() / group_size)
}

/// Refuses weights of the tokens from `first` on that are none.
pub(super) fn check_from(first: usize, weights: &[f32]) -> Result<()> {
    match check(weights) {
        Err(Error::Weight { token, weight }) => Err(Error::Weight { token: first + token, weight }),
        checked => checked,
    }
}
