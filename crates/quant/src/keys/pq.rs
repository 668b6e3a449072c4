//! Product quantization: a codebook per group of coordinates (Jégou, Douze and Schmid, TPAMI 2011; of keys,
//! HCAttention, arXiv 2507.19823 §1, and PQCache, arXiv 2407.12820).
//!
//! Keys are brought into a [`Frame`], where squared distances are what errors cost in q·k, cut into groups, and
//! each group is coded by the number of its nearest centroid. A query comes into the same frame, after which its
//! product with a coded key is a sum over groups of products with centroids. [`CodeRows`] has the layouts of codes and
//! the forms in which they are scored.
//!
//! With `num_exact` slots, blocks of 128 tokens keep the tokens whose codes are furthest from them in f16: few keys
//! are far from all centroids, and those are the ones that heads attend to. The codebooks are then fitted without
//! such tokens.

mod codebooks;
mod exact;
mod fit;
mod frame;
mod kmeans;
mod orthogonal;
mod rows;

use half::f16;

pub(crate) use exact::EXACT_BLOCK_TOKENS;
pub(crate) use frame::WEIGHTS;
pub(super) use orthogonal::NotOrthonormal;

use codebooks::Codebooks;
use exact::ExactSlots;
use frame::Frame;
use rows::CodeRows;

use super::codec::Codec;
use super::moves::StripCells;
use super::{FitInput, GroupFrame, GroupTables, PreparedQueries, Tables};
use crate::Level;
use crate::simd::f16_keys;
use crate::simd::rows::halves;

/// The parts of a format's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct PqShape {
    /// Coordinates of a group: 2, 4 or 8.
    pub(super) width: usize,
    /// Bits of a code: 4 to 12.
    pub(super) code_bits: usize,
    /// Whether the frame is a learned rotation.
    pub(super) is_rotated: bool,
    /// Tokens of every block of 128 that are kept exactly.
    pub(super) num_exact: usize,
}

/// What is fitted, as it is stored.
pub(super) struct PqTables {
    /// `[num_groups, num_centroids, width]`, in coordinates.
    pub(super) codebooks: Vec<f16>,
    /// `[head_dim]`.
    pub(super) weights: Vec<f16>,
    /// `[head_dim, head_dim]`; none where rotary planes are the groups.
    pub(super) rotation: Option<Vec<f16>>,
}

impl PqShape {
    /// From the parts of [`KeyFormat::Pq`](super::KeyFormat).
    pub(super) fn new(width: u8, code_bits: u8, is_rotated: bool, num_exact: u8) -> Self {
        let (width, code_bits, num_exact) = (width.into(), code_bits.into(), num_exact.into());
        Self { width, code_bits, is_rotated, num_exact }
    }

    pub(super) fn num_centroids(self) -> usize {
        1 << self.code_bits
    }

    /// The frame of stored weights and rotation.
    ///
    /// # Errors
    /// [`NotOrthonormal`] for another rotation.
    fn frame(self, weights: &[f16], rotation: Option<&[f16]>) -> Result<Frame, NotOrthonormal> {
        match rotation {
            None => Ok(Frame::of_rotary_planes(weights, self.width)),
            Some(rotation) => Frame::of_rotation(weights, rotation),
        }
    }
}

/// The fitted coder of one (layer, KV head): its tables as they are stored, and what is worked with.
#[derive(Clone, Debug)]
pub(super) struct Pq {
    weights: Vec<f16>,
    rotation: Option<Vec<f16>>,
    frame: Frame,
    codebooks: Codebooks,
    rows: CodeRows,
    slots: ExactSlots,
}

impl Pq {
    /// Fits the tables of `shape`.
    ///
    /// # Errors
    /// As [`Pq::restore`].
    pub(super) fn fit(shape: PqShape, input: &FitInput<'_>) -> Result<Self, NotOrthonormal> {
        Self::restore(shape, fit::fit(shape, input)?)
    }

    /// From tables of the lengths of [`PqTables`].
    ///
    /// # Errors
    /// [`NotOrthonormal`] for another rotation.
    pub(super) fn restore(shape: PqShape, tables: PqTables) -> Result<Self, NotOrthonormal> {
        let PqTables { codebooks, weights, rotation } = tables;
        let frame = shape.frame(&weights, rotation.as_deref())?;
        let codebooks = Codebooks::new(&codebooks, shape.width, shape.num_centroids());
        let num_groups = codebooks.num_groups();
        Ok(Self {
            rows: CodeRows::new(num_groups, shape.code_bits),
            slots: ExactSlots { count: shape.num_exact, head_dim: weights.len() },
            weights,
            rotation,
            frame,
            codebooks,
        })
    }

    /// Encodes tokens from `first_token` on of blocks without slots; `see` hears of each token's coordinates and
    /// error.
    fn encode_rows(
        &self,
        level: Level,
        first_token: usize,
        keys: &[f32],
        blocks: &mut [u8],
        mut see: impl FnMut(&[f32], f32),
    ) {
        let head_dim = self.frame.head_dim();
        let mut coordinates = vec![0.0; head_dim];
        let mut codes = vec![0; self.codebooks.num_groups()];
        for (i, key) in keys.chunks_exact(head_dim).enumerate() {
            self.frame.of_key(key, &mut coordinates);
            let error = self.codebooks.nearest(level, &coordinates, &mut codes);
            self.rows.write(blocks, first_token + i, &codes);
            see(&coordinates, error);
        }
    }

