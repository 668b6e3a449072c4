//! The AVX2 forms of the kernels of bands: two halves of eight rows.
//!
//! Every function here may only be called on a CPU with AVX2, FMA and F16C; the callers, one level up, hold
//! a `Level` that proves it and check all lengths.
#![expect(unsafe_code, reason = "vector loads through pointers")]

use std::arch::x86_64::*;

use half::f16;

use crate::simd::{lanes::store, prefetch::prefetch};
use crate::weights::{BAND, BLOCK, BandRows, BlockVector, Words};

/// How far ahead of its use a block's codes are asked for: beyond the page of 4 KiB at whose end the processor's own
/// guesses stop.
const AHEAD_BYTES: usize = 16 << 10;

/// See `super::gemv_bands`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gemv_bands(bands: BandRows<'_>, x: &BlockVector, y: &mut [f32]) {
    match (bands.form.bits, bands.offsets.is_empty()) {
        (4, false) => gemv::<4, true>(bands, x, y, |w, q, start| nibble_sums(w, q, start)),
        (4, true) => gemv::<4, false>(bands, x, y, |w, q, start| nibble_sums(w, q, start)),
        (_, false) => gemv::<8, true>(bands, x, y, |w, q, start| byte_sums(w, q, start)),
        (_, true) => gemv::<8, false>(bands, x, y, |w, q, start| byte_sums(w, q, start)),
    }
}

/// Band by band, with the integer sums of a block's 16 rows by `sums`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn gemv<const WORDS: usize, const OFFSETS: bool>(
    bands: BandRows<'_>,
    x: &BlockVector,
    y: &mut [f32],
    sums: impl Fn(&[Words; WORDS], &[i16; BLOCK], i32) -> [__m256i; 2],
) {
    let centre = bands.form.centre;
    let (words, _) = bands.words.as_chunks::<WORDS>();
    let mut blocks = words.iter().zip(bands.scales).enumerate();
    for y in y.chunks_mut(BAND) {
        let mut products = [_mm256_setzero_ps(); 2];
        let mut minima = [_mm256_setzero_ps(); 2];
        let of_vector = x.codes.iter().zip(&x.scales).zip(x.code_sums.iter().zip(&x.sums));
        for (((q, a), (code_sum, sum)), (at, (words, scales))) in of_vector.zip(&mut blocks) {
            for line in words {
                prefetch(line.as_ptr().cast::<u8>().wrapping_add(AHEAD_BYTES));
            }
            let integers = sums(words, q, -centre * code_sum);
            let (scales, a) = (load_f16(scales), _mm256_set1_ps(*a));
            for half in 0..2 {
                let step = _mm256_mul_ps(scales[half], a);
                let integers = _mm256_cvtepi32_ps(integers[half]);
                products[half] = _mm256_fmadd_ps(step, integers, products[half]);
            }
            if OFFSETS {
                let (offsets, sum) = (load_f16(&bands.offsets[at]), _mm256_set1_ps(*sum));
                for half in 0..2 {
                    minima[half] = _mm256_fmadd_ps(offsets[half], sum, minima[half]);
                }
            }
        }
        let mut out = [0.0; BAND];
        for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            store(out, _mm256_add_ps(products[half], minima[half]));
        }
        y.copy_from_slice(&out[..y.len()]);
    }
}

/// `start + sum u q` of a block of 4-bit codes, for each row.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble_sums(words: &[Words; 4], q: &[i16; BLOCK], start: i32) -> [__m256i; 2] {
    let masks = [0x000f_000f, 0x00f0_00f0, 0x0f00_0f00].map(|mask| _mm256_set1_epi32(mask));
    let mut once = [_mm256_set1_epi32(start); 2];
    let (mut times_16, mut times_256) = ([_mm256_setzero_si256(); 2], [_mm256_setzero_si256(); 2]);
    for (words, q) in words.iter().zip(q.as_chunks::<8>().0) {
        let q = pairs(q);
        for half in 0..2 {
            let words = load_words(words, half);
            let product = |codes, pair| _mm256_madd_epi16(codes, _mm256_set1_epi32(pair));
            let first = product(_mm256_and_si256(words, masks[0]), q[0]);
            let second = product(_mm256_and_si256(words, masks[1]), q[1]);
            let third = product(_mm256_and_si256(words, masks[2]), q[2]);
            let fourth = product(_mm256_srli_epi16::<12>(words), q[3]);
            once[half] = _mm256_add_epi32(once[half], _mm256_add_epi32(first, fourth));
            times_16[half] = _mm256_add_epi32(times_16[half], second);
            times_256[half] = _mm256_add_epi32(times_256[half], third);
        }
    }
    let total = |half: usize| {
        let times_16 = _mm256_srai_epi32::<4>(times_16[half]);
        let times_256 = _mm256_srai_epi32::<8>(times_256[half]);
        _mm256_add_epi32(once[half], _mm256_add_epi32(times_16, times_256))
    };
    [total(0), total(1)]
}

