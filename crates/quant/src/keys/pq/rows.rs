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
use super::super::moves::StripCells;
use super::super::planes::{Planes, STRIP};
use super::Codebooks;
use crate::Level;
use crate::simd::{f16_keys, planes};

/// Query heads whose products lie side by side.
const LANES: usize = 4;

/// Bytes of a table that are read while a block of tokens passes.
const PART_BYTES: usize = 16 << 10;

/// Tokens whose codes are unpacked together, and whose sums lie beside a part of a table.
const BLOCK_TOKENS: usize = 128;

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

    /// What a token has in a strip, if codes lie in strips.
    pub(super) fn strip_cells(&self) -> Option<StripCells> {
        match self {
            Self::Nibbles(planes) => Some(planes.cells()),
            Self::Packed(_) => None,
        }
    }

    /// Bits of a code, where codes are packed in rows.
    pub(super) fn packed_bits(&self) -> Option<usize> {
        match self {
            Self::Nibbles(_) => None,
            Self::Packed(packed) => Some(packed.bits),
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
                packed.read(block, codes);
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
            Self::Packed(_) if !uses_tables(codebooks, prepared.num_heads) => {
                prepared.table.clear()
            }
            Self::Packed(_) => {
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
        }
    }

    /// Scores the first `num_tokens` of `blocks` into `out[head · stride + token]`.
    #[expect(clippy::too_many_arguments, reason = "those of a codec, and the codebooks")]
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
                if prepared.table.is_empty() {
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

/// Whether tables are faster than decoding once, by what was measured: for one pass over the codes always; for more only
/// where groups are wide and so few, and the tables small.
fn uses_tables(codebooks: &Codebooks, num_heads: usize) -> bool {
    num_heads <= LANES || codebooks.width() > 2 && codebooks.num_centroids() <= 256
}

impl Packed {
    fn row_bytes(self) -> usize {
        (self.num_groups * self.bits).div_ceil(8)
    }

    fn write(self, row: &mut [u8], codes: &[u16]) {
        if self.bits == 8 {
            row.iter_mut().zip(codes).for_each(|(byte, &code)| *byte = code as u8);
            return;
        }
        row.fill(0);
        for (group, &code) in codes.iter().enumerate() {
            let first = group * self.bits;
            let word = u32::from(code) << (first % 8);
            for (byte, part) in row[first / 8..].iter_mut().zip(word.to_le_bytes()) {
                *byte |= part;
            }
        }
    }

    /// Reads the codes `[num_groups]` of a row.
    fn read(self, row: &[u8], codes: &mut [u16]) {
        if self.bits == 8 {
            codes.iter_mut().zip(row).for_each(|(code, &byte)| *code = byte.into());
            return;
        }
        // Eight codes take as many bytes as each has bits.
        let mask = (1 << self.bits) - 1;
        for (codes, bytes) in codes.chunks_mut(8).zip(row.chunks(self.bits)) {
            let mut word = [0; 16];
            word[..bytes.len()].copy_from_slice(bytes);
            let (low, high) = word.split_at(8);
            let word = |half: &[u8]| u64::from_le_bytes(std::array::from_fn(|i| half[i]));
            if self.bits < 8 {
                let low = word(low);
                codes.iter_mut().enumerate().for_each(|(i, code)| {
                    *code = (low >> (i * self.bits)) as u16 & mask;
                });
            } else {
                let whole = u128::from(word(low)) | u128::from(word(high)) << 64;
                codes.iter_mut().enumerate().for_each(|(i, code)| {
                    *code = (whole >> (i * self.bits)) as u16 & mask;
                });
            }
        }
    }

    /// Reads blocks of rows; `see` gets the first token of each, its codes `[n, num_groups]`.
    fn for_each_block(self, rows: &[u8], mut see: impl FnMut(usize, &[u16])) {
        let mut codes = vec![0; BLOCK_TOKENS * self.num_groups];
        for (block, rows) in rows.chunks(BLOCK_TOKENS * self.row_bytes()).enumerate() {
            let codes = &mut codes[..rows.len() / self.row_bytes() * self.num_groups];
            let tokens = codes.chunks_exact_mut(self.num_groups);
            for (row, codes) in rows.chunks_exact(self.row_bytes()).zip(tokens) {
                self.read(row, codes);
            }
            see(block * BLOCK_TOKENS, codes);
        }
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
        let mut sums = [[0.0; HEADS]; BLOCK_TOKENS];
        let mut finish = |first_token: usize, sums: &[[f32; HEADS]]| {
            for head in 0..num_heads {
                let out = &mut out[head * stride + first_token..];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum[head]);
            }
        };
        if self.bits == 8 {
            // The bytes are the codes, and a number of centroids that the compiler knows makes for shorter code.
            for (block, codes) in rows.chunks(BLOCK_TOKENS * self.num_groups).enumerate() {
                let sums = &mut sums[..codes.len() / self.num_groups];
                sum_entries(sums, table, 256, codes, self.num_groups);
                finish(block * BLOCK_TOKENS, sums);
            }
            return;
        }
        self.for_each_block(rows, |first_token, codes| {
            let sums = &mut sums[..codes.len() / self.num_groups];
            sum_entries(sums, table, 1 << self.bits, codes, self.num_groups);
            finish(first_token, sums);
        });
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
        let mut decoded = vec![0u8; BLOCK_TOKENS * 2 * head_dim];
        self.for_each_block(rows, |first_token, codes| {
            let tokens = codes.chunks_exact(self.num_groups);
            for (codes, row) in tokens.zip(decoded.chunks_exact_mut(2 * head_dim)) {
                codebooks.put_together(codes, row);
            }
            let num_tokens = codes.len() / self.num_groups;
            let out = &mut out[first_token..];
            f16_keys::score(level, &prepared.queries, head_dim, &decoded, num_tokens, out, stride);
        });
    }
}

/// The sums for each token of the entries of `table [num_groups, num_centroids, HEADS]` that its codes pick, which are
/// `codes [n, num_groups]`.
#[inline(always)]
fn sum_entries<const HEADS: usize, C: Copy + Into<usize>>(
    sums: &mut [[f32; HEADS]],
    table: &[[f32; HEADS]],
    num_centroids: usize,
    codes: &[C],
    num_groups: usize,
) {
    let part = (PART_BYTES / (4 * HEADS * num_centroids)).clamp(1, num_groups);
    sums.fill([0.0; HEADS]);
    for (i, table) in table.chunks(part * num_centroids).enumerate() {
        let first = i * part;
        for (sums, codes) in sums.iter_mut().zip(codes.chunks_exact(num_groups)) {
            for (entries, &code) in table.chunks_exact(num_centroids).zip(&codes[first..]) {
                let entry = &entries[code.into()];
                sums.iter_mut().zip(entry).for_each(|(sum, entry)| *sum += entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use heterokv_testkit::Inputs;

    use super::*;

    #[test]
    fn codes_of_every_width_are_read_back_and_leave_others_as_they_are() {
        let mut inputs = Inputs::new(3);
        for bits in 4..=12 {
            for num_groups in [2, 6, 8, 10, 32, 34] {
                let rows = CodeRows::new(num_groups, bits);
                let mut blocks = vec![0xA5; rows.bytes(70)];
                let tokens: Vec<Vec<u16>> = (0..70)
                    .map(|_| (0..num_groups).map(|_| inputs.below(1 << bits) as u16).collect())
                    .collect();
                for (token, codes) in tokens.iter().enumerate().rev() {
                    rows.write(&mut blocks, token, codes);
                }
                for (token, codes) in tokens.iter().enumerate() {
                    let mut back = vec![0; num_groups];
                    rows.read(&blocks, token, &mut back);
                    assert_eq!(&back, codes, "{bits} bits, {num_groups} groups, token {token}");
                }
            }
        }
    }
}
