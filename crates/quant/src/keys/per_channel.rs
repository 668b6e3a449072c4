//! Affine integers per channel over a group of tokens (KIVI, arXiv 2402.02750, which stores scale and zero
//! in f16 and takes them from the ends of the group).
//!
//! A block holds the tokens of a group: `scales and zeros [head_dim] | codes [group_tokens, head_dim]`,
//! a [`Group`] per channel.

use super::codec::Codec;
use super::{PreparedQueries, Tail};
use crate::Level;
use crate::affine::Group;
use crate::bits::{for_each_code, pack_row};
use crate::simd::keys::{CodedRows, Values};

#[derive(Clone, Debug)]
pub(super) struct PerChannel {
    bits: u8,
    head_dim: usize,
    group_tokens: usize,
    rows: CodedRows,
}

impl PerChannel {
    pub(super) fn new(bits: u8, head_dim: usize, group_tokens: usize) -> Self {
        let rows = CodedRows::new(vec![bits; head_dim / 8], Values::Integer, Tail::None);
        Self { bits, head_dim, group_tokens, rows }
    }

    fn header_bytes(&self) -> usize {
        Group::header_bytes(self.bits) * self.head_dim
    }

    fn block_bytes(&self) -> usize {
        self.header_bytes() + self.group_tokens * self.rows.row_bytes()
    }

    /// The scales and zeros of a block's channels.
    fn channels(&self, block: &[u8]) -> impl Iterator<Item = Group> {
        let headers = block[..self.header_bytes()].chunks_exact(Group::header_bytes(self.bits));
        headers.map(|header| Group::read(header, self.bits))
    }

    fn encode_block(&self, keys: &[f32], block: &mut [u8]) {
        let head_dim = self.head_dim;
        let (headers, packed) = block.split_at_mut(self.header_bytes());
        let mut column = vec![0.0; self.group_tokens];
        let mut channels = Vec::with_capacity(head_dim);
        for (c, header) in headers.chunks_exact_mut(Group::header_bytes(self.bits)).enumerate() {
            let values = keys.iter().skip(c).step_by(head_dim);
            column.iter_mut().zip(values).for_each(|(x, value)| *x = *value);
            let channel = Group::of(&column, self.bits);
            channel.write(header);
            channels.push(channel);
        }
        let mut codes = vec![0; head_dim];
        let rows = packed.chunks_exact_mut(self.rows.row_bytes());
        for (key, row) in keys.chunks_exact(head_dim).zip(rows) {
            for ((code, channel), &x) in codes.iter_mut().zip(&channels).zip(key) {
                *code = channel.code(x);
            }
            pack_row(&codes, self.rows.widths(), row);
        }
    }

    fn decode_block(&self, block: &[u8], out: &mut [f32]) {
        let channels: Vec<Group> = self.channels(block).collect();
        let rows = block[self.header_bytes()..].chunks_exact(self.rows.row_bytes());
        for (row, out) in rows.zip(out.chunks_exact_mut(self.head_dim)) {
            for_each_code(row, self.rows.widths(), |c, code| out[c] = channels[c].value(code));
        }
    }

    /// Brings the queries into the frame of a block: its scales and zeros folded into them.
    fn fold(&self, queries: &[f32], block: &[u8], folded: &mut PreparedQueries) {
        folded.queries.copy_from_slice(queries);
        folded.bias.fill(0.0);
        for (c, channel) in self.channels(block).enumerate() {
            let (scale, zero) = channel.line();
            let heads = folded.queries.chunks_exact_mut(self.head_dim).zip(&mut folded.bias);
            for (query, bias) in heads {
                *bias += query[c] * zero;
                query[c] *= scale;
            }
        }
    }
}

impl Codec for PerChannel {
    fn encode(&self, _level: Level, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let first = first_token / self.group_tokens * self.block_bytes();
        let blocks = codes[first..].chunks_exact_mut(self.block_bytes());
        for (keys, block) in keys.chunks_exact(self.group_tokens * self.head_dim).zip(blocks) {
            self.encode_block(keys, block);
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let first = first_token / self.group_tokens * self.block_bytes();
        let blocks = codes[first..].chunks_exact(self.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.group_tokens * self.head_dim)) {
            self.decode_block(block, out);
        }
    }

    fn prepare(&self, _: &mut PreparedQueries) {}

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        _num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let mut folded = prepared.clone();
        for (i, block) in codes.chunks_exact(self.block_bytes()).enumerate() {
            self.fold(prepared.queries(), block, &mut folded);
            let out = &mut out[i * self.group_tokens..];
            self.rows.score(level, &folded, &block[self.header_bytes()..], out, stride);
        }
    }
}
