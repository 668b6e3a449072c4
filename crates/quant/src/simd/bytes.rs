//! Strips of 8-bit codes against a group of queries, in integers.
//!
//! A strip holds 32 tokens: their codes, row after row of `head_dim` bytes, then the scales of all of
//! them and then their zeros. A query is rounded to 16-bit integers in units of a step of its own, so
//! that two products are one instruction and sums are exact in 32 bits. The integers are the same on
//! every level and what follows is the same code, so every level has the same bits.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::tails::{StripScores, Tails};
use crate::Level;
use crate::keys::{PreparedQueries, STRIP, Tail};

/// Words that one vector holds: queries are filled up with zeros to a multiple of it.
const LANE_WORDS: usize = 16;

/// Channels up to which 255 times the largest word adds up inside 32 bits.
const FULL_WORD_CHANNELS: usize = 256;

/// The shape of strips of 8-bit codes.
#[derive(Clone, Debug)]
pub(crate) struct ByteStrips {
    head_dim: usize,
    tail: Tail,
}

impl ByteStrips {
    /// Strips of rows of `head_dim` bytes, a multiple of 8.
    pub(crate) fn new(head_dim: usize, tail: Tail) -> Self {
        Self { head_dim, tail }
    }

    pub(crate) fn block_bytes(&self) -> usize {
        STRIP * (self.head_dim + self.tail.bytes())
    }

    pub(crate) fn write(&self, block: &mut [u8], slot: usize, codes: &[u8], tail: &[u8]) {
        let (rows, tails) = block.split_at_mut(STRIP * self.head_dim);
        rows[slot * self.head_dim..][..self.head_dim].copy_from_slice(codes);
        self.tail.write(tails, slot, tail);
    }

    pub(crate) fn read(&self, block: &[u8], slot: usize, codes: &mut [u8]) -> (f32, f32) {
        let (rows, tails) = self.split(block);
        codes.copy_from_slice(&rows[slot * self.head_dim..][..self.head_dim]);
        self.tail.read(tails, slot)
    }

    /// Channels of a query with its zeros.
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANE_WORDS)
    }

    /// Rounds a query to words, appended to `words` with the zeros that fill them up; returns their step,
    /// and the most by which this moves the sum of a row.
    pub(crate) fn round_query(&self, query: &[f32], words: &mut Vec<i16>) -> (f32, f32) {
        let largest = query.iter().fold(0.0f32, |largest, q| largest.max(q.abs()));
        let share = (FULL_WORD_CHANNELS as f32 / self.head_dim as f32).min(1.0);
        let step = largest / (f32::from(i16::MAX) * share).floor();
        // A step of 0 gives NaN, which is cast to 0.
        words.extend(query.iter().map(|q| (q / step).round() as i16));
        words.resize(words.len() + self.padded() - self.head_dim, 0);
        // Half a step per channel, and the roundings of f32 beside it, times the largest code.
        (step, 0.501 * step * 255.0 * self.head_dim as f32)
    }

    /// Scores the first `num_tokens` of `blocks` into `out[head · stride + token]`.
    pub(crate) fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        blocks: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let blocks = blocks.chunks_exact(self.block_bytes());
        let strips = blocks.zip((0..num_tokens).step_by(STRIP));
        #[cfg(target_arch = "x86_64")]
        if level.is_avx2() {
            for (block, first) in strips {
                let out = StripScores { first, num_tokens, stride, out: &mut *out };
                // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
                unsafe { avx2::score_strip(self, prepared, block, out) };
            }
            return;
        }
        let _ = level;
        for (block, first) in strips {
            let mut out = StripScores { first, num_tokens, stride, out: &mut *out };
            let (rows, tails) = self.split(block);
            let tails = Tails::read(self.tail, tails);
            for head in 0..prepared.num_heads() {
                let mut totals = [0.0; STRIP];
                let words = self.words(prepared, head);
                for (total, row) in totals.iter_mut().zip(rows.chunks_exact(self.head_dim)) {
                    let products = row
                        .iter()
                        .zip(words)
                        .map(|(&code, &word)| i32::from(code) * i32::from(word));
                    *total = products.sum::<i32>() as f32;
                }
                out.write(head, &tails.finish(prepared, head, &totals));
            }
        }
    }

    /// The rows and the tails of a strip.
    fn split<'a>(&self, block: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        block.split_at(STRIP * self.head_dim)
    }

    /// The rounded query of a head.
    fn words<'a>(&self, prepared: &'a PreparedQueries, head: usize) -> &'a [i16] {
        &prepared.words()[head * self.padded()..][..self.padded()]
    }
}
