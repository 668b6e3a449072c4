//! The AVX2 form: bands are unpacked into the first-level cache by chunks of columns, where four vectors at a time
//! pass over them.
//!
//! Every function here may only be called on a CPU with AVX2, FMA and F16C; the caller, one level up, holds a
//! `Level` that proves it and checks all lengths.
#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and tiles written from several threads"
)]

use std::{
    arch::{asm, x86_64::*},
    array,
    ops::Range,
    slice,
};

use arrayvec::ArrayVec;
use rayon::prelude::*;

use crate::{
    simd::{
        lanes::{load, store},
        weights::{
            bands::avx2::{load_f16, load_words},
            output::Output,
        },
    },
    weights::{BAND, BandRows, Batch, GROUP, Group, QUAD, QuadBlock, STEPS, Words},
};

/// Bands of a task: so many that its vectors, which all of them read, come from further away than the second-level
/// cache once.
const TASK_BANDS: usize = 6;

/// Blocks that are unpacked at a time, of one nibble a code: 16 KiB a band, half of the first-level cache. So many
/// blocks of a group of vectors stay in the second-level cache.
const CHUNK_BLOCKS: usize = 32;

/// A block of a band, for `PLANES` nibbles a code.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unpacked<const PLANES: usize> {
    /// One nibble a byte, four columns of each row a step; low nibbles of codes first.
    nibbles: [[Words; STEPS]; PLANES],
    scales: [f32; BAND],
    /// What a code of zero stands for: `offset - scale * centre`.
    minima: [f32; BAND],
}

impl<const PLANES: usize> Unpacked<PLANES> {
    const ZERO: Self =
        Self { nibbles: [[[0; BAND]; STEPS]; PLANES], scales: [0.0; BAND], minima: [0.0; BAND] };
}

/// See `super::matmul_bands`: all bands and vectors.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply(bands: BandRows<'_>, batch: &Batch, rows: usize, y: &mut [f32]) {
    match bands.form.bits {
        4 => multiply_planes::<1>(bands, batch, rows, y),
        _ => multiply_planes::<2>(bands, batch, rows, y),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_planes<const PLANES: usize>(
    bands: BandRows<'_>,
    batch: &Batch,
    rows: usize,
    y: &mut [f32],
) {
    let num_bands = rows.div_ceil(BAND);
    let num_panels = num_bands.div_ceil(TASK_BANDS);
    let output = Output::new(y, rows);
    (0..batch.groups().len() * num_panels).into_par_iter().with_max_len(1).for_each(|task| {
        let (group_index, panel) = (task / num_panels, task % num_panels);
        let group = &batch.groups()[group_index];
        let of_bands = panel * TASK_BANDS..num_bands.min((panel + 1) * TASK_BANDS);
        let sums = products::<PLANES>(bands, of_bands.clone(), group);

        let row = of_bands.start * BAND;
        let num_rows = rows.min(of_bands.end * BAND) - row;
        let tile = output.tile([group_index * GROUP, row], [group.num_vectors(), num_rows]);
        for (vector, sums) in
            sums.chunks_exact(of_bands.len()).take(group.num_vectors()).enumerate()
        {
            // SAFETY: these rows of the vector are inside the tile, which is this task's alone.
            let out = unsafe {
                slice::from_raw_parts_mut(tile.first.add(vector * tile.stride), num_rows)
            };
            out.copy_from_slice(&sums.as_flattened()[..num_rows]);
        }
    });
}

/// The products of some bands with a group of vectors, `[num_vectors, num_bands]`, the vectors padded to whole fours.
#[target_feature(enable = "avx2,fma,f16c")]
fn products<const PLANES: usize>(
    bands: BandRows<'_>,
    of_bands: Range<usize>,
    group: &Group,
) -> Vec<[f32; BAND]> {
    let num_quads = group.num_vectors().div_ceil(QUAD);
    let mut sums = vec![[0.0; BAND]; num_quads * QUAD * of_bands.len()];
    let mut unpacked = [Unpacked::<PLANES>::ZERO; CHUNK_BLOCKS];
    for first in (0..bands.num_blocks).step_by(CHUNK_BLOCKS / PLANES) {
        let chunk = first..bands.num_blocks.min(first + CHUNK_BLOCKS / PLANES);
        for (index, band) in of_bands.clone().enumerate() {
            for (out, block) in unpacked.iter_mut().zip(chunk.clone()) {
                unpack(bands, band * bands.num_blocks + block, out);
            }
            let sums_of = |vector| vector * of_bands.len() + index;
            for quad in 0..num_quads {
                let at: [usize; QUAD] = array::from_fn(|slot| sums_of(quad * QUAD + slot));
                for (block, x) in unpacked.iter().zip(&group.quad(quad)[chunk.clone()]) {
                    add_block(block, x, &mut sums, &at);
                }
            }
            for remainder in group.remainders_in(chunk.clone()) {
                let at: ArrayVec<usize, QUAD> =
                    remainder.vectors.iter().map(|vector| sums_of(*vector)).collect();
                let block = &unpacked[remainder.index - chunk.start];
                add_block(block, &remainder.block, &mut sums, &at);
            }
        }
    }
    sums
}

/// Unpacks block `at` of all bands.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<const PLANES: usize>(bands: BandRows<'_>, at: usize, out: &mut Unpacked<PLANES>) {
    let num_words = bands.form.block_words();
    let words = &bands.words[at * num_words..][..num_words];
    // Word by word its low nibbles, then its high ones: two steps of one plane, or a step of two.
    let nibbles = out.nibbles.as_flattened_mut();
    for (index, words) in words.iter().enumerate() {
        let [low, high] = match PLANES {
            1 => [2 * index, 2 * index + 1],
            _ => [index, STEPS + index],
        };
        nibbles[low] = words.map(|word| word & 0x0f0f_0f0f);
        nibbles[high] = words.map(|word| word >> 4 & 0x0f0f_0f0f);
    }
    let centre = _mm256_set1_ps(bands.form.centre as f32);
    let scales = load_f16(&bands.scales[at]);
    let offsets =
        bands.offsets.get(at).map_or([_mm256_setzero_ps(); 2], |of_band| load_f16(of_band));
    for half in 0..2 {
        store(&mut out.scales.as_chunks_mut::<8>().0[half], scales[half]);
        let minima = _mm256_fnmadd_ps(scales[half], centre, offsets[half]);
        store(&mut out.minima.as_chunks_mut::<8>().0[half], minima);
    }
}

