//! One decode step of one KV head's query group: exact attention over rows, resident or on the host.
//!
//! A [`GroupSum`] is the running softmax of the `G` query heads that share a KV head. Rows reach it in
//! tiles; every row is read once for all heads. Three kinds of rows are taken in:
//!
//! - resident rows, f16 keys and values that lie side by side on the device;
//! - host rows under scores that the caller has, those of coded keys (HCAttention as published,
//!   arXiv 2507.19823, §3.4);
//! - host rows re-scored with the exact keys that they carry, so that coded keys only select.

use std::collections::BTreeMap;

use heterokv_quant::{GroupQueries, Level, RowFormat, RowLayout, RowSource, WeightedRows};

use crate::AttnState;
use crate::simd::exp::{exp_weight, exp_weights};

/// Rows whose scores are held at a time.
const TILE: usize = 128;

/// The running softmax of the query heads of one KV head.
#[derive(Clone, Debug)]
pub struct GroupSum {
    num_heads: usize,
    head_dim: usize,
    /// `[num_heads]`, −∞ before the first row.
    max: Vec<f32>,
    /// `[num_heads]`, sum of `exp(score − max)`.
    sum: Vec<f32>,
    /// `[num_heads, head_dim]`, sum of `exp(score − max)` times the value.
    weighted: Vec<f32>,
    /// `[num_heads, TILE]`: scores, then the weights that they become.
    scores: Vec<f32>,
}

/// Resident rows: keys and values `[num_tokens, head_dim]` in f16, little endian.
#[derive(Clone, Copy, Debug)]
pub struct ResidentRows<'a> {
    /// Post-RoPE keys.
    pub keys: &'a [u8],
    /// Values.
    pub values: &'a [u8],
}

/// The scores under which host rows are summed.
#[derive(Clone, Copy, Debug)]
pub enum HostScores<'a> {
    /// Given: `scores[head · stride + i]` for the i-th position, `−∞` where a head does not take it.
    Coded {
        /// Scaled scores.
        scores: &'a [f32],
        /// From one head's scores to the next.
        stride: usize,
    },
    /// Recomputed from the exact keys of the rows.
    Exact {
        /// Queries `[num_heads, head_dim]`, times `sm_scale`.
        queries: &'a [f32],
        /// `taken[head · stride + i]`: whether a head takes the i-th position. None: all do.
        taken: Option<(&'a [bool], usize)>,
    },
}

impl GroupSum {
    /// No rows yet, for `num_heads` query heads.
    #[must_use]
    pub fn new(num_heads: usize, head_dim: usize) -> Self {
        Self {
            num_heads,
            head_dim,
            max: vec![f32::NEG_INFINITY; num_heads],
            sum: vec![0.0; num_heads],
            weighted: vec![0.0; num_heads * head_dim],
            scores: vec![0.0; num_heads * TILE],
        }
    }

