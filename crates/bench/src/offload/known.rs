//! Rows of a store whose every byte and every sum is known: vectors of a pool, in turn.

use anyhow::{Result, ensure};
use heterokv_attn::AttnState;
use heterokv_offload::{Sequence, StoreShape};
use heterokv_quant::{PageRows, RowLayout};
use heterokv_testkit::{Inputs, Tolerance, compare};

/// Vectors of the pool: a prime, so that no two pages of a head are alike.
const POOL: usize = 4093;

/// How far sums of a million rows in f32 may be from those in f64.
const TOLERANCE: Tolerance = Tolerance { absolute: 2e-5, relative: 1e-5 };

/// The rows that every (layer, KV head) of a sequence holds.
pub(super) struct Known {
    pub(super) layout: RowLayout,
    /// `[POOL, head_dim]` each.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// `[POOL, row_bytes]`.
    rows: Vec<u8>,
    /// What the rows decode to, `[POOL, head_dim]` each; no keys where the rows carry none.
    held_keys: Vec<f32>,
    held_values: Vec<f32>,
}

/// The scores of `num_heads` query heads, by which a reference weighs rows.
pub(super) trait Scores {
    /// Of a query head for the `i`-th position, whose key is this; empty where the rows carry none.
    fn score(&self, query_head: usize, i: usize, key: &[f32]) -> f64;
}

impl Known {
    pub(super) fn new(layout: RowLayout) -> Result<Self> {
        let mut inputs = Inputs::new(7);
        let [keys, values] = [(); 2].map(|()| inputs.gaussian_rows(POOL, layout.head_dim, 1.0));
        let mut rows = vec![0; POOL * layout.row_bytes()];
        let mut held_keys = vec![0.0; layout.key.map_or(0, |_| keys.len())];
        let mut held_values = vec![0.0; values.len()];
        for (idx, row) in rows.chunks_exact_mut(layout.row_bytes()).enumerate() {
            let of = idx * layout.head_dim..(idx + 1) * layout.head_dim;
            layout.encode(&keys[of.clone()], &values[of.clone()], row)?;
            let (key, value) = row.split_at(layout.key_bytes());
            if let Some(format) = layout.key {
                format.decode(key, &mut held_keys[of.clone()]);
            }
            layout.value.decode(value, &mut held_values[of]);
        }
        Ok(Self { layout, keys, values, rows, held_keys, held_values })
    }

    /// Appends rows until every (layer, KV head) has `num_rows`: layer by layer, as a prompt does.
    pub(super) fn fill(&self, sequence: &mut Sequence, num_rows: usize) -> Result<()> {
        let StoreShape { num_layers, num_kv_heads, .. } = *sequence.store().shape();
        for head in 0..num_layers * num_kv_heads {
            let (layer, kv_head) = (head / num_kv_heads, head % num_kv_heads);
            let first = sequence.rows(layer, kv_head).num_rows();
            self.append(sequence, (layer, kv_head), head, first..num_rows)?;
        }
        Ok(())
    }

    /// Appends rows to the `head`-th (layer, KV head).
    pub(super) fn append(
        &self,
        sequence: &mut Sequence,
        (layer, kv_head): (usize, usize),
        head: usize,
        rows: std::ops::Range<usize>,
    ) -> Result<()> {
        let head_dim = self.layout.head_dim;
        let mut row = rows.start;
        while row < rows.end {
            let idx = idx(head, row);
            let len = (POOL - idx).min(rows.end - row);
            let of = idx * head_dim..(idx + len) * head_dim;
            sequence.append(layer, kv_head, &self.keys[of.clone()], &self.values[of])?;
            row += len;
        }
        Ok(())
    }

    /// The bytes of a row.
    pub(super) fn row(&self, head: usize, row: usize) -> &[u8] {
        let row_bytes = self.layout.row_bytes();
        &self.rows[idx(head, row) * row_bytes..][..row_bytes]
    }

    /// Holds the rows of a page that were asked for to what was appended.
    ///
    /// # Errors
    /// Where a byte differs.
    pub(super) fn check(&self, head: usize, page: PageRows<'_>) -> Result<()> {
        let rows = page.rows;
        for ((_, bytes), &row) in page.iter(self.layout.row_bytes()).zip(rows) {
            ensure!(bytes == self.row(head, row as usize), "row {row} of head {head} is another");
        }
        Ok(())
    }

    /// Holds the attention of `head` over `positions` to a sum in f64 over what the formats decode to.
    ///
    /// # Errors
    /// Where it is not near.
    pub(super) fn check_sum(
        &self,
        head: usize,
        positions: &[u32],
        scores: &impl Scores,
        state: &AttnState,
    ) -> Result<()> {
        let head_dim = self.layout.head_dim;
        for query_head in 0..state.num_heads() {
            // The same vectors come again and again: their weights first, then each of them once.
            let mut weights = vec![0.0f64; POOL];
            for (i, &row) in positions.iter().enumerate() {
                let idx = idx(head, row as usize);
                let key = self.held_keys.get(idx * head_dim..(idx + 1) * head_dim);
                weights[idx] += scores.score(query_head, i, key.unwrap_or_default()).exp();
            }
            let total: f64 = weights.iter().sum();
            let mut expected = vec![0.0f64; head_dim];
            for (weight, value) in weights.iter().zip(self.held_values.chunks(head_dim)) {
                for (sum, x) in expected.iter_mut().zip(value) {
                    *sum += weight / total * f64::from(*x);
                }
            }
            let out = &state.out()[query_head * head_dim..][..head_dim];
            compare(out, &expected, TOLERANCE)?;
            compare(&state.lse()[query_head..=query_head], &[total.ln()], TOLERANCE)?;
        }
        Ok(())
    }
}

/// Which vector of the pool a row of a head is.
fn idx(head: usize, row: usize) -> usize {
    (row + 131 * head) % POOL
}
