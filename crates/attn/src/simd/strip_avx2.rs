//! [`strip::absorb`](super::strip::absorb) in AVX2 and FMA; the essay and the shapes are there.

#![expect(unsafe_code, reason = "vector intrinsics and the calls into them")]

use std::arch::x86_64::*;

use heterokv_quant::Level;

use super::exp::{exps_avx2, finite_reference, max_avx2, sum_avx2};
use super::strip::{KEY_LANES, STRIP_ROWS, Strip, Tile, VALUE_LANES, mask};

/// Floats of a vector.
const LANES: usize = 8;

/// Takes a tile into a strip whose rows see tokens before `end` of it, and at least one.
///
/// The caller has asserted every length that [`Strip`] and [`Tile`] state, and that `end` is within the tile.
pub(super) fn absorb(level: Level, strip: Strip<'_>, tile: Tile<'_>, end: usize) {
    assert!(level.is_avx2());
    // SAFETY: a level for which `is_avx2` is true exists only on a CPU with AVX2 and FMA.
    unsafe { absorb_avx2(strip, tile, end) }
}

#[target_feature(enable = "avx2,fma")]
fn absorb_avx2(strip: Strip<'_>, tile: Tile<'_>, end: usize) {
    let Strip { queries, hidden, visible, max, sum, weighted, scores } = strip;
    let panels = hidden / KEY_LANES..end.div_ceil(KEY_LANES);
    let scored = panels.start * KEY_LANES..panels.end * KEY_LANES;
    let mut maxima = [_mm256_set1_ps(f32::NEG_INFINITY); STRIP_ROWS];
    for panel in panels {
        let keys = &tile.keys[panel * tile.head_dim * KEY_LANES..][..tile.head_dim * KEY_LANES];
        score_panel(queries, keys, (&mut scores[panel * KEY_LANES..], tile.capacity), &mut maxima);
    }
    let mut rescale = [1.0_f32; STRIP_ROWS];
    for row in 0..STRIP_ROWS {
        let scores = &mut scores[row * tile.capacity..][scored.clone()];
        if hidden > scored.start || visible[row] < scored.end {
            mask(scores, hidden - scored.start, visible[row].saturating_sub(scored.start));
            maxima[row] = lane_maxima(scores);
        }
        let new_max = max[row].max(max_avx2(maxima[row]));
        if new_max != max[row] {
            rescale[row] = (max[row] - finite_reference(new_max)).exp();
            max[row] = new_max;
        }
    }
    for row in 0..STRIP_ROWS {
        let scores = &mut scores[row * tile.capacity..][scored.clone()];
        sum[row] = sum[row] * rescale[row] + weigh_row(scores, finite_reference(max[row]));
    }
    let row_stride = weighted.len() / STRIP_ROWS;
    for (panel, values) in tile.values.chunks_exact(tile.capacity * VALUE_LANES).enumerate() {
        let values = &values[scored.start * VALUE_LANES..end * VALUE_LANES];
        let out = &mut weighted[panel * VALUE_LANES..];
        value_panel((&scores[scored.start..], tile.capacity), values, (out, row_stride), &rescale);
    }
}

/// Scores of six rows against sixteen tokens: `queries [head_dim, 6]`, `keys [head_dim, 16]`, results
/// into the first sixteen of each of six rows of `scores`, `stride` apart, and the largest of each row's lanes
/// into `maxima`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn score_panel(
    queries: &[f32],
    keys: &[f32],
    (scores, stride): (&mut [f32], usize),
    maxima: &mut [__m256; STRIP_ROWS],
) {
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
        // The second operand is what `max` gives where one is a NaN, which a sum then shows.
        maxima[row] = _mm256_max_ps(_mm256_max_ps(acc[0], acc[1]), maxima[row]);
        // SAFETY: the last row ends within `scores`, as asserted above.
        unsafe {
            let out = scores.as_mut_ptr().add(row * stride);
            _mm256_storeu_ps(out, acc[0]);
            _mm256_storeu_ps(out.add(LANES), acc[1]);
        }
    }
}

/// The largest of each lane of one row of scores, a multiple of eight.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn lane_maxima(scores: &[f32]) -> __m256 {
    let mut maxima = _mm256_set1_ps(f32::NEG_INFINITY);
    for chunk in scores.chunks_exact(LANES) {
        // SAFETY: a chunk is eight floats.
        maxima = _mm256_max_ps(unsafe { _mm256_loadu_ps(chunk.as_ptr()) }, maxima);
    }
    maxima
}

/// Turns one row of scores, a multiple of sixteen, into weights relative to `reference` and returns their sum.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn weigh_row(scores: &mut [f32], reference: f32) -> f32 {
    let shift = _mm256_set1_ps(reference);
    let mut sums = [_mm256_setzero_ps(); 2];
    let (fours, rest) = scores.as_chunks_mut::<{ 4 * LANES }>();
    for chunk in fours {
        weigh::<4>(chunk, shift, &mut sums);
    }
    for chunk in rest.chunks_exact_mut(2 * LANES) {
        weigh::<2>(chunk, shift, &mut sums);
    }
    sum_avx2(_mm256_add_ps(sums[0], sums[1]))
}

/// Turns `N` vectors of scores, an even number, into weights and adds those of even places to the first sum,
/// of odd ones to the second.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn weigh<const N: usize>(scores: &mut [f32], shift: __m256, sums: &mut [__m256; 2]) {
    assert!(scores.len() == N * LANES);
    let mut x = [shift; N];
    for (i, x) in x.iter_mut().enumerate() {
        // SAFETY: there are N vectors of scores.
        *x = _mm256_sub_ps(unsafe { _mm256_loadu_ps(scores.as_ptr().add(i * LANES)) }, *x);
    }
    for (i, weights) in exps_avx2(x).into_iter().enumerate() {
        sums[i % 2] = _mm256_add_ps(sums[i % 2], weights);
        // SAFETY: there are N vectors of scores.
        unsafe { _mm256_storeu_ps(scores.as_mut_ptr().add(i * LANES), weights) };
    }
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
