//! Two planes at a time, one in each half of a vector where they are scored by tables.

mod words;

use std::arch::x86_64::*;

use super::{Parts, SEGMENT, Strips, entries, parts};
use crate::keys::{ENTRY_STEPS, PLANE_BYTES, Planes, Precision, PreparedQueries};
use crate::simd::tails::avx2::{StripTails, Totals};
use crate::simd::tails::{HeadTerms, StripScores};

/// Heads that share one pass over the planes where each has one set of tables or words: what the registers
/// hold.
const HEADS: usize = 3;

/// Scores all strips for all heads.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn score(
    planes: &Planes,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    let num_heads = prepared.num_heads();
    for strips in Strips::cached(planes, prepared, blocks) {
        let together = num_heads - num_heads % HEADS;
        let (threes, rest) = ((0..together).step_by(HEADS), together..num_heads);
        match prepared.precision() {
            Precision::Select => {
                threes.for_each(|head| strips.select::<HEADS>(head, out));
                rest.for_each(|head| strips.select::<1>(head, out));
            }
            Precision::Exact if planes.num_words(Precision::Exact) > 0 => {
                threes.for_each(|head| strips.exact::<HEADS>(head, out));
                rest.for_each(|head| strips.exact::<1>(head, out));
            }
            Precision::Exact => (0..num_heads).for_each(|head| strips.exact_by_tables(head, out)),
        }
    }
}

impl Strips<'_> {
    /// Scores one head by tables of two bytes.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn exact_by_tables(&self, head: usize, out: &mut StripScores<'_>) {
        let terms = HeadTerms::new(self.prepared, head);
        let tables = [0, 1].map(|set| entries(self.planes, self.prepared, head, set));
        for (strip, block) in self.iter() {
            let (codes, tails) = self.planes.split(block);
            let mut totals = Totals::zero();
            totals.add_steps(&self::totals::<1, 2, false>(codes, tables)[0], ENTRY_STEPS);
            let tails = StripTails::read(self.planes.tail(), tails);
            tails.finish(&terms, &totals, out.of(head, strip));
        }
    }

    /// Scores the heads `head..head + N` by words, and by tables of two bytes what has no words.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn exact<const N: usize>(&self, head: usize, out: &mut StripScores<'_>) {
        let Self { planes, prepared, .. } = *self;
        let terms: [HeadTerms; N] = std::array::from_fn(|i| HeadTerms::new(prepared, head + i));
        let words: [&[i16]; N] = std::array::from_fn(|i| super::words(planes, prepared, head + i));
        let tables: [[&[u8]; 2]; N] =
            std::array::from_fn(|i| [0, 1].map(|set| entries(planes, prepared, head + i, set)));
        for (strip, block) in self.iter() {
            let Parts { linear, tabled, tails } = parts(planes, prepared, block);
            let products = words::products(linear, words);
            let tails = StripTails::read(planes.tail(), tails);
            for i in 0..N {
                let mut totals = Totals::of(products[i]);
                if !tabled.is_empty() {
                    let picked = self::totals::<1, 2, false>(tabled, tables[i])[0];
                    totals.add_steps(&picked, ENTRY_STEPS);
                }
                tails.finish(&terms[i], &totals, out.of(head + i, strip));
            }
        }
    }

    /// Scores the heads `head..head + N` by tables of one byte.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn select<const N: usize>(&self, head: usize, out: &mut StripScores<'_>) {
        let terms: [HeadTerms; N] =
            std::array::from_fn(|i| HeadTerms::new(self.prepared, head + i));
        let tables: [&[u8]; N] =
            std::array::from_fn(|i| entries(self.planes, self.prepared, head + i, 0));
        for (strip, block) in self.iter() {
            let (codes, tails) = self.planes.split(block);
            let totals = totals::<N, N, true>(codes, tables);
            let tails = StripTails::read(self.planes.tail(), tails);
            for i in 0..N {
                tails.finish(&terms[i], &totals[i], out.of(head + i, strip));
            }
        }
    }
}

/// The sums of `HEADS` heads, each of which has one set of tables or the same number more.
#[inline]
#[target_feature(enable = "avx2")]
fn totals<const HEADS: usize, const SETS: usize, const PAIRED: bool>(
    codes: &[u8],
    tables: [&[u8]; SETS],
) -> [Totals; HEADS] {
    let segment = codes.len().min(SEGMENT * PLANE_BYTES);
    let mut totals = [Totals::zero(); HEADS];
    let sums = sum::<SETS, PAIRED>(&codes[..segment], tables, 0);
    for (head, totals) in totals.iter_mut().enumerate() {
        *totals = Totals::of(joined::<HEADS, SETS>(&sums, head));
    }
    if segment < codes.len() { more::<HEADS, SETS, PAIRED>(codes, tables, totals) } else { totals }
}

/// Adds the planes behind the first segment, which only the longest rows have.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2")]
fn more<const HEADS: usize, const SETS: usize, const PAIRED: bool>(
    codes: &[u8],
    tables: [&[u8]; SETS],
    mut totals: [Totals; HEADS],
) -> [Totals; HEADS] {
    for (i, codes) in codes.chunks(SEGMENT * PLANE_BYTES).enumerate().skip(1) {
        let sums = sum::<SETS, PAIRED>(codes, tables, i * SEGMENT * 16);
        for (head, totals) in totals.iter_mut().enumerate() {
            totals.add(joined::<HEADS, SETS>(&sums, head));
        }
    }
    totals
}

