//! The AVX2 forms of the block-weight kernels.
//!
//! Every function here may only be called on a CPU with AVX2, FMA and F16C; the callers, one level
//! up, hold a `Level` that proves it and check all lengths.
#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadl_epi64,
    _mm_loadu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
};

use half::f16;

use super::{BLOCK, Q8Rows, quantize_blocks_body};
use crate::simd::lanes::{horizontal_sum, load, store};
use crate::weights::BlockVector;

/// Blocks whose scales are converted together.
const GROUP: usize = 8;

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

/// See `super::gemv_q8`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gemv_q8(rows: Q8Rows<'_>, x: &BlockVector, y: &mut [f32]) {
    for (y, (codes, scales, offsets)) in y.iter_mut().zip(rows.iter()) {
        *y = dot_q8(codes, scales, x);
        if !offsets.is_empty() {
            *y += dot(offsets, &x.sums[..offsets.len()], |o| load_f16(o), |o| widen_one(o));
        }
    }
}

/// The sum over blocks of `scale * x.scale * integer sum`: groups of eight blocks, whose scales are
/// converted and multiplied together, then single blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q8(codes: &[i8], scales: &[f16], x: &BlockVector) -> f32 {
    let (c, _) = codes.as_chunks::<BLOCK>();
    let (q, _) = x.codes.as_chunks::<BLOCK>();
    let (c_groups, c_rest) = c.as_chunks::<GROUP>();
    let (q_groups, q_rest) = q.as_chunks::<GROUP>();
    let (s_groups, s_rest) = scales.as_chunks::<GROUP>();
    let (a_groups, a_rest) = x.scales[..scales.len()].as_chunks::<GROUP>();

    let (mut even, mut odd) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (((c, q), s), a) in c_groups.iter().zip(q_groups).zip(s_groups).zip(a_groups) {
        let mut steps = [0.0; GROUP];
        store(&mut steps, _mm256_mul_ps(load_f16(s), load(a)));
        for i in 0..GROUP / 2 {
            even = add_block(even, &c[2 * i], &q[2 * i], steps[2 * i]);
            odd = add_block(odd, &c[2 * i + 1], &q[2 * i + 1], steps[2 * i + 1]);
        }
    }
    for (((c, q), &s), a) in c_rest.iter().zip(q_rest).zip(s_rest).zip(a_rest) {
        even = add_block(even, c, q, widen_one(s) * a);
    }
    horizontal_sum(_mm256_add_ps(even, odd))
}

/// Adds `step` times the products of one block to eight running sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block(sums: __m256, c: &[i8; BLOCK], q: &[i16; BLOCK], step: f32) -> __m256 {
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(block_integers(c, q)), _mm256_set1_ps(step), sums)
}

/// Eight partial sums of the 32 products of a block; see the parent module for why none overflows.
#[inline]
#[target_feature(enable = "avx2")]
fn block_integers(c: &[i8; BLOCK], q: &[i16; BLOCK]) -> __m256i {
    let (c, q) = (c.as_ptr(), q.as_ptr());
    // SAFETY: `c` has 32 bytes, read as two unaligned halves of 16; `q` has 64 bytes, read as two
    // unaligned halves of 32.
    unsafe {
        let c0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(c.cast()));
        let c1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(c.add(16).cast()));
        let q0 = _mm256_loadu_si256(q.cast());
        let q1 = _mm256_loadu_si256(q.add(16).cast());
        _mm256_add_epi32(_mm256_madd_epi16(c0, q0), _mm256_madd_epi16(c1, q1))
    }
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

/// See `super::expand_q8`. Product and sum are rounded one after the other, as in the scalar form.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn expand_q8(rows: Q8Rows<'_>, cols: usize, out: &mut [f32]) {
    for ((codes, scales, offsets), out) in rows.iter().zip(out.chunks_exact_mut(cols)) {
        let (codes, _) = codes.as_chunks::<BLOCK>();
        for (idx, (out, codes)) in out.chunks_mut(BLOCK).zip(codes).enumerate() {
            let scale = _mm256_set1_ps(widen_one(scales[idx]));
            let mut values = block_floats(codes).map(|c| _mm256_mul_ps(scale, c));
            if let Some(&offset) = offsets.get(idx) {
                let offset = _mm256_set1_ps(widen_one(offset));
                values = values.map(|v| _mm256_add_ps(v, offset));
            }
            if let Some(out) = out.as_chunks_mut::<BLOCK>().0.first_mut() {
                store_block(out, values);
            } else {
                let mut block = [0.0; BLOCK];
                store_block(&mut block, values);
                out.copy_from_slice(&block[..out.len()]);
            }
        }
    }
}

/// The 32 codes of a block as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn block_floats(codes: &[i8; BLOCK]) -> [__m256; 4] {
    let codes = codes.as_ptr();
    // SAFETY: the array has 32 bytes, read as four unaligned quarters of 8.
    let eighths = unsafe { [0, 8, 16, 24].map(|at| _mm_loadl_epi64(codes.add(at).cast())) };
    eighths.map(|codes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)))
}

#[inline]
#[target_feature(enable = "avx")]
fn store_block(out: &mut [f32; BLOCK], values: [__m256; 4]) {
    for (out, values) in out.as_chunks_mut::<8>().0.iter_mut().zip(values) {
        store(out, values);
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
