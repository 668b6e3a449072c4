//! The codes of tokens, one per group, and the forms in which they are scored.
//!
//! | codes | layout | scored by |
//! | --- | --- | --- |
//! | 4 bits | strips of 32 tokens, a plane of nibbles per group ([`Planes`]) | in-register look-ups of 8 or 16 bits |
//! | others | a row per token, packed at their real width | tables of products in f32, or decoded once |
//!
//! A table holds the products of every centroid with up to four query heads, side by side, and is read part by
//! part, each part small enough for the L1 cache, while the tokens of a block pass. For larger groups of heads
//! decoding pays off: a row is put together from the centroids in f16 once, for all heads.

use super::super::PreparedQueries;
use super::super::planes::{Planes, STRIP};
use super::Codebooks;
use crate::Level;
use crate::simd::{f16_keys, planes};

/// Query heads whose products lie side by side.
const LANES: usize = 4;

/// Query heads up to which tables are faster than decoding once.
const TABLE_HEADS: usize = 4;

/// Bytes of a table that are read while a block of tokens passes.
const PART_BYTES: usize = 16 << 10;

/// Tokens of a block: of sums beside a part of a table, and of decoded rows.
const SUM_TOKENS: usize = 256;
const DECODED_TOKENS: usize = 32;

/// Where the codes of tokens lie.
#[derive(Clone, Debug)]
pub(super) enum CodeRows {
    Nibbles(Planes),
    Packed(Packed),
}

/// Codes of one width, one token after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    num_groups: usize,
    bits: usize,
}

impl CodeRows {
    /// An even number of groups, of codes of 4 to 12 bits.
    pub(super) fn new(num_groups: usize, bits: usize) -> Self {
        if bits == 4 {
            Self::Nibbles(Planes::of_nibbles(num_groups))
        } else {
            Self::Packed(Packed { num_groups, bits })
        }
    }

    /// Tokens whose codes share a block.
    pub(super) fn block_tokens(&self) -> usize {
        match self {
            Self::Nibbles(_) => STRIP,
            Self::Packed(_) => 1,
        }
    }

    fn block_bytes(&self) -> usize {
        match self {
            Self::Nibbles(planes) => planes.block_bytes(),
            Self::Packed(packed) => packed.row_bytes(),
        }
    }

    /// Bytes of the whole blocks of `num_tokens` tokens.
    pub(super) fn bytes(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_tokens()) * self.block_bytes()
    }

    /// Writes the codes `[num_groups]` of `token`; other tokens stay as they are.
    pub(super) fn write(&self, blocks: &mut [u8], token: usize, codes: &[u16]) {
        let (tokens, bytes) = (self.block_tokens(), self.block_bytes());
        let block = &mut blocks[token / tokens * bytes..][..bytes];
        match self {
            Self::Nibbles(planes) => {
                let codes: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
                planes.write(block, token % tokens, &codes, &[]);
            }
            Self::Packed(packed) => packed.write(block, codes),
        }
    }

    /// Reads the codes of `token` into `codes [num_groups]`.
    pub(super) fn read(&self, blocks: &[u8], token: usize, codes: &mut [u16]) {
        let (tokens, bytes) = (self.block_tokens(), self.block_bytes());
        let block = &blocks[token / tokens * bytes..][..bytes];
        match self {
            Self::Nibbles(planes) => {
                let mut nibbles = vec![0; codes.len()];
                planes.read(block, token % tokens, &mut nibbles);
                codes.iter_mut().zip(nibbles).for_each(|(code, nibble)| *code = nibble.into());
            }
            Self::Packed(packed) => {
                for (group, code) in codes.iter_mut().enumerate() {
                    *code = packed.code(block, group) as u16;
                }
            }
        }
    }

    /// Adds to `prepared`, whose queries are in coordinates, what `score` needs.
    pub(super) fn prepare(&self, codebooks: &Codebooks, prepared: &mut PreparedQueries) {
        match self {
            Self::Nibbles(planes) => {
                let queries = std::mem::take(&mut prepared.queries);
                let head_dim = codebooks.head_dim();
                planes.fill_tables(prepared, |head, group| {
                    let mut products = [0.0; 16];
                    codebooks.products(&queries[head * head_dim..], group, |c, x| products[c] = x);
                    products
                });
                prepared.queries = queries;
            }
            Self::Packed(_) if uses_tables(prepared) => {
                let lanes = if prepared.num_heads == 1 { 1 } else { LANES };
                let len = codebooks.num_groups() * codebooks.num_centroids();
                prepared.table.clear();
                prepared.table.resize(len * lanes * prepared.num_heads.div_ceil(lanes), 0.0);
                let queries = prepared.queries.chunks_exact(codebooks.head_dim());
                for (head, query) in queries.enumerate() {
                    let table = &mut prepared.table[head / lanes * lanes * len..];
                    for group in 0..codebooks.num_groups() {
                        let first = group * codebooks.num_centroids();
                        codebooks.products(query, group, |c, x| {
                            table[(first + c) * lanes + head % lanes] = x;
                        });
                    }
                }
            }
            Self::Packed(_) => {}
        }
    }

    /// Scores the first `num_tokens` of `blocks` into `out[head · stride + token]`.
    pub(super) fn score(
        &self,
        codebooks: &Codebooks,
        level: Level,
        prepared: &PreparedQueries,
        blocks: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        match self {
            Self::Nibbles(strips) => {
                planes::score(strips, level, prepared, blocks, num_tokens, out, stride);
            }
            Self::Packed(packed) => {
                let rows = &blocks[..self.bytes(num_tokens)];
                if !uses_tables(prepared) {
                    packed.score_decoded(codebooks, level, prepared, rows, out, stride);
                    return;
                }
                let len = codebooks.num_groups() * codebooks.num_centroids();
                if prepared.num_heads == 1 {
                    packed.score_tables::<1>(&prepared.table, 1, rows, out, stride);
                    return;
                }
                for (batch, table) in prepared.table.chunks_exact(len * LANES).enumerate() {
                    let num_heads = (prepared.num_heads - batch * LANES).min(LANES);
                    let out = &mut out[batch * LANES * stride..];
                    packed.score_tables::<LANES>(table, num_heads, rows, out, stride);
                }
            }
        }
    }
}

