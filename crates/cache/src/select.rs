//! From the scores of coded keys to the rows that a KV head's group fetches.

use heterokv_attn::HeadShape;
use heterokv_attn::simd::exp::exp_weights;
use heterokv_evict::{SelectScratch, Selector, Union};
use heterokv_quant::{Level, Precision, PreparedQueries};

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
    /// `[num_coded]`, of one query head at a time.
    weights: Vec<f32>,
    /// `[group_size, num_coded]`.
    taken: Vec<bool>,
}

/// Bytes of the working memory of `num_kv_heads` groups over `num_coded` tokens.
pub(crate) fn scratch_bytes(shape: &HeadShape, num_coded: usize) -> usize {
    let tiles = 4 * num_coded.next_multiple_of(SCORE_TILE) * shape.group_size();
    let weights = 4 * num_coded;
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

    /// Selects, given the log-sum-exp of the resident part of each query head.
    pub(crate) fn select(
        &mut self,
        level: Level,
        selector: &Selector,
        union: Union,
        resident_lse: &[f32],
        scratch: &mut SelectScratch,
    ) -> Result<HeadSelection> {
        let num_coded = self.num_coded;
        self.taken.clear();
        self.taken.resize(self.group_size * num_coded, false);
        let mut full_lse = Vec::with_capacity(self.group_size);
        for (head, &resident) in resident_lse.iter().enumerate() {
            let lse = self.weigh(level, head, resident);
            full_lse.push(lse);
            let taken = &mut self.taken[head * num_coded..][..num_coded];
            let resident_mass = f64::from(resident - lse).exp();
            selector.select(&self.weights, resident_mass, scratch, taken)?;
        }
        let any = |token: usize| (0..self.group_size).any(|h| self.taken[h * num_coded + token]);
        let positions: Vec<u32> = (0..num_coded).filter(|&t| any(t)).map(|t| t as u32).collect();
        let mut scores = Vec::with_capacity(self.group_size * positions.len());
        let mut taken = Vec::with_capacity(self.group_size * positions.len());
        for head in 0..self.group_size {
            for &token in &positions {
                let own = self.taken[head * num_coded + token as usize];
                let takes = own || union == Union::Group;
                let score = self.score(head, token as usize);
                scores.push(if takes { score } else { f32::NEG_INFINITY });
                taken.push(takes);
            }
        }
        Ok(HeadSelection { positions, scores, taken, full_lse })
    }

    /// Fills `weights [num_coded]` with the softmax weights of one query head under the normaliser of
    /// all tokens, whose log-sum-exp is returned.
    fn weigh(&mut self, level: Level, head: usize, resident_lse: f32) -> f32 {
        let mut weights = std::mem::take(&mut self.weights);
        weights.clear();
        self.extend_scores(head, &mut weights);
        self.weights = weights;
        let maxima = self.maxima.iter().skip(head).step_by(self.group_size).copied();
        let max = maxima.fold(resident_lse, f32::max);
        if max == f32::NEG_INFINITY {
            return max;
        }
        let sum = exp_weights(level, &mut self.weights, max) + (resident_lse - max).exp();
        let share = 1.0 / sum;
        self.weights.iter_mut().for_each(|weight| *weight *= share);
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