    /// Forgets all rows, keeping the memory.
    pub fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.weighted.fill(0.0);
    }

    /// Takes in resident rows with exact scores. `queries [num_heads, head_dim]` hold `sm_scale`.
    ///
    /// # Panics
    /// When keys and values are not rows of the same number, or the queries are not of this group.
    pub fn add_resident(&mut self, level: Level, queries: &[f32], rows: ResidentRows<'_>) {
        self.add_resident_runs(level, queries, &[rows], None);
    }

    /// [`GroupSum::add_resident`] of rows that lie in several places, in their order. Where `scores` are asked for, they are
    /// written to `scores[head · stride + row]`, scaled, with the stride beside them.
    ///
    /// # Panics
    /// As there, and when the scores have no room for every row.
    pub fn add_resident_runs(
        &mut self,
        level: Level,
        queries: &[f32],
        runs: &[ResidentRows<'_>],
        mut scores: Option<(&mut [f32], usize)>,
    ) {
        let row_bytes = RowFormat::F16.bytes(self.head_dim);
        assert_eq!(queries.len(), self.num_heads * self.head_dim, "one query per head");
        assert!(runs.iter().all(|rows| rows.keys.len() == rows.values.len()));
        let queries = GroupQueries { queries, head_dim: self.head_dim };
        let mut rows = runs.iter().flat_map(|rows| {
            rows.keys.chunks_exact(row_bytes).zip(rows.values.chunks_exact(row_bytes))
        });
        let mut first = 0;
        loop {
            let mut tile = [&[][..]; TILE];
            let mut count = 0;
            for (value, (key, bytes)) in tile.iter_mut().zip(rows.by_ref()) {
                RowFormat::F16.dot(level, queries, key, &mut self.scores[count..], TILE);
                *value = bytes;
                count += 1;
            }
            if count == 0 {
                return;
            }
            if let Some((scores, stride)) = &mut scores {
                for (head, tile) in self.scores.chunks_exact(TILE).enumerate() {
                    scores[head * *stride + first..][..count].copy_from_slice(&tile[..count]);
                }
            }
            self.sum_tile(level, RowFormat::F16, &tile[..count]);
            first += count;
        }
    }

    /// Takes in the host rows at `positions` (ascending, without repeats) in the order of the list, a tile of it at a time:
    /// rows that come before their turn, and those of a tile that comes in parts, are copied and wait, so that the sum does
    /// not depend on what comes when, to the bit.
    ///
    /// # Errors
    /// What the source fails with; the sum is then incomplete and must be reset.
    ///
    /// # Panics
    /// When exact scores are asked of rows that carry no keys, the scores do not cover the positions, or
    /// rows or queries are not of this group; and where a source leaves rows out.
    pub fn add_host<S: RowSource>(
        &mut self,
        level: Level,
        source: &S,
        positions: &[u32],
        scores: HostScores<'_>,
    ) -> Result<(), S::Error> {
        let layout = source.layout();
        assert_eq!(layout.head_dim, self.head_dim, "rows of this group's length");
        if let HostScores::Exact { queries, .. } = scores {
            assert_eq!(queries.len(), self.num_heads * self.head_dim, "one query per head");
        }
        let mut tiles = HostTiles { sum: self, level, layout, scores, num_rows: positions.len() };
        let (mut next, mut partial) = (0, Vec::new());
        let mut early: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let row_bytes = layout.row_bytes();
        source.visit_runs(positions, &mut |run| {
            if run.offset != next {
                early.insert(run.offset, run.rows.concat());
                return;
            }
            next = tiles.add(next, run.rows, &mut partial);
            while let Some(bytes) = early.remove(&next) {
                let rows: Vec<_> = bytes.chunks_exact(row_bytes).collect();
                next = tiles.add(next, &rows, &mut partial);
            }
        })?;
        assert_eq!(next, positions.len(), "a source gives every row");
        Ok(())
    }

    /// Writes the scores of the rows from `first` on in the list into a tile.
    fn score_host_rows(
        &mut self,
        level: Level,
        layout: RowLayout,
        first: usize,
        rows: &[&[u8]],
        scores: HostScores<'_>,
    ) {
        match scores {
            HostScores::Coded { scores, stride } => {
                for (head, tile) in self.scores.chunks_exact_mut(TILE).enumerate() {
                    let scores = &scores[head * stride + first..][..rows.len()];
                    tile[..rows.len()].copy_from_slice(scores);
                }
            }
            HostScores::Exact { queries, taken } => {
                let format = layout.key.expect("rows that are re-scored carry their keys");
                let queries = GroupQueries { queries, head_dim: self.head_dim };
                for (slot, row) in rows.iter().enumerate() {
                    let key = &row[..layout.key_bytes()];
                    format.dot(level, queries, key, &mut self.scores[slot..], TILE);
                }
                let Some((taken, stride)) = taken else { return };
                for (head, tile) in self.scores.chunks_exact_mut(TILE).enumerate() {
                    let taken = &taken[head * stride + first..][..rows.len()];
                    for (score, _) in tile.iter_mut().zip(taken).filter(|(_, taken)| !**taken) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    /// Takes in a tile of values whose scores are there: first the maximum of all of them, so that what
    /// was summed before is rescaled once, then the values under their weights.
    fn sum_tile(&mut self, level: Level, format: RowFormat, values: &[&[u8]]) {
        if values.is_empty() || self.num_heads == 0 {
            return;
        }
        self.weigh(level, values.len());
        let rows = WeightedRows { vectors: values, weights: &self.scores, stride: TILE };
        format.weighted_sum(level, rows, &mut self.weighted);
    }

    /// Turns the first `count` scores of every head into weights relative to the new maximum, and
    /// rescales what was summed before.
    fn weigh(&mut self, level: Level, count: usize) {
        for head in 0..self.num_heads {
            let scores = &mut self.scores[head * TILE..][..count];
            let old = self.max[head];
            // `f32::max` drops a NaN; it comes back through the weights.
            let new = largest(scores).max(old);
            if new > old && old != f32::NEG_INFINITY {
                let scale = exp_weight(old - new);
                self.sum[head] *= scale;
                let row = &mut self.weighted[head * self.head_dim..][..self.head_dim];
                row.iter_mut().for_each(|x| *x *= scale);
            }
            self.max[head] = new;
            self.sum[head] += exp_weights(level, scores, new);
        }
    }

    /// Merges what was summed into `state`, whose heads are those of this group.
    ///
    /// # Panics
    /// When the state is of another shape.
    pub fn merge_into(&self, state: &mut AttnState) {
        let mut out = vec![0.0; self.head_dim];
        for head in 0..self.num_heads {
            if self.sum[head] == 0.0 {
                continue;
            }
            let share = 1.0 / self.sum[head];
            let weighted = &self.weighted[head * self.head_dim..][..self.head_dim];
            out.iter_mut().zip(weighted).for_each(|(out, x)| *out = x * share);
            let lse = self.max[head] + self.sum[head].ln();
            state.merge_head(head, &out, lse).expect("the state is of this group's shape");
        }
    }
}

/// Host rows on their way into a sum, in the order of their list.
struct HostTiles<'a> {
    sum: &'a mut GroupSum,
    level: Level,
    layout: RowLayout,
    scores: HostScores<'a>,
    /// Of the list.
    num_rows: usize,
}

impl HostTiles<'_> {
    /// Takes in the rows that are next in the list, and says what is next after them. `partial` has the rows of a tile that
    /// is not complete, and gets those of the next one.
    fn add(&mut self, mut next: usize, mut rows: &[&[u8]], partial: &mut Vec<u8>) -> usize {
        let row_bytes = self.layout.row_bytes();
        while !rows.is_empty() {
            let first = next / TILE * TILE;
            let end = self.num_rows.min(first + TILE);
            let (now, later) = rows.split_at(rows.len().min(end - next));
            next += now.len();
            rows = later;
            if next < end || !partial.is_empty() {
                now.iter().for_each(|row| partial.extend_from_slice(row));
            }
            if next < end {
                continue;
            }
            if partial.is_empty() {
                self.add_tile(first, now);
            } else {
                self.add_tile(first, &partial.chunks_exact(row_bytes).collect::<Vec<_>>());
                partial.clear();
            }
        }
        next
    }

    fn add_tile(&mut self, first: usize, rows: &[&[u8]]) {
        let mut values = [&[][..]; TILE];
        let key_bytes = self.layout.key_bytes();
        self.sum.score_host_rows(self.level, self.layout, first, rows, self.scores);
        values.iter_mut().zip(rows).for_each(|(value, row)| *value = &row[key_bytes..]);
        self.sum.sum_tile(self.level, self.layout.value, &values[..rows.len()]);
    }
}

/// The largest of the scores, minus infinity of none, in eight chains that do not wait for each other.
fn largest(scores: &[f32]) -> f32 {
    let (eights, rest) = scores.as_chunks::<8>();
    let mut largest = [f32::NEG_INFINITY; 8];
    for eight in eights {
        largest.iter_mut().zip(eight).for_each(|(largest, score)| *largest = largest.max(*score));
    }
    largest.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}
