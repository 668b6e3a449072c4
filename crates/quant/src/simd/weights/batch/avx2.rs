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
    ops::Range,
    slice,
};

use rayon::prelude::*;

use crate::{
    simd::{
        lanes::{load, store},
        weights::{
            bands::avx2::{load_f16, load_words},
            output::Output,
        },
    },
    weights::{
        BAND, BandRows, Batch, QUAD, QuadBlock, Residual, STEPS, TILE_VECTORS, VectorTile, Words,
    },
};

/// Bands of a task: so many that its vectors, which all of them read, come from further away than the second-level
/// cache once.
const TASK_BANDS: usize = 6;

/// Blocks that are unpacked at a time, of one nibble a code: 16 KiB a band, half of the first-level cache. So many
/// blocks of a tile of vectors stay in the second-level cache.
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

/// Of one band and four vectors.
type QuadSums = [[f32; BAND]; QUAD];

impl<const PLANES: usize> Unpacked<PLANES> {
    const ZERO: Self =
        Self { nibbles: [[[0; BAND]; STEPS]; PLANES], scales: [0.0; BAND], minima: [0.0; BAND] };
}

/// See `super::matmul_batch`: all bands and vectors.
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
    (0..batch.tiles().len() * num_panels).into_par_iter().with_max_len(1).for_each(|task| {
        let (tile_index, panel) = (task / num_panels, task % num_panels);
        let tile = &batch.tiles()[tile_index];
        let of_bands = panel * TASK_BANDS..num_bands.min((panel + 1) * TASK_BANDS);
        let sums = products::<PLANES>(bands, of_bands.clone(), tile);

        let row = of_bands.start * BAND;
        let num_rows = rows.min(of_bands.end * BAND) - row;
        let place = output.tile([tile_index * TILE_VECTORS, row], [tile.num_vectors(), num_rows]);
        for vector in 0..tile.num_vectors() {
            // SAFETY: these rows of the vector are inside the tile, which is this task's alone.
            let out = unsafe {
                slice::from_raw_parts_mut(place.first.add(vector * place.stride), num_rows)
            };
            let quad = &sums[vector / QUAD * of_bands.len()..][..of_bands.len()];
            for (out, of_band) in out.chunks_mut(BAND).zip(quad) {
                out.copy_from_slice(&of_band[vector % QUAD][..out.len()]);
            }
        }
    });
}

