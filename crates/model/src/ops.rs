//! The small operations between matrix products: norm, rotary embedding, activation, sums.

use rayon::prelude::*;

use heterokv_cache::RotaryTurns;

use crate::rope_config::RopeConfig;

/// Values below which an operation is not worth spreading over threads.
const MIN_TASK_VALUES: usize = 1 << 14;

/// Root-mean-square norm of every row of `rows [n, weight.len()]`, into `out` of the same shape:
/// `x · weight / sqrt(mean(x²) + eps)` (Zhang and Sennrich, arXiv 1910.07467). The mean is taken in f32.
pub(crate) fn rms_norm(rows: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    each_row(out, rows, weight.len(), |out, row| norm_to(row, weight, eps, out));
}

/// [`rms_norm`] that takes the place of its rows.
pub(crate) fn rms_norm_in_place(rows: &mut [f32], weight: &[f32], eps: f32) {
    let each = |row: &mut [f32]| {
        let scale = norm_scale(row, eps);
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * w);
    };
    match rows.len() <= MIN_TASK_VALUES {
        true => rows.chunks_exact_mut(weight.len()).for_each(each),
        false => rows.par_chunks_exact_mut(weight.len()).with_min_len(64).for_each(each),
    }
}

/// `rows += added`, then [`rms_norm`] of the sums.
pub(crate) fn add_and_norm(
    rows: &mut [f32],
    added: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let len = weight.len();
    let task = |((rows, added), out): ((&mut [f32], &[f32]), &mut [f32])| {
        add_to(rows, added);
        for (row, out) in rows.chunks_exact(len).zip(out.chunks_exact_mut(len)) {
            norm_to(row, weight, eps, out);
        }
    };
    if rows.len() <= MIN_TASK_VALUES {
        return task(((rows, added), out));
    }
    let task_len = task_len(len);
    let of_tasks = rows.par_chunks_mut(task_len).zip(added.par_chunks(task_len));
    of_tasks.zip(out.par_chunks_mut(task_len)).for_each(task);
}

fn norm_to(row: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = norm_scale(row, eps);
    for ((out, x), w) in out.iter_mut().zip(row).zip(weight) {
        *out = x * (scale * w);
    }
}

/// One over the root of the mean square.
fn norm_scale(row: &[f32], eps: f32) -> f32 {
    let (eights, rest) = row.as_chunks::<8>();
    let energy: f32 = eights.iter().fold([0.0f32; 8], add_squares).iter().sum();
    let rest: f32 = rest.iter().map(|x| x * x).sum();
    1.0 / ((energy + rest) / row.len() as f32 + eps).sqrt()
}

fn add_squares(mut sums: [f32; 8], x: &[f32; 8]) -> [f32; 8] {
    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
    sums
}

/// `sum += other`, element by element.
pub(crate) fn add_to(sum: &mut [f32], other: &[f32]) {
    sum.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
}

/// Adds a bias to every row of `rows [n, bias.len()]`.
pub(crate) fn add_bias(rows: &mut [f32], bias: &[f32]) {
    match rows.len() <= MIN_TASK_VALUES {
        true => rows.chunks_exact_mut(bias.len()).for_each(|row| add_to(row, bias)),
        false => rows.par_chunks_exact_mut(bias.len()).for_each(|row| add_to(row, bias)),
    }
}

/// Runs `work` over parts of two slices of one length, on several threads where they are long.
pub(crate) fn spread(x: &mut [f32], y: &[f32], work: impl Fn(&mut [f32], &[f32]) + Sync) {
    if x.len() <= MIN_TASK_VALUES {
        return work(x, y);
    }
    let tasks = x.par_chunks_mut(MIN_TASK_VALUES).zip(y.par_chunks(MIN_TASK_VALUES));
    tasks.for_each(|(x, y)| work(x, y));
}

/// Runs `work` over the rows of `row_len` of two slices, on several threads where there are many.
fn each_row(
    out: &mut [f32],
    rows: &[f32],
    row_len: usize,
    work: impl Fn(&mut [f32], &[f32]) + Sync,
) {
    let task = |out: &mut [f32], rows: &[f32]| {
        let pairs = out.chunks_exact_mut(row_len).zip(rows.chunks_exact(row_len));
        pairs.for_each(|(out, row)| work(out, row));
    };
    if out.len() <= MIN_TASK_VALUES {
        return task(out, rows);
    }
    let task_len = task_len(row_len);
    let tasks = out.par_chunks_mut(task_len).zip(rows.par_chunks(task_len));
    tasks.for_each(|(out, rows)| task(out, rows));
}

/// Values of whole rows that one task takes.
fn task_len(row_len: usize) -> usize {
    (MIN_TASK_VALUES / row_len).max(1) * row_len
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

    /// Sets `turns` to those of `num_tokens` positions from `first` on.
    pub(crate) fn fill_turns(&self, first: usize, num_tokens: usize, turns: &mut Turns) {
        let half = self.head_dim / 2;
        turns.half = half;
        turns.sin.resize(num_tokens * half, 0.0);
        turns.cos.resize(num_tokens * half, 0.0);
        let fill = |token: usize, sin: &mut [f32], cos: &mut [f32]| {
            for ((sin, cos), turn) in sin.iter_mut().zip(cos).zip(self.turns(first + token)) {
                (*sin, *cos) = turn;
            }
        };
        if num_tokens == 1 {
            return fill(0, &mut turns.sin, &mut turns.cos);
        }
        let rows = turns.sin.par_chunks_exact_mut(half).zip(turns.cos.par_chunks_exact_mut(half));
        rows.enumerate().with_min_len(32).for_each(|(token, (sin, cos))| fill(token, sin, cos));
    }
}

/// Sines and cosines of neighbouring positions, worked out once for all heads and layers.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Pairs of a head: half its channels.
    half: usize,
    /// `[n, half]`.
    sin: Vec<f32>,
    /// `[n, half]`.
    cos: Vec<f32>,
}

impl Turns {
    /// Those of `num_tokens` from `first` on, counted from the first that are there.
    pub(crate) fn of_tokens(&self, first: usize, num_tokens: usize) -> TurnRows<'_> {
        let range = first * self.half..(first + num_tokens) * self.half;
        TurnRows { half: self.half, sin: &self.sin[range.clone()], cos: &self.cos[range] }
    }
}

/// Some of [`Turns`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TurnRows<'a> {
    half: usize,
    /// `[n, half]`.
    sin: &'a [f32],
    /// `[n, half]`.
    cos: &'a [f32],
}

impl TurnRows<'_> {
    /// Turns `rows [n, num_heads, head_dim]` of as many tokens.
    pub(crate) fn rotate(self, rows: &mut [f32]) {
        let num_tokens = self.sin.len() / self.half;
        let token_len = rows.len() / num_tokens;
        let rotate = |token: usize, row: &mut [f32]| {
            let of_token = token * self.half..(token + 1) * self.half;
            let (sin, cos) = (&self.sin[of_token.clone()], &self.cos[of_token]);
            for head in row.chunks_exact_mut(2 * self.half) {
                let (low, high) = head.split_at_mut(self.half);
                for (((a, b), sin), cos) in low.iter_mut().zip(high).zip(sin).zip(cos) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        };
        if rows.len() <= MIN_TASK_VALUES {
            let rows = rows.chunks_exact_mut(token_len).enumerate();
            return rows.for_each(|(token, row)| rotate(token, row));
        }
        let rows = rows.par_chunks_exact_mut(token_len).with_min_len(32).enumerate();
        rows.for_each(|(token, row)| rotate(token, row));
    }
}