    /// Decodes tokens from `first_token` on of blocks without slots.
    fn decode_rows(&self, first_token: usize, blocks: &[u8], out: &mut [f32]) {
        let head_dim = self.frame.head_dim();
        let mut codes = vec![0; self.codebooks.num_groups()];
        let mut coordinates = vec![0.0; head_dim];
        for (i, out) in out.chunks_exact_mut(head_dim).enumerate() {
            self.rows.read(blocks, first_token + i, &mut codes);
            let values = codes.iter().enumerate();
            let values =
                values.flat_map(|(g, &code)| self.codebooks.centroid(g, usize::from(code)));
            coordinates.iter_mut().zip(values).for_each(|(x, value)| *x = value);
            self.frame.to_key(&coordinates, out);
        }
    }

    /// Bytes of the codes of a block that has slots.
    fn code_bytes(&self) -> usize {
        self.rows.bytes(EXACT_BLOCK_TOKENS)
    }

    /// Bytes of a block that has slots.
    fn block_bytes(&self) -> usize {
        self.code_bytes() + self.slots.bytes()
    }
}

impl Codec for Pq {
    fn tables(&self) -> Tables {
        let mut tables =
            vec![("codebooks", self.codebooks.values()), ("weights", self.weights.clone())];
        tables.extend(self.rotation.iter().map(|rotation| ("rotation", rotation.clone())));
        tables
    }

    fn encode(&self, level: Level, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        if self.slots.count == 0 {
            self.encode_rows(level, first_token, keys, codes, |_, _| ());
            return;
        }
        let head_dim = self.frame.head_dim();
        let first_block = first_token / EXACT_BLOCK_TOKENS;
        let blocks = codes.chunks_exact_mut(self.block_bytes()).skip(first_block);
        for (keys, block) in keys.chunks_exact(EXACT_BLOCK_TOKENS * head_dim).zip(blocks) {
            let (rows, slots) = block.split_at_mut(self.code_bytes());
            let (mut all, mut errors) = (Vec::new(), Vec::new());
            self.encode_rows(level, 0, keys, rows, |coordinates, error| {
                all.extend_from_slice(coordinates);
                errors.push(error);
            });
            self.slots.write(slots, &errors, &all);
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        if self.slots.count == 0 {
            self.decode_rows(first_token, codes, out);
            return;
        }
        let head_dim = self.frame.head_dim();
        let first_block = first_token / EXACT_BLOCK_TOKENS;
        let blocks = codes.chunks_exact(self.block_bytes()).skip(first_block);
        for (out, block) in out.chunks_exact_mut(EXACT_BLOCK_TOKENS * head_dim).zip(blocks) {
            let (rows, slots) = block.split_at(self.code_bytes());
            self.decode_rows(0, rows, out);
            for (token, row) in self.slots.read(slots) {
                let coordinates: Vec<f32> = halves(row).collect();
                self.frame.to_key(&coordinates, &mut out[token * head_dim..][..head_dim]);
            }
        }
    }

    fn prepare(&self, prepared: &mut PreparedQueries) {
        let head_dim = self.frame.head_dim();
        let mut coordinates = vec![0.0; head_dim];
        for query in prepared.queries.chunks_exact_mut(head_dim) {
            self.frame.of_query(query, &mut coordinates);
            query.copy_from_slice(&coordinates);
        }
        self.rows.prepare(&self.codebooks, prepared);
    }

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let score = |codes: &[u8], num_tokens, out: &mut [f32]| {
            let codebooks = &self.codebooks;
            self.rows.score(codebooks, level, prepared, codes, num_tokens, out, stride);
        };
        if self.slots.count == 0 {
            score(codes, num_tokens, out);
            return;
        }
        let head_dim = self.frame.head_dim();
        for (i, block) in codes.chunks_exact(self.block_bytes()).enumerate() {
            let (rows, slots) = block.split_at(self.code_bytes());
            let out = &mut out[i * EXACT_BLOCK_TOKENS..];
            score(rows, EXACT_BLOCK_TOKENS, out);
            for (token, row) in self.slots.read(slots) {
                let out = &mut out[token..];
                f16_keys::score(level, &prepared.queries, head_dim, row, 1, out, stride);
            }
        }
    }

    fn rounding(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        _codes: &[u8],
        _token: usize,
    ) -> f32 {
        prepared.rounding.get(head).copied().unwrap_or(0.0)
    }

    fn strip_cells(&self) -> Option<StripCells> {
        self.rows.strip_cells().filter(|_| self.slots.count == 0)
    }

    fn group_frame(&self) -> Option<GroupFrame> {
        let (channels, rotation) = self.frame.steps();
        (self.slots.count == 0).then(|| GroupFrame {
            width: self.codebooks.width(),
            code_bits: self.codebooks.num_centroids().ilog2() as usize,
            channels,
            rotation: rotation.map(<[f32]>::to_vec),
            codebooks: self.codebooks.values(),
        })
    }

    fn group_tables(&self, queries: &[f32]) -> Option<GroupTables> {
        let code_bits = self.rows.packed_bits().filter(|_| self.slots.count == 0)?;
        let (head_dim, num_groups) = (self.frame.head_dim(), self.codebooks.num_groups());
        let mut tables = vec![0.0; (queries.len() / head_dim * num_groups) << code_bits];
        let mut coordinates = vec![0.0; head_dim];
        let of_queries = tables.chunks_exact_mut(num_groups << code_bits);
        for (query, of_query) in queries.chunks_exact(head_dim).zip(of_queries) {
            self.frame.of_query(query, &mut coordinates);
            for (group, table) in of_query.chunks_exact_mut(1 << code_bits).enumerate() {
                self.codebooks.products(&coordinates, group, |c, x| table[c] = x);
            }
        }
        Some(GroupTables { num_groups, code_bits, tables })
    }
}
