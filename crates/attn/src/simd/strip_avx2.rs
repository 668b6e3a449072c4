//! [`strip::absorb`](super::strip::absorb) in AVX2 and FMA; the essay and the shapes are there.

#![expect(unsafe_code, reason = "vector intrinsics and the calls into them")]

use std::arch::x86_64::*;

use heterokv_quant::Level;

use super::exp::{exp_avx2, finite_reference, max_avx2, sum_avx2};
use super::strip::{KEY_LANES, STRIP_ROWS, Strip, Tile, VALUE_LANES};

/// Floats of a vector.
const LANES: usize = 8;

/// Takes a tile into a strip whose rows see at most `num_visible` of its tokens, at least one.
///
/// The caller has asserted every length that [`Strip`] and [`Tile`] state, and that `num_visible` is
/// within the tile.
pub(super) fn absorb(level: Level, strip: Strip<'_>, tile: Tile<'_>, num_visible: usize) {
    assert!(level.is_avx2());
    // SAFETY: a level for which `is_avx2` is true exists only on a CPU with AVX2 and FMA.
    unsafe { absorb_avx2(strip, tile, num_visible) }
}

#[target_feature(enable = "avx2,fma")]
fn absorb_avx2(strip: Strip<'_>, tile: Tile<'_>, num_visible: usize) {
    let Strip { queries, visible, max, sum, weighted, scores } = strip;
    let num_panels = num_visible.div_ceil(KEY_LANES);
    for panel in 0..num_panels {
        let keys = &tile.keys[panel * tile.head_dim * KEY_LANES..][..tile.head_dim * KEY_LANES];
        score_panel(queries, keys, &mut scores[panel * KEY_LANES..], tile.capacity);
    }
    let num_scored = num_panels * KEY_LANES;
    let mut rescale = [1.0_f32; STRIP_ROWS];
    for row in 0..STRIP_ROWS {
        let scores = &mut scores[row * tile.capacity..][..num_scored];
        scores[visible[row]..].fill(f32::NEG_INFINITY);
        let (new_max, scale, tile_sum) = weigh_row(scores, max[row]);
        max[row] = new_max;
        rescale[row] = scale;
        sum[row] = sum[row] * scale + tile_sum;
    }
    let row_stride = weighted.len() / STRIP_ROWS;
    for (panel, values) in tile.values.chunks_exact(tile.capacity * VALUE_LANES).enumerate() {
        let values = &values[..num_visible * VALUE_LANES];
        let out = &mut weighted[panel * VALUE_LANES..];
        value_panel((scores, tile.capacity), values, (out, row_stride), &rescale);
    }
}

/// Scores of six rows against sixteen tokens: `queries [head_dim, 6]`, `keys [head_dim, 16]`, results
/// into the first sixteen of each of six rows of `scores`, `stride` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn score_panel(queries: &[f32], keys: &[f32], scores: &mut [f32], stride: usize) {
    let head_dim = keys.len() / KEY_LANES;
    assert!(queries.len() == head_dim * STRIP_ROWS);
    assert!(scores.len() >= (STRIP_ROWS - 1) * stride + KEY_LANES);
    let mut acc = [[_mm256_setzero_ps(); 2]; STRIP_ROWS];
    let (mut query, mut key) = (queries.as_ptr(), keys.as_ptr());
    for _ in 0..head_dim {
        // SAFETY: `key` is at one of `head_dim` groups of 16 floats and `query` at one of as many
        // groups of 6; after the last step they point one past their slices.
        unsafe {
            let low = _mm256_loadu_ps(key);
            let high = _mm256_loadu_ps(key.add(LANES));
            for (row, acc) in acc.iter_mut().enumerate() {
                let query = _mm256_broadcast_ss(&*query.add(row));
                acc[0] = _mm256_fmadd_ps(query, low, acc[0]);
                acc[1] = _mm256_fmadd_ps(query, high, acc[1]);
            }
            key = key.add(KEY_LANES);
            query = query.add(STRIP_ROWS);
        }
    }
    for (row, acc) in acc.iter().enumerate() {
        // SAFETY: the last row ends within `scores`, as asserted above.
        unsafe {
            let out = scores.as_mut_ptr().add(row * stride);
            _mm256_storeu_ps(out, acc[0]);
            _mm256_storeu_ps(out.add(LANES), acc[1]);
        }
    }
}

