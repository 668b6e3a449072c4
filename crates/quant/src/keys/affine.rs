//! Affine integers per token: one scale and zero over all channels, in f16.

use super::PreparedQueries;
use super::codec::Codec;
use crate::Level;
use crate::affine::Affine;
use crate::bits::pack_row;
use crate::saturate::to_f16;
use crate::simd::keys::{CodedRows, Tail, Values};

/// One scale and zero per token, after its codes: `codes | scale f16 | zero f16`.
#[derive(Clone, Debug)]
pub(super) struct PerToken {
    bits: u8,
    rows: CodedRows,
}

impl PerToken {
    pub(super) fn new(bits: u8, head_dim: usize) -> Self {
        let rows = CodedRows::new(vec![bits; head_dim / 8], Values::Integer, Tail::ScaleZero);
        Self { bits, rows }
    }

    fn encode_row(&self, key: &[f32], out: &mut [u8]) {
        let affine = Affine::of(key.iter().copied(), self.bits);
        let codes: Vec<u8> = key.iter().map(|&x| affine.code(x)).collect();
        let (packed, tail) = out.split_at_mut(self.rows.code_bytes());
        pack_row(&codes, self.rows.widths(), packed);
        tail[..2].copy_from_slice(&to_f16(affine.scale).to_le_bytes());
        tail[2..].copy_from_slice(&to_f16(affine.zero).to_le_bytes());
    }
}

impl Codec for PerToken {
    fn encode(&self, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let rows = self.rows.rows_from_mut(first_token, codes);
        for (key, row) in keys.chunks_exact(self.rows.head_dim()).zip(rows) {
            self.encode_row(key, row);
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let rows = self.rows.rows_from(first_token, codes);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.rows.head_dim())) {
            self.rows.decode_row(row, out);
        }
    }

    fn prepare(&self, prepared: &mut PreparedQueries) {
        let queries = prepared.queries.chunks_exact(self.rows.head_dim());
        prepared.sums.extend(queries.map(|q| q.iter().sum::<f32>()));
    }

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        _num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        self.rows.score(level, prepared, codes, out, stride);
    }
}
