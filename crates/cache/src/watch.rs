//! What caches that forget look at while a prompt passes: the attention of its queries, and their
//! statistics.

use heterokv_attn::{HeadShape, PromptKeys};
use heterokv_evict::{
    ExpectedQueries, ExpectedScores, PromptEvidence, RotaryTurns, Scorer, Scoring, key_diff,
    key_norm,
};
use heterokv_quant::Level;
use rayon::prelude::*;

use crate::eviction::Eviction;
use crate::{Error, Result};

/// Positions behind a prompt at which expected attention expects queries, as NVIDIA kvpress does.
const NUM_FUTURE: usize = 512;

/// What was seen of a layer for one way of scoring.
#[derive(Debug, Default)]
pub(crate) struct LayerEvidence<'a> {
    /// `[num_kv_heads][num_tokens]`.
    pub(crate) heads: Vec<Vec<f32>>,
    /// Softmax weights of the prompt's last query, `[num_kv_heads][group_size, num_tokens]`, where
    /// they were asked for.
    pub(crate) last: Vec<&'a [f32]>,
    /// What is expected of queries to come, `[num_kv_heads]`, where tokens are scored by that.
    pub(crate) expected: Vec<ExpectedScores>,
}

/// Everything that is watched in one layer of a prompt.
#[derive(Debug)]
pub(crate) struct Watch {
    shape: HeadShape,
    num_tokens: usize,
    /// Ways to score, each once, and the sinks that expected attention leaves out.
    scorings: Vec<(Scoring, usize)>,
    wants_last: bool,
    /// `[num_kv_heads]`.
    heads: Vec<HeadWatch>,
}

#[derive(Debug)]
struct HeadWatch {
    /// None where nobody looks at attention.
    keys: Option<PromptKeys>,
    /// Of each way to score.
    gathered: Vec<Gathered>,
    /// `[group_size, num_tokens]`, or nothing.
    last: Vec<f32>,
}

#[derive(Debug)]
enum Gathered {
    Attention(PromptEvidence),
    Queries(ExpectedQueries),
    /// The keys say everything.
    Nothing,
}

impl Watch {
    /// Of a layer whose post-RoPE keys are `k [num_tokens, num_kv_heads, head_dim]`, for caches
    /// that forget so, each with its first tokens that stay.
    pub(crate) fn new<'a>(
        level: Level,
        shape: HeadShape,
        k: &[f32],
        evictions: impl Iterator<Item = (&'a Eviction, usize)>,
        turns: Option<RotaryTurns<'_>>,
    ) -> Result<Self> {
        let num_tokens = k.len() / shape.kv_row_len();
        let mut scorings: Vec<(Scoring, usize)> = Vec::new();
        let mut wants_last = false;
        for (eviction, sinks) in evictions {
            let wanted = of(eviction, sinks);
            if !scorings.contains(&wanted) {
                scorings.push(wanted);
            }
            wants_last |= eviction.wants_last();
        }
        let sees_attention =
            wants_last || scorings.iter().any(|(scoring, _)| scoring.scorer.sees_attention());
        let head = |kv_head: usize| {
            let keys = sees_attention.then(|| PromptKeys::new(level, shape, kv_head, k));
            let gathered =
                scorings.iter().map(|&(scoring, sinks)| {
                    Ok(match scoring.scorer {
                        Scorer::Expected => {
                            let turns = turns.ok_or(Error::NoRotary)?;
                            let group_size = shape.group_size();
                            Gathered::Queries(ExpectedQueries::new(
                                turns, group_size, sinks, NUM_FUTURE,
                            )?)
                        }
                        scorer if scorer.sees_attention() => Gathered::Attention(
                            PromptEvidence::new(scoring, shape.group_size(), num_tokens)?,
                        ),
                        _ => Gathered::Nothing,
                    })
                });
            let gathered = gathered.collect::<Result<_>>()?;
            let last = if wants_last { shape.group_size() * num_tokens } else { 0 };
            Ok(HeadWatch { keys: keys.transpose()?, gathered, last: vec![0.0; last] })
        };
        let heads = (0..shape.num_kv_heads).map(head).collect::<Result<_>>()?;
        Ok(Self { shape, num_tokens, scorings, wants_last, heads })
    }

