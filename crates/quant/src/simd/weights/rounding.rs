//! Activations to integers: one vector in 16 bits, many in 8.
//!
//! All levels have the same bits.

use crate::{
    Level,
    weights::{BLOCK, BlockVector, CodeForm, QuadBlock, column_at},
};

/// The largest code of 8 bits: both signs have it.
pub(super) const LARGEST_CODE: f32 = 127.0;

/// 2⁻⁹⁶: what is smaller is rounded to zero, as 32767 over it would overflow.
pub(super) const SMALLEST: f32 = f32::from_bits((127 - 96) << 23);

/// Quantizes `x` into the zeroed `out`, whose shape is that of `x` ([`BlockVector::quantize`]).
pub(crate) fn quantize_blocks(level: Level, x: &[f32], out: &mut BlockVector) {
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level that is AVX2 exists only on CPUs with AVX2, FMA and F16C.
        return unsafe { super::avx2::quantize_blocks(x, out) };
    }
    let _ = level;
    quantize_blocks_body(x, out);
}

/// Quantizes up to four vectors, `x [n, cols]`, for products with bands of `form`, into the zeroed
/// `out [num_blocks]`, whose last block has the last column.
pub(crate) fn quantize_quad(
    level: Level,
    form: CodeForm,
    x: &[f32],
    cols: usize,
    out: &mut [QuadBlock],
) {
    assert_eq!(cols.div_ceil(BLOCK), out.len(), "columns end in the last block");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `quantize_blocks`.
        return unsafe { super::avx2::quantize_quad(form, x, cols, out) };
    }
    let _ = level;
    for (vector, x) in x.chunks_exact(cols).enumerate() {
        for (out, values) in out.iter_mut().zip(x.chunks(BLOCK)) {
            let (scale, codes) = round_block(values, LARGEST_CODE);
            let sum: i32 = codes.iter().sum();
            for (step, words) in out.words.iter_mut().enumerate() {
                let code = |byte| codes[column_at(form.bits, step, byte)] as u8;
                words[vector] = u32::from_le_bytes(std::array::from_fn(code));
            }
            out.scales[vector] = scale;
            out.sums[vector] = scale * sum as f32;
        }
    }
}

/// Both forms of [`quantize_blocks`]: the AVX2 one is this text compiled for AVX2.
#[inline(always)]
pub(super) fn quantize_blocks_body(x: &[f32], out: &mut BlockVector) {
    for (idx, values) in x.chunks(BLOCK).enumerate() {
        let (scale, codes) = round_block(values, 32767.0);
        let sum: i32 = codes.iter().sum();
        for (out, code) in out.codes[idx].iter_mut().zip(codes) {
            *out = code as i16;
        }
        out.scales[idx] = scale;
        out.code_sums[idx] = sum;
        // |sum| ≤ 32 * 32767 < 2²⁴ is exact in f32.
        out.sums[idx] = scale * sum as f32;
    }
}

/// A block's scale and codes: to the nearest of `-largest_code..=largest_code` times the scale, ties to even.
///
/// A block whose largest magnitude is under 2⁻⁹⁶ is zeros; one that holds a NaN or an infinity has a NaN scale.
#[inline(always)]
fn round_block(values: &[f32], largest_code: f32) -> (f32, [i32; BLOCK]) {
    /// Adding and subtracting 1.5 * 2²³ rounds a magnitude under 2²² to the nearest integer, ties to
    /// even, on every CPU alike.
    const ROUND: f32 = 12_582_912.0;

    let mut block = [0.0f32; BLOCK];
    block[..values.len()].copy_from_slice(values);
    // Magnitudes compare like their bits, and so do infinity and NaN, above all numbers.
    let largest_bits = block.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest_bits);
    if !largest.is_finite() {
        return (f32::NAN, [0; BLOCK]);
    }
    if largest < SMALLEST {
        return (0.0, [0; BLOCK]);
    }
    let inverse = largest_code / largest;
    (largest / largest_code, block.map(|value| ((value * inverse + ROUND) - ROUND) as i32))
}
