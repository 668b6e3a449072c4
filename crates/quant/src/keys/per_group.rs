//! Affine integers per token in groups along the channels, one row of [`Grouped`] per token.

use super::PreparedQueries;
use super::codec::Codec;
use crate::Level;
use crate::grouped::Grouped;
use crate::rows::VectorList;
use crate::simd::vectors::{self, Integers};

#[derive(Clone, Debug)]
pub(super) struct PerGroup {
    pub(super) rows: Grouped,
}

impl Codec for PerGroup {
    fn encode(&self, _level: Level, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let row_bytes = self.rows.num_bytes();
        let rows = codes[first_token * row_bytes..].chunks_exact_mut(row_bytes);
        for (key, row) in keys.chunks_exact(self.rows.head_dim()).zip(rows) {
            self.rows.encode(key, row);
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let row_bytes = self.rows.num_bytes();
        let rows = codes[first_token * row_bytes..].chunks_exact(row_bytes);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.rows.head_dim())) {
            self.rows.decode(row, out);
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
        let (rows, queries) = (self.rows, prepared.queries());
        let codes = (VectorList::Beside(codes), VectorList::NONE);
        match rows.bits() {
            2 => vectors::score(level, Integers::<2>::new(rows), queries, codes, out, stride),
            3 => vectors::score(level, Integers::<3>::new(rows), queries, codes, out, stride),
            4 => vectors::score(level, Integers::<4>::new(rows), queries, codes, out, stride),
            6 => vectors::score(level, Integers::<6>::new(rows), queries, codes, out, stride),
            8 => vectors::score(level, Integers::<8>::new(rows), queries, codes, out, stride),
            bits => unreachable!("no format has groups of {bits} bits"),
        }
    }
}