    /// The first token whose attention is looked at; `usize::MAX` where that of none is.
    fn first_weights(&self) -> usize {
        let of_scorings = self.scorings.iter().map(|(scoring, _)| scoring);
        let of_scorings = of_scorings.filter(|scoring| scoring.scorer.sees_attention());
        let of_scorings = of_scorings.map(|scoring| scoring.first_query(self.num_tokens));
        let of_last = self.wants_last.then(|| self.num_tokens.saturating_sub(1));
        of_scorings.chain(of_last).min().unwrap_or(usize::MAX)
    }

    /// The first token whose queries are looked at; `usize::MAX` where those of none are.
    pub(crate) fn first_query(&self) -> usize {
        let is_of_queries = |(scoring, _): &(Scoring, usize)| scoring.scorer == Scorer::Expected;
        if self.scorings.iter().any(is_of_queries) { 0 } else { self.first_weights() }
    }

    /// Looks at a block of post-RoPE queries `q [n, num_qo_heads, head_dim]` of the tokens from
    /// `first` on.
    pub(crate) fn look(&mut self, first: usize, q: &[f32]) -> Result<()> {
        let earliest = self.first_weights().max(first);
        let Self { shape, num_tokens, wants_last, ref mut heads, .. } = *self;
        let row_len = shape.qo_row_len();
        let end = first + q.len() / row_len;
        heads.par_iter_mut().enumerate().try_for_each(|(kv_head, head)| {
            let HeadWatch { keys, gathered, last } = head;
            if let Some(keys) = keys.as_ref().filter(|_| earliest < end) {
                let queries = &q[(earliest - first) * row_len..];
                keys.weights(queries, earliest, |head, token, weights| -> Result<()> {
                    for gathered in &mut *gathered {
                        if let Gathered::Attention(evidence) = gathered {
                            evidence.add(head, token, weights)?;
                        }
                    }
                    if wants_last && token + 1 == num_tokens {
                        last[head * num_tokens..][..num_tokens].copy_from_slice(weights);
                    }
                    Ok(())
                })?;
            }
            for gathered in gathered {
                let Gathered::Queries(queries) = gathered else { continue };
                for (position, token) in (first..).zip(q.chunks_exact(row_len)) {
                    let group_len = shape.group_size() * shape.head_dim;
                    let group = &token[kv_head * group_len..][..group_len];
                    for (head, query) in group.chunks_exact(shape.head_dim).enumerate() {
                        queries.add(head, position, query)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// What was seen for one cache that forgets; none where its way of scoring was not watched.
    pub(crate) fn evidence(
        &self,
        eviction: &Eviction,
        sinks: usize,
        keys: &[Vec<f32>],
        values: &[Vec<f32>],
    ) -> Result<Option<LayerEvidence<'_>>> {
        let wanted = of(eviction, sinks);
        let Some(index) = self.scorings.iter().position(|scoring| *scoring == wanted) else {
            return Ok(None);
        };
        if eviction.wants_last() && !self.wants_last {
            return Ok(None);
        }
        let mut evidence = LayerEvidence::default();
        for (head, (keys, values)) in self.heads.iter().zip(keys.iter().zip(values)) {
            let head_dim = self.shape.head_dim;
            evidence.heads.push(match &head.gathered[index] {
                Gathered::Attention(gathered) => gathered.finish(),
                // Of sinks alone nothing is expected.
                Gathered::Queries(_) if self.num_tokens <= sinks => {
                    vec![f32::INFINITY; self.num_tokens]
                }
                Gathered::Queries(queries) => {
                    let (expected, scores) = queries.expect(keys, values, self.num_tokens)?;
                    evidence.expected.push(expected);
                    scores
                }
                Gathered::Nothing => match eviction.scoring.scorer {
                    Scorer::KeyNorm => key_norm(keys, head_dim)?,
                    Scorer::KeyDiff => key_diff(keys, head_dim)?,
                    _ => vec![0.0; self.num_tokens],
                },
            });
            if eviction.wants_last() {
                evidence.last.push(&head.last);
            }
        }
        Ok(Some(evidence))
    }
}

/// By what evidence of a cache is told from that of others.
fn of(eviction: &Eviction, sinks: usize) -> (Scoring, usize) {
    let scoring = eviction.scoring;
    (scoring, if scoring.scorer == Scorer::Expected { sinks } else { 0 })
}
