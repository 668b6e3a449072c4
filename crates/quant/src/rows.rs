//! Rows of the host store: exact values, and exact keys where they are kept, one row per token.
//!
//! A row is `[key bytes | value bytes]` ([`RowLayout`]), so that re-scoring a selected token and
//! summing its value touch one contiguous stretch of memory. [`RowSource`] is how a store hands rows to
//! attention: page by page, as pages become available, without copying.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::f16;

pub use self::list::VectorList;
use crate::grouped::{GroupSize, Grouped};
use crate::saturate::to_f16;
use crate::simd::prefetch::prefetch as request;
use crate::simd::rows as simd;
use crate::simd::vectors::{self, F16, Int8, Integers};
use crate::{Error, Level, Result};

/// How a key or value vector is held in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowFormat {
    /// Half precision: `2 · head_dim` bytes.
    F16,
    /// Signed 8-bit integers times one f16 scale: `head_dim + 2` bytes, codes first.
    Int8,
    /// 4-bit integers in groups along the channels: the codes, half a byte each in eights, then two
    /// bytes for every group.
    ///
    /// Codes are asymmetric, sixteen neighbours on a grid of steps: the bytes of a group are its step, to an
    /// eighth of an octave, and the centre of its codes in half steps. On normal values and on
    /// values with heavy channels this leaves less error at fewer bytes than a scale and a minimum in
    /// f16, and than a scale alone with codes around zero; a test holds the order.
    Int4 {
        /// Channels that share a step; one group where a vector has no more.
        group: GroupSize,
    },
}

impl RowFormat {
    /// Bytes of a vector `[head_dim]`.
    #[must_use]
    #[inline]
    pub fn bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 2,
            Self::Int4 { group } => Grouped::new(4, head_dim, group).num_bytes(),
        }
    }

    /// Encodes `x [head_dim]` into `out [bytes(head_dim)]`. Values beyond ±65,504 are clamped, those
    /// of `int4` in the millions.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn encode(self, x: &[f32], out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len(), self.bytes(x.len()));
        if let Some(channel) = x.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { token: 0, channel, value: x[channel] });
        }
        match self {
            Self::F16 => {
                for (x, out) in x.iter().zip(out.as_chunks_mut::<2>().0) {
                    *out = to_f16(*x).to_le_bytes();
                }
            }
            Self::Int8 => {
                let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs())).min(65_504.0);
                let scale = f16::from_f32(largest / 127.0);
                let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
                let (codes, tail) = out.split_at_mut(x.len());
                for (x, code) in x.iter().zip(codes) {
                    *code = (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
                }
                tail.copy_from_slice(&scale.to_le_bytes());
            }
            Self::Int4 { group } => Grouped::new(4, x.len(), group).encode(x, out),
        }
        Ok(())
    }

    /// Decodes `bytes` into `out [head_dim]`.
    ///
    /// # Panics
    /// When `bytes` has another length.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), self.bytes(out.len()));
        match self {
            Self::F16 => {
                for (x, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
                    *out = f16::from_le_bytes(*x).to_f32();
                }
            }
            Self::Int8 => {
                let (codes, tail) = bytes.split_at(out.len());
                let scale = f16::from_le_bytes([tail[0], tail[1]]).to_f32();
                for (code, out) in codes.iter().zip(out) {
                    *out = scale * f32::from(*code as i8);
                }
            }
            Self::Int4 { group } => Grouped::new(4, out.len(), group).decode(bytes, out),
        }
    }

    /// Dot products of the queries with every vector, that of a head and the i-th vector into `out[head · stride + i]`.
    /// Accumulates in f32; a product does not depend on what else is in the list, to the bit. No queries, no vectors, or
    /// vectors without elements: nothing is written.
    ///
    /// # Panics
    /// When the queries are not whole rows of the vectors' length, a vector is of another length, or `out` is too short.
    pub fn score(self, level: Level, rows: ScoredVectors<'_>, out: &mut [f32], stride: usize) {
        let ScoredVectors { queries: GroupQueries { queries, head_dim }, vectors, soon } = rows;
        let num_bytes = self.bytes(head_dim);
        let lists = (vectors, soon);
        match self {
            Self::F16 | Self::Int8 if !vectors::have_form(level) => {
                assert!(queries.len().is_multiple_of(head_dim), "queries of the vectors' length");
                let dots = if self == Self::F16 { simd::dot_f16 } else { simd::dot_int8 };
                let count = if queries.is_empty() { 0 } else { vectors.count(num_bytes) };
                for i in 0..count {
                    dots(level, queries, vectors.get(i, num_bytes), &mut out[i..], stride);
                }
            }
            Self::F16 => vectors::score(level, F16 { head_dim }, queries, lists, out, stride),
            Self::Int8 => vectors::score(level, Int8 { head_dim }, queries, lists, out, stride),
            Self::Int4 { group } => {
                let vector = Integers::<4>::new(Grouped::new(4, head_dim, group));
                vectors::score(level, vector, queries, lists, out, stride);
            }
        }
    }

    /// Adds `weights[head]` times one vector to each row of `sums [num_heads, head_dim]`. No weights, or
    /// a vector without elements: nothing is done.
    ///
    /// # Panics
    /// When `bytes` is not one vector of `sums`' `head_dim`.
    pub fn add_scaled(self, level: Level, weights: &[f32], bytes: &[u8], sums: &mut [f32]) {
        if weights.is_empty() && sums.is_empty() {
            return;
        }
        let head_dim = sums.len() / weights.len().max(1);
        assert_eq!(sums.len(), weights.len() * head_dim, "one row of sums per weight");
        assert_eq!(bytes.len(), self.bytes(head_dim), "a vector of the sums' length");
        if head_dim == 0 {
            return;
        }
        match self {
            Self::F16 => simd::add_scaled_f16(level, weights, bytes, sums),
            Self::Int8 => simd::add_scaled_int8(level, weights, bytes, sums),
            Self::Int4 { group } => {
                let vector = Integers::<4>::new(Grouped::new(4, head_dim, group));
                let lists = (VectorList::Beside(bytes), VectorList::NONE);
                vectors::weighted_sum(level, vector, lists, weights, 1, sums);
            }
        }
    }

    /// Adds to each row of `sums [num_heads, head_dim]` the vectors under the weights of its head. A
    /// vector is read and converted once for all heads. No vectors, no heads or no elements: nothing is
    /// done.
    ///
    /// # Panics
    /// When a vector is not of `sums`' `head_dim`, or the weights are not rows of a weight for each.
    pub fn weighted_sum(self, level: Level, rows: WeightedRows<'_>, sums: &mut [f32]) {
        let WeightedRows { vectors, soon, weights, stride } = rows;
        if vectors.is_empty() || weights.is_empty() || sums.is_empty() {
            return;
        }
        assert!(stride > 0, "a weight for each vector");
        let num_heads = weights.len().div_ceil(stride);
        assert!(sums.len().is_multiple_of(num_heads), "one row of sums per row of weights");
        let head_dim = sums.len() / num_heads;
        let count = vectors.count(self.bytes(head_dim));
        let has_weights = vectors::has_rows(weights.len(), num_heads, stride, count);
        assert!(has_weights, "a weight for each vector");
        let lists = (vectors, soon);
        match self {
            Self::F16 | Self::Int8 if !vectors::have_form(level) => {
                let mut of_heads = vec![0.0; num_heads];
                for i in 0..count {
                    let column = weights.iter().skip(i).step_by(stride);
                    of_heads.iter_mut().zip(column).for_each(|(weight, &of_row)| *weight = of_row);
                    let bytes = vectors.get(i, self.bytes(head_dim));
                    self.add_scaled(level, &of_heads, bytes, sums);
                }
            }
            Self::F16 => {
                vectors::weighted_sum(level, F16 { head_dim }, lists, weights, stride, sums);
            }
            Self::Int8 => {
                vectors::weighted_sum(level, Int8 { head_dim }, lists, weights, stride, sums);
            }
            Self::Int4 { group } => {
                let vector = Integers::<4>::new(Grouped::new(4, head_dim, group));
                vectors::weighted_sum(level, vector, lists, weights, stride, sums);
            }
        }
    }
}

