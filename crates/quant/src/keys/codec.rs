//! What every format does with keys, behind one trait.

use std::fmt;
use std::sync::Arc;

use super::affine::PerToken;
use super::lloyd_max::LloydMax;
use super::moves::StripCells;
use super::per_channel::PerChannel;
use super::per_group::PerGroup;
use super::plain::{Float, Plain};
use super::rotated::Rotated;
use super::{
    ChannelCodes, Encoding, GroupFrame, GroupTables, KeyFormat, PreparedQueries, QueryFrame, Tables,
};
use crate::grouped::Grouped;
use crate::{Level, Result};

/// What one format does with keys of one (layer, KV head). [`KeyCoder`](super::KeyCoder) holds one and
/// has checked every length and value before it calls.
pub(super) trait Codec: fmt::Debug + Send + Sync {
    /// The fitted tables, in the order of [`KeyCoder::table_names`](super::KeyCoder::table_names); none
    /// where nothing is fitted.
    fn tables(&self) -> Tables {
        Vec::new()
    }

    /// Encodes whole groups `keys [n, head_dim]` as the tokens from `first_token` on of `codes`.
    fn encode(&self, level: Level, first_token: usize, keys: &[f32], codes: &mut [u8]);

    /// Decodes the tokens from `first_token` on of `codes` into `out [n, head_dim]`.
    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]);

    /// Brings `prepared.queries`, which hold `sm_scale · q` in the order of channels, into the frame of
    /// this format, with whatever `score` needs beside them.
    fn prepare(&self, prepared: &mut PreparedQueries);

    /// What `prepare` does, as data: see [`KeyCoder::query_frame`](super::KeyCoder::query_frame).
    fn query_frame(&self) -> Option<QueryFrame> {
        None
    }

    /// See [`KeyCoder::group_frame`](super::KeyCoder::group_frame).
    fn group_frame(&self) -> Option<GroupFrame> {
        None
    }

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

    /// What a token has in a strip, where tokens share one; none where a block is a group.
    fn strip_cells(&self) -> Option<StripCells> {
        None
    }

    /// See [`KeyCoder::encoding`](super::KeyCoder::encoding).
    fn encoding(&self) -> Option<Encoding> {
        None
    }

    /// See [`KeyCoder::channel_queries`](super::KeyCoder::channel_queries).
    fn channel_codes(&self) -> Option<ChannelCodes> {
        None
    }

    /// See [`KeyCoder::group_tables`](super::KeyCoder::group_tables), of scaled queries in the order of channels.
    fn group_tables(&self, _queries: &[f32]) -> Option<GroupTables> {
        None
    }
}

/// The codec of a format that has no tables and so needs no fit.
pub(super) fn unfitted(format: KeyFormat, head_dim: usize) -> Result<Arc<dyn Codec>> {
    let plain = |float| Arc::new(Plain { float, head_dim });
    Ok(match format {
        KeyFormat::F16 => plain(Float::F16),
        KeyFormat::Bf16 => plain(Float::Bf16),
        KeyFormat::Fp8 => plain(Float::Fp8),
        KeyFormat::IntToken { bits } => Arc::new(PerToken::new(bits, head_dim)),
        KeyFormat::IntTokenGroups { bits, group } => {
            Arc::new(PerGroup { rows: Grouped::new(bits, head_dim, group) })
        }
        KeyFormat::IntChannel { bits, group_tokens } => {
            Arc::new(PerChannel::new(bits, head_dim, group_tokens.into()))
        }
        KeyFormat::Rotated { .. } => {
            Arc::new(Rotated::new(head_dim, unfitted(format.unrotated(), head_dim)?)?)
        }
        KeyFormat::LloydMaxPlain { bits } => Arc::new(LloydMax::plain(bits, head_dim)?),
        KeyFormat::LloydMax { .. } | KeyFormat::Pq { .. } | KeyFormat::Alloc { .. } => {
            unreachable!("{format} is fitted")
        }
    })
}
