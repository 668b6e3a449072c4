//! What follows the codes of a token: nothing, a scale, or a scale and a zero.
//!
//! In a row the tail comes after the codes; in a strip of 32 tokens the scales of all tokens come
//! first and then their zeros, so that each is one vector load.

use half::f16;

use super::planes::STRIP;

/// The numbers by which the values of a token are multiplied and moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    None,
    /// One f16 that multiplies the values.
    Scale,
    /// One f16 that multiplies the values and one that is added to them.
    ScaleZero,
    /// One byte `e`: the values are multiplied by `2^((e − 128) / 8)`.
    Exponent,
}

impl Tail {
    /// Bytes of a token's tail.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Exponent => 1,
            Self::Scale => 2,
            Self::ScaleZero => 4,
        }
    }

    /// Scale and zero of a token, from its tail.
    pub(crate) fn of(self, tail: &[u8]) -> (f32, f32) {
        let at = |i: usize| f16::from_le_bytes([tail[i], tail[i + 1]]).to_f32();
        match self {
            Self::None => (1.0, 0.0),
            Self::Exponent => (exponent_scale(tail[0]), 0.0),
            Self::Scale => (at(0), 0.0),
            Self::ScaleZero => (at(0), at(2)),
        }
    }

    /// Writes the tail of the token in `slot` of a strip.
    pub(crate) fn write(self, tails: &mut [u8], slot: usize, tail: &[u8]) {
        let width = self.bytes().clamp(1, 2);
        for (i, number) in tail.chunks_exact(width).enumerate() {
            tails[(i * STRIP + slot) * width..][..width].copy_from_slice(number);
        }
    }

    /// Scale and zero of the token in `slot` of a strip.
    pub(crate) fn read(self, tails: &[u8], slot: usize) -> (f32, f32) {
        let width = self.bytes().clamp(1, 2);
        let mut tail = [0; 4];
        for (i, number) in tail[..self.bytes()].chunks_exact_mut(width).enumerate() {
            number.copy_from_slice(&tails[(i * STRIP + slot) * width..][..width]);
        }
        self.of(&tail)
    }
}

/// The eighths of an octave, `2^(i / 8)`.
pub(crate) const EIGHTHS: [f32; 8] = [
    1.0,
    1.090_507_7,
    1.189_207_1,
    1.296_839_6,
    std::f32::consts::SQRT_2,
    1.542_210_8,
    1.681_792_9,
    1.834_008_1,
];

/// What stands for the octave 0 in the upper five bits of an exponent byte.
pub(crate) const OCTAVE_BIAS: u32 = 16;

/// The scale of [`Tail::Exponent`]: an eighth of an octave times a power of two, which is exact.
pub(crate) fn exponent_scale(byte: u8) -> f32 {
    let octave = f32::from_bits((u32::from(byte >> 3) + 127 - OCTAVE_BIAS) << 23);
    EIGHTHS[usize::from(byte & 7)] * octave
}