/// The queries of the heads that share a KV head.
#[derive(Clone, Copy, Debug)]
pub struct GroupQueries<'a> {
    /// `[num_heads, head_dim]`.
    pub queries: &'a [f32],
    /// Length of a query.
    pub head_dim: usize,
}

/// Vectors to be scored, and the queries that score them.
#[derive(Clone, Copy, Debug)]
pub struct ScoredVectors<'a> {
    /// The queries.
    pub queries: GroupQueries<'a>,
    /// Vectors of one format.
    pub vectors: VectorList<'a>,
    /// Vectors of the same format that are wanted next: the memory is asked for them meanwhile.
    pub soon: VectorList<'a>,
}

/// Vectors to be summed, and the weights that the heads give them.
#[derive(Clone, Copy, Debug)]
pub struct WeightedRows<'a> {
    /// Vectors of one format: those of selected rows, or of all rows of a page.
    pub vectors: VectorList<'a>,
    /// Vectors of the same format that are wanted next: the memory is asked for them meanwhile.
    pub soon: VectorList<'a>,
    /// `[num_heads, stride]`, the last row as short as the vectors are few: the weight of the i-th vector is
    /// `weights[head · stride + i]`.
    pub weights: &'a [f32],
    /// From one head's weights to the next; at least the number of vectors.
    pub stride: usize,
}

impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F16 => f.write_str("f16"),
            Self::Int8 => f.write_str("int8"),
            Self::Int4 { group } => write!(f, "int4/{}", group.channels()),
        }
    }
}

