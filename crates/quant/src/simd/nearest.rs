//! The nearest of many short vectors: what product quantization encodes and is fitted by.
//!
//! Candidates are read from end to end, or, in the plane and in order along one axis, as far around the point as
//! they can be as near. An index makes for fewer candidates but for more to read, and the codebooks of a whole
//! model do not fit a near cache as it is.
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
#[cfg(test)]
mod tests;

use std::ops::Range;

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
        2 => of_width::<2, C>(level, columns, point),
        4 => of_width::<4, C>(level, columns, point),
        8 => of_width::<8, C>(level, columns, point),
        width => panic!("vectors of {width} coordinates"),
    }
}

/// Groups of as many candidates each, those of each in rising order along an axis of its own: few of them have to be
/// tried.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    axes: Vec<u8>,
    /// Where along its axis each block of [`BLOCK`] candidates begins `[num_groups, num_blocks]`, two blocks at
    /// least.
    lows: Vec<f32>,
    num_blocks: usize,
}

/// That of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'a> {
    axis: usize,
    lows: &'a [f32],
}

/// Candidates that an [`Order`] counts by.
pub(crate) const BLOCK: usize = 2 * LANES;

impl Orders {
    /// Those of `columns [num_groups, width, count]`; `None` where a group has none, or there are too few candidates
    /// or a number of them that is not whole blocks.
    pub(crate) fn of<C: Coordinate>(columns: &[C], width: usize, count: usize) -> Option<Self> {
        if count < 2 * BLOCK || !count.is_multiple_of(BLOCK) {
            return None;
        }
        let (mut axes, mut lows) = (Vec::new(), Vec::new());
        for group in columns.chunks_exact(width * count) {
            let is_sorted = |column: &[C]| column.is_sorted_by(|a, b| a.to_f32() <= b.to_f32());
            let axis = group.chunks_exact(count).position(is_sorted)?;
            axes.push(axis as u8);
            lows.extend(group[axis * count..][..count].iter().step_by(BLOCK).map(|x| x.to_f32()));
        }
        Some(Self { axes, lows, num_blocks: count / BLOCK })
    }

    /// That of every group.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Order<'_>> {
        let lows = self.lows.chunks_exact(self.num_blocks);
        self.axes.iter().zip(lows).map(|(&axis, lows)| Order { axis: axis.into(), lows })
    }
}

/// As [`nearest`], of candidates in the plane that are in order: those of the two blocks from `first` on, which are
/// [around the point](Order::around), and those of others only where they can be as near. A distance is never rounded
/// below the square of its part along the axis, so that this finds the same.
pub(crate) fn nearest_in_order<C: Coordinate>(
    level: Level,
    columns: &[C],
    order: Order<'_>,
    first: usize,
    point: [f32; 2],
) -> (usize, f32) {
    let (first_column, second_column) = columns.split_at(columns.len() / 2);
    let columns = [first_column, second_column];
    assert!(columns.iter().all(|column| column.len() == order.lows.len() * BLOCK));
    let two = columns.map(|column| &column[first * BLOCK..][..2 * BLOCK]);
    #[cfg(target_arch = "x86_64")]
    let (place, distance) = if level.is_avx512() {
        // SAFETY: an AVX-512 level exists only where AVX-512F does.
        unsafe { avx512::nearest_of_two(two, point) }
    } else {
        nearest_of(level, two, point)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (place, distance) = nearest_of(level, two, point);
    beyond(level, columns, order, point, first, (first * BLOCK + place, distance))
}

impl Order<'_> {
    /// The first of the two blocks around a point: of that in which it lies along the axis, and of the neighbour that
    /// is nearer.
    #[inline]
    pub(crate) fn around(&self, point: [f32; 2]) -> usize {
        // Without branches that depend on the place, which cannot be foretold.
        let x = point[self.axis];
        let reached: u32 = self.lows.iter().map(|&low| u32::from(low <= x)).sum();
        let last = self.lows.len() - 1;
        let here = (reached as usize).saturating_sub(1);
        let above = if here < last { self.lows[(here + 1).min(last)] } else { f32::INFINITY };
        let is_below_nearer = x - self.lows[here] <= above - x;
        here - usize::from(is_below_nearer & (here > 0))
    }
}

/// The nearest of some blocks.
fn tried<C: Coordinate>(
    level: Level,
    columns: [&[C]; 2],
    point: [f32; 2],
    blocks: Range<usize>,
) -> (usize, f32) {
    let span = blocks.start * BLOCK..blocks.end * BLOCK;
    let columns = columns.map(|column| &column[span.clone()]);
    let (place, distance) = nearest_of(level, columns, point);
    (span.start + place, distance)
}

/// Goes on from the nearest of the two blocks from `first` on, to either side, as far as something can be as near.
#[inline(always)]
fn beyond<C: Coordinate>(
    level: Level,
    columns: [&[C]; 2],
    order: Order<'_>,
    point: [f32; 2],
    first: usize,
    mut best: (usize, f32),
) -> (usize, f32) {
    let Order { axis, lows } = order;
    let square_to = |low: f32| (low - point[axis]) * (low - point[axis]);
    let (mut from, mut to) = (first, first + 2);
    while to < lows.len() && square_to(lows[to]) < best.1 {
        best = nearer(best, tried(level, columns, point, to..to + 1));
        to += 1;
    }
    while from > 0 && square_to(lows[from]) <= best.1 {
        from -= 1;
        best = nearer(best, tried(level, columns, point, from..from + 1));
    }
    best
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
    assert!(count > 0 && count.is_multiple_of(LANES) && columns.len() == WIDTH * count);
    let point: [f32; WIDTH] = std::array::from_fn(|e| point[e]);
    let columns: [&[C]; WIDTH] = std::array::from_fn(|e| &columns[e * count..][..count]);
    nearest_of(level, columns, point)
}

/// Of columns of one length, a multiple of [`LANES`].
fn nearest_of<const WIDTH: usize, C: Coordinate>(
    level: Level,
    columns: [&[C]; WIDTH],
    point: [f32; WIDTH],
) -> (usize, f32) {
    let count = columns[0].len();
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
