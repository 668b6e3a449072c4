//! One block of prefill: some query tokens of one KV head's group against all keys they see.

use heterokv_quant::Level;

use super::PrefillInput;
use crate::simd::pack::{HeadRows, pack_keys, pack_values};
use crate::simd::strip::{KEY_LANES, STRIP_ROWS, Strip, Tile, absorb};
use crate::{Accumulator, HeadShape};

/// Query rows (tokens times heads of the group) that a block has room for: enough that packing a tile
/// is a small part of using it, few enough that outputs and queries stay in the second-level cache.
/// Measured with the example `prefill_speed`.
const BLOCK_ROWS: usize = 64 * STRIP_ROWS;
/// Key tokens of a tile. Measured with the example `prefill_speed`.
const TILE_TOKENS: usize = 8 * KEY_LANES;

/// Query tokens of a block; a group of more heads than [`BLOCK_ROWS`] still gets one.
pub(super) fn block_tokens(shape: &HeadShape) -> usize {
    (BLOCK_ROWS / shape.group_size()).max(1)
}

/// Consecutive query tokens of one KV head, and where their results go.
pub(super) struct Block<'a> {
    kv_head: usize,
    /// Index among the queries of the block's first.
    first_query: usize,
    /// For each query token, `[group_size, head_dim]`.
    pub(super) out: Vec<&'a mut [f32]>,
    /// For each query token, `[group_size]`; empty when lse is not wanted.
    pub(super) lse: Vec<&'a mut [f32]>,
}

/// What one thread needs to compute any block, allocated once per thread.
pub(super) struct Scratch {
    /// `[num_strips, head_dim, 6]`.
    queries: Vec<f32>,
    /// See [`Tile::keys`].
    keys: Vec<f32>,
    /// See [`Tile::values`].
    values: Vec<f32>,
    /// See [`Strip::scores`].
    scores: Vec<f32>,
    rows: Accumulator,
}

impl Scratch {
    pub(super) fn new(shape: &HeadShape) -> Self {
        let num_rows = block_tokens(shape) * shape.group_size();
        let rows = Accumulator::new(num_rows.next_multiple_of(STRIP_ROWS), shape.head_dim);
        Self {
            queries: vec![0.0; rows.num_rows() * shape.head_dim],
            keys: vec![0.0; TILE_TOKENS * shape.head_dim],
            values: vec![0.0; TILE_TOKENS * rows.row_stride],
            scores: vec![0.0; STRIP_ROWS * TILE_TOKENS],
            rows,
        }
    }
}

impl Block<'_> {
    pub(super) fn new(kv_head: usize, first_query: usize) -> Self {
        Self { kv_head, first_query, out: Vec::new(), lse: Vec::new() }
    }

    /// Fills the block's outputs.
    pub(super) fn compute(
        &mut self,
        level: Level,
        shape: &HeadShape,
        input: PrefillInput<'_>,
        scratch: &mut Scratch,
    ) {
        let (head_dim, group_size) = (shape.head_dim, shape.group_size());
        let num_rows = self.out.len() * group_size;
        let offset = (input.k.len() / shape.kv_row_len()) - (input.q.len() / shape.qo_row_len());
        // Row r is head r % group_size of token r / group_size, so that rows of a strip see nearly the
        // same keys. Rows that fill up the last strip repeat its last token; nothing reads them.
        let last_token = self.out.len() - 1;
        let seen_by =
            |row: usize| offset + self.first_query + (row / group_size).min(last_token) + 1;
        let num_seen = seen_by(num_rows - 1);

        scratch.rows.reset();
        self.pack_queries(shape, input.q, &mut scratch.queries);
        let row_stride = scratch.rows.row_stride;
        for first in (0..num_seen).step_by(TILE_TOKENS) {
            let num_tokens = TILE_TOKENS.min(num_seen - first);
            let start = first * shape.kv_row_len() + self.kv_head * head_dim;
            let rows = HeadRows { start, stride: shape.kv_row_len(), head_dim, num_tokens };
            pack_keys(level, rows, input.k, &mut scratch.keys);
            pack_values(rows, input.v, TILE_TOKENS, &mut scratch.values);
            let tile = Tile {
                head_dim,
                capacity: TILE_TOKENS,
                keys: &scratch.keys,
                values: &scratch.values,
            };
            let accumulator = &mut scratch.rows;
            let strips = accumulator
                .max
                .chunks_exact_mut(STRIP_ROWS)
                .zip(accumulator.sum.chunks_exact_mut(STRIP_ROWS))
                .zip(accumulator.weighted.chunks_exact_mut(STRIP_ROWS * row_stride))
                .zip(scratch.queries.chunks_exact(STRIP_ROWS * head_dim))
                .take(num_rows.div_ceil(STRIP_ROWS));
            for (strip, (((max, sum), weighted), queries)) in strips.enumerate() {
                let visible = std::array::from_fn(|row| {
                    seen_by(strip * STRIP_ROWS + row).saturating_sub(first).min(num_tokens)
                });
                let scores = &mut scratch.scores;
                absorb(level, Strip { queries, visible, max, sum, weighted, scores }, tile);
            }
        }
        self.finish(shape, &scratch.rows);
    }

    /// Packs the block's queries, scaled, as `[num_strips, head_dim, 6]`; rows beyond the block are
    /// left as they are and stay finite.
    fn pack_queries(&self, shape: &HeadShape, q: &[f32], packed: &mut [f32]) {
        let group_len = shape.group_size() * shape.head_dim;
        for token in 0..self.out.len() {
            let start = (self.first_query + token) * shape.qo_row_len() + self.kv_head * group_len;
            let group = &q[start..start + group_len];
            for (head, query) in group.chunks_exact(shape.head_dim).enumerate() {
                let row = token * shape.group_size() + head;
                let strip_start = row / STRIP_ROWS * STRIP_ROWS * shape.head_dim;
                let lanes = packed[strip_start + row % STRIP_ROWS..].iter_mut().step_by(STRIP_ROWS);
                for (lane, channel) in lanes.zip(query) {
                    *lane = channel * shape.sm_scale;
                }
            }
        }
    }

    fn finish(&mut self, shape: &HeadShape, rows: &Accumulator) {
        let group_size = shape.group_size();
        for (token, out) in self.out.iter_mut().enumerate() {
            for (head, out) in out.chunks_exact_mut(shape.head_dim).enumerate() {
                let lse = rows.write_row(token * group_size + head, out);
                if let Some(lse_row) = self.lse.get_mut(token) {
                    lse_row[head] = lse;
                }
            }
        }
    }
}