/// The sums of one head: of its only set, or of its lower bytes and 256 times its upper ones.
#[inline]
#[target_feature(enable = "avx2")]
fn joined<const HEADS: usize, const SETS: usize>(
    sums: &[[__m256i; 4]; SETS],
    head: usize,
) -> [__m256i; 4] {
    let mut joined = sums[head];
    if SETS == 2 * HEADS {
        for (low, high) in joined.iter_mut().zip(sums[HEADS + head]) {
            *low = _mm256_add_epi32(*low, _mm256_slli_epi32::<8>(high));
        }
    }
    joined
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
}

/// The sums of 32 tokens as 32-bit integers, from those of the lower nibbles and of the upper ones.
#[inline]
#[target_feature(enable = "avx2")]
fn join(low: Lanes, high: Lanes) -> [__m256i; 4] {
    let (whole, upper) = (add_halves(low.whole, high.whole), add_halves(low.upper, high.upper));
    // The sum of the whole lanes is that of the lower bytes and 256 times that of the upper ones.
    let lower = _mm256_sub_epi16(whole, _mm256_slli_epi16::<8>(upper));
    [
        _mm256_cvtepu16_epi32(_mm256_castsi256_si128(lower)),
        _mm256_cvtepu16_epi32(_mm256_castsi256_si128(upper)),
        _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(lower)),
        _mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(upper)),
    ]
}

/// Both halves of a vector hold the same tokens, of planes of even and of odd number: their sums, those of
/// `a` in the lower half.
#[inline]
#[target_feature(enable = "avx2")]
fn add_halves(a: __m256i, b: __m256i) -> __m256i {
    let first = _mm256_permute2x128_si256::<0x20>(a, b);
    _mm256_add_epi16(first, _mm256_permute2x128_si256::<0x31>(a, b))
}

/// The sums over planes of what each token's nibbles pick from each of `SETS` tables, which begin at
/// `first_entry`. With `PAIRED`, no entry is above 127, and those of two planes are added as bytes first.
///
/// The lower nibbles of all planes come first and then the upper ones: so the sums of three sets stay in
/// registers.
#[inline]
#[target_feature(enable = "avx2")]
fn sum<const SETS: usize, const PAIRED: bool>(
    codes: &[u8],
    tables: [&[u8]; SETS],
    first_entry: usize,
) -> [[__m256i; 4]; SETS] {
    for table in tables {
        assert!(table.len() >= first_entry + codes.len(), "a table for every plane");
    }
    // SAFETY: every set has a table of 16 entries for each of the planes, which take 16 bytes.
    let (low, high) = unsafe {
        let low = nibble_sums::<SETS, PAIRED, 0>(codes, tables, first_entry);
        (low, nibble_sums::<SETS, PAIRED, 4>(codes, tables, first_entry))
    };
    let mut sums = [[_mm256_setzero_si256(); 4]; SETS];
    for set in 0..SETS {
        sums[set] = join(low[set], high[set]);
    }
    sums
}

/// [`sum`] for the nibbles that begin at bit `SHIFT`, 0 or 4.
///
/// # Safety
/// - every table has `first_entry + codes.len()` entries.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibble_sums<const SETS: usize, const PAIRED: bool, const SHIFT: i32>(
    codes: &[u8],
    tables: [&[u8]; SETS],
    first_entry: usize,
) -> [Lanes; SETS] {
    let mut lanes = [Lanes::zero(); SETS];
    let mut at = 0;
    while at + 64 <= codes.len() {
        // SAFETY: 64 bytes from `at` on lie in the codes, and so behind `first_entry` in every table.
        let a = unsafe { nibbles::<SHIFT>(codes, at) };
        // SAFETY: as above.
        let b = unsafe { nibbles::<SHIFT>(codes, at + 32) };
        for set in 0..SETS {
            // SAFETY: as above.
            let x = _mm256_shuffle_epi8(unsafe { load(tables[set], first_entry + at) }, a);
            // SAFETY: as above.
            let y = _mm256_shuffle_epi8(unsafe { load(tables[set], first_entry + at + 32) }, b);
            if PAIRED {
                lanes[set].add(_mm256_add_epi8(x, y));
            } else {
                lanes[set].add(x);
                lanes[set].add(y);
            }
        }
        at += 64;
    }
    if at + 32 <= codes.len() {
        // SAFETY: 32 bytes from `at` on lie in the codes, and so behind `first_entry` in every table.
        let codes = unsafe { nibbles::<SHIFT>(codes, at) };
        for set in 0..SETS {
            // SAFETY: as above.
            let table = unsafe { load(tables[set], first_entry + at) };
            lanes[set].add(_mm256_shuffle_epi8(table, codes));
        }
    }
    lanes
}

/// The nibbles of 32 bytes that begin at bit `SHIFT`, 0 or 4.
///
/// # Safety
/// - 32 bytes from `at` on lie in `bytes`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles<const SHIFT: i32>(bytes: &[u8], at: usize) -> __m256i {
    // SAFETY: the caller's.
    let bytes = unsafe { load(bytes, at) };
    _mm256_and_si256(_mm256_srli_epi16::<SHIFT>(bytes), _mm256_set1_epi8(15))
}

/// # Safety
/// - 32 bytes from `at` on lie in `bytes`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(bytes: &[u8], at: usize) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}
