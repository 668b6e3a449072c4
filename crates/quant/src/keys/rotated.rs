//! Any affine format under the randomised Hadamard rotation of the head dimension (QuaRot, arXiv
//! 2404.00456).
//!
//! Keys are rotated before they are encoded, queries when they are prepared; a rotation keeps q·k. What
//! is stored is laid out as by the format without it. Keys beyond ±65,504 are clamped first.

use std::sync::Arc;

use super::codec::Codec;
use super::lloyd_max::ROTATION_SEED;
use super::moves::StripCells;
use super::{ChannelCodes, Encoding, PreparedQueries, QueryFrame, TokenRule};
use crate::saturate::in_f16_range;
use crate::{Level, Result, Rotation};

/// A codec of keys in the rotated frame.
#[derive(Debug)]
pub(super) struct Rotated {
    head_dim: usize,
    rotation: Rotation,
    inner: Arc<dyn Codec>,
}

impl Rotated {
    pub(super) fn new(head_dim: usize, inner: Arc<dyn Codec>) -> Result<Self> {
        Ok(Self { head_dim, rotation: Rotation::new(head_dim, ROTATION_SEED)?, inner })
    }
}

impl Codec for Rotated {
    fn encode(&self, level: Level, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let mut rotated: Vec<f32> = keys.iter().map(|&x| in_f16_range(x)).collect();
        rotated.chunks_exact_mut(self.head_dim).for_each(|key| self.rotation.forward(key));
        self.inner.encode(level, first_token, &rotated, codes);
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        self.inner.decode(first_token, codes, out);
        out.chunks_exact_mut(self.head_dim).for_each(|key| self.rotation.inverse(key));
    }

    fn prepare(&self, prepared: &mut PreparedQueries) {
        let queries = prepared.queries.chunks_exact_mut(self.head_dim);
        queries.for_each(|query| self.rotation.forward(query));
        self.inner.prepare(prepared);
    }

    fn query_frame(&self) -> Option<QueryFrame> {
        self.inner.query_frame().map(|frame| frame.rotated(&self.rotation))
    }

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        self.inner.score(level, prepared, codes, num_tokens, out, stride);
    }

    fn rounding(&self, prepared: &PreparedQueries, head: usize, codes: &[u8], token: usize) -> f32 {
        self.inner.rounding(prepared, head, codes, token)
    }

    fn strip_cells(&self) -> Option<StripCells> {
        self.inner.strip_cells()
    }

    fn encoding(&self) -> Option<Encoding> {
        match self.inner.encoding()? {
            Encoding::Tokens { rule: TokenRule::Integers { bits, rotation: None }, strips } => {
                let rotation = Some(self.rotation.clone());
                let rule = TokenRule::Integers { bits, rotation };
                Some(Encoding::Tokens { rule, strips })
            }
            _ => None,
        }
    }

    fn channel_codes(&self) -> Option<ChannelCodes> {
        self.inner.channel_codes()
    }
}
