//! [`strip::absorb`](super::strip::absorb) in AVX-512; the essay and the shapes are there.
//!
//! Four panels go side by side: six rows by four vectors are 24 accumulators, which wait for nothing but the
//! multipliers, and of 24 products ten operands are loaded.

#![expect(unsafe_code, reason = "vector intrinsics and the calls into them")]

use std::arch::x86_64::*;
use std::ops::Range;

use heterokv_quant::Level;

use super::exp::{exp_avx512, finite_reference};
use super::strip::{KEY_LANES, STRIP_ROWS, Strip, Tile, VALUE_LANES, mask};

/// Floats of a vector, which a panel of keys and one of values are wide.
const LANES: usize = 16;
/// Panels that are multiplied together.
const PANELS: usize = 4;

const _: () = assert!(KEY_LANES == LANES && VALUE_LANES == LANES);

/// Takes a tile into a strip whose rows see tokens before `end` of it, and at least one.
///
/// The caller has asserted every length that [`Strip`] and [`Tile`] state, and that `end` is within the tile.
pub(super) fn absorb(level: Level, strip: Strip<'_>, tile: Tile<'_>, end: usize) {
    assert!(level.is_avx512());
    // SAFETY: a level for which `is_avx512` is true exists only on a CPU with AVX-512 F.
    unsafe { absorb_avx512(strip, tile, end) }
}

#[target_feature(enable = "avx512f")]
fn absorb_avx512(strip: Strip<'_>, tile: Tile<'_>, end: usize) {
    let Strip { queries, hidden, visible, max, sum, weighted, scores } = strip;
    let Tile { head_dim, capacity, keys, values } = tile;
    let panels = hidden / LANES..end.div_ceil(LANES);
    let scored = panels.start * LANES..panels.end * LANES;
    let mut maxima = [_mm512_set1_ps(f32::NEG_INFINITY); STRIP_ROWS];
    for first in panels.clone().step_by(PANELS) {
        let keys = &keys[first * head_dim * LANES..];
        let out = (&mut scores[first * LANES..], capacity);
        match panels.end - first {
            1 => score_panels::<1>(queries, keys, out, &mut maxima),
            2 => score_panels::<2>(queries, keys, out, &mut maxima),
            3 => score_panels::<3>(queries, keys, out, &mut maxima),
            _ => score_panels::<PANELS>(queries, keys, out, &mut maxima),
        }
    }
    let mut rescale = [1.0_f32; STRIP_ROWS];
    for row in 0..STRIP_ROWS {
        let scores = &mut scores[row * capacity..][scored.clone()];
        if hidden > scored.start || visible[row] < scored.end {
            mask(scores, hidden - scored.start, visible[row].saturating_sub(scored.start));
            maxima[row] = lane_maxima(scores);
        }
        let new_max = max[row].max(_mm512_reduce_max_ps(maxima[row]));
        if new_max != max[row] {
            rescale[row] = (max[row] - finite_reference(new_max)).exp();
            max[row] = new_max;
        }
    }
    for row in 0..STRIP_ROWS {
        let scores = &mut scores[row * capacity..][scored.clone()];
        sum[row] = sum[row] * rescale[row] + weigh_row(scores, finite_reference(max[row]));
    }
    let row_stride = weighted.len() / STRIP_ROWS;
    let num_panels = row_stride / LANES;
    for first in (0..num_panels).step_by(PANELS) {
        let values = (&values[first * capacity * LANES..], capacity);
        let out = (&mut weighted[first * LANES..], row_stride);
        let weights = (&*scores, scored.start..end);
        match num_panels - first {
            1 => value_panels::<1>(weights, values, out, &rescale),
            2 => value_panels::<2>(weights, values, out, &rescale),
            3 => value_panels::<3>(weights, values, out, &rescale),
            _ => value_panels::<PANELS>(weights, values, out, &rescale),
        }
    }
}

