//! Sixteen channels at a time; four rows against up to three heads per pass.

use std::arch::x86_64::*;

use super::{ByteStrips, LANE_WORDS};
use crate::keys::{PreparedQueries, STRIP};
use crate::simd::tails::{self, StripScores};

/// Rows that are summed side by side, so that one tree of additions ends them all.
const ROWS: usize = 4;

/// Scores one strip for all heads.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn score_strip(
    shape: &ByteStrips,
    prepared: &PreparedQueries,
    block: &[u8],
    mut out: StripScores<'_>,
) {
    let (rows, tails) = shape.split(block);
    let tails = tails::avx2::read(shape.tail, tails);
    let mut write = |head: usize, totals: &[f32; STRIP]| {
        out.write(head, &tails.finish(prepared, head, totals));
    };
    let words = |head| shape.words(prepared, head);
    let num_heads = prepared.num_heads();
    let mut head = 0;
    while head + 3 <= num_heads {
        let totals = totals(shape.head_dim, rows, [0, 1, 2].map(|i| words(head + i)));
        totals.iter().enumerate().for_each(|(i, totals)| write(head + i, totals));
        head += 3;
    }
    while head < num_heads {
        let [totals] = totals(shape.head_dim, rows, [words(head)]);
        write(head, &totals);
        head += 1;
    }
}

/// The products of every row with each of `HEADS` queries.
#[inline]
#[target_feature(enable = "avx2")]
fn totals<const HEADS: usize>(
    head_dim: usize,
    rows: &[u8],
    words: [&[i16]; HEADS],
) -> [[f32; STRIP]; HEADS] {
    let mut totals = [[0.0; STRIP]; HEADS];
    for (quad, rows) in rows.chunks_exact(ROWS * head_dim).enumerate() {
        let mut sums = [[_mm256_setzero_si256(); ROWS]; HEADS];
        for first in (0..head_dim).step_by(LANE_WORDS) {
            for row in 0..ROWS {
                let codes = load_codes(&rows[row * head_dim..][..head_dim][first..]);
                for (sums, words) in sums.iter_mut().zip(&words) {
                    let Some(words) = words[first..].first_chunk() else { continue };
                    let products = _mm256_madd_epi16(codes, load_words(words));
                    sums[row] = _mm256_add_epi32(sums[row], products);
                }
            }
        }
        for (totals, [a, b, c, d]) in totals.iter_mut().zip(sums) {
            let four = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            let four =
                _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four));
            if let Some(out) = totals.as_chunks_mut::<ROWS>().0.get_mut(quad) {
                // SAFETY: the array has the 16 bytes of this unaligned store.
                unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm_cvtepi32_ps(four)) };
            }
        }
    }
    totals
}

/// Sixteen codes, or the last eight of a row, as words.
#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[u8]) -> __m256i {
    let codes = match codes.first_chunk::<LANE_WORDS>() {
        // SAFETY: the array has the 16 bytes of this unaligned load.
        Some(codes) => unsafe { _mm_loadu_si128(codes.as_ptr().cast()) },
        None => {
            let eight = codes.first_chunk().map_or(0, |eight| i64::from_le_bytes(*eight));
            _mm_cvtsi64_si128(eight)
        }
    };
    _mm256_cvtepu8_epi16(codes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(words: &[i16; LANE_WORDS]) -> __m256i {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}