/// Turns one row of scores, a multiple of sixteen, into weights relative to the new running maximum.
/// Returns that maximum, the factor for what was summed under the old one, and the weights' sum.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn weigh_row(scores: &mut [f32], old_max: f32) -> (f32, f32, f32) {
    let mut maxima = [_mm256_set1_ps(old_max); 2];
    for chunk in scores.chunks_exact(2 * LANES) {
        // SAFETY: a chunk is sixteen floats.
        let (low, high) = unsafe {
            (_mm256_loadu_ps(chunk.as_ptr()), _mm256_loadu_ps(chunk.as_ptr().add(LANES)))
        };
        maxima = [_mm256_max_ps(maxima[0], low), _mm256_max_ps(maxima[1], high)];
    }
    let new_max = max_avx2(_mm256_max_ps(maxima[0], maxima[1]));
    let reference = finite_reference(new_max);
    let scale = if old_max == new_max { 1.0 } else { (old_max - reference).exp() };
    let shift = _mm256_set1_ps(reference);
    let mut sums = [_mm256_setzero_ps(); 2];
    for chunk in scores.chunks_exact_mut(2 * LANES) {
        let chunk = chunk.as_mut_ptr();
        // SAFETY: a chunk is sixteen floats.
        unsafe {
            let low = exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(chunk), shift));
            let high = exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(chunk.add(LANES)), shift));
            sums = [_mm256_add_ps(sums[0], low), _mm256_add_ps(sums[1], high)];
            _mm256_storeu_ps(chunk, low);
            _mm256_storeu_ps(chunk.add(LANES), high);
        }
    }
    (new_max, scale, sum_avx2(_mm256_add_ps(sums[0], sums[1])))
}

/// `out = out * rescale + weights * values` for six rows and sixteen channels: `weights` is six rows
/// `stride` apart, `values [num_tokens, 16]`, `out` the first sixteen of six rows of their own stride.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn value_panel(
    (weights, stride): (&[f32], usize),
    values: &[f32],
    (out, row_stride): (&mut [f32], usize),
    rescale: &[f32; STRIP_ROWS],
) {
    let num_tokens = values.len() / VALUE_LANES;
    assert!(weights.len() >= (STRIP_ROWS - 1) * stride + num_tokens);
    assert!(out.len() >= (STRIP_ROWS - 1) * row_stride + VALUE_LANES);
    let mut acc = [[_mm256_setzero_ps(); 2]; STRIP_ROWS];
    for (row, acc) in acc.iter_mut().enumerate() {
        let rescale = _mm256_set1_ps(rescale[row]);
        // SAFETY: the last row ends within `out`, as asserted above.
        unsafe {
            let out = out.as_ptr().add(row * row_stride);
            acc[0] = _mm256_mul_ps(_mm256_loadu_ps(out), rescale);
            acc[1] = _mm256_mul_ps(_mm256_loadu_ps(out.add(LANES)), rescale);
        }
    }
    let mut value = values.as_ptr();
    for token in 0..num_tokens {
        // SAFETY: `value` is at one of `num_tokens` groups of 16 floats, and the last row of weights
        // holds at least `num_tokens`, as asserted above.
        unsafe {
            let low = _mm256_loadu_ps(value);
            let high = _mm256_loadu_ps(value.add(LANES));
            for (row, acc) in acc.iter_mut().enumerate() {
                let weight = _mm256_broadcast_ss(&*weights.as_ptr().add(row * stride + token));
                acc[0] = _mm256_fmadd_ps(weight, low, acc[0]);
                acc[1] = _mm256_fmadd_ps(weight, high, acc[1]);
            }
            value = value.add(VALUE_LANES);
        }
    }
    for (row, acc) in acc.iter().enumerate() {
        // SAFETY: the last row ends within `out`, as asserted above.
        unsafe {
            let out = out.as_mut_ptr().add(row * row_stride);
            _mm256_storeu_ps(out, acc[0]);
            _mm256_storeu_ps(out.add(LANES), acc[1]);
        }
    }
}
