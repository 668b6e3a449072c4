//! Affine integers per token: one scale and zero over all channels, in f16.

use super::codec::Codec;
use super::codes::TokenCodes;
use super::moves::StripCells;
use super::{ChannelCodes, Encoding, FrameCodes, PreparedQueries, QueryFrame, Tail, TokenRule};
use crate::Level;
use crate::affine::Affine;
use crate::saturate::to_f16;
use crate::simd::keys::Values;

/// One scale and zero per token, both f16.
#[derive(Clone, Debug)]
pub(super) struct PerToken {
    bits: u8,
    codes: TokenCodes,
}

impl PerToken {
    pub(super) fn new(bits: u8, head_dim: usize) -> Self {
        let codes = TokenCodes::new(vec![bits; head_dim / 8], Values::Integer, Tail::ScaleZero);
        Self { bits, codes }
    }
}

impl Codec for PerToken {
    fn encode(&self, _level: Level, first_token: usize, keys: &[f32], blocks: &mut [u8]) {
        let mut codes = vec![0; self.codes.head_dim()];
        for (i, key) in keys.chunks_exact(self.codes.head_dim()).enumerate() {
            let affine = Affine::of(key.iter().copied(), self.bits);
            codes.iter_mut().zip(key).for_each(|(code, &x)| *code = affine.code(x));
            let ([a, b], [c, d]) =
                (to_f16(affine.scale).to_le_bytes(), to_f16(affine.zero).to_le_bytes());
            self.codes.write(blocks, first_token + i, &codes, &[a, b, c, d]);
        }
    }

    fn decode(&self, first_token: usize, blocks: &[u8], out: &mut [f32]) {
        self.codes.decode(first_token, blocks, out);
    }

    fn prepare(&self, prepared: &mut PreparedQueries) {
        let queries = prepared.queries.chunks_exact(self.codes.head_dim());
        prepared.sums.extend(queries.map(|q| q.iter().sum::<f32>()));
        self.codes.prepare(prepared);
    }

    fn query_frame(&self) -> Option<QueryFrame> {
        Some(QueryFrame::plain(FrameCodes::of(&self.codes)?, self.codes.head_dim()))
    }

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        blocks: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        self.codes.score(level, prepared, blocks, num_tokens, out, stride);
    }

    fn rounding(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        blocks: &[u8],
        token: usize,
    ) -> f32 {
        self.codes.rounding(prepared, head, blocks, token)
    }

    fn strip_cells(&self) -> Option<StripCells> {
        self.codes.strip_cells()
    }

    fn encoding(&self) -> Option<Encoding> {
        let rule = TokenRule::Integers { bits: self.bits, rotation: None };
        Some(Encoding::Tokens { rule, strips: self.codes.strips()? })
    }

    fn channel_codes(&self) -> Option<ChannelCodes> {
        self.codes.channel_codes()
    }
}
