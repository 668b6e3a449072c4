//! Strips of nibble planes against a group of queries: sums of table entries, one shuffle per plane.
//!
//! The layout and the tables are those of [`crate::keys::Planes`]. A strip is scored in three steps:
//!
//! 1. per set of tables, the sum over planes of the entry that each of the 32 tokens' nibbles picks, in
//!    16-bit lanes: exact, since at most [`SEGMENT`] planes are summed before the lanes are emptied;
//! 2. sets of one head are joined (`low + 256 · high`) and become f32, still exact;
//! 3. `scale · (step · sum + offset) + zero · Σ q + bias`.
//!
//! The integers are the same on every level and step 3 is the same code, so every level has the same
//! bits.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::Level;
use crate::keys::{PLANE_BYTES, Planes, PreparedQueries, STRIP, Sets};
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
    let blocks = blocks.chunks_exact(planes.block_bytes());
    let strips = blocks.zip((0..num_tokens).step_by(STRIP));
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for (block, first) in strips {
            let out = StripScores { first, num_tokens, stride, out: &mut *out };
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
            unsafe { avx2::score_strip(planes, prepared, block, out) };
        }
        return;
    }
    let _ = level;
    for (block, first) in strips {
        let mut out = StripScores { first, num_tokens, stride, out: &mut *out };
        let (codes, tails) = planes.split(block);
        let tails = Tails::read(planes.tail(), tails);
        for head in 0..prepared.num_heads() {
            let mut totals = [0.0; STRIP];
            for (i, codes) in codes.chunks(SEGMENT * PLANE_BYTES).enumerate() {
                let sums = |set| {
                    let tables = entries(planes, prepared, head, set);
                    sum_scalar(codes, &tables[i * SEGMENT * 16..])
                };
                match Sets::of(prepared.precision()).count {
                    1 => add_sums(&mut totals, &sums(0), &[0; STRIP]),
                    _ => add_sums(&mut totals, &sums(0), &sums(1)),
                }
            }
            out.write(head, &tails.finish(prepared, head, &totals));
        }
    }
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
    let mut sums = [0; STRIP];
    let (codes, tables) = (codes.as_chunks::<PLANE_BYTES>().0, tables.as_chunks::<16>().0);
    for (codes, table) in codes.iter().zip(tables) {
        let (low, high) = sums.split_at_mut(PLANE_BYTES);
        for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
            *low += u16::from(table[usize::from(code & 15)]);
            *high += u16::from(table[usize::from(code >> 4)]);
        }
    }
    sums
}

/// Adds `low + 256 · high`, which f32 holds exactly, to `totals`.
#[inline(always)]
fn add_sums(totals: &mut [f32; STRIP], low: &[u16; STRIP], high: &[u16; STRIP]) {
    for ((total, &low), &high) in totals.iter_mut().zip(low).zip(high) {
        *total += (i32::from(low) + 256 * i32::from(high)) as f32;
    }
}