/// The products of some bands with a tile of vectors, `[num_quads, num_bands, 4]`.
#[target_feature(enable = "avx2,fma,f16c")]
fn products<const PLANES: usize>(
    bands: BandRows<'_>,
    of_bands: Range<usize>,
    tile: &VectorTile,
) -> Vec<QuadSums> {
    let num_quads = tile.num_vectors().div_ceil(QUAD);
    let mut sums = vec![[[0.0; BAND]; QUAD]; num_quads * of_bands.len()];
    let mut unpacked = [Unpacked::<PLANES>::ZERO; CHUNK_BLOCKS];
    for first in (0..bands.num_blocks).step_by(CHUNK_BLOCKS / PLANES) {
        let chunk = first..bands.num_blocks.min(first + CHUNK_BLOCKS / PLANES);
        for (index, band) in of_bands.clone().enumerate() {
            for (out, block) in unpacked.iter_mut().zip(chunk.clone()) {
                unpack(bands, band * bands.num_blocks + block, out);
            }
            let of_band = sums.iter_mut().skip(index).step_by(of_bands.len());
            for (quad, sums) in of_band.enumerate() {
                for (block, x) in unpacked.iter().zip(&tile.quad(quad)[chunk.clone()]) {
                    add_block(block, x, sums);
                }
            }
            for Residual { index: at, vectors, block: x } in tile.residuals_in(chunk.clone()) {
                let slot_of =
                    |vector: usize| (vector / QUAD * of_bands.len() + index, vector % QUAD);
                let mut gathered = [[0.0; BAND]; QUAD];
                for (gathered, &vector) in gathered.iter_mut().zip(vectors) {
                    let (quad, slot) = slot_of(vector);
                    *gathered = sums[quad][slot];
                }
                add_block(&unpacked[at - chunk.start], x, &mut gathered);
                for (gathered, &vector) in gathered.iter().zip(vectors) {
                    let (quad, slot) = slot_of(vector);
                    sums[quad][slot] = *gathered;
                }
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

/// Adds the products of a block of a band with that of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_block<const PLANES: usize>(block: &Unpacked<PLANES>, x: &QuadBlock, sums: &mut QuadSums) {
    let mut add = |vector: usize, half: usize, integers: __m256i| {
        let (a, sum) = (broadcast(&x.scales[vector]), broadcast(&x.sums[vector]));
        let out = &mut sums[vector].as_chunks_mut::<8>().0[half];
        let step = _mm256_mul_ps(load(&block.scales.as_chunks().0[half]), a);
        let minimum = load(&block.minima.as_chunks().0[half]);
        let product = _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(integers), load(out));
        store(out, _mm256_fmadd_ps(minimum, sum, product));
    };
    let once = _mm256_set1_epi16(1);
    match &block.nibbles[..] {
        [plane] => {
            let of_vectors = nibble_sums([(plane, 0), (plane, 1)], &x.words);
            for (vector, of_halves) in of_vectors.into_iter().enumerate() {
                for (half, sums) in of_halves.into_iter().enumerate() {
                    add(vector, half, _mm256_madd_epi16(sums, once));
                }
            }
        }
        [low, high] => {
            for half in 0..2 {
                let of_vectors = nibble_sums([(low, half), (high, half)], &x.words);
                for (vector, [low, high]) in of_vectors.into_iter().enumerate() {
                    let high = _mm256_madd_epi16(high, _mm256_set1_epi16(16));
                    add(vector, half, _mm256_add_epi32(_mm256_madd_epi16(low, once), high));
                }
            }
        }
        _ => unreachable!("one plane or two"),
    }
}

/// The sums of products of nibbles with the codes of four vectors, in 16 bits: two neighbouring lanes a row. Nibbles are
/// those of two halves of rows, one plane each.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_sums(
    halves: [(&[Words; STEPS], usize); 2],
    codes: &[[u32; QUAD]; STEPS],
) -> [[__m256i; 2]; QUAD] {
    let mut sums = [[_mm256_setzero_si256(); 2]; QUAD];
    let mut add = |step: usize| {
        let nibbles = halves.map(|(plane, half)| load_words(&plane[step], half));
        for (sums, code) in sums.iter_mut().zip(codes[step]) {
            let code = _mm256_set1_epi32(code.cast_signed());
            for (sum, nibbles) in sums.iter_mut().zip(nibbles) {
                let products = _mm256_maddubs_epi16(nibbles, code);
                *sum = if step == 0 { products } else { _mm256_add_epi16(*sum, products) };
            }
            keep_in_registers(sums);
        }
    };
    add(0);
    add(1);
    // Two at a time have fewer instructions of the loop's own.
    for step in (2..STEPS).step_by(2) {
        add(step);
        add(step + 1);
    }
    sums
}

/// No instruction. It keeps sums in their registers and what is added to them in its order; without it the compiler goes
/// vector by vector instead, and loads the nibbles four times.
#[inline]
#[target_feature(enable = "avx2")]
fn keep_in_registers([first, second]: &mut [__m256i; 2]) {
    // SAFETY: nothing is read or written but the registers, which stay as they are.
    unsafe {
        asm!(
            "/* {0} {1} */",
            inout(ymm_reg) * first,
            inout(ymm_reg) * second,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// `x` in all lanes, by one instruction: of neighbours the compiler would load all together and shuffle each into its
/// place.
#[inline]
#[target_feature(enable = "avx")]
fn broadcast(x: &f32) -> __m256 {
    let lanes;
    // SAFETY: reads the four bytes of `x`.
    unsafe {
        asm!(
            "vbroadcastss {0}, dword ptr [{1}]",
            out(ymm_reg) lanes,
            in(reg) x,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    lanes
}
