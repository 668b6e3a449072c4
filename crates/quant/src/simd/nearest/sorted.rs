//! The nearest of many pairs that are sorted along one axis: few of them have to be tried.
//!
//! Pairs lie in blocks of sixteen, a cache line of halves. Those of the block in which a point lies along the axis and
//! of its neighbours are tried without a branch that depends on the point, then others, only where they can be as
//! near. A distance is never rounded below the square of its part along the axis, so that this finds what trying all
//! does.

use half::f16;

use super::{BLOCK, nearer};
use crate::Level;
use crate::simd::prefetch::prefetch;

/// Blocks that are tried at once: after so many, few searches go on, which costs a branch that was not foretold.
pub(super) const BEGIN: usize = 3;

/// The coordinates of a block along the axis, which rise, and across it.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Block(pub(super) [[f16; BLOCK]; 2]);

const _: () = assert!(size_of::<Block>() == 64);

/// Where along the axis sixteen blocks begin; infinity behind the last one.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Lows(pub(super) [f32; 16]);

/// Groups of as many pairs each, those of each sorted along an axis of its own.
#[derive(Clone, Debug)]
pub(crate) struct SortedPairs {
    /// The axis of each group: 0 or 1.
    axes: Vec<u8>,
    /// `[num_groups, ⌈num_blocks / 16⌉]`
    lows: Vec<Lows>,
    /// `[num_groups, num_blocks]`
    blocks: Vec<Block>,
    /// [`BEGIN`] at least.
    num_blocks: usize,
}

/// What a level does its own way.
pub(super) struct Steps<R, N, B> {
    /// How many of some blocks begin at a place along the axis or before it.
    pub(super) reached: R,
    /// The place in a block of the pair nearest to a point, the first of equals, and its squared distance.
    pub(super) nearest: N,
    /// The same of some blocks, one behind the other.
    pub(super) nearest_of_begin: B,
}

impl SortedPairs {
    /// Those of `values [num_groups, count, 2]`; `None` where a group is not sorted along an axis, or there are too few
    /// pairs or a number of them that is not whole blocks.
    pub(crate) fn of(values: &[f16], count: usize) -> Option<Self> {
        if count < BEGIN * BLOCK || !count.is_multiple_of(BLOCK) {
            return None;
        }
        let num_blocks = count / BLOCK;
        let (mut axes, mut lows, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for group in values.as_chunks::<2>().0.chunks_exact(count) {
            let axis =
                [0, 1].into_iter().find(|&axis| group.is_sorted_by_key(|pair| pair[axis]))?;
            axes.push(axis as u8);
            let first = blocks.len();
            blocks.extend(group.as_chunks::<BLOCK>().0.iter().map(|pairs| {
                Block([axis, 1 - axis].map(|axis| std::array::from_fn(|i| pairs[i][axis])))
            }));
            lows.extend(blocks[first..].chunks(16).map(|blocks| {
                let low = |block: &Block| block.0[0][0].to_f32();
                Lows(std::array::from_fn(|i| blocks.get(i).map_or(f32::INFINITY, low)))
            }));
        }
        Some(Self { axes, lows, blocks, num_blocks })
    }

    /// Writes for every group the number of the pair nearest to its `point`, which is finite, to `codes [num_groups]`, the
    /// first of equals; returns the sum of the squared distances.
    pub(crate) fn nearest(&self, level: Level, points: &[[f32; 2]], codes: &mut [u16]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if level.is_avx512() {
            // SAFETY: an AVX-512 level exists only where AVX-512F does.
            return unsafe { super::avx512::nearest_of_sorted(self, points, codes) };
        }
        #[cfg(target_arch = "x86_64")]
        if level.is_avx2() {
            // SAFETY: an AVX2 level exists only where AVX2 and F16C do.
            return unsafe { super::avx2::nearest_of_sorted(self, points, codes) };
        }
        let _ = level;
        let nearest = |block: &Block, point| {
            let [along, across] = &block.0;
            super::nearest_of_scalar([along, across], point)
        };
        self.search(
            points,
            codes,
            Steps {
                reached: |lows: &Lows, x| lows.0.iter().filter(|&&low| low <= x).count(),
                nearest,
                nearest_of_begin: |blocks: &[Block; BEGIN], point| of_each(blocks, point, nearest),
            },
        )
    }

    /// The search in the steps of a level.
    #[inline(always)]
    pub(super) fn search<R, N, B>(
        &self,
        points: &[[f32; 2]],
        codes: &mut [u16],
        steps: Steps<R, N, B>,
    ) -> f32
    where
        R: Fn(&Lows, f32) -> usize,
        N: Fn(&Block, [f32; 2]) -> (usize, f32),
        B: Fn(&[Block; BEGIN], [f32; 2]) -> (usize, f32),
    {
        let num_blocks = self.num_blocks;
        let groups = || {
            let lows = self.lows.chunks_exact(num_blocks.div_ceil(16));
            lows.zip(self.blocks.chunks_exact(num_blocks)).zip(self.axes.iter().zip(points)).map(
                |((lows, blocks), (&axis, &[x, y]))| {
                    (lows, blocks, if axis == 0 { [x, y] } else { [y, x] })
                },
            )
        };
        // Where to begin in every group first: what is read for it does not wait for the searches.
        for ((lows, blocks, point), code) in groups().zip(&mut *codes) {
            let reached = lows.iter().map(|lows| (steps.reached)(lows, point[0])).sum();
            let first = around(num_blocks, reached);
            for block in begin(blocks, first) {
                prefetch(std::ptr::from_ref(block).cast());
            }
            *code = first as u16;
        }
        let mut error = 0.0;
        for ((lows, blocks, point), code) in groups().zip(codes) {
            let first = usize::from(*code);
            let (place, distance) = (steps.nearest_of_begin)(begin(blocks, first), point);
            let mut best = (first * BLOCK + place, distance);
            let square_to = |block: usize| {
                let apart = low(lows, block) - point[0];
                apart * apart
            };
            let tried = |block: usize| {
                let (place, distance) = (steps.nearest)(&blocks[block], point);
                (block * BLOCK + place, distance)
            };
            let (mut from, mut to) = (first, first + BEGIN);
            while to < num_blocks && square_to(to) < best.1 {
                best = nearer(best, tried(to));
                to += 1;
            }
            while from > 0 && square_to(from) <= best.1 {
                from -= 1;
                best = nearer(best, tried(from));
            }
            *code = best.0 as u16;
            error += best.1;
        }
        error
    }
}

/// The blocks from `first` on that are tried at once.
#[inline(always)]
fn begin(blocks: &[Block], first: usize) -> &[Block; BEGIN] {
    &blocks[first..].as_chunks::<BEGIN>().0[0]
}

/// Where along the axis a block begins.
#[inline(always)]
fn low(lows: &[Lows], block: usize) -> f32 {
    lows[block / 16].0[block % 16]
}

/// The first of the blocks around that in which a place lies, of which the first `reached` begin before it or there.
#[inline(always)]
fn around(num_blocks: usize, reached: usize) -> usize {
    reached.saturating_sub(BEGIN / 2 + 1).min(num_blocks - BEGIN)
}

/// The nearest of blocks that begin a search by that of each.
#[inline(always)]
pub(super) fn of_each(
    blocks: &[Block; BEGIN],
    point: [f32; 2],
    nearest: impl Fn(&Block, [f32; 2]) -> (usize, f32),
) -> (usize, f32) {
    let found = blocks.iter().enumerate().map(|(i, block)| {
        let (place, distance) = nearest(block, point);
        (i * BLOCK + place, distance)
    });
    found.fold((0, f32::INFINITY), nearer)
}