fn uses_tables(prepared: &PreparedQueries) -> bool {
    prepared.num_heads <= TABLE_HEADS
}

impl Packed {
    fn row_bytes(self) -> usize {
        (self.num_groups * self.bits).div_ceil(8)
    }

    fn write(self, row: &mut [u8], codes: &[u16]) {
        row.fill(0);
        for (group, &code) in codes.iter().enumerate() {
            let first = group * self.bits;
            let word = u32::from(code) << (first % 8);
            for (byte, part) in row[first / 8..].iter_mut().zip(word.to_le_bytes()) {
                *byte |= part;
            }
        }
    }

    /// The code of a group: at most 12 bits, in at most three bytes.
    #[inline(always)]
    fn code(self, row: &[u8], group: usize) -> usize {
        let first = group * self.bits;
        let byte = |i: usize| u32::from(row.get(first / 8 + i).copied().unwrap_or(0)) << (8 * i);
        ((byte(0) | byte(1) | byte(2)) >> (first % 8)) as usize & ((1 << self.bits) - 1)
    }

    /// Sums of table entries: `table [num_groups, num_centroids, HEADS]`.
    fn score_tables<const HEADS: usize>(
        self,
        table: &[f32],
        num_heads: usize,
        rows: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let (table, _) = table.as_chunks::<HEADS>();
        let num_centroids = 1 << self.bits;
        let part = (PART_BYTES / (4 * HEADS * num_centroids)).clamp(1, self.num_groups);
        let mut sums = [[0.0f32; HEADS]; SUM_TOKENS];
        for (block, rows) in rows.chunks(SUM_TOKENS * self.row_bytes()).enumerate() {
            let sums = &mut sums[..rows.len() / self.row_bytes()];
            sums.fill([0.0; HEADS]);
            for (i, table) in table.chunks(part * num_centroids).enumerate() {
                let first = i * part;
                for (sums, row) in sums.iter_mut().zip(rows.chunks_exact(self.row_bytes())) {
                    if self.bits == 8 {
                        let codes = row[first..].iter().map(|&code| usize::from(code));
                        add_entries(sums, table.chunks_exact(256), codes);
                    } else {
                        let tables = table.chunks_exact(num_centroids);
                        let codes = (first..self.num_groups).map(|group| self.code(row, group));
                        add_entries(sums, tables, codes);
                    }
                }
            }
            for head in 0..num_heads {
                let out = &mut out[head * stride + block * SUM_TOKENS..];
                out.iter_mut().zip(sums.iter()).for_each(|(out, sum)| *out = sum[head]);
            }
        }
    }

    /// Products with rows that are decoded once for all heads.
    fn score_decoded(
        self,
        codebooks: &Codebooks,
        level: Level,
        prepared: &PreparedQueries,
        rows: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let head_dim = codebooks.head_dim();
        let mut decoded = vec![0u8; DECODED_TOKENS * 2 * head_dim];
        for (block, rows) in rows.chunks(DECODED_TOKENS * self.row_bytes()).enumerate() {
            let num_tokens = rows.len() / self.row_bytes();
            let whole = decoded.chunks_exact_mut(2 * head_dim);
            for (row, decoded) in rows.chunks_exact(self.row_bytes()).zip(whole) {
                codebooks.put_together(|group| self.code(row, group), decoded);
            }
            let out = &mut out[block * DECODED_TOKENS..];
            f16_keys::score(level, &prepared.queries, head_dim, &decoded, num_tokens, out, stride);
        }
    }
}

#[inline(always)]
fn add_entries<'a, const HEADS: usize>(
    sums: &mut [f32; HEADS],
    tables: impl Iterator<Item = &'a [[f32; HEADS]]>,
    codes: impl Iterator<Item = usize>,
) {
    for (table, code) in tables.zip(codes) {
        sums.iter_mut().zip(&table[code]).for_each(|(sum, entry)| *sum += entry);
    }
}
