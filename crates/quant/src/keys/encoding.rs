//! How a coder encodes, in numbers: for kernels that do the same on a device.
//!
//! A coder does one of two things to keys: it codes them token by token, into [`Strips`] of 32 tokens, or channel by
//! channel over a block of tokens. Which tables there are and in what order a code's bits lie is said here, and by
//! the layouts of [`KeyFormat`](super::KeyFormat); how a code is found is the format's rule, in words.

use super::{KeyCoder, KeyFormat, PLANE_BYTES, STRIP, SharedScale, Tail};
use crate::Rotation;

/// What a coder does to keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoding {
    /// Token by token, into strips.
    Tokens {
        /// How a token's codes are found.
        rule: TokenRule,
        /// Where they lie.
        strips: Strips,
    },
    /// Integers with a scale and a zero for each channel of a block, in the layout of
    /// [`KeyFormat::IntChannel`](super::KeyFormat::IntChannel).
    Channels {
        /// Bits of a code: 8, 6, 4, 3 or 2.
        bits: u8,
        /// Tokens of a block.
        group_tokens: usize,
    },
}

/// How the codes and the tail of a token are found.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenRule {
    /// Integers: the zero is the smallest value, rounded down to f16, the scale what reaches the largest, rounded up;
    /// both are found again from what they decode the ends to, until they stay.
    Integers {
        /// Bits of a code.
        bits: u8,
        /// What keys, clamped to ±65,504, are under; none leaves them as they are.
        rotation: Option<Rotation>,
    },
    /// Numbers of levels: the nearest to each value over the root mean square of all. The scale is the one that brings
    /// the levels closest to the key.
    Levels {
        /// The levels, rising.
        levels: Vec<f32>,
        /// What is taken from a key, clamped to ±65,504, before it is rotated `[head_dim]`.
        centre: Vec<f32>,
        /// What it is then under.
        rotation: Rotation,
    },
    /// Integers with a step for each channel, and a scale in eighths of an octave: of those that are tried, the one
    /// that leaves the least weighted error.
    Allocated {
        /// By coded position `[head_dim]`.
        channels: Vec<AllocatedChannel>,
    },
}

/// What an [allocated](TokenRule::Allocated) code has of its channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AllocatedChannel {
    /// The channel of a key.
    pub channel: u32,
    /// What is taken from it, clamped to ±65,504.
    pub centre: f32,
    /// What it is then divided by; a channel whose step is 0 counts as 0.
    pub step: f32,
    /// Weight of a squared error, in units of the step.
    pub weight: f32,
    /// The code of 0; the largest code is twice that.
    pub middle: f32,
    /// The spread of a channel that is distributed normally; 0 where there are no codes, and the channel counts as 0.
    pub usual: f32,
}

/// Where codes lie in a strip of 32 tokens: planes, one after the other, then the tails of all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Strips {
    /// What a plane holds of each token.
    pub cell: Cell,
    /// The planes.
    pub planes: Vec<CodePlane>,
    /// What follows them.
    pub tail: Tail,
}

/// What a plane holds of each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A nibble: 16 bytes a plane. That of the token in slot `s` is in byte `s % 8 · 2 + s / 8 % 2`, in the upper half
    /// from slot 16 on.
    Nibble,
    /// Two bytes: 64 bytes a plane, token after token.
    Pair,
}

/// Bits of neighbouring channels: as many of each, the first channel's lowest, as many channels as fill a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlane {
    /// By coded position.
    pub first_channel: u32,
    /// Bits of a channel in this plane.
    pub bits: u8,
    /// Their place in the channel's code.
    pub shift: u8,
}

impl Cell {
    /// Its bits.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::Nibble => 4,
            Self::Pair => 16,
        }
    }

    /// Bytes of a plane.
    #[must_use]
    pub fn plane_bytes(self) -> usize {
        self.bits() * STRIP / 8
    }
}

impl Strips {
    /// Bytes of a strip.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.planes.len() * self.cell.plane_bytes() + STRIP * self.tail.bytes()
    }
}

impl KeyFormat {
    /// Whether coders of this format have an [encoding](KeyCoder::encoding).
    #[must_use]
    pub fn has_encoding(&self) -> bool {
        match *self {
            Self::IntToken { .. }
            | Self::IntChannel { .. }
            | Self::Rotated { scale: SharedScale::Token, .. }
            | Self::Alloc { .. } => true,
            Self::LloydMax { bits } | Self::LloydMaxPlain { bits } => bits != 3,
            _ => false,
        }
    }
}

impl KeyCoder {
    /// What this coder does to keys; none for formats that a device has no kernels for: of short floats, in groups
    /// along the channels, of product quantization, `lm3`, and of rotated keys per channel.
    #[must_use]
    pub fn encoding(&self) -> Option<Encoding> {
        self.codec.encoding()
    }
}

const _: () = assert!(PLANE_BYTES == 4 * STRIP / 8);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FitInput, Level};

    #[test]
    fn strips_are_as_long_as_blocks() {
        let keys: Vec<f32> = (0..320 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let level = Level::detect();
        let input =
            FitInput { head_dim: 64, keys: &keys, query_energy: &[1.0; 64], seed: 0, level };
        let coder = |name: &str| KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
        for name in ["int8-token", "int3-token", "rot-int4-token", "lm2", "alloc/2.5", "alloc/8"] {
            let coder = coder(name);
            let Some(Encoding::Tokens { strips, rule }) = coder.encoding() else {
                panic!("{name} has strips")
            };
            assert_eq!(strips.num_bytes(), coder.layout().block_bytes, "{name}");
            assert!(coder.format().has_encoding(), "{name}");
            let is_rotated = match rule {
                TokenRule::Integers { rotation, .. } => rotation.is_some(),
                TokenRule::Levels { levels, .. } => levels.len() == 4,
                TokenRule::Allocated { channels } => channels.len() != 64,
            };
            assert_eq!(is_rotated, name.starts_with("rot-") || name == "lm2", "{name}");
        }
        let channels = Some(Encoding::Channels { bits: 4, group_tokens: 32 });
        assert_eq!(coder("int4-channel/32").encoding(), channels);
        assert!(coder("int4-channel/32").format().has_encoding());
        for name in ["f16", "lm3", "int4-token/32", "pq/4x16", "rot-int4-channel/32"] {
            assert_eq!(coder(name).encoding(), None, "{name}");
            assert!(!coder(name).format().has_encoding(), "{name}");
        }
    }
}
