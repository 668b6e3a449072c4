//! Four planes at a time, in vectors that hold what belongs to a token side by side, so that one instruction
//! adds it up: for tables the bytes that one look-up in those of all four picks, for words pairs of nibbles.

use std::arch::x86_64::*;

use super::{Parts, Strips, entries, parts, words};
use crate::keys::{ENTRY_STEPS, PLANE_BYTES, Planes, Precision, PreparedQueries, STRIP, place_of};
use crate::simd::prefetch::prefetch;
use crate::simd::tails::avx512::StripTails;
use crate::simd::tails::{HeadTerms, StripScores};

/// Planes that one vector holds.
const PLANES: usize = 4;

/// Bytes of their codes, and of a set of their tables.
const BYTES: usize = PLANES * PLANE_BYTES;

/// Tokens that one vector of sums holds.
const TOKENS: usize = STRIP / 2;

/// Heads that share one pass over the planes.
const HEADS: usize = 4;

/// How many bytes ahead of the codes that are scored memory is asked for: left to itself it comes too late.
const AHEAD: usize = 2048;

/// Sums of 32 tokens.
type Sums = [__m512i; STRIP / TOKENS];

/// Where the byte of each token and plane lies in four planes: token after token, so that the four bytes
/// of one are a lane.
const ORDER: [u8; BYTES] = {
    let mut order = [0; BYTES];
    let mut i = 0;
    while i < BYTES {
        let (token, plane) = (i / PLANES, i % PLANES);
        order[i] = (plane * PLANE_BYTES + place_of(token).0) as u8;
        i += 1;
    }
    order
};

/// The same for two planes, each byte twice: the nibbles of a token as words lie at both ends of them.
const PAIR_ORDER: [u8; BYTES] = {
    let mut order = [0; BYTES];
    let mut i = 0;
    while i < BYTES {
        let (token, plane) = (i / 4, i / 2 % 2);
        order[i] = (plane * PLANE_BYTES + place_of(token).0) as u8;
        i += 1;
    }
    order
};

/// Scores all strips for all heads.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(super) fn score(
    planes: &Planes,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    for strips in Strips::cached(planes, prepared, blocks) {
        for head in (0..prepared.num_heads()).step_by(HEADS) {
            match (prepared.precision(), prepared.num_heads() - head) {
                (Precision::Exact, 1) => strips.score::<1, 2>(head, out),
                (Precision::Exact, 2) => strips.score::<2, 4>(head, out),
                (Precision::Exact, 3) => strips.score::<3, 6>(head, out),
                (Precision::Exact, _) => strips.score::<HEADS, { 2 * HEADS }>(head, out),
                (Precision::Select, 1) => strips.score::<1, 1>(head, out),
                (Precision::Select, 2) => strips.score::<2, 2>(head, out),
                (Precision::Select, 3) => strips.score::<3, 3>(head, out),
                (Precision::Select, _) => strips.score::<HEADS, HEADS>(head, out),
            }
        }
    }
}

impl Strips<'_> {
    /// Scores the heads `head..head + N` by `SETS` sets of tables, as many of each head.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn score<const N: usize, const SETS: usize>(&self, head: usize, out: &mut StripScores<'_>) {
        let Self { planes, prepared, .. } = *self;
        let terms: [HeadTerms; N] = std::array::from_fn(|i| HeadTerms::new(prepared, head + i));
        let words: [&[i16]; N] = std::array::from_fn(|i| words(planes, prepared, head + i));
        let sets = SETS / N;
        let tables: [&[u8]; SETS] =
            std::array::from_fn(|i| entries(planes, prepared, head + i / sets, i % sets));
        for (strip, block) in self.iter() {
            let Parts { linear, tabled, tails } = parts(planes, prepared, block);
            fetch(block, AHEAD);
            // In the order of memory, which it is fetched ahead in.
            let products = products::<N>(linear, words);
            let picked = picked::<SETS>(tabled, tables, SETS == N);
            let tails = StripTails::read(planes.tail(), tails);
            for i in 0..N {
                let sums = if SETS == N {
                    picked[i]
                } else {
                    joined(products[i], picked[2 * i], picked[2 * i + 1])
                };
                tails.finish(&terms[i], sums, out.of(head + i, strip));
            }
        }
    }
}

/// The sums of a head, in steps of words: of the products, of the lower bytes that were picked and of 256
/// times the upper ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn joined(products: Sums, low: Sums, high: Sums) -> Sums {
    const STEPS: u32 = ENTRY_STEPS.ilog2();
    let mut sums = products;
    for i in 0..sums.len() {
        let picked = _mm512_add_epi32(low[i], _mm512_slli_epi32::<8>(high[i]));
        sums[i] = _mm512_add_epi32(sums[i], _mm512_slli_epi32::<STEPS>(picked));
    }
    sums
}