/// Adds the products of a block of a band with that of as many of four vectors as have sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block<const PLANES: usize>(
    block: &Unpacked<PLANES>,
    x: &QuadBlock,
    sums: &mut [[f32; BAND]],
    at: &[usize],
) {
    let weights = [1, 16].map(|weight| _mm256_set1_epi16(weight));
    let mut integers = [[_mm256_setzero_si256(); 2]; QUAD];
    for (plane, weight) in block.nibbles.iter().zip(weights) {
        for (integers, sums) in integers.iter_mut().zip(nibble_sums(plane, &x.words)) {
            for (integer, sum) in integers.iter_mut().zip(sums) {
                *integer = _mm256_add_epi32(*integer, _mm256_madd_epi16(sum, weight));
            }
        }
    }
    for (vector, &at) in at.iter().enumerate() {
        let a = _mm256_set1_ps(x.scales[vector]);
        let sum = _mm256_set1_ps(x.sums[vector]);
        for (half, out) in sums[at].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let step = _mm256_mul_ps(load(&block.scales.as_chunks().0[half]), a);
            let minimum = load(&block.minima.as_chunks().0[half]);
            let integer = _mm256_cvtepi32_ps(integers[vector][half]);
            let product = _mm256_fmadd_ps(step, integer, load(out));
            store(out, _mm256_fmadd_ps(minimum, sum, product));
        }
    }
}

/// The sums of products of a block's nibbles with the codes of four vectors, in 16 bits: two neighbouring lanes a row.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_sums(nibbles: &[Words; STEPS], codes: &[[u32; QUAD]; STEPS]) -> [[__m256i; 2]; QUAD] {
    let mut sums = [[_mm256_setzero_si256(); 2]; QUAD];
    for (nibbles, codes) in nibbles.iter().zip(codes) {
        let nibbles = [load_words(nibbles, 0), load_words(nibbles, 1)];
        for ([first, second], code) in sums.iter_mut().zip(codes) {
            let code = _mm256_set1_epi32(code.cast_signed());
            *first = _mm256_add_epi16(*first, _mm256_maddubs_epi16(nibbles[0], code));
            *second = _mm256_add_epi16(*second, _mm256_maddubs_epi16(nibbles[1], code));
            // SAFETY: no instruction. It keeps the sums in their registers and the steps in their order; without it
            // the compiler goes vector by vector instead, and loads the nibbles four times.
            unsafe {
                asm!(
                    "/* {0} {1} */",
                    inout(ymm_reg) * first,
                    inout(ymm_reg) * second,
                    options(nomem, nostack, preserves_flags)
                );
            }
        }
    }
    sums
}
