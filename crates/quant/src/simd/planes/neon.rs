//! A plane at a time: one look-up for the lower nibbles of its bytes and one for the upper ones.

use std::arch::aarch64::*;

use super::{entries, segments};
use crate::keys::{PLANE_BYTES, Planes, Precision, PreparedQueries};
use crate::simd::neon::load_bytes;
use crate::simd::tails::StripScores;
use crate::simd::tails::neon::{PerToken, StripTails, splat};

/// Heads that share one pass over the planes where each has one set of tables: what the registers hold.
const SELECT_HEADS: usize = 3;

/// Scores all strips for all heads.
#[target_feature(enable = "neon")]
pub(super) fn score(
    planes: &Planes,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    let num_heads = prepared.num_heads();
    for (number, block) in blocks.chunks_exact(planes.block_bytes()).enumerate() {
        let (codes, tails) = planes.split(block);
        let tails = StripTails::read(planes.tail(), tails);
        let strip = Strip { planes, prepared, number, codes, tails };
        match prepared.precision() {
            Precision::Exact => (0..num_heads).for_each(|head| strip.exact(head, out)),
            Precision::Select => {
                let together = num_heads - num_heads % SELECT_HEADS;
                for head in (0..together).step_by(SELECT_HEADS) {
                    strip.select::<SELECT_HEADS>(head, out);
                }
                (together..num_heads).for_each(|head| strip.select::<1>(head, out));
            }
        }
    }
}

/// One strip and its number among all.
struct Strip<'a> {
    planes: &'a Planes,
    prepared: &'a PreparedQueries,
    number: usize,
    codes: &'a [u8],
    tails: StripTails,
}

impl Strip<'_> {
    /// Scores one head by tables of two bytes.
    #[target_feature(enable = "neon")]
    fn exact(&self, head: usize, out: &mut StripScores<'_>) {
        let tables = [0, 1].map(|set| entries(self.planes, self.prepared, head, set));
        let mut totals = splat(0.0);
        for (codes, at) in segments(self.codes) {
            let [low, high] = sums(codes, tables, at);
            add(&mut totals, low, high);
        }
        self.tails.finish(self.prepared, head, totals, out.of(head, self.number));
    }

    /// Scores `HEADS` heads by tables of one byte.
    #[target_feature(enable = "neon")]
    fn select<const HEADS: usize>(&self, head: usize, out: &mut StripScores<'_>) {
        let tables: [&[u8]; HEADS] =
            std::array::from_fn(|i| entries(self.planes, self.prepared, head + i, 0));
        let mut totals = [splat(0.0); HEADS];
        for (codes, at) in segments(self.codes) {
            for (totals, sums) in totals.iter_mut().zip(sums(codes, tables, at)) {
                add(totals, sums, [vdupq_n_u16(0); 4]);
            }
        }
        for (head, totals) in (head..).zip(totals) {
            self.tails.finish(self.prepared, head, totals, out.of(head, self.number));
        }
    }
}

/// The sums over planes of what each token's nibbles pick from each of `SETS` tables, which begin at
/// `first_entry`; eight neighbouring tokens in a vector.
#[inline]
#[target_feature(enable = "neon")]
fn sums<const SETS: usize>(
    codes: &[u8],
    tables: [&[u8]; SETS],
    first_entry: usize,
) -> [[uint16x8_t; 4]; SETS] {
    let tables = tables.map(|table| table[first_entry..][..codes.len()].as_chunks().0);
    let mut sums = [[vdupq_n_u16(0); 4]; SETS];
    for (plane, codes) in codes.as_chunks::<PLANE_BYTES>().0.iter().enumerate() {
        let codes = load_bytes(codes);
        let (low, high) = (vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes));
        for (sums, table) in sums.iter_mut().zip(tables) {
            let table = load_bytes(&table[plane]);
            let (low, high) = (vqtbl1q_u8(table, low), vqtbl1q_u8(table, high));
            sums[0] = vaddw_u8(sums[0], vget_low_u8(low));
            sums[1] = vaddw_high_u8(sums[1], low);
            sums[2] = vaddw_u8(sums[2], vget_low_u8(high));
            sums[3] = vaddw_high_u8(sums[3], high);
        }
    }
    // Eight neighbouring tokens lie in the bytes of even place, the next eight in those of odd place.
    sums.map(|[a, b, c, d]| {
        [vuzp1q_u16(a, b), vuzp2q_u16(a, b), vuzp1q_u16(c, d), vuzp2q_u16(c, d)]
    })
}

/// Adds `low + 256 · high`, which f32 holds exactly, to `totals`.
#[inline]
#[target_feature(enable = "neon")]
fn add(totals: &mut PerToken, low: [uint16x8_t; 4], high: [uint16x8_t; 4]) {
    for (totals, (low, high)) in totals.as_chunks_mut().0.iter_mut().zip(low.into_iter().zip(high))
    {
        let sums = [
            vaddw_u16(vshll_n_u16::<8>(vget_low_u16(high)), vget_low_u16(low)),
            vaddw_high_u16(vshll_high_n_u16::<8>(high), low),
        ];
        *totals = [0, 1].map(|i| vaddq_f32(totals[i], vcvtq_f32_u32(sums[i])));
    }
}