/// The sums over planes, a multiple of four, of each token's nibbles times the words of `N` heads.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn products<const N: usize>(codes: &[u8], words: [&[i16]; N]) -> [Sums; N] {
    let fours = codes.len() / BYTES;
    assert!(words.iter().all(|words| words.len() >= PLANES * fours), "a word for every plane");
    // Two sums of every token, so that one addition does not wait for the other.
    let mut sums = [[[_mm512_setzero_si512(); STRIP / TOKENS]; 2]; N];
    for four in 0..fours {
        // SAFETY: so many times 64 bytes lie in the codes.
        let codes = pairs(unsafe { load(codes, four * BYTES) });
        for (sums, words) in sums.iter_mut().zip(words) {
            for (pair, (sums, codes)) in sums.iter_mut().zip(codes).enumerate() {
                let at = four * PLANES + 2 * pair;
                // SAFETY: there are so many times four words, and so two from here on.
                let words = unsafe { words.as_ptr().add(at).cast::<i32>().read_unaligned() };
                let words = _mm512_set1_epi32(words);
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    *sum = _mm512_dpwssd_epi32(*sum, codes, words);
                }
            }
        }
    }
    let mut joined = [[_mm512_setzero_si512(); STRIP / TOKENS]; N];
    for (joined, [first, second]) in joined.iter_mut().zip(sums) {
        for (joined, (first, second)) in joined.iter_mut().zip(first.into_iter().zip(second)) {
            *joined = _mm512_add_epi32(first, second);
        }
    }
    joined
}

/// The nibbles of four planes as words: of the first two and of the other two, in each of the tokens 0 to 15
/// and then of the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn pairs(codes: __m512i) -> [[__m512i; STRIP / TOKENS]; 2] {
    // SAFETY: the array has the 64 bytes of this unaligned load.
    let first = unsafe { _mm512_loadu_si512(PAIR_ORDER.as_ptr().cast()) };
    let second = _mm512_or_si512(first, _mm512_set1_epi8(2 * PLANE_BYTES as i8));
    [first, second].map(|order| {
        let codes = _mm512_permutexvar_epi8(order, codes);
        let lower = _mm512_and_si512(codes, _mm512_set1_epi16(15));
        [lower, _mm512_srli_epi16::<12>(codes)]
    })
}

/// The sums over planes of what each token's nibbles pick from each of `SETS` tables. If `paired`, no entry
/// is above 127, and those of two planes are added as bytes first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn picked<const SETS: usize>(codes: &[u8], tables: [&[u8]; SETS], paired: bool) -> [Sums; SETS] {
    assert!(codes.len().is_multiple_of(BYTES / 2), "planes in pairs");
    for table in tables {
        assert!(table.len() >= codes.len(), "a table for every plane");
    }
    let ones = _mm512_set1_epi8(1);
    let mut sums = [[_mm512_setzero_si512(); STRIP / TOKENS]; SETS];
    let mut at = 0;
    while paired && at + 2 * BYTES <= codes.len() {
        // SAFETY: 128 bytes from `at` on lie in the codes, and so in all tables.
        let (a, b) = unsafe { (indexes(load(codes, at)), indexes(load(codes, at + BYTES))) };
        for (sums, table) in sums.iter_mut().zip(tables) {
            // SAFETY: as above.
            let (first, second) = unsafe { (load(table, at), load(table, at + BYTES)) };
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                let a = _mm512_permutexvar_epi8(a, first);
                let both = _mm512_add_epi8(a, _mm512_permutexvar_epi8(b, second));
                *sum = _mm512_dpbusd_epi32(*sum, both, ones);
            }
        }
        at += 2 * BYTES;
    }
    while at < codes.len() {
        let is_whole = at + BYTES <= codes.len();
        // SAFETY: 64 bytes from `at` on, or the 32 of a last pair, lie in the codes, and so in all tables.
        let indexes = indexes(unsafe { load_up_to(codes, at, is_whole) });
        for (sums, table) in sums.iter_mut().zip(tables) {
            // SAFETY: as above.
            let table = unsafe { load_up_to(table, at, is_whole) };
            for (sum, indexes) in sums.iter_mut().zip(indexes) {
                let picked = _mm512_permutexvar_epi8(indexes, table);
                *sum = _mm512_dpbusd_epi32(*sum, picked, ones);
            }
        }
        at += BYTES;
    }
    sums
}

/// The places in four tables of what the nibbles of four planes pick: of the tokens 0 to 15, then of the
/// others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn indexes(codes: __m512i) -> [__m512i; 2] {
    // SAFETY: the array has the 64 bytes of this unaligned load.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    let tables = _mm512_set1_epi32(0x3020_1000);
    let codes = _mm512_permutexvar_epi8(order, codes);
    [codes, _mm512_srli_epi16::<4>(codes)].map(|codes| {
        // The lower four bits of each byte, and the upper ones of its table: A & B | C.
        _mm512_ternarylogic_epi32::<0xEA>(codes, _mm512_set1_epi8(15), tables)
    })
}

/// # Safety
/// - 64 bytes from `at` on lie in `bytes`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(bytes: &[u8], at: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) }
}

/// 64 bytes, or 32 and zeros.
///
/// # Safety
/// - 64 bytes from `at` on lie in `bytes`, or 32 unless `is_whole`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_up_to(bytes: &[u8], at: usize, is_whole: bool) -> __m512i {
    if is_whole {
        // SAFETY: the caller's.
        unsafe { load(bytes, at) }
    } else {
        // SAFETY: the caller's.
        _mm512_zextsi256_si512(unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) })
    }
}

/// Asks for the memory that lies `ahead` bytes behind `bytes`, or for nothing where there is none.
#[inline]
fn fetch(bytes: &[u8], ahead: usize) {
    bytes.chunks(BYTES).for_each(|line| prefetch(line.as_ptr().wrapping_add(ahead)));
}
