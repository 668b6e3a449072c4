//! Keys in half precision.

use half::f16;

use super::PreparedQueries;
use super::codec::Codec;
use crate::Level;
use crate::saturate::to_f16;
use crate::simd::f16_keys;

/// Two bytes a channel; keys beyond ±65,504 are clamped.
#[derive(Debug)]
pub(super) struct Halves {
    pub(super) head_dim: usize,
}

impl Codec for Halves {
    fn encode(&self, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let codes = codes[2 * self.head_dim * first_token..].as_chunks_mut::<2>().0;
        for (key, code) in keys.iter().zip(codes) {
            *code = to_f16(*key).to_le_bytes();
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let codes = codes[2 * self.head_dim * first_token..].as_chunks::<2>().0;
        for (code, out) in codes.iter().zip(out) {
            *out = f16::from_le_bytes(*code).to_f32();
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
        let queries = prepared.queries();
        f16_keys::score(level, queries, self.head_dim, codes, num_tokens, out, stride);
    }
}
