//! What every format does with keys, behind one trait.

use std::fmt;

use super::{PreparedQueries, Tables};
use crate::Level;

/// What one format does with keys of one (layer, KV head). [`KeyCoder`](super::KeyCoder) holds one and
/// has checked every length and value before it calls.
pub(super) trait Codec: fmt::Debug + Send + Sync {
    /// The fitted tables, in the order of [`KeyCoder::table_names`](super::KeyCoder::table_names); none
    /// where nothing is fitted.
    fn tables(&self) -> Tables {
        Vec::new()
    }

    /// Encodes whole groups `keys [n, head_dim]` as the tokens from `first_token` on of `codes`.
    fn encode(&self, first_token: usize, keys: &[f32], codes: &mut [u8]);

    /// Decodes the tokens from `first_token` on of `codes` into `out [n, head_dim]`.
    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]);

    /// Brings `prepared.queries`, which hold `sm_scale · q` in the order of channels, into the frame of
    /// this format, with whatever `score` needs beside them.
    fn prepare(&self, prepared: &mut PreparedQueries);

    /// Scores the first `num_tokens` of `codes` into `out[head · stride + token]`; there is at least one
    /// query and one token.
    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    );

    /// The most by which `score` rounds, beyond f32: see [`KeyCoder::rounding`](super::KeyCoder::rounding).
    fn rounding(
        &self,
        _prepared: &PreparedQueries,
        _head: usize,
        _codes: &[u8],
        _token: usize,
    ) -> f32 {
        0.0
    }
}
