//! Sixteen candidates at a time.

use std::arch::x86_64::*;

use half::f16;

use super::sorted::{BEGIN, Block, Lows, SortedPairs, Steps};
use super::{BLOCK, Coordinate};

/// Of columns of one length, a multiple of 16.
#[target_feature(enable = "avx512f")]
pub(super) fn nearest<const WIDTH: usize, C: Coordinate>(
    columns: [&[C]; WIDTH],
    point: [f32; WIDTH],
) -> (usize, f32) {
    let count = columns[0].len();
    assert!(columns.iter().all(|column| column.len() == count));
    let point = point.map(|x| _mm512_set1_ps(x));
    let mut least = _mm512_set1_ps(f32::INFINITY);
    let mut blocks = _mm512_setzero_si512();
    let (mut this, one) = (_mm512_setzero_si512(), _mm512_set1_epi32(1));
    for block in 0..count / BLOCK {
        // SAFETY: the block lies within the columns.
        let sum = unsafe { distances(&columns, &point, block) };
        let is_less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sum, least);
        least = _mm512_min_ps(sum, least);
        blocks = _mm512_mask_mov_epi32(blocks, is_less, this);
        this = _mm512_add_epi32(this, one);
    }
    let distance = _mm512_reduce_min_ps(least);
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let places = _mm512_add_epi32(_mm512_slli_epi32::<4>(blocks), lanes);
    let is_first = equal(least, distance) as u16;
    (_mm512_mask_reduce_min_epu32(is_first, places) as usize, distance)
}

/// As [`SortedPairs::nearest`].
#[target_feature(enable = "avx512f")]
pub(super) fn nearest_of_sorted(
    pairs: &SortedPairs,
    points: &[[f32; 2]],
    codes: &mut [u16],
) -> f32 {
    let steps = Steps {
        reached: |lows: &Lows, x| {
            // SAFETY: sixteen floats can be read there.
            let lows = unsafe { _mm512_loadu_ps(lows.0.as_ptr()) };
            _mm512_cmp_ps_mask::<_CMP_LE_OQ>(lows, _mm512_set1_ps(x)).trailing_ones() as usize
        },
        nearest: |block: &Block, point: [f32; 2]| {
            let distances = distances_of_pairs(block, point);
            let least = _mm512_reduce_min_ps(distances);
            (equal(distances, least).trailing_zeros() as usize, least)
        },
        nearest_of_begin: |[a, b, c]: &[Block; BEGIN], point: [f32; 2]| {
            let (a, b, c) = (
                distances_of_pairs(a, point),
                distances_of_pairs(b, point),
                distances_of_pairs(c, point),
            );
            let least = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(a, b), c));
            let places = u64::from(equal(a, least) | equal(b, least) << BLOCK)
                | u64::from(equal(c, least)) << (2 * BLOCK);
            (places.trailing_zeros() as usize, least)
        },
    };
    pairs.search(points, codes, steps)
}

/// Squared distances of the pairs of a block.
#[inline]
#[target_feature(enable = "avx512f")]
fn distances_of_pairs(block: &Block, point: [f32; 2]) -> __m512 {
    let [along, across] = &block.0;
    // SAFETY: sixteen coordinates can be read at each; the features are those of this function.
    let pairs = unsafe { (f16::load_16(along.as_ptr()), f16::load_16(across.as_ptr())) };
    let along = _mm512_sub_ps(_mm512_set1_ps(point[0]), pairs.0);
    let across = _mm512_sub_ps(_mm512_set1_ps(point[1]), pairs.1);
    _mm512_add_ps(_mm512_mul_ps(along, along), _mm512_mul_ps(across, across))
}

/// The lanes that hold the least of them.
#[inline]
#[target_feature(enable = "avx512f")]
fn equal(distances: __m512, least: f32) -> u32 {
    _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(distances, _mm512_set1_ps(least)).into()
}

/// Squared distances of the candidates of a block.
///
/// # Safety
/// - the block lies within every column.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn distances<const WIDTH: usize, C: Coordinate>(
    columns: &[&[C]; WIDTH],
    point: &[__m512; WIDTH],
    block: usize,
) -> __m512 {
    let square = |e: usize| {
        // SAFETY: the caller's; the features are those of this function.
        let candidates = unsafe { C::load_16(columns[e].as_ptr().add(block * BLOCK)) };
        let apart = _mm512_sub_ps(point[e], candidates);
        _mm512_mul_ps(apart, apart)
    };
    let mut sum = square(0);
    for e in 1..WIDTH {
        sum = _mm512_add_ps(sum, square(e));
    }
    sum
}
