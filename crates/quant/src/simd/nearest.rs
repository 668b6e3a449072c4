//! The nearest of many short vectors: what product quantization encodes and is fitted by.
//!
//! Candidates are read from end to end, or, where they are pairs that are [sorted](sorted) along one axis, as far
//! around the point as they can be as near. An index makes for fewer candidates but for more to read, and the
//! codebooks of a whole model do not fit a near cache as it is.
//!
//! Distances are sums of squares in f32 in one order on every level, so that all levels find the same.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod sorted;
#[cfg(test)]
mod tests;

use half::f16;

pub(crate) use sorted::SortedPairs;

use crate::Level;

/// Candidates come in multiples of so many.
const BLOCK: usize = 16;

/// Candidates that are tried side by side.
const LANES: usize = 8;

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
/// holds the candidates coordinate by coordinate, `count` a multiple of [`BLOCK`] that is not 0.
///
/// # Panics
/// When the columns are not of such lengths, or the width is not 2, 4 or 8.
pub(crate) fn nearest<C: Coordinate>(level: Level, columns: &[C], point: &[f32]) -> (usize, f32) {
    match point.len() {
        2 => of_width::<2, C>(level, columns, point),
        4 => of_width::<4, C>(level, columns, point),
        8 => of_width::<8, C>(level, columns, point),
        width => panic!("vectors of {width} coordinates"),
    }
}

/// The nearer of two, the first candidate of equals.
fn nearer(a: (usize, f32), b: (usize, f32)) -> (usize, f32) {
    if b.1 < a.1 || (b.1 == a.1 && b.0 < a.0) { b } else { a }
}

/// [`nearest`] of `WIDTH` coordinates.
fn of_width<const WIDTH: usize, C: Coordinate>(
    level: Level,
    columns: &[C],
    point: &[f32],
) -> (usize, f32) {
    let count = columns.len() / WIDTH;
    assert!(count > 0 && count.is_multiple_of(BLOCK) && columns.len() == WIDTH * count);
    let point: [f32; WIDTH] = std::array::from_fn(|e| point[e]);
    let columns: [&[C]; WIDTH] = std::array::from_fn(|e| &columns[e * count..][..count]);
    nearest_of(level, columns, point)
}

/// Of columns of one length, a multiple of [`BLOCK`].
fn nearest_of<const WIDTH: usize, C: Coordinate>(
    level: Level,
    columns: [&[C]; WIDTH],
    point: [f32; WIDTH],
) -> (usize, f32) {
    #[cfg(target_arch = "x86_64")]
    if level.is_avx512() {
        // SAFETY: an AVX-512 level exists only where AVX-512F does.
        return unsafe { avx512::nearest(columns, point) };
    }
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2 and F16C do.
        return unsafe { avx2::nearest(columns, point) };
    }
    let _ = level;
    nearest_of_scalar(columns, point)
}

/// [`nearest_of`] on [`Level::SCALAR`].
fn nearest_of_scalar<const WIDTH: usize, C: Coordinate>(
    columns: [&[C]; WIDTH],
    point: [f32; WIDTH],
) -> (usize, f32) {
    let mut least = [f32::INFINITY; LANES];
    let mut blocks = [0u32; LANES];
    for block in 0..columns[0].len() / LANES {
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