/// Scores of six rows against `N` panels of sixteen tokens: `queries [head_dim, 6]`, the first panels of
/// `keys [_, head_dim, 16]`, results into the first of each of six rows of `scores`, `stride` apart, and the
/// largest of each row's lanes into `maxima`.
#[inline]
#[target_feature(enable = "avx512f")]
fn score_panels<const N: usize>(
    queries: &[f32],
    keys: &[f32],
    (scores, stride): (&mut [f32], usize),
    maxima: &mut [__m512; STRIP_ROWS],
) {
    let head_dim = queries.len() / STRIP_ROWS;
    let panel_len = head_dim * LANES;
    assert!(keys.len() >= N * panel_len);
    assert!(scores.len() >= (STRIP_ROWS - 1) * stride + N * LANES);
    let mut acc = [[_mm512_setzero_ps(); N]; STRIP_ROWS];
    for channel in 0..head_dim {
        // SAFETY: `channel` is one of `head_dim` groups of 16 floats in each of N panels of keys, and of as
        // many groups of 6 in the queries.
        unsafe {
            let keys = keys.as_ptr().add(channel * LANES);
            let keys: [__m512; N] =
                std::array::from_fn(|panel| _mm512_loadu_ps(keys.add(panel * panel_len)));
            let queries = queries.as_ptr().add(channel * STRIP_ROWS);
            for (row, acc) in acc.iter_mut().enumerate() {
                let query = _mm512_set1_ps(*queries.add(row));
                for (acc, key) in acc.iter_mut().zip(keys) {
                    *acc = _mm512_fmadd_ps(query, key, *acc);
                }
            }
        }
    }
    for (row, acc) in acc.iter().enumerate() {
        for (panel, acc) in acc.iter().enumerate() {
            // The second operand is what `max` gives where one is a NaN, which a sum then shows.
            maxima[row] = _mm512_max_ps(*acc, maxima[row]);
            // SAFETY: the last row ends within `scores`, as asserted above.
            unsafe {
                _mm512_storeu_ps(scores.as_mut_ptr().add(row * stride + panel * LANES), *acc);
            }
        }
    }
}

/// The largest of each lane of one row of scores, a multiple of sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
fn lane_maxima(scores: &[f32]) -> __m512 {
    let mut maxima = _mm512_set1_ps(f32::NEG_INFINITY);
    for chunk in scores.chunks_exact(LANES) {
        // SAFETY: a chunk is sixteen floats.
        maxima = _mm512_max_ps(unsafe { _mm512_loadu_ps(chunk.as_ptr()) }, maxima);
    }
    maxima
}

/// Turns one row of scores, a multiple of sixteen, into weights relative to `reference` and returns their sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn weigh_row(scores: &mut [f32], reference: f32) -> f32 {
    let shift = _mm512_set1_ps(reference);
    let mut sums = _mm512_setzero_ps();
    for chunk in scores.chunks_exact_mut(LANES) {
        // SAFETY: a chunk is sixteen floats.
        unsafe {
            let weights = exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(chunk.as_ptr()), shift));
            sums = _mm512_add_ps(sums, weights);
            _mm512_storeu_ps(chunk.as_mut_ptr(), weights);
        }
    }
    _mm512_reduce_add_ps(sums)
}

/// `out = out * rescale + weights * values` for six rows and `N` panels of sixteen channels: `weights` is six
/// rows `capacity` apart of which `tokens` count, `values [_, capacity, 16]`, `out` the first of
/// six rows of their own stride.
#[inline]
#[target_feature(enable = "avx512f")]
fn value_panels<const N: usize>(
    (weights, tokens): (&[f32], Range<usize>),
    (values, capacity): (&[f32], usize),
    (out, row_stride): (&mut [f32], usize),
    rescale: &[f32; STRIP_ROWS],
) {
    assert!(tokens.end <= capacity && weights.len() >= STRIP_ROWS * capacity);
    assert!(values.len() >= N * capacity * LANES);
    assert!(out.len() >= (STRIP_ROWS - 1) * row_stride + N * LANES);
    let mut acc = [[_mm512_setzero_ps(); N]; STRIP_ROWS];
    for (row, acc) in acc.iter_mut().enumerate() {
        let rescale = _mm512_set1_ps(rescale[row]);
        for (panel, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the last row ends within `out`, as asserted above.
            let out =
                unsafe { _mm512_loadu_ps(out.as_ptr().add(row * row_stride + panel * LANES)) };
            *acc = _mm512_mul_ps(out, rescale);
        }
    }
    for token in tokens {
        // SAFETY: `token` is one of `capacity` groups of 16 floats in each of N panels of values, and one of
        // as many weights in each row.
        unsafe {
            let values = values.as_ptr().add(token * LANES);
            let values: [__m512; N] =
                std::array::from_fn(|panel| _mm512_loadu_ps(values.add(panel * capacity * LANES)));
            let weights = weights.as_ptr().add(token);
            for (row, acc) in acc.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*weights.add(row * capacity));
                for (acc, value) in acc.iter_mut().zip(values) {
                    *acc = _mm512_fmadd_ps(weight, value, *acc);
                }
            }
        }
    }
    for (row, acc) in acc.iter().enumerate() {
        for (panel, acc) in acc.iter().enumerate() {
            // SAFETY: the last row ends within `out`, as asserted above.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr().add(row * row_stride + panel * LANES), *acc);
            }
        }
    }
}
