//! Kernels of block weights: rows times a vector, and rows to f32.
//!
//! Each kernel takes consecutive rows, so that the level is matched once per task, and has a scalar
//! form (safe, here) and an AVX2 form (`avx2`). The two agree up to the order of f32 sums; those that
//! only convert agree bit for bit.
//!
//! # The `q8` product
//!
//! Weights are `s * c + o` with i8 codes `c`, activations `a * q` with i16 codes `q`, both per block
//! of 32 columns. The sum over a block is
//!
//! ```text
//! sum (s c + o)(a q) = (s a) * I + o * A,    I = sum c q (an integer),  A = a * sum q (prepared once)
//! ```
//!
//! **No overflow.** |c| ≤ 128 and |q| ≤ 32767, so |c q| ≤ 4 194 176 and a whole block's |I| is at
//! most 32 times that, 134 213 632 < 2³¹. AVX2's multiply-add of i16 pairs makes sums of two such
//! products and this kernel adds at most two of those per lane before it converts to f32: all far
//! inside i32. (The instruction's one overflow, both pairs −32768 × −32768, cannot occur: neither
//! operand reaches −32768.) `I` is exact; what is rounded is its conversion to f32, the products with
//! `s a` and `o`, and the sum over blocks.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod panels;

use half::f16;

pub(crate) use self::panels::{PanelSource, matmul};
use crate::{
    Level,
    weights::{BLOCK, BlockVector},
};

/// Consecutive rows in the `q8` form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Q8Rows<'a> {
    /// Blocks of 32 columns per row, not 0.
    pub(crate) num_blocks: usize,
    /// Codes `[num_rows, num_blocks * 32]`.
    pub(crate) codes: &'a [i8],
    /// Scales `[num_rows, num_blocks]`.
    pub(crate) scales: &'a [f16],
    /// Offsets `[num_rows, num_blocks]`, or empty: all zero.
    pub(crate) offsets: &'a [f16],
}

impl<'a> Q8Rows<'a> {
    /// The rows one by one: codes, scales, offsets (empty if all zero).
    fn iter(self) -> impl Iterator<Item = (&'a [i8], &'a [f16], &'a [f16])> {
        let mut offsets = self.offsets.chunks_exact(self.num_blocks);
        self.codes
            .chunks_exact(self.num_blocks * BLOCK)
            .zip(self.scales.chunks_exact(self.num_blocks))
            .map(move |(codes, scales)| (codes, scales, offsets.next().unwrap_or_default()))
    }
}

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

/// The product of `q8` rows with a quantized vector of as many blocks: `y` `[num_rows]`.
pub(crate) fn gemv_q8(level: Level, rows: Q8Rows<'_>, x: &BlockVector, y: &mut [f32]) {
    assert_eq!(rows.codes.len(), x.codes.len() * y.len(), "rows do not fit the vectors");
    assert_eq!(x.codes.len(), rows.num_blocks * BLOCK, "the vector has other blocks");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::gemv_q8(rows, x, y) };
    }
    let _ = level;
    for (y, (codes, scales, offsets)) in y.iter_mut().zip(rows.iter()) {
        let mut sum = 0.0;
        let blocks = codes.chunks_exact(BLOCK).zip(x.codes.chunks_exact(BLOCK));
        for ((c, q), (s, a)) in blocks.zip(scales.iter().zip(&x.scales)) {
            let integer: i32 = c.iter().zip(q).map(|(&c, &q)| i32::from(c) * i32::from(q)).sum();
            sum += s.to_f32() * a * integer as f32;
        }
        for (o, block_sum) in offsets.iter().zip(&x.sums) {
            sum += o.to_f32() * block_sum;
        }
        *y = sum;
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

/// `q8` rows to f32 `[num_rows, cols]`, without the padding; `cols` is in the last block.
pub(crate) fn expand_q8(level: Level, rows: Q8Rows<'_>, cols: usize, out: &mut [f32]) {
    assert_eq!(cols.div_ceil(BLOCK), rows.num_blocks, "columns end in the last block");
    assert_eq!(rows.codes.len() / (rows.num_blocks * BLOCK) * cols, out.len(), "rows fit out");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::expand_q8(rows, cols, out) };
    }
    let _ = level;
    for ((codes, scales, offsets), out) in rows.iter().zip(out.chunks_exact_mut(cols)) {
        let blocks = out.chunks_mut(BLOCK).zip(codes.chunks_exact(BLOCK)).zip(scales);
        for (idx, ((out, codes), scale)) in blocks.enumerate() {
            let scale = scale.to_f32();
            let offset = offsets.get(idx).map(|offset| offset.to_f32());
            for (out, &code) in out.iter_mut().zip(codes) {
                let product = scale * f32::from(code);
                *out = offset.map_or(product, |offset| product + offset);
            }
        }
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
        let codes = &mut out.codes.as_chunks_mut::<BLOCK>().0[idx];
        for (code, value) in codes.iter_mut().zip(&block) {
            let rounded = ((value * inverse + ROUND) - ROUND) as i32;
            sum += rounded;
            *code = rounded as i16;
        }
        out.scales[idx] = scale;
        // |sum| ≤ 32 * 32767 < 2²⁴ is exact in f32.
        out.sums[idx] = scale * sum as f32;
    }
}
