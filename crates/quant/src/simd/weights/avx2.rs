//! The AVX2 forms of the block-weight kernels.
//!
//! Every function here may only be called on a CPU with AVX2, FMA and F16C; the callers, one level
//! up, hold a `Level` that proves it and check all lengths.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::arch::x86_64::*;

use half::f16;

use super::rounding::{LARGEST_CODE, SMALLEST, quantize_blocks_body};
use crate::simd::lanes::{horizontal_sum, load, store};
use crate::weights::{BLOCK, BlockVector, CodeForm, QUAD, QuadBlock, column_at};

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

/// See `super::rounding::quantize_blocks`.
#[target_feature(enable = "avx2")]
pub(super) fn quantize_blocks(x: &[f32], out: &mut BlockVector) {
    quantize_blocks_body(x, out);
}

/// See `super::rounding::quantize_quad`.
#[target_feature(enable = "avx2")]
pub(super) fn quantize_quad(form: CodeForm, x: &[f32], cols: usize, out: &mut [QuadBlock]) {
    // Byte by byte of two steps, which of eight columns it has.
    let order: [u8; 32] = std::array::from_fn(|i| {
        let (step, byte) = (i % 8 / 4, i % 4);
        (i % 16 / 8 * 8 + column_at(form.bits, step, byte)) as u8
    });
    let order = load_bytes(&order);
    for (index, out) in out.iter_mut().enumerate() {
        let mut words = [_mm256_setzero_si256(); QUAD];
        for (vector, x) in x.chunks_exact(cols).enumerate() {
            let values = &x[index * BLOCK..cols.min((index + 1) * BLOCK)];
            let (scale, codes) = match <&[f32; BLOCK]>::try_from(values) {
                Ok(values) => round_block(values),
                Err(_) => {
                    let mut padded = [0.0; BLOCK];
                    padded[..values.len()].copy_from_slice(values);
                    round_block(&padded)
                }
            };
            out.scales[vector] = scale;
            words[vector] = _mm256_shuffle_epi8(codes, order);
        }
        // From steps by vector to vectors by step.
        let [a, b, c, d] = words;
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        // Steps 0 and 4, 1 and 5, 2 and 6, 3 and 7.
        let steps = [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ];
        let mut sums = _mm256_setzero_si256();
        for (step, codes) in steps.into_iter().enumerate() {
            store_words(&mut out.words[step], _mm256_castsi256_si128(codes));
            store_words(&mut out.words[step + 4], _mm256_extracti128_si256::<1>(codes));
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes));
        }
        let sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let mut code_sums = [0; QUAD];
        store_words(&mut code_sums, sums);
        for (vector, sum) in code_sums.into_iter().enumerate() {
            out.sums[vector] = out.scales[vector] * sum.cast_signed() as f32;
        }
    }
}

/// As `super::rounding::round_block`, to the largest code of 8 bits; codes as bytes, in the order of columns.
#[inline]
#[target_feature(enable = "avx2")]
fn round_block(values: &[f32; BLOCK]) -> (f32, __m256i) {
    let chunks = values.as_chunks::<8>().0;
    let values: [__m256; 4] = std::array::from_fn(|i| load(&chunks[i]));
    // Magnitudes compare like their bits, and so do infinity and NaN, above all numbers.
    let magnitude = |v| _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(i32::MAX));
    let [a, b, c, d] = values.map(magnitude);
    let eight = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
    let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b_11_10_11_10>(four));
    let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b_01_01_01_01>(two));
    let largest = f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned());
    if !largest.is_finite() {
        return (f32::NAN, _mm256_setzero_si256());
    }
    if largest < SMALLEST {
        return (0.0, _mm256_setzero_si256());
    }
    let inverse = _mm256_set1_ps(LARGEST_CODE / largest);
    // To the nearest, ties to even.
    let [a, b, c, d] = values.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)));
    let codes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    // Packing takes the low halves of all before the high ones.
    let codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    (largest / LARGEST_CODE, codes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_words(out: &mut [u32; 4], words: __m128i) {
    // SAFETY: the array has the 16 bytes of this unaligned store.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), words) }
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
