//! Keys in half precision.

use half::f16;

use super::PreparedQueries;
use crate::Level;
use crate::saturate::to_f16;
use crate::simd::rows::dot_f16;

/// Keys beyond ±65,504 are clamped.
pub(super) fn encode(keys: &[f32], out: &mut [u8]) {
    for (key, out) in keys.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = to_f16(*key).to_le_bytes();
    }
}

pub(super) fn decode(codes: &[u8], out: &mut [f32]) {
    for (code, out) in codes.as_chunks::<2>().0.iter().zip(out) {
        *out = f16::from_le_bytes(*code).to_f32();
    }
}

pub(super) fn score(
    level: Level,
    prepared: &PreparedQueries,
    codes: &[u8],
    head_dim: usize,
    out: &mut [f32],
    stride: usize,
) {
    for (token, row) in codes.chunks_exact(2 * head_dim).enumerate() {
        dot_f16(level, prepared.queries(), row, &mut out[token..], stride);
    }
}
