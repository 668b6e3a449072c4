//! The small operations between matrix products: norm, rotary embedding, activation, sums.

use rayon::prelude::*;

use heterokv_cache::RotaryTurns;

use crate::rope_config::RopeConfig;

/// Values below which an operation is not worth spreading over threads.
const MIN_TASK_VALUES: usize = 1 << 14;

/// Root-mean-square norm of every row of `rows [n, weight.len()]`, in place:
/// `x · weight / sqrt(mean(x²) + eps)` (Zhang and Sennrich, arXiv 1910.07467). The mean is taken in f32.
pub(crate) fn rms_norm(rows: &mut [f32], weight: &[f32], eps: f32) {
    let norm = |row: &mut [f32]| {
        let energy: f32 = row.as_chunks::<8>().0.iter().fold([0.0f32; 8], add_squares).iter().sum();
        let rest: f32 = row.as_chunks::<8>().1.iter().map(|x| x * x).sum();
        let scale = 1.0 / ((energy + rest) / row.len() as f32 + eps).sqrt();
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
    };
    each_row(rows, weight.len(), |_, row| norm(row));
}

fn add_squares(mut sums: [f32; 8], x: &[f32; 8]) -> [f32; 8] {
    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
    sums
}

/// `gate = silu(gate) · up`, element by element, `silu(x) = x / (1 + exp(−x))` (arXiv 2002.05202).
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    gate.par_chunks_mut(MIN_TASK_VALUES).zip(up.par_chunks(MIN_TASK_VALUES)).for_each(
        |(gate, up)| {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate / (1.0 + (-*gate).exp()) * up;
            }
        },
    );
}

/// `sum += other`, element by element.
pub(crate) fn add_to(sum: &mut [f32], other: &[f32]) {
    sum.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
}

/// Adds a bias to a row.
pub(crate) fn add_bias(row: &mut [f32], bias: &[f32]) {
    add_to(row, bias);
}

/// The rotary embedding (Su et al., arXiv 2104.09864) in the half-split pairing: channel `i` turns
/// with channel `i + head_dim / 2`.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Angle per position of each pair, `[head_dim / 2]`.
    inverse_frequencies: Vec<f32>,
    /// What cosine and sine are multiplied by.
    attention_factor: f32,
    head_dim: usize,
}

impl Rope {
    pub(crate) fn new(config: &RopeConfig, head_dim: usize) -> Self {
        Self {
            inverse_frequencies: config.inverse_frequencies(head_dim),
            attention_factor: config.attention_factor(),
            head_dim,
        }
    }

    /// What undoes it.
    pub(crate) fn rotary_turns(&self) -> RotaryTurns<'_> {
        let Self { inverse_frequencies, attention_factor, .. } = self;
        RotaryTurns { inverse_frequencies, attention_factor: *attention_factor }
    }

    /// Sine and cosine of each pair at a position, computed in f64, so that they stay exact at positions of millions.
    pub(crate) fn turns(&self, position: usize) -> impl Iterator<Item = (f32, f32)> {
        self.inverse_frequencies.iter().map(move |&frequency| {
            let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
            (sin as f32 * self.attention_factor, cos as f32 * self.attention_factor)
        })
    }

    /// Turns `rows [n, num_heads, head_dim]`, whose first token is at `position`.
    pub(crate) fn rotate(&self, rows: &mut [f32], position: usize, num_heads: usize) {
        let half = self.head_dim / 2;
        each_row(rows, num_heads * self.head_dim, |token, row| {
            let angles: Vec<(f32, f32)> = self.turns(position + token).collect();
            for head in row.chunks_exact_mut(self.head_dim) {
                let (low, high) = head.split_at_mut(half);
                for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(&angles) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
    }
}

/// Runs `work(row index, row)` over rows of `row_len`, on several threads where there are many.
fn each_row(rows: &mut [f32], row_len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let task_rows = (MIN_TASK_VALUES / row_len).max(1);
    rows.par_chunks_mut(task_rows * row_len).enumerate().for_each(|(task, rows)| {
        for (i, row) in rows.chunks_exact_mut(row_len).enumerate() {
            work(task * task_rows + i, row);
        }
    });
}
