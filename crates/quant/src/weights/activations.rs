//! One input vector, prepared once for the matrices that share it.

use super::BLOCK;
use crate::{Level, simd::weights as kernels};

/// An input vector `[cols]` shared by several products (q, k, v; gate, up).
///
/// Matrices in the `f32` and `f16` compute forms read the vector itself. For the `q8` form it is
/// quantized to 16-bit integers, once, by whichever matrix asks first.
#[derive(Debug, Default)]
pub struct Activations<'a> {
    x: &'a [f32],
    blocks: BlockVector,
    is_quantized: bool,
}

impl<'a> Activations<'a> {
    /// Borrows `x` `[cols]`, f32. Nothing is computed yet.
    #[must_use]
    pub fn new(x: &'a [f32]) -> Self {
        Self::default().reused_for(x)
    }

    /// Borrows another vector, whose quantized form takes the memory of this one's: who multiplies vector by vector allocates
    /// nothing.
    #[must_use]
    pub fn reused_for<'b>(self, x: &'b [f32]) -> Activations<'b> {
        Activations { x, blocks: self.blocks, is_quantized: false }
    }

    /// The vector itself, `[cols]`.
    #[must_use]
    pub fn values(&self) -> &'a [f32] {
        self.x
    }

    /// Quantizes the vector, unless it was. All levels give the same bits, so it does not matter who asks first.
    pub(crate) fn quantize(&mut self, level: Level) {
        if !self.is_quantized {
            self.blocks.quantize(level, self.x);
            self.is_quantized = true;
        }
    }

    /// The quantized vector; no blocks where nobody has asked for it.
    pub(crate) fn blocks(&self) -> &BlockVector {
        debug_assert!(self.is_quantized, "whoever multiplies has prepared the vector");
        &self.blocks
    }
}

/// A vector in blocks of 32: `x ≈ scale * code`, with 16-bit codes.
///
/// `scale` is the largest magnitude of the block divided by 32767, so that each element is off by at
/// most `scale / 2` and a hundredth of that, 1.6e-5 of the block's largest. A block whose largest magnitude is under
/// 2⁻⁹⁶ is stored as zeros; a block that holds a NaN or an infinity has a NaN scale, and every
/// product with it is NaN.
#[derive(Debug, Default)]
pub(crate) struct BlockVector {
    /// Codes `[cols padded to 32]`, in −32767..=32767; the padding is 0.
    pub(crate) codes: Vec<[i16; BLOCK]>,
    /// Scales `[num_blocks]`.
    pub(crate) scales: Vec<f32>,
    /// The sum of the codes of each block, `[num_blocks]`.
    pub(crate) code_sums: Vec<i32>,
    /// `scale * sum of codes` of each block, `[num_blocks]`.
    pub(crate) sums: Vec<f32>,
}

impl BlockVector {
    /// Quantizes `x` `[cols]` in the place of what was here. No columns: no blocks.
    pub(crate) fn quantize(&mut self, level: Level, x: &[f32]) {
        let num_blocks = x.len().div_ceil(BLOCK);
        // Padding, and blocks of zeros, stay what they are set to here.
        self.codes.clear();
        self.codes.resize(num_blocks, [0; BLOCK]);
        self.scales.clear();
        self.scales.resize(num_blocks, 0.0);
        self.code_sums.clear();
        self.code_sums.resize(num_blocks, 0);
        self.sums.clear();
        self.sums.resize(num_blocks, 0.0);
        kernels::quantize_blocks(level, x, self);
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, BlockVector};
    use crate::Level;

    fn quantized(level: Level, x: &[f32]) -> BlockVector {
        let mut blocks = BlockVector::default();
        // What was here before does not show.
        blocks.quantize(level, &wave(333));
        blocks.quantize(level, x);
        blocks
    }

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * i) as f32 * 0.37).sin() * 1.5f32.powi(i as i32 % 40 - 20)).collect()
    }

    #[test]
    fn elements_are_within_half_a_step() {
        for level in Level::available() {
            for len in [0, 1, 31, 32, 33, 255, 256, 257, 576] {
                let x = wave(len);
                let q = quantized(level, &x);
                assert_eq!(q.codes.len(), len.div_ceil(BLOCK));
                for (i, &value) in x.iter().enumerate() {
                    let scale = f64::from(q.scales[i / BLOCK]);
                    let error =
                        (f64::from(value) - scale * f64::from(q.codes[i / BLOCK][i % BLOCK])).abs();
                    // The quotient is rounded twice before it is rounded to an integer: 32767 * 2⁻²³.
                    assert!(error <= scale * 0.505, "{level} {len} {i}: {error} {scale}");
                }
                assert!(q.codes.as_flattened()[len..].iter().all(|&code| code == 0));
                for (block, codes) in q.codes.iter().enumerate() {
                    let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
                    assert_eq!(q.code_sums[block], sum, "{level} {len} {block}");
                    let expected = (f64::from(q.scales[block]) * f64::from(sum)) as f32;
                    assert_eq!(q.sums[block], expected, "{level} {len} {block}");
                }
            }
        }
    }

    #[test]
    fn levels_agree_bit_for_bit() {
        let x = wave(1000);
        let expected = quantized(Level::SCALAR, &x);
        for level in Level::available() {
            let actual = quantized(level, &x);
            assert_eq!(actual.codes, expected.codes, "{level}");
            assert_eq!(actual.scales, expected.scales, "{level}");
            assert_eq!(actual.code_sums, expected.code_sums, "{level}");
            assert_eq!(actual.sums, expected.sums, "{level}");
        }
    }

    #[test]
    fn extremes_neither_overflow_nor_vanish_silently() {
        for level in Level::available() {
            let mut x = vec![0.0; 160];
            x[0] = f32::MAX;
            x[40] = f32::NAN;
            x[70] = f32::NEG_INFINITY;
            x[100] = f32::from_bits(1);
            let q = quantized(level, &x);
            assert_eq!(q.codes[0][0], 32767);
            assert!((q.scales[0] / (f32::MAX / 32767.0) - 1.0).abs() < 1e-6);
            assert!(q.scales[1].is_nan() && q.sums[1].is_nan());
            assert!(q.scales[2].is_nan() && q.sums[2].is_nan());
            assert_eq!((q.scales[3], q.sums[3]), (0.0, 0.0));
            assert_eq!((q.scales[4], q.sums[4]), (0.0, 0.0));
            assert!(q.codes[1..].iter().all(|&codes| codes == [0; BLOCK]), "{level}");
        }
    }
}
