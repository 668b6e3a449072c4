//! Products of bands (the `q8` compute form) with one vector, and bands to f32.
//!
//! Weights are `s * c + o` with codes `c` of 4 or 8 bits, activations `a * q` with i16 codes `q`, both per
//! block of 32 columns. The sum over a block is
//!
//! ```text
//! sum (s c + o)(a q) = (s a) * I + o * A,    I = sum c q (an integer),  A = a * sum q (prepared once)
//! ```
//!
//! Codes are stored unsigned, `u = c + m`, so that `I = sum u q - m * sum q`; kernels begin a block's sum
//! with the second term.
//!
//! **No overflow.** Vectors keep neighbouring columns as pairs of 16-bit integers and multiply and add them
//! (`u q + u' q'`) into 32 bits. For 8 bits, u ≤ 255 and |q| ≤ 32767 make any partial sum of a block at
//! most 32 · 255 · 32767 + 128 · 32 · 32767 = 401 592 352 < 2³¹. For 4 bits, codes are taken where they lie
//! in a word, that is times 1, 16 or 256, each kind in a sum of its own: the third has 8 of a block's
//! columns, at most 8 · 3840 · 32767 = 1 006 602 240 < 2³¹, and the others less. Shifts of those sums lose
//! nothing. (The multiply-add's one overflow, both pairs −32768 × −32768, cannot occur.)
//!
//! **All levels agree bit for bit.** `I` is exact. What is rounded is, for each row, its conversion to f32,
//! `s a`, and two chains of fused multiply-adds, over `(s a) * I` and over `o * A`, block after block, which
//! are added at the end; every level does these in the same order.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;

use crate::{
    Level,
    weights::{BAND, BLOCK, BandRows, BlockVector},
};

/// The product of bands with a quantized vector of as many blocks: `y` `[num_rows]`, which end in the last
/// band.
pub(crate) fn gemv_bands(level: Level, bands: BandRows<'_>, x: &BlockVector, y: &mut [f32]) {
    let blocks = y.len().div_ceil(BAND) * bands.num_blocks;
    check_shape(bands, blocks);
    let of_vector = [x.codes.len(), x.scales.len(), x.code_sums.len(), x.sums.len()];
    assert_eq!(of_vector, [bands.num_blocks; 4], "the vector has other blocks");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level that is AVX2 exists only on CPUs with AVX2, FMA and F16C; lengths were checked.
        return unsafe { avx2::gemv_bands(bands, x, y) };
    }
    let _ = level;
    let (form, num_blocks) = (bands.form, bands.num_blocks);
    for (band, y) in y.chunks_mut(BAND).enumerate() {
        let (mut products, mut minima) = ([0.0f32; BAND], [0.0f32; BAND]);
        for block in 0..num_blocks {
            let at = band * num_blocks + block;
            let mut integers = [0i32; BAND];
            let words = &bands.words[at * form.block_words()..][..form.block_words()];
            for (words, q) in words.iter().zip(x.codes[block].chunks_exact(form.word_columns())) {
                for (integer, &word) in integers.iter_mut().zip(words) {
                    for (column, &q) in q.iter().enumerate() {
                        *integer += form.code(word, column) * i32::from(q);
                    }
                }
            }
            for (lane, integer) in integers.into_iter().enumerate() {
                let step = bands.scales[at][lane].to_f32() * x.scales[block];
                products[lane] = step.mul_add(integer as f32, products[lane]);
            }
            if let Some(offsets) = bands.offsets.get(at) {
                for (minimum, offset) in minima.iter_mut().zip(offsets) {
                    *minimum = offset.to_f32().mul_add(x.sums[block], *minimum);
                }
            }
        }
        for (y, (product, minimum)) in y.iter_mut().zip(products.iter().zip(minima)) {
            *y = product + minimum;
        }
    }
}

/// Bands to f32, column by column: `out [cols, num_bands * 16]`, without padding columns; `cols` is in the
/// last block. Product and sum are rounded one after the other.
pub(crate) fn expand_bands(level: Level, bands: BandRows<'_>, cols: usize, out: &mut [f32]) {
    let (form, num_blocks) = (bands.form, bands.num_blocks);
    assert_eq!(cols.div_ceil(BLOCK), num_blocks, "columns end in the last block");
    let num_bands = bands.scales.len() / num_blocks;
    check_shape(bands, num_bands * num_blocks);
    assert_eq!(out.len(), cols * num_bands * BAND, "columns fit out");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_bands`.
        return unsafe { avx2::expand_bands(bands, cols, out) };
    }
    let _ = level;
    let columns = out.as_chunks_mut::<BAND>().0.chunks_exact_mut(num_bands);
    for (column, of_bands) in columns.enumerate() {
        let (block, within) = (column / BLOCK, column % BLOCK);
        for (band, out) in of_bands.iter_mut().enumerate() {
            let at = band * num_blocks + block;
            let words = bands.words[at * form.block_words() + within / form.word_columns()];
            for (lane, (out, word)) in out.iter_mut().zip(words).enumerate() {
                let code = form.code(word, within % form.word_columns()) as f32;
                let product = bands.scales[at][lane].to_f32() * code;
                let offset = bands.offsets.get(at).map(|offsets| offsets[lane].to_f32());
                *out = offset.map_or(product, |offset| product + offset);
            }
        }
    }
}

/// What kernels rely on: words, scales and offsets of so many blocks.
pub(super) fn check_shape(bands: BandRows<'_>, num_blocks: usize) {
    assert!(matches!(bands.form.bits, 4 | 8), "codes of 4 or 8 bits");
    assert_eq!(bands.scales.len(), num_blocks, "scales of all blocks");
    assert_eq!(bands.words.len(), num_blocks * bands.form.block_words(), "words of all blocks");
    assert!(bands.offsets.is_empty() || bands.offsets.len() == num_blocks, "all offsets or none");
}
