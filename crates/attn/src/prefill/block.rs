//! One block of prefill: some query tokens of one KV head's group against all keys they see.

use std::ops::Range;

use heterokv_quant::Level;

use super::packed::{PackedRows, TILE_TOKENS};
use crate::simd::strip::{STRIP_ROWS, Strip, absorb};
use crate::{Accumulator, HeadShape};

/// Query rows (tokens times heads of the group) that a block has room for: enough that bringing a tile near
/// is a small part of using it, few enough that outputs and queries stay in the second-level cache.
/// Measured with the example `prefill_speed`.
const BLOCK_ROWS: usize = 64 * STRIP_ROWS;

/// Query tokens of a block; a group of more heads than [`BLOCK_ROWS`] still gets one.
pub(super) fn block_tokens(shape: &HeadShape) -> usize {
    (BLOCK_ROWS / shape.group_size()).max(1)
}

/// Consecutive query tokens of one KV head, and where their results go.
pub(super) struct Block<'a> {
    kv_head: usize,
    /// Position in the prompt of the block's first.
    pub(super) first_token: usize,
    /// Tokens that none of the block's queries sees, all of them before the first.
    left_out: Range<usize>,
    /// For each query token, `[group_size, head_dim]`.
    pub(super) out: Vec<&'a mut [f32]>,
    /// For each query token, `[group_size]`; empty when lse is not wanted.
    pub(super) lse: Vec<&'a mut [f32]>,
}

/// What one thread needs to compute any block, allocated once per thread.
pub(super) struct Scratch {
    /// `[num_strips, head_dim, 6]`.
    queries: Vec<f32>,
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
            scores: vec![0.0; STRIP_ROWS * TILE_TOKENS],
            rows,
        }
    }
}

impl Block<'_> {
    pub(super) fn new(kv_head: usize, first_token: usize, left_out: Range<usize>) -> Self {
        Self { kv_head, first_token, left_out, out: Vec::new(), lse: Vec::new() }
    }

    /// Fills the block's outputs from its queries, which `q` begins with, and the rows of the prompt.
    pub(super) fn compute(
        &mut self,
        level: Level,
        shape: &HeadShape,
        q: &[f32],
        packed: &PackedRows,
        scratch: &mut Scratch,
    ) {
        let (head_dim, group_size) = (shape.head_dim, shape.group_size());
        let num_rows = self.out.len() * group_size;
        // Row r is head r % group_size of token r / group_size, so that rows of a strip see nearly the
        // same keys. Rows that fill up the last strip repeat its last token; nothing reads them.
        let last_token = self.out.len() - 1;
        let seen_by = |row: usize| self.first_token + (row / group_size).min(last_token) + 1;
        let num_seen = seen_by(num_rows - 1);

        scratch.rows.reset();
        self.pack_queries(shape, q, &mut scratch.queries);
        let row_stride = scratch.rows.row_stride;
        let Range { start, end } = self.left_out.clone();
        let tiles_of = |seen: Range<usize>| {
            let first_tile = seen.start / TILE_TOKENS * TILE_TOKENS;
            (first_tile..seen.end).step_by(TILE_TOKENS).map(move |first| (first, seen.clone()))
        };
        for (first, seen) in tiles_of(0..start).chain(tiles_of(end..num_seen)) {
            let tile = packed.tile(self.kv_head, first / TILE_TOKENS);
            let hidden = seen.start.saturating_sub(first);
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
                    let end = seen_by(strip * STRIP_ROWS + row).min(seen.end);
                    end.saturating_sub(first).min(TILE_TOKENS)
                });
                let scores = &mut scratch.scores;
                absorb(level, Strip { queries, hidden, visible, max, sum, weighted, scores }, tile);
            }
        }
        self.finish(shape, &scratch.rows);
    }

    /// Packs the block's queries, scaled, as `[num_strips, head_dim, 6]`; rows beyond the block are
    /// left as they are and stay finite.
    fn pack_queries(&self, shape: &HeadShape, q: &[f32], packed: &mut [f32]) {
        let group_len = shape.group_size() * shape.head_dim;
        for token in 0..self.out.len() {
            let start = token * shape.qo_row_len() + self.kv_head * group_len;
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
