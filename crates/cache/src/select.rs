//! From the scores of coded keys to the rows that a KV head's group fetches.

use heterokv_attn::HeadShape;
use heterokv_attn::simd::exp::exp_weights;
use heterokv_evict::{SelectScratch, Selector, Union};
use heterokv_quant::{Level, Precision, PreparedQueries};
use rayon::prelude::*;

use crate::Result;
use crate::coded::{CodedKeys, SCORE_TILE};
use crate::head::HeadCache;

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
    /// `[group_size, num_coded]`.
    weights: Vec<f32>,
    /// `[group_size, num_coded]`.
    taken: Vec<bool>,
}

/// Bytes of the working memory of `num_kv_heads` groups over `num_coded` tokens.
pub(crate) fn scratch_bytes(shape: &HeadShape, num_coded: usize) -> usize {
    let tiles = 4 * num_coded.next_multiple_of(SCORE_TILE) * shape.group_size();
    let weights = 4 * shape.group_size() * num_coded;
    let taken = shape.group_size() * num_coded;
    shape.num_kv_heads * (tiles + weights + taken)
}

/// One tile of scores to be computed.
pub(crate) struct ScoreTile<'a> {
    coded: &'a CodedKeys,
    prepared: &'a PreparedQueries,
    tile: usize,
    out: &'a mut [f32],
    maxima: &'a mut [f32],
}

/// What a group fetches from the host.
#[derive(Default)]
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

impl Group {
    pub(crate) fn new(shape: &HeadShape) -> Self {
        Self {
            group_size: shape.group_size(),
            prepared: PreparedQueries::default(),
            num_coded: 0,
            scores: Vec::new(),
            maxima: Vec::new(),
            weights: Vec::new(),
            taken: Vec::new(),
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

    /// The tiles of scores to be computed, which may be done in any order.
    pub(crate) fn tiles<'a>(&'a mut self, head: &'a HeadCache) -> Vec<ScoreTile<'a>> {
        let Some(coded) = head.coded() else { return Vec::new() };
        let prepared = &self.prepared;
        self.scores
            .chunks_exact_mut(self.group_size * SCORE_TILE)
            .zip(self.maxima.chunks_exact_mut(self.group_size))
            .enumerate()
            .map(|(tile, (out, maxima))| ScoreTile { coded, prepared, tile, out, maxima })
            .collect()
    }

    /// Selects, given the log-sum-exp of the resident part of each query head; with scores where rows are summed under them.
    pub(crate) fn select(
        &mut self,
        level: Level,
        selector: &Selector,
        union: Union,
        resident_lse: &[f32],
        with_scores: bool,
    ) -> Result<HeadSelection> {
        let num_coded = self.num_coded;
        if num_coded == 0 {
            return Ok(HeadSelection {
                full_lse: resident_lse.to_vec(),
                ..HeadSelection::default()
            });
        }
        self.taken.clear();
        self.taken.resize(self.group_size * num_coded, false);
        let mut weights = std::mem::take(&mut self.weights);
        weights.resize(self.group_size * num_coded, 0.0);
        let heads = weights.par_chunks_exact_mut(num_coded).enumerate();
        let weighed = heads.map(|(head, row)| self.weigh(level, head, resident_lse[head], row));
        let full_lse: Vec<f32> = weighed.collect();
        let selected = self.taken.par_chunks_exact_mut(num_coded).enumerate().map_init(
            SelectScratch::default,
            |scratch, (head, taken)| {
                let weights = &weights[head * num_coded..][..num_coded];
                let resident_mass = f64::from(resident_lse[head] - full_lse[head]).exp();
                selector.select(weights, resident_mass, scratch, taken)
            },
        );
        let selected = selected.collect::<Result<Vec<_>, _>>();
        self.weights = weights;
        selected?;
        let positions = self.positions();
        let len = self.group_size * positions.len();
        let mut selection = HeadSelection { full_lse, ..HeadSelection::default() };
        if with_scores {
            selection.scores.reserve_exact(len);
        }
        let by_head = union == Union::Head;
        for head in 0..self.group_size {
            let taken = &self.taken[head * num_coded..][..num_coded];
            let takes = |token: &u32| !by_head || taken[*token as usize];
            if with_scores {
                let score = |token: &u32| match takes(token) {
                    true => self.score(head, *token as usize),
                    false => f32::NEG_INFINITY,
                };
                selection.scores.extend(positions.iter().map(score));
            }
            if by_head {
                selection.taken.extend(positions.iter().map(takes));
            }
        }
        selection.positions = positions;
        Ok(selection)
    }

    /// The tokens that any query head takes, ascending.
    fn positions(&self) -> Vec<u32> {
        let num_coded = self.num_coded;
        let mut any = self.taken[..num_coded].to_vec();
        for taken in self.taken[num_coded..].chunks_exact(num_coded) {
            any.iter_mut().zip(taken).for_each(|(any, taken)| *any |= taken);
        }
        let mut positions = vec![0; num_coded];
        let mut count = 0;
        // No branch foretells which are.
        for (token, &is_taken) in any.iter().enumerate() {
            positions[count] = token as u32;
            count += usize::from(is_taken);
        }
        positions.truncate(count);
        positions
    }

    /// Fills `weights [num_coded]` with the softmax weights of one query head under the normaliser of
    /// all tokens, whose log-sum-exp is returned.
    fn weigh(&self, level: Level, head: usize, resident_lse: f32, weights: &mut [f32]) -> f32 {
        let tiles = self.scores.chunks_exact(self.group_size * SCORE_TILE);
        for (weights, tile) in weights.chunks_mut(SCORE_TILE).zip(tiles) {
            weights.copy_from_slice(&tile[head * SCORE_TILE..][..weights.len()]);
        }
        let maxima = self.maxima.iter().skip(head).step_by(self.group_size).copied();
        let max = maxima.fold(resident_lse, f32::max);
        if max == f32::NEG_INFINITY {
            weights.fill(0.0);
            return max;
        }
        let sum = exp_weights(level, weights, max) + (resident_lse - max).exp();
        let share = 1.0 / sum;
        weights.iter_mut().for_each(|weight| *weight *= share);
        max + sum.ln()
    }

    /// Appends the scores of all coded keys `[num_coded]` for one query head.
    pub(crate) fn extend_scores(&self, head: usize, scores: &mut Vec<f32>) {
        let end = scores.len() + self.num_coded;
        for tile in self.scores.chunks_exact(self.group_size * SCORE_TILE) {
            let row = &tile[head * SCORE_TILE..][..SCORE_TILE.min(end - scores.len())];
            scores.extend_from_slice(row);
        }
    }

    fn score(&self, head: usize, token: usize) -> f32 {
        let tile = token / SCORE_TILE * self.group_size + head;
        self.scores[tile * SCORE_TILE + token % SCORE_TILE]
    }
}

impl ScoreTile<'_> {
    pub(crate) fn score(&mut self, level: Level) {
        self.coded.score_tile(level, self.prepared, self.tile, self.out, self.maxima);
    }
}
