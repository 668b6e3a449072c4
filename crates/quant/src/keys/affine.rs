//! Affine integers: per token over the channels, or per channel over a group of tokens.
//!
//! Both hold `x ≈ zero + scale · code` with `zero` and `scale` in f16; `zero` is the minimum.

use half::f16;

use super::codec::Codec;
use super::codes::TokenCodes;
use super::{PreparedQueries, Tail};
use crate::Level;
use crate::bits::{for_each_code, pack_row};
use crate::saturate::to_f16;
use crate::simd::keys::{CodedRows, Values};

/// `zero`, `scale` and the codes' range of one group of values, scale and zero as stored.
struct Affine {
    zero: f32,
    scale: f32,
    max_code: f32,
}

impl Affine {
    fn of(values: impl Iterator<Item = f32>, bits: u8) -> Self {
        let (low, high) = values
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let max_code = f32::from((1u16 << bits) - 1);
        let zero = to_f16(low).to_f32();
        let scale = to_f16((high - zero) / max_code).to_f32();
        Self { zero, scale, max_code }
    }

    fn code(&self, x: f32) -> u8 {
        // A constant group has scale 0 and decodes to its zero whatever the code.
        if self.scale > 0.0 {
            ((x - self.zero) / self.scale).round().clamp(0.0, self.max_code) as u8
        } else {
            0
        }
    }
}

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
    fn encode(&self, first_token: usize, keys: &[f32], blocks: &mut [u8]) {
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
}

/// One scale and zero per channel over a group of tokens: `scales f16 [head_dim] | zeros f16
/// [head_dim] | rows of codes` (KIVI, arXiv 2402.02750).
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

    fn group_bytes(&self) -> usize {
        4 * self.head_dim + self.group_tokens * self.rows.row_bytes()
    }

    fn encode_group(&self, keys: &[f32], out: &mut [u8]) {
        let head_dim = self.head_dim;
        let channels: Vec<Affine> = (0..head_dim)
            .map(|c| Affine::of(keys.iter().skip(c).step_by(head_dim).copied(), self.bits))
            .collect();
        let (header, packed) = out.split_at_mut(4 * head_dim);
        let (scales, zeros) = header.split_at_mut(2 * head_dim);
        for (c, channel) in channels.iter().enumerate() {
            scales[2 * c..][..2].copy_from_slice(&to_f16(channel.scale).to_le_bytes());
            zeros[2 * c..][..2].copy_from_slice(&to_f16(channel.zero).to_le_bytes());
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

    fn decode_group(&self, group: &[u8], out: &mut [f32]) {
        let (header, packed) = group.split_at(4 * self.head_dim);
        let (scales, zeros) = header.split_at(2 * self.head_dim);
        let rows = packed.chunks_exact(self.rows.row_bytes());
        for (row, out) in rows.zip(out.chunks_exact_mut(self.head_dim)) {
            for_each_code(row, self.rows.widths(), |c, code| out[c] = self.rows.value(code));
            for (c, x) in out.iter_mut().enumerate() {
                *x = f16_at(zeros, c) + f16_at(scales, c) * *x;
            }
        }
    }

    /// Folds the group's scales and zeros into the queries, then scores its rows.
    fn score_group(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        group: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let (header, packed) = group.split_at(4 * self.head_dim);
        let (scales, zeros) = header.split_at(2 * self.head_dim);
        let mut folded = prepared.clone();
        for (head, query) in folded.queries.chunks_exact_mut(self.head_dim).enumerate() {
            let mut bias = 0.0;
            for (c, q) in query.iter_mut().enumerate() {
                bias += *q * f16_at(zeros, c);
                *q *= f16_at(scales, c);
            }
            folded.bias[head] = bias;
        }
        self.rows.score(level, &folded, packed, out, stride);
    }
}

impl Codec for PerChannel {
    fn encode(&self, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let first = first_token / self.group_tokens * self.group_bytes();
        let groups = codes[first..].chunks_exact_mut(self.group_bytes());
        for (keys, group) in keys.chunks_exact(self.group_tokens * self.head_dim).zip(groups) {
            self.encode_group(keys, group);
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let first = first_token / self.group_tokens * self.group_bytes();
        let groups = codes[first..].chunks_exact(self.group_bytes());
        for (group, out) in groups.zip(out.chunks_exact_mut(self.group_tokens * self.head_dim)) {
            self.decode_group(group, out);
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
        for (i, group) in codes.chunks_exact(self.group_bytes()).enumerate() {
            let out = &mut out[i * self.group_tokens..];
            self.score_group(level, prepared, group, out, stride);
        }
    }
}

fn f16_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}
