//! Strips of nibble planes against a group of queries: sums of table entries, one shuffle per plane, and of
//! products with words.
//!
//! The layout, the tables and the words are those of [`crate::keys::Planes`]. A strip is scored in three
//! steps:
//!
//! 1. per set of tables, the sum over planes of the entry that each of the 32 tokens' nibbles picks, in
//!    integers: where their lanes have 16 bits, they are emptied after [`SEGMENT`] planes; over the planes
//!    that have words instead, the sum of nibbles times words in 32 bits;
//! 2. sets of one head are joined (`low + 256 · high`), in steps of words added to the sum of the words' and
//!    become f32: exactly below 2^24, which only words can pass, else rounded once or twice;
//! 3. `scale · (step · sum + offset) + zero · Σ q + bias`.
//!
//! The integers are the same on every level; step 3 may round a product once or twice.

#![cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::Level;
use crate::keys::{
    ENTRY_STEPS, PLANE_BYTES, Planes, Precision, PreparedQueries, STRIP, Sets, place_of,
};
use crate::simd::tails::{StripScores, Tails};

/// Planes whose entries add up inside 16 bits, 257 at most for entries of one byte.
const SEGMENT: usize = 256;

/// Scores the first `num_tokens` of `blocks` into `out[head · stride + token]`.
pub(crate) fn score(
    planes: &Planes,
    level: Level,
    prepared: &PreparedQueries,
    blocks: &[u8],
    num_tokens: usize,
    out: &mut [f32],
    stride: usize,
) {
    let mut out = StripScores { num_tokens, stride, out };
    let blocks = &blocks[..num_tokens.div_ceil(STRIP) * planes.block_bytes()];
    #[cfg(target_arch = "x86_64")]
    if level.is_avx512() {
        // SAFETY: an AVX-512 level exists only where F, BW, VBMI and VNNI do, and AVX2, FMA and F16C.
        unsafe { avx512::score(planes, prepared, blocks, &mut out) };
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
        unsafe { avx2::score(planes, prepared, blocks, &mut out) };
        return;
    }
    #[cfg(target_arch = "aarch64")]
    if level.is_neon() {
        // SAFETY: a NEON level exists only where NEON does.
        unsafe { neon::score(planes, prepared, blocks, &mut out) };
        return;
    }
    let _ = level;
    for (strip, block) in blocks.chunks_exact(planes.block_bytes()).enumerate() {
        let Parts { linear, tabled, tails } = parts(planes, prepared, block);
        let tails = Tails::read(planes.tail(), tails);
        for head in 0..prepared.num_heads() {
            let products = sum_products(linear, words(planes, prepared, head));
            let mut totals = products.map(|sum| sum as f32);
            for (codes, at) in segments(tabled) {
                let sums = |set| {
                    let tables = entries(planes, prepared, head, set);
                    sum_scalar(codes, &tables[at..])
                };
                match prepared.precision() {
                    Precision::Select => add_sums(&mut totals, 1, &sums(0), &[0; STRIP]),
                    Precision::Exact => add_sums(&mut totals, ENTRY_STEPS, &sums(0), &sums(1)),
                }
            }
            let scores = tails.finish(prepared, head, &totals);
            let out = out.of(head, strip);
            out.copy_from_slice(&scores[..out.len()]);
        }
    }
}

/// Strips that all heads are scored against before the next ones, so that their codes stay in cache.
#[cfg(target_arch = "x86_64")]
const CACHED_STRIPS: usize = 16;

/// A few strips, whose number among all of them is `first` and more.
#[cfg(target_arch = "x86_64")]
struct Strips<'a> {
    planes: &'a Planes,
    prepared: &'a PreparedQueries,
    blocks: &'a [u8],
    first: usize,
}

#[cfg(target_arch = "x86_64")]
impl<'a> Strips<'a> {
    /// The strips of `blocks`, as many at a time as stay in cache.
    fn cached(
        planes: &'a Planes,
        prepared: &'a PreparedQueries,
        blocks: &'a [u8],
    ) -> impl Iterator<Item = Self> {
        let cached = blocks.chunks(CACHED_STRIPS * planes.block_bytes()).enumerate();
        cached.map(move |(i, blocks)| Self { planes, prepared, blocks, first: i * CACHED_STRIPS })
    }

    /// Each with its number.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        (self.first..).zip(self.blocks.chunks_exact(self.planes.block_bytes()))
    }
}

/// What a strip consists of.
struct Parts<'a> {
    /// The planes that are scored by words.
    linear: &'a [u8],
    /// The planes that are scored by tables.
    tabled: &'a [u8],
    tails: &'a [u8],
}

fn parts<'a>(planes: &Planes, prepared: &PreparedQueries, block: &'a [u8]) -> Parts<'a> {
    let (codes, tails) = planes.split(block);
    let num_words = planes.num_words(prepared.precision());
    let (linear, tabled) = codes.split_at(num_words * PLANE_BYTES);
    Parts { linear, tabled, tails }
}

/// The planes of a strip in segments, with where their tables begin.
#[inline(always)]
fn segments(codes: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    codes.chunks(SEGMENT * PLANE_BYTES).enumerate().map(|(i, codes)| (codes, i * SEGMENT * 16))
}

/// A set of tables of a head, `[planes that are scored by tables, 16]`.
fn entries<'a>(
    planes: &Planes,
    prepared: &'a PreparedQueries,
    head: usize,
    set: usize,
) -> &'a [u8] {
    let len = (planes.num_planes() - planes.num_words(prepared.precision())) * 16;
    let first = head * Sets::of(prepared.precision()).count + set;
    &prepared.entries()[first * len..][..len]
}

/// The words of a head, one for each plane that is scored by them.
fn words<'a>(planes: &Planes, prepared: &'a PreparedQueries, head: usize) -> &'a [i16] {
    let len = planes.num_words(prepared.precision());
    &prepared.words()[head * len..][..len]
}

/// The sum over planes of what the nibbles of each token pick.
fn sum_scalar(codes: &[u8], tables: &[u8]) -> [u16; STRIP] {
    std::array::from_fn(|slot| {
        let (place, shift) = place_of(slot);
        let planes = codes.chunks_exact(PLANE_BYTES).zip(tables.chunks_exact(16));
        planes.map(|(codes, table)| u16::from(table[usize::from(codes[place] >> shift & 15)])).sum()
    })
}

/// The sum over planes of the nibble of each token times a word.
fn sum_products(codes: &[u8], words: &[i16]) -> [i32; STRIP] {
    std::array::from_fn(|slot| {
        let (place, shift) = place_of(slot);
        let planes = codes.chunks_exact(PLANE_BYTES).zip(words);
        planes.map(|(codes, &word)| i32::from(codes[place] >> shift & 15) * i32::from(word)).sum()
    })
}

/// Adds `steps · (low + 256 · high)` to `totals`.
fn add_sums(totals: &mut [f32; STRIP], steps: u8, low: &[u16; STRIP], high: &[u16; STRIP]) {
    for ((total, &low), &high) in totals.iter_mut().zip(low).zip(high) {
        *total += (i32::from(steps) * (i32::from(low) + 256 * i32::from(high))) as f32;
    }
}
