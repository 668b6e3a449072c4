//! Affine integers per channel over a group of tokens (KIVI, arXiv 2402.02750, which stores scale and zero
//! in f16 and takes them from the ends of the group).
//!
//! A block holds the tokens of a group: `scales and zeros [head_dim] | codes [group_tokens]`, a [`Group`] per
//! channel and then codes without tails, those of 4 and of 8 bits in strips, others in rows.
//!
//! Scales and zeros are folded into the queries, block by block. A folded query is rounded to words for the strips
//! of its block, which is soon done; what other widths have in strips are tables of it, and to fill these for
//! one block takes longer than to unpack the block's rows. So scores that only select are as exact as others.

use super::codec::Codec;
use super::codes::TokenCodes;
use super::{ChannelCodes, Encoding, FrameCodes, PreparedQueries, QueryFrame, Tail};
use crate::Level;
use crate::affine::Group;
use crate::bits::CHUNK;
use crate::simd::keys::Values;

#[derive(Clone, Debug)]
pub(super) struct PerChannel {
    bits: u8,
    head_dim: usize,
    group_tokens: usize,
    codes: TokenCodes,
}

impl PerChannel {
    pub(super) fn new(bits: u8, head_dim: usize, group_tokens: usize) -> Self {
        let codes = if matches!(bits, 4 | 8) { TokenCodes::new } else { TokenCodes::rows };
        let codes = codes(vec![bits; head_dim / 8], Values::Integer, Tail::None);
        Self { bits, head_dim, group_tokens, codes }
    }

    fn header_bytes(&self) -> usize {
        Group::header_bytes(self.bits) * self.head_dim
    }

    fn block_bytes(&self) -> usize {
        self.header_bytes() + self.codes.bytes(self.group_tokens)
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
        for (token, key) in keys.chunks_exact(head_dim).enumerate() {
            for ((code, channel), &x) in codes.iter_mut().zip(&channels).zip(key) {
                *code = channel.code(x);
            }
            self.codes.write(packed, token, &codes, &[]);
        }
    }

    fn decode_block(&self, block: &[u8], out: &mut [f32]) {
        let channels: Vec<Group> = self.channels(block).collect();
        let mut codes = vec![0; self.head_dim];
        for (token, out) in out.chunks_exact_mut(self.head_dim).enumerate() {
            self.codes.read(&block[self.header_bytes()..], token, &mut codes);
            for ((out, channel), &code) in out.iter_mut().zip(&channels).zip(&codes) {
                *out = channel.value(code);
            }
        }
    }

    /// Brings queries into the frame of a block, its scales and zeros folded into them, and prepares them for
    /// its codes.
    fn fold(&self, queries: &[f32], block: &[u8], folded: &mut PreparedQueries) {
        folded.queries.copy_from_slice(queries);
        folded.reset();
        let lines: Vec<(f32, f32)> = self.channels(block).map(|channel| channel.line()).collect();
        let heads = folded.queries.chunks_exact_mut(self.head_dim).zip(&mut folded.bias);
        for (query, bias) in heads {
            // Lane by lane, which compilers turn into vector code as they do not a sum in order.
            let mut sums = [0.0; CHUNK];
            let chunks = query.as_chunks_mut::<CHUNK>().0.iter_mut();
            for (query, lines) in chunks.zip(lines.as_chunks::<CHUNK>().0) {
                for ((sum, query), (scale, zero)) in sums.iter_mut().zip(query).zip(lines) {
                    *sum += *query * zero;
                    *query *= scale;
                }
            }
            *bias = sums.iter().sum();
        }
        self.codes.prepare(folded);
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
        let mut folded = PreparedQueries::exact(prepared.num_heads, &prepared.queries);
        for (i, block) in codes.chunks_exact(self.block_bytes()).enumerate() {
            self.fold(prepared.queries(), block, &mut folded);
            let out = &mut out[i * self.group_tokens..];
            let codes = &block[self.header_bytes()..];
            self.codes.score(level, &folded, codes, self.group_tokens, out, stride);
        }
    }

    fn rounding(&self, prepared: &PreparedQueries, head: usize, codes: &[u8], token: usize) -> f32 {
        let query = &prepared.queries[head * self.head_dim..][..self.head_dim];
        let mut folded = PreparedQueries::exact(1, query);
        let block = &codes[token / self.group_tokens * self.block_bytes()..];
        self.fold(query, block, &mut folded);
        let codes = &block[self.header_bytes()..];
        self.codes.rounding(&folded, 0, codes, token % self.group_tokens)
    }

    fn encoding(&self) -> Option<Encoding> {
        Some(Encoding::Channels { bits: self.bits, group_tokens: self.group_tokens })
    }

    fn query_frame(&self) -> Option<QueryFrame> {
        let codes = FrameCodes::Channels(self.channel_codes()?);
        Some(QueryFrame::plain(codes, self.head_dim))
    }

    fn channel_codes(&self) -> Option<ChannelCodes> {
        let Self { bits, group_tokens, .. } = *self;
        Some(ChannelCodes::Channels { bits, group_tokens })
    }
}
