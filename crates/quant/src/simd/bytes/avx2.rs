//! Eight tokens of a pair of channels at a time; up to three heads per pass.

use std::arch::x86_64::*;

use super::{ByteStrips, PAIR_BYTES};
use crate::keys::{PreparedQueries, STRIP};
use crate::simd::prefetch::prefetch;
use crate::simd::tails::avx2::{StripTails, Totals};
use crate::simd::tails::{HeadTerms, StripScores};

/// Tokens whose sums of all heads stay in registers.
const TOKENS: usize = 16;

/// Heads that share one pass over the codes.
const HEADS: usize = 3;

/// Scores all strips for all heads.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn score(
    shape: &ByteStrips,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    let num_heads = prepared.num_heads();
    for (strip, block) in blocks.chunks_exact(shape.block_bytes()).enumerate() {
        let mut head = 0;
        while head + HEADS <= num_heads {
            score_strip::<HEADS>(shape, prepared, block, head, strip, out);
            head += HEADS;
        }
        while head < num_heads {
            score_strip::<1>(shape, prepared, block, head, strip, out);
            head += 1;
        }
    }
}

/// Scores one strip for the heads `head..head + N`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn score_strip<const N: usize>(
    shape: &ByteStrips,
    prepared: &PreparedQueries,
    block: &[u8],
    head: usize,
    strip: usize,
    out: &mut StripScores<'_>,
) {
    let (pairs, tails) = shape.split(block);
    let words = std::array::from_fn(|i| shape.words(prepared, head + i));
    let totals = totals::<N>(pairs, words, shape.block_bytes());
    let tails = StripTails::read(shape.tail, tails);
    for (i, totals) in totals.iter().enumerate() {
        let terms = HeadTerms::new(prepared, head + i);
        tails.finish(&terms, totals, out.of(head + i, strip));
    }
}

/// The products of every token with each of `N` queries. `next` is how many bytes behind this strip the next one begins.
#[inline]
#[target_feature(enable = "avx2")]
fn totals<const N: usize>(pairs: &[u8], words: [&[i16]; N], next: usize) -> [Totals; N] {
    let num_pairs = pairs.len() / PAIR_BYTES;
    assert!(words.iter().all(|words| words.len() >= 2 * num_pairs), "two words for every pair");
    let mut all = [[_mm256_setzero_si256(); STRIP / 8]; N];
    for part in 0..STRIP / TOKENS {
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for pair in 0..num_pairs {
            let at = pair * PAIR_BYTES + part * 2 * TOKENS;
            if part > 0 {
                // The first part has fetched every line of this strip; memory would idle until the next.
                prefetch(pairs.as_ptr().wrapping_add(next + at));
            }
            // SAFETY: 32 bytes from `at` on are the codes of sixteen tokens of this pair.
            let codes = unsafe { [load_codes(pairs, at), load_codes(pairs, at + 16)] };
            for (sums, words) in sums.iter_mut().zip(words) {
                // SAFETY: there are two words for every pair.
                let words = unsafe { words.as_ptr().add(2 * pair).cast::<i32>().read_unaligned() };
                let words = _mm256_set1_epi32(words);
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(codes, words));
                }
            }
        }
        for (all, [first, second]) in all.iter_mut().zip(sums) {
            (all[2 * part], all[2 * part + 1]) = (first, second);
        }
    }
    let mut totals = [Totals::zero(); N];
    for (totals, sums) in totals.iter_mut().zip(all) {
        *totals = Totals::of(sums);
    }
    totals
}

/// Sixteen codes as words.
///
/// # Safety
/// - 16 bytes from `at` on lie in `codes`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_codes(codes: &[u8], at: usize) -> __m256i {
    // SAFETY: the caller's.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(codes.as_ptr().add(at).cast()) })
}
