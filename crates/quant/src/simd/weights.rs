//! Kernels of block weights: rows times a vector, and rows to f32.
//!
//! Each kernel takes consecutive rows, so that the level is matched once per task, and has a scalar
//! form (safe, here) and an AVX2 form (`avx2`). The two agree up to the order of f32 sums; those that
//! only convert, and those of `bands`, agree bit for bit.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bands;
mod panels;

use half::f16;

pub(crate) use self::bands::{expand_bands, gemv_bands};
pub(crate) use self::panels::{PanelLayout, PanelSource, matmul};
use crate::{
    Level,
    weights::{BLOCK, BlockVector},
};

/// `y[r] = sum w[r, c] x[c]` over f32 rows: `w` `[y.len(), cols]`, `x` `[cols]`, `cols` not 0.
pub(crate) fn gemv_f32(level: Level, w: &[f32], x: &[f32], y: &mut [f32]) {
    assert_eq!(w.len(), x.len() * y.len(), "rows do not fit the vectors");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level that is AVX2 exists only on CPUs with AVX2, FMA and F16C.
        return unsafe { avx2::gemv_f32(w, x, y) };
    }
    let _ = level;
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = dot(row, x, |w| w);
    }
}

/// [`gemv_f32`] over f16 rows.
pub(crate) fn gemv_f16(level: Level, w: &[f16], x: &[f32], y: &mut [f32]) {
    assert_eq!(w.len(), x.len() * y.len(), "rows do not fit the vectors");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::gemv_f16(w, x, y) };
    }
    let _ = level;
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = dot(row, x, f16::to_f32);
    }
}

/// f16 to f32, elementwise; the slices are equally long.
pub(crate) fn widen_f16(level: Level, values: &[f16], out: &mut [f32]) {
    assert_eq!(values.len(), out.len(), "slices of one length");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::widen_f16(values, out) };
    }
    let _ = level;
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.to_f32();
    }
}

/// Quantizes `x` into the zeroed `out`, whose shape is that of `x` ([`BlockVector::quantize`]).
pub(crate) fn quantize_blocks(level: Level, x: &[f32], out: &mut BlockVector) {
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::quantize_blocks(x, out) };
    }
    let _ = level;
    quantize_blocks_body(x, out);
}

/// A dot product with eight running sums, which the compiler may keep in vectors of any width.
fn dot<T: Copy>(row: &[T], x: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (row_chunks, row_tail) = row.as_chunks::<8>();
    let (x_chunks, x_tail) = x.as_chunks::<8>();
    for (w, x) in row_chunks.iter().zip(x_chunks) {
        for i in 0..8 {
            sums[i] += widen(w[i]) * x[i];
        }
    }
    for (i, (&w, x)) in row_tail.iter().zip(x_tail).enumerate() {
        sums[i] += widen(w) * x;
    }
    sums.iter().sum()
}

/// Both forms of [`quantize_blocks`]: the AVX2 one is this text compiled for AVX2.
#[inline(always)]
fn quantize_blocks_body(x: &[f32], out: &mut BlockVector) {
    /// Adding and subtracting 1.5 * 2²³ rounds a magnitude under 2²² to the nearest integer, ties to
    /// even, on every CPU alike.
    const ROUND: f32 = 12_582_912.0;
    /// 2⁻⁹⁶: below it 32767 / largest would overflow.
    const SMALLEST: f32 = f32::from_bits((127 - 96) << 23);

    for (idx, values) in x.chunks(BLOCK).enumerate() {
        let mut block = [0.0f32; BLOCK];
        block[..values.len()].copy_from_slice(values);
        // Magnitudes compare like their bits, and so do infinity and NaN, above all numbers.
        let largest_bits = block.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
        let largest = f32::from_bits(largest_bits);
        if !largest.is_finite() {
            out.scales[idx] = f32::NAN;
            out.sums[idx] = f32::NAN;
            continue;
        }
        if largest < SMALLEST {
            continue;
        }
        let inverse = 32767.0 / largest;
        let scale = largest / 32767.0;
        let mut sum = 0i32;
        let codes = &mut out.codes[idx];
        for (code, value) in codes.iter_mut().zip(&block) {
            let rounded = ((value * inverse + ROUND) - ROUND) as i32;
            sum += rounded;
            *code = rounded as i16;
        }
        out.scales[idx] = scale;
        out.code_sums[idx] = sum;
        // |sum| ≤ 32 * 32767 < 2²⁴ is exact in f32.
        out.sums[idx] = scale * sum as f32;
    }
}
