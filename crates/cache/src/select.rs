//! From the scores of coded keys to the rows that a KV head's group fetches.

use std::time::{Duration, Instant};

use heterokv_attn::HeadShape;
use heterokv_attn::simd::exp::exp_weights;
use heterokv_evict::{SelectScratch, Selector, TokenSet, Union};
use heterokv_quant::{Level, Precision, PreparedQueries};
use rayon::prelude::*;

use crate::Result;
use crate::coded::{CodedKeys, SCORE_TILE};
use crate::times::{Took, timed};

/// Working memory of one KV head's group, reused from step to step and layer to layer.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    group_size: usize,
    prepared: PreparedQueries,
    num_coded: usize,
    /// `[num_tiles, group_size, SCORE_TILE]`.
    scores: Vec<f32>,
    /// `[num_tiles, group_size]`: the largest score of each tile.
    maxima: Vec<f32>,
    /// `[group_size]`.
    heads: Vec<QueryHead>,
    /// What any query head takes.
    any: TokenSet,
}

/// What belongs to one query head of a group.
#[derive(Clone, Debug, Default)]
struct QueryHead {
    /// `[num_coded]`: softmax weights under the normaliser of all tokens.
    weights: Vec<f32>,
    /// Log-sum-exp over all tokens.
    full_lse: f32,
    taken: TokenSet,
    scratch: SelectScratch,
}

/// Bytes of the working memory of `num_kv_heads` groups over `num_coded` tokens, with what they select.
pub(crate) fn scratch_bytes(shape: &HeadShape, num_coded: usize) -> usize {
    let tiles = 4 * num_coded.next_multiple_of(SCORE_TILE) * shape.group_size();
    let set = TokenSet::bytes(num_coded);
    let head = 4 * num_coded + set + SelectScratch::bytes(num_coded);
    // A position, and a score of each query head.
    let selection = 4 * (1 + shape.group_size()) * num_coded;
    shape.num_kv_heads * (tiles + shape.group_size() * head + set + selection)
}

/// What a group fetches from the host; on the CPU, reused from step to step and layer to layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadSelection {
    /// Rows to fetch, ascending.
    pub(crate) positions: Vec<u32>,
    /// `[group_size, positions]`: coded scores, −∞ where a head does not take the row.
    pub(crate) scores: Vec<f32>,
    /// `[group_size, positions]`: whether a head takes the row.
    pub(crate) taken: Vec<bool>,
    /// `[group_size]`: log-sum-exp over all tokens, resident and coded, natural logarithm.
    pub(crate) full_lse: Vec<f32>,
}

/// How rows are selected.
pub(crate) struct Choice<'a> {
    pub(crate) selector: &'a Selector,
    pub(crate) union: Union,
    /// Whether rows are summed under their coded scores.
    pub(crate) with_scores: bool,
    pub(crate) level: Level,
}

impl Group {
    pub(crate) fn new(shape: &HeadShape) -> Self {
        Self {
            group_size: shape.group_size(),
            prepared: PreparedQueries::default(),
            num_coded: 0,
            scores: Vec::new(),
            maxima: Vec::new(),
            heads: vec![QueryHead::default(); shape.group_size()],
            any: TokenSet::default(),
        }
    }

    /// Prepares `queries [group_size, head_dim]` for the coded keys of a head, if it has any.
    pub(crate) fn begin(
        &mut self,
        coded: Option<&CodedKeys>,
        queries: &[f32],
        sm_scale: f32,
        precision: Precision,
    ) {
        self.num_coded = coded.map_or(0, CodedKeys::num_tokens);
        let num_tiles = self.num_coded.div_ceil(SCORE_TILE);
        self.scores.resize(num_tiles * self.group_size * SCORE_TILE, 0.0);
        self.maxima.clear();
        self.maxima.resize(num_tiles * self.group_size, f32::NEG_INFINITY);
        if let Some(coded) = coded {
            coded.coder().prepare(queries, sm_scale, precision, &mut self.prepared);
        }
    }

    /// Scores the coded keys for which the queries were prepared; gives the time that it took on all threads together.
    pub(crate) fn score(&mut self, coded: &CodedKeys, level: Level) -> Duration {
        let Self { group_size, prepared, scores, maxima, .. } = self;
        let tiles = scores
            .par_chunks_exact_mut(*group_size * SCORE_TILE)
            .zip(maxima.par_chunks_exact_mut(*group_size))
            .enumerate();
        let score = |(tile, (out, maxima)): (usize, (&mut [f32], &mut [f32]))| {
            timed(|| coded.score_tile(level, prepared, tile, out, maxima)).1
        };
        tiles.map(score).sum()
    }

