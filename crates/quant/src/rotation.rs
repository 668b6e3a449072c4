//! The randomised Hadamard rotation: signs, then a Walsh–Hadamard transform, both orthonormal.
//!
//! It spreads a vector's energy evenly over its coordinates, so that one scalar codebook fits all of
//! them (QuaRot, arXiv 2404.00456; TurboQuant, arXiv 2504.19874). A `head_dim` that is not a power of
//! two is rotated in equal blocks of its largest power-of-two divisor (80 in 16s, 96 in 32s, 112 in
//! 16s).

use crate::{Error, Result};

/// The smallest block that still mixes enough coordinates to look Gaussian.
const MIN_BLOCK: usize = 8;

/// An orthonormal rotation of `head_dim` coordinates, fixed by `head_dim` and a seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    signs: Vec<f32>,
    block: usize,
}

impl Rotation {
    /// The rotation of vectors `[head_dim]`.
    ///
    /// The signs are part of the stored format: the top bit of the i-th number of the
    /// SplitMix64 stream of `seed`, set for minus.
    ///
    /// # Errors
    /// [`Error::HeadDim`] when no power of two of at least 8 divides `head_dim`.
    pub fn new(head_dim: usize, seed: u64) -> Result<Self> {
        let block = if head_dim == 0 { 0 } else { 1 << head_dim.trailing_zeros() };
        if block < MIN_BLOCK {
            return Err(Error::HeadDim { format: "rotated", head_dim, multiple_of: MIN_BLOCK });
        }
        let mut random = SplitMix64(seed);
        let scale = 1.0 / (block as f32).sqrt();
        let signs = (0..head_dim).map(|_| if random.next() >> 63 == 0 { scale } else { -scale });
        Ok(Self { signs: signs.collect(), block })
    }

    /// What each coordinate is multiplied by before the transform `[head_dim]`: a sign, over the root of the block's
    /// length.
    #[must_use]
    pub fn signs(&self) -> &[f32] {
        &self.signs
    }

    /// Coordinates of a block of the transform, a power of two.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// Rotates `x [head_dim]` in place.
    pub fn forward(&self, x: &mut [f32]) {
        for (x, sign) in x.iter_mut().zip(&self.signs) {
            *x *= sign;
        }
        x.chunks_exact_mut(self.block).for_each(walsh_hadamard);
    }

    /// Undoes [`Rotation::forward`].
    pub fn inverse(&self, x: &mut [f32]) {
        x.chunks_exact_mut(self.block).for_each(walsh_hadamard);
        for (x, sign) in x.iter_mut().zip(&self.signs) {
            *x *= sign;
        }
    }
}

/// The unnormalised transform of a power-of-two slice; twice over it multiplies by the length.
pub(crate) fn walsh_hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Steele, Lea and Flood's SplitMix64: ten lines whose stream never changes, which a stored format
/// and a repeatable fit need and general-purpose generators do not promise.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`; `bound` is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests;