impl FromStr for RowFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4 { group: GroupSize::G32 }),
            _ => {
                let group = name.strip_prefix("int4/").and_then(GroupSize::named);
                let unknown = || Error::UnknownFormat {
                    kind: "row",
                    name: name.to_owned(),
                    known: "f16, int8, int4/{32,64,128}, int4 for int4/32",
                };
                group.map(|group| Self::Int4 { group }).ok_or_else(unknown)
            }
        }
    }
}

/// The layout of one token's row in a host store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowLayout {
    /// Format of the exact key, for stores that re-score.
    pub key: Option<RowFormat>,
    /// Format of the value.
    pub value: RowFormat,
    /// Length of a key and of a value.
    pub head_dim: usize,
}

impl RowLayout {
    /// Bytes of the key, which comes first.
    #[must_use]
    #[inline]
    pub fn key_bytes(&self) -> usize {
        self.key.map_or(0, |format| format.bytes(self.head_dim))
    }

    /// Bytes of a row.
    #[must_use]
    #[inline]
    pub fn row_bytes(&self) -> usize {
        self.key_bytes() + self.value.bytes(self.head_dim)
    }

    /// Encodes one token's `key` and `value` `[head_dim]` into `out [row_bytes]`; the key is dropped
    /// where the layout has none.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity.
    pub fn encode(&self, key: &[f32], value: &[f32], out: &mut [u8]) -> Result<()> {
        let (key_out, value_out) = out.split_at_mut(self.key_bytes());
        if let Some(format) = self.key {
            format.encode(key, key_out)?;
        }
        self.value.encode(value, value_out)
    }
}

/// Asks the memory for what will be read soon, and waits for nothing; does nothing where there is no way to ask.
#[inline]
pub fn prefetch<T: ?Sized>(soon: &T) {
    /// Of a cache's line.
    const LINE_BYTES: usize = 64;
    let first = std::ptr::from_ref(soon).cast::<u8>();
    let in_line = first.addr() % LINE_BYTES;
    let line = first.wrapping_sub(in_line);
    let lines = (0..in_line + size_of_val(soon)).step_by(LINE_BYTES);
    lines.for_each(|at| request(line.wrapping_add(at)));
}

/// Some of the rows that were asked for, all of one page.
#[derive(Clone, Copy, Debug)]
pub struct PageRows<'a> {
    /// The page's rows, `row_bytes` each.
    pub bytes: &'a [u8],
    /// Position of the page's first row.
    pub first_row: u32,
    /// The positions that lie in this page.
    pub rows: &'a [u32],
    /// Where they begin in the list that was asked for.
    pub offset: usize,
}

/// Some of the rows that were asked for, which follow each other in the list.
#[derive(Clone, Copy, Debug)]
pub struct RowRun<'a> {
    /// Where they begin in the list.
    pub offset: usize,
    /// The bytes of each.
    pub rows: &'a [&'a [u8]],
}

impl<'a> PageRows<'a> {
    /// The bytes of each asked row, with its index in the list that was asked for.
    #[inline]
    pub fn iter(self, row_bytes: usize) -> impl Iterator<Item = (usize, &'a [u8])> {
        self.rows.iter().enumerate().map(move |(i, row)| {
            let first = (row - self.first_row) as usize * row_bytes;
            (self.offset + i, &self.bytes[first..][..row_bytes])
        })
    }
}

/// Where attention reads host rows of one (layer, KV head).
pub trait RowSource: Sync {
    /// What a read can fail with.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The layout of the rows.
    fn layout(&self) -> RowLayout;

    /// Visits the rows at `positions` (ascending, without repeats), page by page, a page in one part or several; the
    /// pages may come in any order, each with its place in the list. No page is visited for an empty list.
    ///
    /// # Errors
    /// When a position is out of range or its page cannot be read.
    fn visit_rows(
        &self,
        positions: &[u32],
        visit: &mut dyn FnMut(PageRows<'_>),
    ) -> Result<(), Self::Error>;

    /// The same rows, as many at a time as are at hand together, whatever pages they are on.
    ///
    /// # Errors
    /// As [`visit_rows`](Self::visit_rows).
    fn visit_runs(
        &self,
        positions: &[u32],
        visit: &mut dyn FnMut(RowRun<'_>),
    ) -> Result<(), Self::Error> {
        let row_bytes = self.layout().row_bytes();
        self.visit_rows(positions, &mut |page| {
            let rows: Vec<_> = page.iter(row_bytes).map(|(_, row)| row).collect();
            visit(RowRun { offset: page.offset, rows: &rows });
        })
    }
}

/// A span of indices split at the boundaries of pages of `page_size` rows: the walk of a
/// [`RowSource`] over its sorted positions.
pub fn page_spans(positions: &[u32], page_size: u32) -> impl Iterator<Item = (u32, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let page = positions.get(start)? / page_size;
        // From the front: a page has few of the positions, and there is one division for all of them.
        let last = (page * page_size).saturating_add(page_size - 1);
        let rest = &positions[start..];
        let len = rest.iter().position(|&row| row > last).unwrap_or(rest.len());
        let span = start..start + len;
        start = span.end;
        Some((page, span))
    })
}

mod list;
#[cfg(test)]
mod tests;
