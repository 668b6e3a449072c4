//! A plane at a time: one look-up for the lower nibbles of its bytes and one for the upper ones, or their
//! products with a word.

use std::arch::aarch64::*;

use super::{Parts, entries, parts, segments, words};
use crate::keys::{ENTRY_STEPS, PLANE_BYTES, Planes, Precision, PreparedQueries, STRIP};
use crate::simd::neon::load_bytes;
use crate::simd::tails::StripScores;
use crate::simd::tails::neon::{PerToken, StripTails, splat};

/// Heads that share one pass over the planes where each has one set of tables or words: what the registers
/// hold.
const HEADS: usize = 3;

/// Scores all strips for all heads.
#[target_feature(enable = "neon")]
pub(super) fn score(
    planes: &Planes,
    prepared: &PreparedQueries,
    blocks: &[u8],
    out: &mut StripScores<'_>,
) {
    let num_heads = prepared.num_heads();
    let together = num_heads - num_heads % HEADS;
    for (number, block) in blocks.chunks_exact(planes.block_bytes()).enumerate() {
        let parts = parts(planes, prepared, block);
        let tails = StripTails::read(planes.tail(), parts.tails);
        let strip = Strip { planes, prepared, number, parts, tails };
        for head in (0..together).step_by(HEADS) {
            strip.score::<HEADS>(head, out);
        }
        (together..num_heads).for_each(|head| strip.score::<1>(head, out));
    }
}

/// One strip and its number among all.
struct Strip<'a> {
    planes: &'a Planes,
    prepared: &'a PreparedQueries,
    number: usize,
    parts: Parts<'a>,
    tails: StripTails,
}

impl Strip<'_> {
    /// Scores the heads `head..head + N`.
    #[target_feature(enable = "neon")]
    fn score<const N: usize>(&self, head: usize, out: &mut StripScores<'_>) {
        let Parts { linear, tabled, .. } = self.parts;
        let table = |i, set| entries(self.planes, self.prepared, head + i, set);
        let mut totals = [splat(0.0); N];
        match self.prepared.precision() {
            Precision::Select => {
                let tables: [&[u8]; N] = std::array::from_fn(|i| table(i, 0));
                for (codes, at) in segments(tabled) {
                    for (totals, sums) in totals.iter_mut().zip(sums(codes, tables, at)) {
                        add::<1>(totals, sums, [vdupq_n_u16(0); 4]);
                    }
                }
            }
            Precision::Exact => {
                let words: [&[i16]; N] =
                    std::array::from_fn(|i| words(self.planes, self.prepared, head + i));
                for (totals, products) in totals.iter_mut().zip(products(linear, words)) {
                    *totals = products.map(|sums| vcvtq_f32_s32(sums));
                }
                for (i, totals) in totals.iter_mut().enumerate() {
                    for (codes, at) in segments(tabled) {
                        let [low, high] = sums(codes, [0, 1].map(|set| table(i, set)), at);
                        add::<{ ENTRY_STEPS as i32 }>(totals, low, high);
                    }
                }
            }
        }
        for (head, totals) in (head..).zip(totals) {
            self.tails.finish(self.prepared, head, totals, out.of(head, self.number));
        }
    }
}

/// The sums over planes of each token's nibbles times the words of `N` heads.
#[inline]
#[target_feature(enable = "neon")]
fn products<const N: usize>(codes: &[u8], words: [&[i16]; N]) -> [[int32x4_t; STRIP / 4]; N] {
    let mut sums = [[vdupq_n_s32(0); STRIP / 4]; N];
    for (plane, codes) in codes.as_chunks::<PLANE_BYTES>().0.iter().enumerate() {
        let codes = load_bytes(codes);
        let [low, high] =
            [vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8::<4>(codes)].map(|x| widened(x));
        for (sums, words) in sums.iter_mut().zip(words) {
            let (word, (sums, _)) = (words[plane], sums.as_chunks_mut::<2>());
            for (sums, codes) in sums.iter_mut().zip([low[0], low[1], high[0], high[1]]) {
                sums[0] = vmlal_n_s16(sums[0], vget_low_s16(codes), word);
                sums[1] = vmlal_high_n_s16(sums[1], codes, word);
            }
        }
    }
    // Eight neighbouring tokens lie in the bytes of even place, the next eight in those of odd place.
    sums.map(|[a, b, c, d, e, f, g, h]| {
        [
            vuzp1q_s32(a, b),
            vuzp1q_s32(c, d),
            vuzp2q_s32(a, b),
            vuzp2q_s32(c, d),
            vuzp1q_s32(e, f),
            vuzp1q_s32(g, h),
            vuzp2q_s32(e, f),
            vuzp2q_s32(g, h),
        ]
    })
}

/// Sixteen bytes as words.
#[inline]
#[target_feature(enable = "neon")]
fn widened(bytes: uint8x16_t) -> [int16x8_t; 2] {
    [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)].map(|x| vreinterpretq_s16_u16(x))
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

/// Adds `STEPS · (low + 256 · high)` to `totals`.
#[inline]
#[target_feature(enable = "neon")]
fn add<const STEPS: i32>(totals: &mut PerToken, low: [uint16x8_t; 4], high: [uint16x8_t; 4]) {
    for (totals, (low, high)) in totals.as_chunks_mut().0.iter_mut().zip(low.into_iter().zip(high))
    {
        let sums = [
            vaddw_u16(vshll_n_u16::<8>(vget_low_u16(high)), vget_low_u16(low)),
            vaddw_high_u16(vshll_high_n_u16::<8>(high), low),
        ];
        *totals = [0, 1].map(|i| vfmaq_n_f32(totals[i], vcvtq_f32_u32(sums[i]), STEPS as f32));
    }
}
