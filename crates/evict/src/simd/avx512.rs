//! Kernels for x86-64 with AVX-512 F.
//!
//! What is picked out of a vector is compressed in a register and stored whole: compressing in the
//! store takes many times as long on some CPUs.

use std::arch::x86_64::*;

use super::{LANES, Seen, Sides, WORD};

/// [`super::split`] of whole words.
#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn split(
    chunks: &[[f32; WORD]],
    [least, heavy]: [f32; 2],
    Sides { heavy: heavy_words, open: open_words, between }: Sides<'_>,
) -> Seen {
    let (least, heavy) = (_mm512_set1_ps(least), _mm512_set1_ps(heavy));
    let mut sums = [_mm512_setzero_pd(); LANES / 8];
    let mut most_bits = _mm512_setzero_si512();
    let mut seen = Seen::default();
    for (chunk, (heavy_word, open_word)) in
        chunks.iter().zip(heavy_words.iter_mut().zip(open_words))
    {
        [*heavy_word, *open_word] = [0; 2];
        for (at, lanes) in chunk.as_chunks::<LANES>().0.iter().enumerate() {
            let weights = load(lanes);
            let is_heavy = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(weights, heavy);
            let is_between = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(weights, least) & !is_heavy;
            let taken = _mm512_castps_pd(_mm512_maskz_mov_ps(is_heavy, weights));
            let low = _mm256_castpd_ps(_mm512_castpd512_pd256(taken));
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(taken));
            sums[0] = _mm512_add_pd(sums[0], _mm512_cvtps_pd(low));
            sums[1] = _mm512_add_pd(sums[1], _mm512_cvtps_pd(high));
            most_bits = _mm512_max_epu32(most_bits, _mm512_castps_si512(weights));
            let picked = _mm512_maskz_compress_ps(is_between, weights);
            store(&mut between[seen.num_between..], picked);
            seen.num_between += is_between.count_ones() as usize;
            *heavy_word |= u64::from(is_heavy) << (LANES * at);
            *open_word |= u64::from(is_between) << (LANES * at);
        }
        seen.num_heavy += heavy_word.count_ones() as usize;
    }
    for (out, sums) in seen.sums.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: the array has the 64 bytes of this unaligned store.
        unsafe { _mm512_storeu_pd(out.as_mut_ptr(), sums) };
    }
    seen.most_bits = _mm512_reduce_max_epu32(most_bits);
    seen
}

/// [`super::mark`] of whole words.
#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn mark(chunks: &[[f32; WORD]], least: f32, words: &mut [u64]) {
    let least = _mm512_set1_ps(least);
    for (chunk, word) in chunks.iter().zip(words) {
        *word = 0;
        for (at, lanes) in chunk.as_chunks::<LANES>().0.iter().enumerate() {
            let is_least = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(lanes), least);
            *word |= u64::from(is_least) << (LANES * at);
        }
    }
}

/// [`super::positions`].
#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn positions(words: &[u64], out: &mut [u32]) {
    let steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut next = 0;
    for (at, &word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
        for part in 0..WORD / LANES {
            let is_set = (word >> (LANES * part)) as u16;
            let first = _mm512_set1_epi32((WORD * at + LANES * part) as i32);
            let picked = _mm512_maskz_compress_epi32(is_set, _mm512_add_epi32(first, steps));
            let out: &mut [u32] = &mut out[next..][..LANES];
            // SAFETY: the slice has the 64 bytes of this unaligned store.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), picked) };
            next += is_set.count_ones() as usize;
        }
    }
}

/// [`super::pick`].
#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn pick(words: &[u64], chunks: &[[f32; WORD]], out: &mut [f32]) -> usize {
    let mut next = 0;
    for (&word, chunk) in words.iter().zip(chunks).filter(|(word, _)| **word != 0) {
        for (part, lanes) in chunk.as_chunks::<LANES>().0.iter().enumerate() {
            let is_set = (word >> (LANES * part)) as u16;
            let (picked, count) =
                (_mm512_maskz_compress_ps(is_set, load(lanes)), is_set.count_ones());
            match out[next..].len() {
                LANES.. => store(&mut out[next..], picked),
                _ => store_first(&mut out[next..][..count as usize], picked),
            }
            next += count as usize;
        }
    }
    next
}

/// Writes as many of the first values as `out` has room for.
#[inline]
#[target_feature(enable = "avx512f,popcnt")]
fn store_first(out: &mut [f32], values: __m512) {
    let mask = (1u32 << out.len().min(LANES)) - 1;
    // SAFETY: the mask has no lane behind the end of the slice.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask as u16, values) };
}

/// Writes to the front of `out`.
///
/// # Panics
/// When it has no room for [`LANES`].
#[inline]
#[target_feature(enable = "avx512f,popcnt")]
fn store(out: &mut [f32], values: __m512) {
    let out = &mut out[..LANES];
    // SAFETY: the slice has the 64 bytes of this unaligned store.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}

#[inline]
#[target_feature(enable = "avx512f,popcnt")]
fn load(lanes: &[f32; LANES]) -> __m512 {
    // SAFETY: the array has the 64 bytes of this unaligned load.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}