    /// Turns scores into softmax weights, given the log-sum-exp of the resident part of each query head, and selects by them.
    /// Each query head does both while its weights are near.
    pub(crate) fn select(
        &mut self,
        choice: &Choice<'_>,
        resident_lse: &[f32],
        selection: &mut HeadSelection,
    ) -> Result<Took> {
        let Self { group_size, num_coded, scores: own_scores, maxima, heads, any, .. } = self;
        let HeadSelection { positions, scores, taken, full_lse } = selection;
        let of_head = |(at, (head, &lse)): (usize, (&mut QueryHead, &f32))| {
            let maxima = maxima.iter().skip(at).step_by(*group_size);
            let max = maxima.copied().fold(lse, f32::max);
            head.select(choice, (lse, max), *num_coded, tiles(own_scores, *group_size, at))
        };
        let took = heads.par_iter_mut().zip(resident_lse).enumerate().map(of_head);
        let mut took = took.try_reduce(Took::default, |a, b| Ok(a + b))?;
        let start = Instant::now();
        full_lse.clear();
        full_lse.extend(heads.iter().map(|head| head.full_lse));
        any.clear(*num_coded);
        heads.iter().for_each(|head| any.add_all(&head.taken));
        any.positions_into(positions);
        took.selection += start.elapsed();
        if choice.with_scores {
            let num_scores = *group_size * positions.len();
            scores.reserve_exact(num_scores.saturating_sub(scores.len()));
            scores.resize(num_scores, 0.0);
            let rows = scores.par_chunks_exact_mut(positions.len().max(1)).enumerate();
            let picked = rows
                .map(|(head, row)| timed(|| any.pick(tiles(own_scores, *group_size, head), row)).1);
            took.selection += picked.sum::<Duration>();
        }
        taken.clear();
        if choice.union == Union::Head {
            let start = Instant::now();
            for head in &*heads {
                taken.extend(positions.iter().map(|&token| head.taken.contains(token as usize)));
            }
            let not_taken = scores.iter_mut().zip(&*taken).filter(|(_, is_taken)| !**is_taken);
            not_taken.for_each(|(score, _)| *score = f32::NEG_INFINITY);
            took.selection += start.elapsed();
        }
        Ok(took)
    }

    /// Appends the scores of all coded keys `[num_coded]` for one query head.
    pub(crate) fn extend_scores(&self, head: usize, scores: &mut Vec<f32>) {
        let end = scores.len() + self.num_coded;
        for tile in tiles(&self.scores, self.group_size, head) {
            scores.extend_from_slice(&tile[..SCORE_TILE.min(end - scores.len())]);
        }
    }
}

impl QueryHead {
    /// Turns the scores of `num_coded` tokens into weights, given the log-sum-exp of the resident tokens and the largest of it
    /// and the scores, and selects by them.
    fn select<'a>(
        &mut self,
        choice: &Choice<'_>,
        (resident_lse, max): (f32, f32),
        num_coded: usize,
        tiles: impl Iterator<Item = &'a [f32]>,
    ) -> Result<Took> {
        let Self { weights, full_lse, taken, scratch } = self;
        let weighing;
        (*full_lse, weighing) = timed(|| {
            weights.resize(num_coded, 0.0);
            weigh(choice.level, tiles, resident_lse, max, weights)
        });
        let resident_mass = f64::from(resident_lse - *full_lse).exp();
        let (selected, selecting) =
            timed(|| choice.selector.select(weights, resident_mass, scratch, taken));
        selected?;
        Ok(Took { scores: weighing, selection: selecting, ..Took::default() })
    }
}

/// The scores of one query head, of `scores [num_tiles, group_size, SCORE_TILE]`.
fn tiles(scores: &[f32], group_size: usize, head: usize) -> impl Iterator<Item = &[f32]> {
    let tiles = scores.chunks_exact(group_size * SCORE_TILE);
    tiles.map(move |tile| &tile[head * SCORE_TILE..][..SCORE_TILE])
}

/// Fills `weights [num_coded]` with the softmax weights of scores in tiles under the normaliser of all tokens, whose
/// log-sum-exp is returned; `max` is the largest of the scores and of the resident tokens' log-sum-exp.
fn weigh<'a>(
    level: Level,
    tiles: impl Iterator<Item = &'a [f32]>,
    resident_lse: f32,
    max: f32,
    weights: &mut [f32],
) -> f32 {
    if max == f32::NEG_INFINITY {
        weights.fill(0.0);
        return max;
    }
    let mut sum = (resident_lse - max).exp();
    for (weights, tile) in weights.chunks_mut(SCORE_TILE).zip(tiles) {
        weights.copy_from_slice(&tile[..weights.len()]);
        sum += exp_weights(level, weights, max);
    }
    let share = 1.0 / sum;
    weights.iter_mut().for_each(|weight| *weight *= share);
    max + sum.ln()
}
