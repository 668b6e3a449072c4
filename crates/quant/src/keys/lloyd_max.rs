//! Rotated keys under a Lloyd–Max codebook, one scale per token, centred or plain.
//!
//! A key, minus its channel means where it is centred, is rotated ([`Rotation`]), after which its
//! coordinates over their root mean square are close to normal, so that one codebook, optimal for the
//! normal distribution, serves every coordinate of every key (the construction of TurboQuant, arXiv
//! 2504.19874, without its residual sketch). The scale stored is the one that brings the codes closest
//! to the key.

use half::f16;

use super::codec::Codec;
use super::codes::TokenCodes;
use super::moves::StripCells;
use super::{
    Encoding, FitInput, FrameCodes, PreparedQueries, QueryFrame, Tables, Tail, TokenRule,
    channel_means,
};
use crate::rotation::Rotation;
use crate::saturate::{in_f16_range, to_f16};
use crate::simd::keys::Values;
use crate::{Level, Result};

/// The seed of the rotation of every head: part of the format.
pub(super) const ROTATION_SEED: u64 = 0x6865_7465_726f_6b76;

/// Lloyd–Max levels of the standard normal distribution, upper half (Max 1960, table I).
pub(super) const LEVELS: [&[f32]; 4] = [
    &[0.797_885],
    &[0.452_780, 1.510_418],
    &[0.245_094, 0.756_005, 1.343_909, 2.151_946],
    &[0.128_395, 0.388_048, 0.656_759, 0.942_340, 1.256_231, 1.618_046, 2.069_017, 2.732_59],
];

#[derive(Clone, Debug)]
pub(super) struct LloydMax {
    /// Subtracted from every key; zeros for plain codes.
    centre: Vec<f16>,
    /// Whether the centre was fitted, and so is stored.
    is_centred: bool,
    rotation: Rotation,
    codes: TokenCodes,
}

impl LloydMax {
    pub(super) fn fit(bits: u8, input: &FitInput<'_>) -> Result<Self> {
        Self::restore(bits, channel_means(input.keys, input.head_dim))
    }

    pub(super) fn restore(bits: u8, centre: Vec<f16>) -> Result<Self> {
        Self::new(bits, centre, true)
    }

    /// Codes of keys as they are, without a centre, which need no fit.
    pub(super) fn plain(bits: u8, head_dim: usize) -> Result<Self> {
        Self::new(bits, vec![f16::ZERO; head_dim], false)
    }

    fn new(bits: u8, centre: Vec<f16>, is_centred: bool) -> Result<Self> {
        let upper = LEVELS[usize::from(bits) - 1];
        let mut levels = [0.0; 16];
        for (i, &level) in upper.iter().enumerate() {
            levels[upper.len() + i] = level;
            levels[upper.len() - 1 - i] = -level;
        }
        let rotation = Rotation::new(centre.len(), ROTATION_SEED)?;
        let widths = vec![bits; centre.len() / 8];
        Ok(Self {
            centre,
            is_centred,
            rotation,
            codes: TokenCodes::new(widths, Values::Levels(levels), Tail::Scale),
        })
    }

    /// The codes of a key and the scale that brings them closest to it.
    fn codes_of(&self, key: &[f32]) -> (Vec<u8>, f16) {
        let rows = key.iter().zip(&self.centre);
        let mut x: Vec<f32> = rows.map(|(&k, c)| in_f16_range(k) - c.to_f32()).collect();
        self.rotation.forward(&mut x);
        let energy: f32 = x.iter().map(|x| x * x).sum();
        let rms = (energy / x.len() as f32).sqrt();
        let inverse = if rms > 0.0 { 1.0 / rms } else { 0.0 };
        let codes: Vec<u8> = x.iter().map(|x| self.nearest(x * inverse)).collect();
        let (mut along, mut norm) = (0.0, 0.0);
        for (x, &code) in x.iter().zip(&codes) {
            let level = self.codes.value(code);
            along += x * level;
            norm += level * level;
        }
        (codes, to_f16(along / norm))
    }

    fn nearest(&self, x: f32) -> u8 {
        let last = (1u8 << self.codes.widths()[0]) - 1;
        (0..last).take_while(|&i| x > 0.5 * (self.codes.value(i) + self.codes.value(i + 1))).count()
            as u8
    }
}

impl Codec for LloydMax {
    fn tables(&self) -> Tables {
        if self.is_centred { vec![("centre", self.centre.clone())] } else { vec![] }
    }

    fn encode(&self, _level: Level, first_token: usize, keys: &[f32], blocks: &mut [u8]) {
        for (i, key) in keys.chunks_exact(self.centre.len()).enumerate() {
            let (codes, scale) = self.codes_of(key);
            self.codes.write(blocks, first_token + i, &codes, &scale.to_le_bytes());
        }
    }

    fn decode(&self, first_token: usize, blocks: &[u8], out: &mut [f32]) {
        self.codes.decode(first_token, blocks, out);
        for out in out.chunks_exact_mut(self.centre.len()) {
            self.rotation.inverse(out);
            for (x, centre) in out.iter_mut().zip(&self.centre) {
                *x += centre.to_f32();
            }
        }
    }

    fn prepare(&self, prepared: &mut PreparedQueries) {
        let head_dim = self.centre.len();
        for (head, query) in prepared.queries.chunks_exact_mut(head_dim).enumerate() {
            prepared.bias[head] = query.iter().zip(&self.centre).map(|(q, c)| q * c.to_f32()).sum();
            self.rotation.forward(query);
        }
        self.codes.prepare(prepared);
    }

    fn query_frame(&self) -> Option<QueryFrame> {
        let frame = QueryFrame::plain(FrameCodes::of(&self.codes)?, self.centre.len());
        let mut frame = frame.rotated(&self.rotation);
        for (channel, centre) in frame.channels.iter_mut().zip(&self.centre) {
            channel.centre = centre.to_f32();
        }
        Some(frame)
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
        let num_levels = 1 << self.codes.widths()[0];
        let rule = TokenRule::Levels {
            levels: (0..num_levels).map(|code| self.codes.value(code)).collect(),
            centre: self.centre.iter().map(|x| x.to_f32()).collect(),
            rotation: self.rotation.clone(),
        };
        Some(Encoding::Tokens { rule, strips: self.codes.strips()? })
    }
}
