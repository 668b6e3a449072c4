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

use heterokv_quant::{
    GroupQueries, Level, RowFormat, RowLayout, RowSource, ScoredVectors, VectorList, WeightedRows,
};

use crate::AttnState;
use crate::simd::exp::{exp_weight, exp_weights};

/// Rows whose scores are held at a time: at a head_dim of 64 their f16 keys and values are 16 KB, and those of the tile
/// after it, which the memory is asked for meanwhile, as much again.
const TILE: usize = 64;

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
        assert_eq!(queries.len(), self.num_heads * self.head_dim, "one query per head");
        assert!(runs.iter().all(|rows| rows.keys.len() == rows.values.len()));
        if queries.is_empty() {
            return;
        }
        let queries = GroupQueries { queries, head_dim: self.head_dim };
        let mut next = Runs { runs, row: 0, row_bytes: RowFormat::F16.bytes(self.head_dim) };
        let mut first = 0;
        loop {
            let mut tile = next;
            let mut count = 0;
            while let Some(rows) = next.take(TILE - count) {
                let (vectors, soon) = (VectorList::Beside(rows.keys), next.soon().keys);
                let scored = ScoredVectors { queries, vectors, soon: VectorList::Beside(soon) };
                RowFormat::F16.score(level, scored, &mut self.scores[count..], TILE);
                count += next.num_rows(rows);
            }
            if count == 0 {
                return;
            }
            if let Some((scores, stride)) = &mut scores {
                for (head, tile) in self.scores.chunks_exact(TILE).enumerate() {
                    scores[head * *stride + first..][..count].copy_from_slice(&tile[..count]);
                }
            }
            self.weigh(level, count);
            let mut at = 0;
            while let Some(rows) = tile.take(TILE - at) {
                let (vectors, soon) = (VectorList::Beside(rows.values), tile.soon().values);
                let soon = VectorList::Beside(soon);
                let weights = &self.scores[at..];
                let summed = WeightedRows { vectors, soon, weights, stride: TILE };
                RowFormat::F16.weighted_sum(level, summed, &mut self.weighted);
                at += tile.num_rows(rows);
            }
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
        (rows, soon): (&[&[u8]], &[&[u8]]),
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
                let [vectors, soon] = [rows, soon].map(|rows| VectorList::InRows { rows, at: 0 });
                let scored = ScoredVectors { queries, vectors, soon };
                format.score(level, scored, &mut self.scores, TILE);
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

    /// Turns the first `count` scores of every head into weights relative to the new maximum, and
    /// rescales what was summed before.
    fn weigh(&mut self, level: Level, count: usize) {
        for head in 0..self.num_heads {
            let scores = &mut self.scores[head * TILE..][..count];
            let old = self.max[head];
            // A NaN that is passed over comes back through the weights.
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
        for head in 0..self.num_heads {
            if self.sum[head] == 0.0 {
                continue;
            }
            let share = 1.0 / self.sum[head];
            let weighted = &self.weighted[head * self.head_dim..][..self.head_dim];
            let lse = self.max[head] + self.sum[head].ln();
            state
                .merge_share(head, weighted, share, lse)
                .expect("the state is of this group's shape");
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
            let soon = &later[..later.len().min(TILE)];
            if partial.is_empty() {
                self.add_tile(first, now, soon);
            } else {
                self.add_tile(first, &partial.chunks_exact(row_bytes).collect::<Vec<_>>(), soon);
                partial.clear();
            }
        }
        next
    }

    /// Takes in a tile whose first row is the `first` of the list: first the maximum of all its scores, so that what was
    /// summed before is rescaled once, then the values under their weights.
    fn add_tile(&mut self, first: usize, rows: &[&[u8]], soon: &[&[u8]]) {
        let Self { ref mut sum, level, layout, scores, .. } = *self;
        if sum.num_heads == 0 {
            return;
        }
        sum.score_host_rows(level, layout, first, (rows, soon), scores);
        sum.weigh(level, rows.len());
        let at = layout.key_bytes();
        let [vectors, soon] = [rows, soon].map(|rows| VectorList::InRows { rows, at });
        let summed = WeightedRows { vectors, soon, weights: &sum.scores, stride: TILE };
        layout.value.weighted_sum(level, summed, &mut sum.weighted);
    }
}

/// Resident rows in the order of their runs, from one of them on.
#[derive(Clone, Copy)]
struct Runs<'a> {
    runs: &'a [ResidentRows<'a>],
    /// Rows of the first run that were taken.
    row: usize,
    row_bytes: usize,
}

impl<'a> Runs<'a> {
    /// The next rows of one run, as many as are wanted at most; none where none are wanted or left.
    fn take(&mut self, most: usize) -> Option<ResidentRows<'a>> {
        while let Some((&run, rest)) = self.runs.split_first() {
            let (first, num_rows) = (self.row, self.num_rows(run));
            if first == num_rows {
                (self.runs, self.row) = (rest, 0);
                continue;
            }
            self.row = num_rows.min(first + most);
            let span = first * self.row_bytes..self.row * self.row_bytes;
            let rows = ResidentRows { keys: &run.keys[span.clone()], values: &run.values[span] };
            return (most > 0).then_some(rows);
        }
        None
    }

    /// What comes after what was taken, a tile at most.
    fn soon(mut self) -> ResidentRows<'a> {
        self.take(TILE).unwrap_or(ResidentRows { keys: &[], values: &[] })
    }

    fn num_rows(&self, rows: ResidentRows<'_>) -> usize {
        rows.keys.len() / self.row_bytes
    }
}

/// The largest of the scores, minus infinity of none; NaN is passed over.
fn largest(scores: &[f32]) -> f32 {
    /// Chains that do not wait for each other.
    const LANES: usize = 16;
    // What processors have an instruction for, which is not `f32::max`.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &score)| *lane = larger(*lane, score));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &score)| *lane = larger(*lane, score));
    for half in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, &mut high)| *low = larger(*low, high));
    }
    lanes[0]
}