/// `start + sum u q` of a block of 8-bit codes, for each row.
#[inline]
#[target_feature(enable = "avx2")]
fn byte_sums(words: &[Words; 8], q: &[i16; BLOCK], start: i32) -> [__m256i; 2] {
    let mask = _mm256_set1_epi32(0x00ff_00ff);
    let mut sums = [_mm256_set1_epi32(start); 2];
    for (words, q) in words.as_chunks::<2>().0.iter().zip(q.as_chunks::<8>().0) {
        let q = pairs(q);
        for (half, sum) in sums.iter_mut().enumerate() {
            for (words, q) in words.iter().zip(q.as_chunks::<2>().0) {
                let words = load_words(words, half);
                let product = |codes, pair| _mm256_madd_epi16(codes, _mm256_set1_epi32(pair));
                let low = product(_mm256_and_si256(words, mask), q[0]);
                let high = product(_mm256_srli_epi16::<8>(words), q[1]);
                *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(low, high));
            }
        }
    }
    sums
}

/// See `super::expand_bands`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn expand_bands(bands: BandRows<'_>, cols: usize, out: &mut [f32]) {
    match bands.form.bits {
        4 => expand::<4, 8>(bands, cols, out),
        _ => expand::<8, 4>(bands, cols, out),
    }
}

/// Block by block, `COLUMNS` columns of codes of `BITS` bits from each word.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn expand<const BITS: i32, const COLUMNS: usize>(
    bands: BandRows<'_>,
    cols: usize,
    out: &mut [f32],
) {
    let num_bands = bands.scales.len() / bands.num_blocks;
    let (out, _) = out.as_chunks_mut::<BAND>();
    let centre = _mm256_set1_epi32(bands.form.centre);
    let mask = _mm256_set1_epi32((1 << BITS) - 1);
    let block_words = bands.words.chunks_exact(BLOCK / COLUMNS);
    for (at, (words, scales)) in block_words.zip(bands.scales).enumerate() {
        let (band, block) = (at / bands.num_blocks, at % bands.num_blocks);
        let scales = load_f16(scales);
        let offsets = bands.offsets.get(at).map(|offsets| load_f16(offsets));
        for (words, first) in words.iter().zip((block * BLOCK..cols).step_by(COLUMNS)) {
            let words = [load_words(words, 0), load_words(words, 1)];
            for column in 0..COLUMNS.min(cols - first) {
                let shift = BITS * (column / 2) as i32 + 16 * (column % 2) as i32;
                let shift = _mm_cvtsi32_si128(shift);
                let out = &mut out[(first + column) * num_bands + band];
                for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let stored = _mm256_and_si256(_mm256_srl_epi32(words[half], shift), mask);
                    let codes = _mm256_cvtepi32_ps(_mm256_sub_epi32(stored, centre));
                    let product = _mm256_mul_ps(scales[half], codes);
                    store(
                        out,
                        match offsets {
                            Some(offsets) => _mm256_add_ps(product, offsets[half]),
                            None => product,
                        },
                    );
                }
            }
        }
    }
}

/// Neighbouring columns, as a multiply-add takes them.
#[inline(always)]
fn pairs(q: &[i16; 8]) -> [i32; 4] {
    // SAFETY: both are 16 bytes of which every pattern is a value.
    unsafe { std::mem::transmute::<[i16; 8], [i32; 4]>(*q) }
}

/// Eight of a band's words: those of its first or its second half of rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd::weights) fn load_words(words: &Words, half: usize) -> __m256i {
    let half = &words.as_chunks::<8>().0[half];
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

/// What a band's rows have, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(in crate::simd::weights) fn load_f16(values: &[f16; BAND]) -> [__m256; 2] {
    let (halves, _) = values.as_chunks::<8>();
    // SAFETY: each array has the 16 bytes of this unaligned load.
    let load = |half: &[f16; 8]| unsafe { _mm_loadu_si128(half.as_ptr().cast()) };
    [_mm256_cvtph_ps(load(&halves[0])), _mm256_cvtph_ps(load(&halves[1]))]
}
