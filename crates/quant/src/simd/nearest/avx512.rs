//! Sixteen candidates at a time.

use std::arch::x86_64::*;

use super::Coordinate;

/// Candidates of a vector.
const WIDE: usize = 16;

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
    for block in 0..count / WIDE {
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

/// Of columns of 32 candidates.
#[target_feature(enable = "avx512f")]
pub(super) fn nearest_of_two<C: Coordinate>(columns: [&[C]; 2], point: [f32; 2]) -> (usize, f32) {
    assert!(columns[0].len() == 2 * WIDE && columns[1].len() == 2 * WIDE);
    let point = [_mm512_set1_ps(point[0]), _mm512_set1_ps(point[1])];
    // SAFETY: both blocks lie within the columns.
    let (a, b) = unsafe { (distances(&columns, &point, 0), distances(&columns, &point, 1)) };
    let distance = _mm512_reduce_min_ps(_mm512_min_ps(a, b));
    let places = equal(a, distance) | equal(b, distance) << WIDE;
    (places.trailing_zeros() as usize, distance)
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
        let candidates = unsafe { C::load_16(columns[e].as_ptr().add(block * WIDE)) };
        let apart = _mm512_sub_ps(point[e], candidates);
        _mm512_mul_ps(apart, apart)
    };
    let mut sum = square(0);
    for e in 1..WIDTH {
        sum = _mm512_add_ps(sum, square(e));
    }
    sum
}
