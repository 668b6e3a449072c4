//! Two planes at a time, one in each half of a vector.

use std::arch::x86_64::*;

use super::{SEGMENT, add_sums, entries};
use crate::keys::{PLANE_BYTES, Planes, Precision, PreparedQueries, STRIP};
use crate::simd::tails::{self, StripScores};

/// Scores one strip for all heads.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn score_strip(
    planes: &Planes,
    prepared: &PreparedQueries,
    block: &[u8],
    mut out: StripScores<'_>,
) {
    let (codes, tails) = planes.split(block);
    let tails = tails::avx2::read(planes.tail(), tails);
    let mut write = |head: usize, totals: &[f32; STRIP]| {
        out.write(head, &tails.finish(prepared, head, totals));
    };
    let tables = |head, set| entries(planes, prepared, head, set);
    let num_heads = prepared.num_heads();
    match prepared.precision() {
        Precision::Exact => {
            for head in 0..num_heads {
                let mut totals = [0.0; STRIP];
                for_segments(codes, |codes, at| {
                    let [low, high] =
                        sum::<2, false>(codes, [&tables(head, 0)[at..], &tables(head, 1)[at..]]);
                    add_sums(&mut totals, &low, &high);
                });
                write(head, &totals);
            }
        }
        Precision::Select => {
            // Three heads fill the registers.
            let mut head = 0;
            while head + 3 <= num_heads {
                let mut totals = [[0.0; STRIP]; 3];
                for_segments(codes, |codes, at| {
                    let tables = [0, 1, 2].map(|i| &tables(head + i, 0)[at..]);
                    let sums = sum::<3, true>(codes, tables);
                    for (totals, sums) in totals.iter_mut().zip(&sums) {
                        add_sums(totals, sums, &[0; STRIP]);
                    }
                });
                totals.iter().enumerate().for_each(|(i, totals)| write(head + i, totals));
                head += 3;
            }
            while head < num_heads {
                let mut totals = [0.0; STRIP];
                for_segments(codes, |codes, at| {
                    let [sums] = sum::<1, true>(codes, [&tables(head, 0)[at..]]);
                    add_sums(&mut totals, &sums, &[0; STRIP]);
                });
                write(head, &totals);
                head += 1;
            }
        }
    }
}

/// Visits the planes of a strip in segments, with where their tables begin.
#[inline(always)]
fn for_segments(codes: &[u8], mut visit: impl FnMut(&[u8], usize)) {
    for (i, codes) in codes.chunks(SEGMENT * PLANE_BYTES).enumerate() {
        visit(codes, i * SEGMENT * 16);
    }
}

/// Sums of 32 bytes in 16-bit lanes: of both bytes of a lane as one number, and of the upper ones.
#[derive(Clone, Copy)]
struct Lanes {
    whole: __m256i,
    upper: __m256i,
}

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        Self { whole: _mm256_setzero_si256(), upper: _mm256_setzero_si256() }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add(&mut self, bytes: __m256i) {
        self.whole = _mm256_add_epi16(self.whole, bytes);
        self.upper = _mm256_add_epi16(self.upper, _mm256_srli_epi16::<8>(bytes));
    }

    /// The sixteen sums, of both halves of the vector together.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn totals(self) -> (__m128i, __m128i) {
        // The sum of the whole lanes is that of the lower bytes and 256 times that of the upper ones.
        let lower = _mm256_sub_epi16(self.whole, _mm256_slli_epi16::<8>(self.upper));
        let join = |x| _mm_add_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let (lower, upper) = (join(lower), join(self.upper));
        (_mm_unpacklo_epi16(lower, upper), _mm_unpackhi_epi16(lower, upper))
    }
}

/// The sums over planes of what each token's nibbles pick from each of `SETS` tables. With `PAIRED`, no
/// entry is above 127, and those of two planes are added as bytes first.
#[inline]
#[target_feature(enable = "avx2")]
fn sum<const SETS: usize, const PAIRED: bool>(
    codes: &[u8],
    tables: [&[u8]; SETS],
) -> [[u16; STRIP]; SETS] {
    let (quads, pair) = codes.as_chunks::<64>();
    let tables = tables.map(|table| &table[..codes.len()]);
    let mut lanes = [[Lanes::zero(); 2]; SETS];
    for (i, quad) in quads.iter().enumerate() {
        let (first, second) = halves_of(quad);
        let (first, second) = (nibbles(first), nibbles(second));
        for (lanes, table) in lanes.iter_mut().zip(&tables) {
            let Some(table) = table[64 * i..].first_chunk::<64>() else { continue };
            let (a, b) = halves_of(table);
            let (a, b) = (load_bytes(a), load_bytes(b));
            for half in 0..2 {
                let (x, y) =
                    (_mm256_shuffle_epi8(a, first[half]), _mm256_shuffle_epi8(b, second[half]));
                if PAIRED {
                    lanes[half].add(_mm256_add_epi8(x, y));
                } else {
                    lanes[half].add(x);
                    lanes[half].add(y);
                }
            }
        }
    }
    if let Some(pair) = pair.first_chunk::<32>() {
        let codes = nibbles(pair);
        for (lanes, table) in lanes.iter_mut().zip(&tables) {
            let Some(table) = table[64 * quads.len()..].first_chunk::<32>() else { continue };
            let table = load_bytes(table);
            for half in 0..2 {
                lanes[half].add(_mm256_shuffle_epi8(table, codes[half]));
            }
        }
    }
    lanes.map(|[low, high]| {
        let mut sums = [0; STRIP];
        let (parts, _) = sums.as_chunks_mut::<8>();
        let ((a, b), (c, d)) = (low.totals(), high.totals());
        for (part, sums) in parts.iter_mut().zip([a, b, c, d]) {
            store_words(part, sums);
        }
        sums
    })
}

/// The lower nibbles of all bytes, and the upper ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(bytes: &[u8; 32]) -> [__m256i; 2] {
    let (bytes, mask) = (load_bytes(bytes), _mm256_set1_epi8(15));
    let upper = _mm256_srli_epi16::<4>(bytes);
    [_mm256_and_si256(bytes, mask), _mm256_and_si256(upper, mask)]
}

#[inline(always)]
fn halves_of(bytes: &[u8; 64]) -> (&[u8; 32], &[u8; 32]) {
    let ([first, second], _) = bytes.as_chunks::<32>() else { unreachable!("64 bytes") };
    (first, second)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_words(out: &mut [u16; 8], words: __m128i) {
    // SAFETY: the array has the 16 bytes of this unaligned store.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), words) }
}
