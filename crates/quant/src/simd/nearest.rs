//! The nearest of many short vectors, by trying all of them: what product quantization encodes and is fitted by.
//!
//! Every candidate is read once, from end to end, which memory serves faster than the few scattered reads of an index
//! (measured: a grid of cells tried a thirtieth of the candidates and took three times as long from memory).
//! Distances are sums of squares in f32 in one order on every level, so that all levels find the same.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use half::f16;

use crate::Level;

/// Candidates that are tried side by side.
pub(crate) const LANES: usize = 8;

/// A coordinate as candidates are stored.
pub(crate) trait Coordinate: Copy {
    /// As a number.
    fn to_f32(self) -> f32;

    /// Eight from `first` on.
    ///
    /// # Safety
    /// - AVX2 and F16C are available.
    /// - eight coordinates can be read there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(first: *const Self) -> std::arch::x86_64::__m256;

    /// Sixteen from `first` on.
    ///
    /// # Safety
    /// - AVX-512F is available.
    /// - sixteen coordinates can be read there.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_16(first: *const Self) -> std::arch::x86_64::__m512;
}

/// The candidate nearest to `point [width]`, the first of equals, and its squared distance. `columns [width, count]`
/// holds the candidates coordinate by coordinate, `count` a multiple of [`LANES`] that is not 0.
///
/// # Panics
/// When the columns are not of such lengths, or the width is not 2, 4 or 8.
pub(crate) fn nearest<C: Coordinate>(level: Level, columns: &[C], point: &[f32]) -> (usize, f32) {
    match point.len() {
        2 => nearest_of::<2, C>(level, columns, point),
        4 => nearest_of::<4, C>(level, columns, point),
        8 => nearest_of::<8, C>(level, columns, point),
        width => panic!("vectors of {width} coordinates"),
    }
}

fn nearest_of<const WIDTH: usize, C: Coordinate>(
    level: Level,
    columns: &[C],
    point: &[f32],
) -> (usize, f32) {
    let count = columns.len() / WIDTH;
    assert!(count > 0 && count.is_multiple_of(LANES) && columns.len() == WIDTH * count);
    let point: [f32; WIDTH] = std::array::from_fn(|e| point[e]);
    let columns: [&[C]; WIDTH] = std::array::from_fn(|e| &columns[e * count..][..count]);
    #[cfg(target_arch = "x86_64")]
    if level.is_avx512() && count.is_multiple_of(2 * LANES) {
        // SAFETY: an AVX-512 level exists only where AVX-512F does.
        return unsafe { avx512::nearest(columns, point) };
    }
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2 and F16C do.
        return unsafe { avx2::nearest(columns, point) };
    }
    let _ = level;
    let mut least = [f32::INFINITY; LANES];
    let mut blocks = [0u32; LANES];
    for block in 0..count / LANES {
        for lane in 0..LANES {
            let mut distance = 0.0;
            for (column, x) in columns.iter().zip(point) {
                let apart = x - column[block * LANES + lane].to_f32();
                distance += apart * apart;
            }
            if distance < least[lane] {
                (least[lane], blocks[lane]) = (distance, block as u32);
            }
        }
    }
    first_of(least, blocks)
}

/// The least of the lanes, the first candidate of equals.
fn first_of(least: [f32; LANES], blocks: [u32; LANES]) -> (usize, f32) {
    // A float that is not negative is ordered as its bits are; behind them comes the candidate.
    let first = (0..LANES)
        .map(|lane| {
            let candidate = blocks[lane] * LANES as u32 + lane as u32;
            u64::from(least[lane].to_bits()) << 32 | u64::from(candidate)
        })
        .fold(u64::MAX, u64::min);
    ((first & 0xFFFF_FFFF) as usize, f32::from_bits((first >> 32) as u32))
}

impl Coordinate for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(first: *const Self) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(first) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_16(first: *const Self) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller's.
        unsafe { std::arch::x86_64::_mm512_loadu_ps(first) }
    }
}

impl Coordinate for f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(first: *const Self) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's; a half takes two bytes.
        let halves = unsafe { std::arch::x86_64::_mm_loadu_si128(first.cast()) };
        std::arch::x86_64::_mm256_cvtph_ps(halves)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_16(first: *const Self) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller's; a half takes two bytes.
        let halves = unsafe { std::arch::x86_64::_mm256_loadu_si256(first.cast()) };
        std::arch::x86_64::_mm512_cvtph_ps(halves)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Coordinate, LANES, first_of};

    /// Candidates per turn of the loop: two chains of minima.
    const CHAINS: usize = 2;

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
        let mut block = 0;
        while (block + CHAINS) * LANES <= count {
            for chain in 0..CHAINS {
                // SAFETY: the block lies within the columns.
                let distance = unsafe { distances(&columns, &point, block + chain) };
                (least[chain], blocks[chain]) =
                    nearer(least[chain], blocks[chain], distance, block + chain);
            }
            block += CHAINS;
        }
        if block * LANES < count {
            // SAFETY: the block lies within the columns.
            let distance = unsafe { distances(&columns, &point, block) };
            (least[0], blocks[0]) = nearer(least[0], blocks[0], distance, block);
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
        if b.1 < a.1 || (b.1 == a.1 && b.0 < a.0) { b } else { a }
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
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
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
}

#[cfg(test)]
mod tests;
