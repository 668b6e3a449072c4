//! Sixteen tokens of a pair of channels at a time; up to three heads per pass.

#![expect(unsafe_code, reason = "loads by pointer")]

use std::arch::aarch64::*;

use super::{ByteStrips, PAIR_BYTES};
use crate::keys::{PreparedQueries, STRIP};
use crate::simd::tails::StripScores;
use crate::simd::tails::neon::{PerToken, StripTails, splat};

/// Tokens whose sums of all heads stay in registers.
const TOKENS: usize = 16;

/// Heads that share one pass over the codes.
const HEADS: usize = 3;

/// Scores all strips for all heads.
#[target_feature(enable = "neon")]
pub(super) fn score(
    shape: &ByteStrips,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    let num_heads = prepared.num_heads();
    let together = num_heads - num_heads % HEADS;
    for (strip, block) in blocks.chunks_exact(shape.block_bytes()).enumerate() {
        for head in (0..together).step_by(HEADS) {
            score_strip::<HEADS>(shape, prepared, block, head, strip, out);
        }
        for head in together..num_heads {
            score_strip::<1>(shape, prepared, block, head, strip, out);
        }
    }
}

/// Scores one strip for the heads `head..head + N`.
#[inline]
#[target_feature(enable = "neon")]
fn score_strip<const N: usize>(
    shape: &ByteStrips,
    prepared: &PreparedQueries,
    block: &[u8],
    head: usize,
    strip: usize,
    out: &mut StripScores<'_>,
) {
    let (pairs, tails) = shape.split(block);
    let totals = totals::<N>(pairs, std::array::from_fn(|i| shape.words(prepared, head + i)));
    let tails = StripTails::read(shape.tail, tails);
    for (head, totals) in (head..).zip(totals) {
        tails.finish(prepared, head, totals, out.of(head, strip));
    }
}

/// The products of every token with each of `N` queries.
#[inline]
#[target_feature(enable = "neon")]
fn totals<const N: usize>(pairs: &[u8], words: [&[i16]; N]) -> [PerToken; N] {
    let words = words.map(|words| words.as_chunks::<2>().0);
    let mut totals = [splat(0.0); N];
    for part in 0..STRIP / TOKENS {
        let mut sums = [[vdupq_n_s32(0); TOKENS / 4]; N];
        for (i, pair) in pairs.as_chunks::<PAIR_BYTES>().0.iter().enumerate() {
            let codes = load_codes(&pair.as_chunks().0[part]);
            for (sums, words) in sums.iter_mut().zip(words) {
                for (codes, word) in codes.into_iter().zip(words[i]) {
                    for (sums, codes) in sums.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                        sums[0] = vmlal_n_s16(sums[0], vget_low_s16(codes), word);
                        sums[1] = vmlal_high_n_s16(sums[1], codes, word);
                    }
                }
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            let totals = &mut totals[part * TOKENS / 4..];
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = vcvtq_f32_s32(sum);
            }
        }
    }
    totals
}

/// The codes of sixteen tokens as words: those of the first channel, then those of the second.
#[inline]
#[target_feature(enable = "neon")]
fn load_codes(from: &[u8; 2 * TOKENS]) -> [[int16x8_t; 2]; 2] {
    // SAFETY: the array holds what is read.
    let uint8x16x2_t(first, second) = unsafe { vld2q_u8(from.as_ptr()) };
    [first, second].map(|codes| {
        [vmovl_u8(vget_low_u8(codes)), vmovl_high_u8(codes)].map(|x| vreinterpretq_s16_u16(x))
    })
}
