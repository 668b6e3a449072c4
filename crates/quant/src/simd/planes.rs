//! Strips of nibble planes against a group of queries: sums of table entries, one shuffle per plane.
//!
//! The layout and the tables are those of [`crate::keys::Planes`]. A strip is scored in three steps:
//!
//! 1. per set of tables, the sum over planes of the entry that each of the 32 tokens' nibbles picks, in
//!    16-bit lanes: exact, since at most [`SEGMENT`] planes are summed before the lanes are emptied;
//! 2. sets of one head are joined (`low + 256 · high`) and become f32, still exact;
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
use crate::keys::{PLANE_BYTES, Planes, Precision, PreparedQueries, STRIP, Sets, place_of};
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
        let (codes, tails) = planes.split(block);
        let tails = Tails::read(planes.tail(), tails);
        for head in 0..prepared.num_heads() {
            let mut totals = [0.0; STRIP];
            for (codes, at) in segments(codes) {
                let sums = |set| {
                    let tables = entries(planes, prepared, head, set);
                    sum_scalar(codes, &tables[at..])
                };
                match prepared.precision() {
                    Precision::Select => add_sums(&mut totals, &sums(0), &[0; STRIP]),
                    Precision::Exact => add_sums(&mut totals, &sums(0), &sums(1)),
                }
            }
            let scores = tails.finish(prepared, head, &totals);
            let out = out.of(head, strip);
            out.copy_from_slice(&scores[..out.len()]);
        }
    }
}

/// The planes of a strip in segments, with where their tables begin.
#[inline(always)]
fn segments(codes: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    codes.chunks(SEGMENT * PLANE_BYTES).enumerate().map(|(i, codes)| (codes, i * SEGMENT * 16))
}

/// A set of tables of a head, `[num_planes, 16]`.
fn entries<'a>(
    planes: &Planes,
    prepared: &'a PreparedQueries,
    head: usize,
    set: usize,
) -> &'a [u8] {
    let len = planes.num_planes() * 16;
    let first = head * Sets::of(prepared.precision()).count + set;
    &prepared.entries()[first * len..][..len]
}

/// The sum over planes of what the nibbles of each token pick.
fn sum_scalar(codes: &[u8], tables: &[u8]) -> [u16; STRIP] {
    std::array::from_fn(|slot| {
        let (place, shift) = place_of(slot);
        let planes = codes.chunks_exact(PLANE_BYTES).zip(tables.chunks_exact(16));
        planes.map(|(codes, table)| u16::from(table[usize::from(codes[place] >> shift & 15)])).sum()
    })
}

/// Adds `low + 256 · high`, which f32 holds exactly, to `totals`.
fn add_sums(totals: &mut [f32; STRIP], low: &[u16; STRIP], high: &[u16; STRIP]) {
    for ((total, &low), &high) in totals.iter_mut().zip(low).zip(high) {
        *total += (i32::from(low) + 256 * i32::from(high)) as f32;
    }
}
