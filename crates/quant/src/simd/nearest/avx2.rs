//! Eight candidates at a time, in two chains of minima.

use std::arch::x86_64::*;

use super::sorted::{BEGIN, Block, Lows, SortedPairs, Steps, of_each};
use super::{BLOCK, Coordinate, LANES, first_of};

/// Vectors of candidates per turn of the loop: two chains of minima.
const CHAINS: usize = BLOCK / LANES;

#[target_feature(enable = "avx2,f16c")]
pub(super) fn nearest<const WIDTH: usize, C: Coordinate>(
    columns: [&[C]; WIDTH],
    point: [f32; WIDTH],
) -> (usize, f32) {
    let count = columns[0].len();
    assert!(columns.iter().all(|column| column.len() == count));
    let point = point.map(|x| _mm256_set1_ps(x));
    let mut least = [_mm256_set1_ps(f32::INFINITY); CHAINS];
    let mut blocks = [_mm256_setzero_si256(); CHAINS];
    for block in (0..count / LANES).step_by(CHAINS) {
        for chain in 0..CHAINS {
            // SAFETY: the block lies within the columns.
            let distance = unsafe { distances(&columns, &point, block + chain) };
            (least[chain], blocks[chain]) =
                nearer(least[chain], blocks[chain], distance, block + chain);
        }
    }
    let ends: [(usize, f32); CHAINS] = std::array::from_fn(|chain| {
        let (mut distances, mut places) = ([0.0; LANES], [0; LANES]);
        // SAFETY: the arrays have the 32 bytes of these unaligned stores.
        unsafe {
            _mm256_storeu_ps(distances.as_mut_ptr(), least[chain]);
            _mm256_storeu_si256(places.as_mut_ptr().cast(), blocks[chain]);
        }
        first_of(distances, places)
    });
    let [a, b] = ends;
    super::nearer(a, b)
}

/// As [`SortedPairs::nearest`].
#[target_feature(enable = "avx2,f16c")]
pub(super) fn nearest_of_sorted(
    pairs: &SortedPairs,
    points: &[[f32; 2]],
    codes: &mut [u16],
) -> f32 {
    let nearest = |block: &Block, point: [f32; 2]| {
        nearest(block.0.each_ref().map(|column| column.as_slice()), point)
    };
    let steps = Steps {
        reached: |lows: &Lows, x| {
            lows.0.iter().map(|&low| u32::from(low <= x)).sum::<u32>() as usize
        },
        nearest,
        nearest_of_begin: |blocks: &[Block; BEGIN], point| of_each(blocks, point, nearest),
    };
    pairs.search(points, codes, steps)
}

/// Squared distances of the candidates of a block.
///
/// # Safety
/// - the block lies within every column.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn distances<const WIDTH: usize, C: Coordinate>(
    columns: &[&[C]; WIDTH],
    point: &[__m256; WIDTH],
    block: usize,
) -> __m256 {
    let mut sum = _mm256_setzero_ps();
    for (column, &x) in columns.iter().zip(point) {
        // SAFETY: the caller's; the features are those of this function.
        let candidates = unsafe { C::load(column.as_ptr().add(block * LANES)) };
        let apart = _mm256_sub_ps(x, candidates);
        sum = _mm256_add_ps(sum, _mm256_mul_ps(apart, apart));
    }
    sum
}

/// The lesser distances, and the blocks that they are from.
#[inline]
#[target_feature(enable = "avx2")]
fn nearer(least: __m256, blocks: __m256i, distance: __m256, block: usize) -> (__m256, __m256i) {
    let is_less = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(distance, least));
    let block = _mm256_set1_epi32(block as i32);
    (_mm256_min_ps(distance, least), _mm256_blendv_epi8(blocks, block, is_less))
}
