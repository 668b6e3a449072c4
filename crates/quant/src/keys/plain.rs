//! Keys as short floats: no tables, no scales, one element beside the next.

use half::{bf16, f16};

use super::codec::Codec;
use super::{ChannelCodes, FrameCodes, PreparedQueries, QueryFrame};
use crate::Level;
use crate::rows::VectorList;
use crate::saturate::{from_fp8, to_bf16, to_f16, to_fp8};
use crate::simd::f16_keys;
use crate::simd::vectors::{self, Bf16, Fp8};

/// What an element is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Float {
    /// Half precision; keys beyond ±65,504 are clamped.
    F16,
    /// Brain floats: the range of f32 and eight bits of significand.
    Bf16,
    /// e4m3fn in one byte, without a scale; keys beyond ±448 are clamped.
    Fp8,
}

/// Keys of one kind of float.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) float: Float,
    pub(super) head_dim: usize,
}

impl Plain {
    fn row_bytes(&self) -> usize {
        match self.float {
            Float::F16 | Float::Bf16 => 2 * self.head_dim,
            Float::Fp8 => self.head_dim,
        }
    }
}

impl Codec for Plain {
    fn encode(&self, _level: Level, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let codes = &mut codes[self.row_bytes() * first_token..];
        match self.float {
            Float::F16 => write(keys, codes, |x| to_f16(x).to_le_bytes()),
            Float::Bf16 => write(keys, codes, |x| to_bf16(x).to_le_bytes()),
            Float::Fp8 => write(keys, codes, |x| [to_fp8(x)]),
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let codes = &codes[self.row_bytes() * first_token..];
        match self.float {
            Float::F16 => read(codes, out, |x| f16::from_le_bytes(x).to_f32()),
            Float::Bf16 => read(codes, out, |x| bf16::from_le_bytes(x).to_f32()),
            Float::Fp8 => read(codes, out, |[code]| from_fp8(code)),
        }
    }

    fn prepare(&self, _: &mut PreparedQueries) {}

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let (queries, head_dim) = (prepared.queries(), self.head_dim);
        let lists = (VectorList::Beside(codes), VectorList::NONE);
        match self.float {
            Float::F16 => {
                f16_keys::score(level, queries, head_dim, codes, num_tokens, out, stride);
            }
            Float::Bf16 => vectors::score(level, Bf16 { head_dim }, queries, lists, out, stride),
            Float::Fp8 => vectors::score(level, Fp8 { head_dim }, queries, lists, out, stride),
        }
    }

    fn query_frame(&self) -> Option<QueryFrame> {
        let codes = FrameCodes::Channels(self.channel_codes()?);
        Some(QueryFrame::plain(codes, self.head_dim))
    }

    fn channel_codes(&self) -> Option<ChannelCodes> {
        match self.float {
            Float::F16 => Some(ChannelCodes::Halves),
            Float::Bf16 | Float::Fp8 => None,
        }
    }
}

fn write<const SIZE: usize>(keys: &[f32], codes: &mut [u8], rounded: impl Fn(f32) -> [u8; SIZE]) {
    for (&key, code) in keys.iter().zip(codes.as_chunks_mut().0) {
        *code = rounded(key);
    }
}

fn read<const SIZE: usize>(codes: &[u8], out: &mut [f32], value: impl Fn([u8; SIZE]) -> f32) {
    for (&code, out) in codes.as_chunks().0.iter().zip(out) {
        *out = value(code);
    }
}
