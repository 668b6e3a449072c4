//! Strips of 8-bit codes against a group of queries, in integers.
//!
//! A strip holds 32 tokens in pairs of channels: for every two neighbouring channels 64 bytes, token
//! after token; then the scales of all tokens and then their zeros. A query is rounded to 16-bit
//! integers in units of a step of its own, so that the two products of a token are one instruction,
//! whose sums are exact in 32 bits and lie where the next pair's are added. The integers are the same on
//! every level.

#![cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

use super::tails::{StripScores, Tails};
use crate::Level;
use crate::keys::{PreparedQueries, STRIP, Tail, largest_rounding, nearest_integer};

/// Bytes of a pair of channels.
const PAIR_BYTES: usize = 2 * STRIP;

/// Channels up to which 255 times the largest word adds up inside 32 bits.
const FULL_WORD_CHANNELS: usize = 256;

/// The shape of strips of 8-bit codes.
#[derive(Clone, Debug)]
pub(crate) struct ByteStrips {
    head_dim: usize,
    tail: Tail,
}

impl ByteStrips {
    /// Strips of `head_dim` channels, a multiple of 8.
    pub(crate) fn new(head_dim: usize, tail: Tail) -> Self {
        Self { head_dim, tail }
    }

    pub(crate) fn tail(&self) -> Tail {
        self.tail
    }

    pub(crate) fn block_bytes(&self) -> usize {
        STRIP * (self.head_dim + self.tail.bytes())
    }

    pub(crate) fn write(&self, block: &mut [u8], slot: usize, codes: &[u8], tail: &[u8]) {
        let (pairs, tails) = block.split_at_mut(STRIP * self.head_dim);
        for (pair, codes) in pairs.chunks_exact_mut(PAIR_BYTES).zip(codes.chunks_exact(2)) {
            pair[2 * slot..][..2].copy_from_slice(codes);
        }
        self.tail.write(tails, slot, tail);
    }

    pub(crate) fn read(&self, block: &[u8], slot: usize, codes: &mut [u8]) -> (f32, f32) {
        let (pairs, tails) = self.split(block);
        for (pair, codes) in pairs.chunks_exact(PAIR_BYTES).zip(codes.chunks_exact_mut(2)) {
            codes.copy_from_slice(&pair[2 * slot..][..2]);
        }
        self.tail.read(tails, slot)
    }

    /// Rounds a query to words, appended to `words`; returns their step, and the most by which this moves
    /// the sum of a token: NaN both for a query that is not finite, whose words are 0.
    pub(crate) fn round_query(&self, query: &[f32], words: &mut Vec<i16>) -> (f32, f32) {
        // The order of the bits of positive floats is their own, and integers come as vector code.
        let largest = query.iter().fold(0, |largest, q| q.abs().to_bits().max(largest));
        let largest = f32::from_bits(largest);
        if !largest.is_finite() {
            words.resize(words.len() + query.len(), 0);
            return (f32::NAN, f32::NAN);
        }
        let share = (FULL_WORD_CHANNELS as f32 / self.head_dim as f32).min(1.0);
        let step = largest / (f32::from(i16::MAX) * share).floor();
        // Of which there is an inverse.
        let step = step.max(f32::MIN_POSITIVE);
        let inverse = 1.0 / step;
        words.extend(query.iter().map(|q| nearest_integer(q * inverse) as i16));
        // Of every channel, times the largest code.
        let rounding = largest_rounding(i16::MAX.into());
        (step, rounding * step * 255.0 * self.head_dim as f32)
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
        let mut out = StripScores { num_tokens, stride, out };
        let blocks = &blocks[..num_tokens.div_ceil(STRIP) * self.block_bytes()];
        #[cfg(target_arch = "x86_64")]
        if level.is_avx2() {
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
            unsafe { avx2::score(self, prepared, blocks, &mut out) };
            return;
        }
        #[cfg(target_arch = "aarch64")]
        if level.is_neon() {
            // SAFETY: a NEON level exists only where NEON does.
            unsafe { neon::score(self, prepared, blocks, &mut out) };
            return;
        }
        let _ = level;
        for (strip, block) in blocks.chunks_exact(self.block_bytes()).enumerate() {
            let (pairs, tails) = self.split(block);
            let tails = Tails::read(self.tail, tails);
            for head in 0..prepared.num_heads() {
                let mut totals = [0i32; STRIP];
                let words = self.words(prepared, head).chunks_exact(2);
                for (pair, words) in pairs.chunks_exact(PAIR_BYTES).zip(words) {
                    for (total, codes) in totals.iter_mut().zip(pair.chunks_exact(2)) {
                        let products = codes.iter().zip(words);
                        *total += products.map(|(&c, &w)| i32::from(c) * i32::from(w)).sum::<i32>();
                    }
                }
                let scores = tails.finish(prepared, head, &totals.map(|x| x as f32));
                let out = out.of(head, strip);
                out.copy_from_slice(&scores[..out.len()]);
            }
        }
    }

    /// The pairs of channels and the tails of a strip.
    fn split<'a>(&self, block: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        block.split_at(STRIP * self.head_dim)
    }

    /// The rounded query of a head.
    fn words<'a>(&self, prepared: &'a PreparedQueries, head: usize) -> &'a [i16] {
        &prepared.words()[head * self.head_dim..][..self.head_dim]
    }
}
