//! Four planes at a time: one look-up in the tables of all four for sixteen tokens, whose bytes then lie
//! side by side, and one instruction that adds them up.

use std::arch::x86_64::*;

use super::entries;
use crate::keys::{PLANE_BYTES, Planes, Precision, PreparedQueries, STRIP, place_of};
use crate::simd::tails::StripScores;
use crate::simd::tails::avx2::{HeadTerms, StripTails, Totals};

/// Planes that one vector holds.
const PLANES: usize = 4;

/// Bytes of their codes, and of a set of their tables.
const BYTES: usize = PLANES * PLANE_BYTES;

/// Tokens that one vector of sums holds.
const TOKENS: usize = STRIP / 2;

/// Strips that all heads are scored against before the next ones, so that their codes stay in cache.
const CACHED_STRIPS: usize = 16;

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

/// Scores all strips for all heads.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(super) fn score(
    planes: &Planes,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    let cached = blocks.chunks(CACHED_STRIPS * planes.block_bytes()).enumerate();
    for (blocks, first) in cached.map(|(i, blocks)| (blocks, i * CACHED_STRIPS)) {
        let strips = Strips { planes, prepared, blocks, first };
        let mut head = 0;
        while head < prepared.num_heads() {
            let heads = (prepared.num_heads() - head).min(4);
            match (prepared.precision(), heads) {
                (Precision::Exact, 1) => strips.score::<1, 2, false>(head, out),
                (Precision::Exact, 2) => strips.score::<2, 4, false>(head, out),
                (Precision::Exact, 3) => strips.score::<3, 6, false>(head, out),
                (Precision::Exact, _) => strips.score::<4, 8, false>(head, out),
                (Precision::Select, 1) => strips.score::<1, 1, true>(head, out),
                (Precision::Select, 2) => strips.score::<2, 2, true>(head, out),
                (Precision::Select, 3) => strips.score::<3, 3, true>(head, out),
                (Precision::Select, _) => strips.score::<4, 4, true>(head, out),
            }
            head += heads;
        }
    }
}

/// A few strips, whose number among all of them is `first` and more.
struct Strips<'a> {
    planes: &'a Planes,
    prepared: &'a PreparedQueries,
    blocks: &'a [u8],
    first: usize,
}

impl Strips<'_> {
    /// Scores `HEADS` heads by `SETS` sets of tables, as many of each head.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,avx2,fma,f16c")]
    fn score<const HEADS: usize, const SETS: usize, const PAIRED: bool>(
        &self,
        head: usize,
        out: &mut StripScores<'_>,
    ) {
        let terms: [HeadTerms; HEADS] =
            std::array::from_fn(|i| HeadTerms::new(self.prepared, head + i));
        let per_head = SETS / HEADS;
        let tables: [&[u8]; SETS] = std::array::from_fn(|i| {
            entries(self.planes, self.prepared, head + i / per_head, i % per_head)
        });
        let blocks = self.blocks.chunks_exact(self.planes.block_bytes());
        for (strip, block) in (self.first..).zip(blocks) {
            let (codes, tails) = self.planes.split(block);
            let sums = sum::<SETS, PAIRED>(codes, tables);
            let tails = StripTails::read(self.planes.tail(), tails);
            for i in 0..HEADS {
                let mut sums_of_head = sums[i * per_head];
                if SETS == 2 * HEADS {
                    for (low, high) in sums_of_head.iter_mut().zip(sums[2 * i + 1]) {
                        *low = _mm512_add_epi32(*low, _mm512_slli_epi32::<8>(high));
                    }
                }
                let [first, second] = sums_of_head;
                let totals = Totals::of([
                    _mm512_castsi512_si256(first),
                    _mm512_extracti64x4_epi64::<1>(first),
                    _mm512_castsi512_si256(second),
                    _mm512_extracti64x4_epi64::<1>(second),
                ]);
                tails.finish(&terms[i], &totals, out.of(head + i, strip));
            }
        }
    }
}

/// The sums over planes of what each token's nibbles pick from each of `SETS` tables. With `PAIRED`, no
/// entry is above 127, and those of two planes are added as bytes first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn sum<const SETS: usize, const PAIRED: bool>(
    codes: &[u8],
    tables: [&[u8]; SETS],
) -> [[__m512i; 2]; SETS] {
    for table in tables {
        assert!(table.len() >= codes.len(), "a table for every plane");
    }
    let ones = _mm512_set1_epi8(1);
    let mut sums = [[_mm512_setzero_si512(); STRIP / TOKENS]; SETS];
    let mut at = 0;
    while PAIRED && at + 2 * BYTES <= codes.len() {
        // SAFETY: 128 bytes from `at` on lie in the codes, and so in every table.
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
        // SAFETY: 64 bytes from `at` on, or 32 where no more are left, lie in the codes, and so in every
        // table.
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
