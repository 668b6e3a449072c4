//! The AVX2 forms of the block-weight kernels.
//!
//! Every function here may only be called on a CPU with AVX2, FMA and F16C; the callers, one level
//! up, hold a `Level` that proves it and check all lengths.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::arch::x86_64::*;

use half::f16;

use super::quantize_blocks_body;
use crate::simd::lanes::{horizontal_sum, load, store};
use crate::weights::BlockVector;

/// See `super::gemv_f32`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gemv_f32(w: &[f32], x: &[f32], y: &mut [f32]) {
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = dot(row, x, |w| load(w), |w| w);
    }
}

/// See `super::gemv_f16`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gemv_f16(w: &[f16], x: &[f32], y: &mut [f32]) {
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = dot(row, x, |w| load_f16(w), |w| widen_one(w));
    }
}

/// A dot product with four vectors of running sums: 32 elements at a time, then 8, then one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<T: Copy>(
    row: &[T],
    x: &[f32],
    load_row: impl Fn(&[T; 8]) -> __m256,
    widen: impl Fn(T) -> f32,
) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (row_chunks, row_tail) = row.as_chunks::<8>();
    let (x_chunks, x_tail) = x.as_chunks::<8>();
    let (row_quads, row_rest) = row_chunks.as_chunks::<4>();
    let (x_quads, x_rest) = x_chunks.as_chunks::<4>();
    for (w, x) in row_quads.iter().zip(x_quads) {
        for i in 0..4 {
            sums[i] = _mm256_fmadd_ps(load_row(&w[i]), load(&x[i]), sums[i]);
        }
    }
    for (w, x) in row_rest.iter().zip(x_rest) {
        sums[0] = _mm256_fmadd_ps(load_row(w), load(x), sums[0]);
    }
    let total = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let tail: f32 = row_tail.iter().zip(x_tail).map(|(&w, x)| widen(w) * x).sum();
    horizontal_sum(total) + tail
}

/// See `super::widen_f16`.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_f16(values: &[f16], out: &mut [f32]) {
    let (chunks, tail) = values.as_chunks::<8>();
    let (out_chunks, out_tail) = out.as_chunks_mut::<8>();
    for (values, out) in chunks.iter().zip(out_chunks) {
        store(out, load_f16(values));
    }
    for (&value, out) in tail.iter().zip(out_tail) {
        *out = widen_one(value);
    }
}

/// See `super::quantize_blocks`.
#[target_feature(enable = "avx2")]
pub(super) fn quantize_blocks(x: &[f32], out: &mut BlockVector) {
    quantize_blocks_body(x, out);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_one(value: f16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(value.to_bits()))))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(values: &[f16; 8]) -> __m256 {
    // SAFETY: the array has the 16 bytes of this unaligned load.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
}
