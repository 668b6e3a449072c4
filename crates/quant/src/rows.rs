//! Rows of the host store: exact values, and exact keys where they are kept, one row per token.
//!
//! A row is `[key bytes | value bytes]` ([`RowLayout`]), so that re-scoring a selected token and
//! summing its value touch one contiguous stretch of memory. [`RowSource`] is how a store hands rows to
//! attention: page by page, as pages become available, without copying.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::f16;

use crate::saturate::to_f16;
use crate::simd::rows as simd;
use crate::{Error, Level, Result};

/// How a key or value vector is held in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowFormat {
    /// Half precision: `2 · head_dim` bytes.
    F16,
    /// Signed 8-bit integers times one f16 scale: `head_dim + 2` bytes, codes first.
    Int8,
}

impl RowFormat {
    /// Bytes of a vector `[head_dim]`.
    #[must_use]
    pub fn bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 2,
        }
    }

    /// Encodes `x [head_dim]` into `out [bytes(head_dim)]`. Values beyond ±65,504 are clamped.
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
        }
    }

    /// Dot products of `queries [num_heads, head_dim]` with one vector, into `out[head · stride]` for
    /// each of the heads that `queries` holds. Accumulates in f32. No queries, or a vector without
    /// elements: nothing is written.
    ///
    /// # Panics
    /// When `queries` is not whole rows of the vector's length or `out` is too short.
    pub fn dot(self, level: Level, queries: &[f32], bytes: &[u8], out: &mut [f32], stride: usize) {
        let head_dim = match self {
            Self::F16 => bytes.len() / 2,
            Self::Int8 => bytes.len().saturating_sub(2),
        };
        assert_eq!(bytes.len(), self.bytes(head_dim), "one vector");
        assert!(queries.len().is_multiple_of(head_dim), "queries of the vector's length");
        if queries.is_empty() {
            return;
        }
        match self {
            Self::F16 => simd::dot_f16(level, queries, bytes, out, stride),
            Self::Int8 => simd::dot_int8(level, queries, bytes, out, stride),
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
        }
    }
}

impl fmt::Display for RowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for RowFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => {
                Err(Error::UnknownFormat { kind: "row", name: name.to_owned(), known: "f16, int8" })
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
    pub fn key_bytes(&self) -> usize {
        self.key.map_or(0, |format| format.bytes(self.head_dim))
    }

    /// Bytes of a row.
    #[must_use]
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

impl<'a> PageRows<'a> {
    /// The bytes of each asked row, with its index in the list that was asked for.
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

    /// Visits the rows at `positions` (ascending, without repeats), page by page; the pages may come in
    /// any order, since attention states merge in any order. No page is visited for an empty list.
    ///
    /// # Errors
    /// When a position is out of range or its page cannot be read.
    fn visit_rows(
        &self,
        positions: &[u32],
        visit: &mut dyn FnMut(PageRows<'_>),
    ) -> Result<(), Self::Error>;
}

/// A span of indices split at the boundaries of pages of `page_size` rows: the walk that every
/// [`RowSource`] makes over its sorted positions.
pub fn page_spans(positions: &[u32], page_size: u32) -> impl Iterator<Item = (u32, Range<usize>)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let page = positions.get(start)? / page_size;
        let len = positions[start..].partition_point(|row| row / page_size == page);
        let span = start..start + len;
        start = span.end;
        Some((page, span))
    })
}

#[cfg(test)]
mod tests;
