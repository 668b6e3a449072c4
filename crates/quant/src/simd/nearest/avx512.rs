//! Sixteen candidates at a time.

use std::arch::x86_64::*;

use super::Coordinate;

/// Candidates of a vector.
const WIDE: usize = 16;

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
        // SAFETY: sixteen coordinates of the block lie in every column.
        let square = |e: usize| unsafe {
            let candidates = C::load_16(columns[e].as_ptr().add(block * WIDE));
            let apart = _mm512_sub_ps(point[e], candidates);
            _mm512_mul_ps(apart, apart)
        };
        let mut sum = square(0);
        for e in 1..WIDTH {
            sum = _mm512_add_ps(sum, square(e));
        }
        let is_less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sum, least);
        least = _mm512_min_ps(sum, least);
        blocks = _mm512_mask_mov_epi32(blocks, is_less, this);
        this = _mm512_add_epi32(this, one);
    }
    let distance = _mm512_reduce_min_ps(least);
    let is_first = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(least, _mm512_set1_ps(distance));
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let places = _mm512_add_epi32(_mm512_slli_epi32::<4>(blocks), lanes);
    (_mm512_mask_reduce_min_epu32(is_first, places) as usize, distance)
}
