//! Kernels for x86-64 with AVX2.

use std::arch::x86_64::*;

use super::{LANES, Seen, Sides, WORD, bits};

/// [`super::split`] of whole words.
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn split(
    chunks: &[[f32; WORD]],
    [least, heavy]: [f32; 2],
    Sides { heavy: heavy_words, open: open_words, between }: Sides<'_>,
) -> Seen {
    let (least, heavy) = (_mm256_set1_ps(least), _mm256_set1_ps(heavy));
    let mut sums = [_mm256_setzero_pd(); LANES / 4];
    let mut most_bits = _mm256_setzero_si256();
    let mut seen = Seen::default();
    for (chunk, (heavy_word, open_word)) in
        chunks.iter().zip(heavy_words.iter_mut().zip(open_words))
    {
        let (mut is_heavy, mut is_least) = (0, 0);
        for (at, eight) in chunk.as_chunks::<8>().0.iter().enumerate() {
            let weights = load(eight);
            let heavy = _mm256_cmp_ps::<_CMP_GE_OQ>(weights, heavy);
            let least = _mm256_cmp_ps::<_CMP_GE_OQ>(weights, least);
            is_heavy |= u64::from(_mm256_movemask_ps(heavy) as u32) << (8 * at);
            is_least |= u64::from(_mm256_movemask_ps(least) as u32) << (8 * at);
            let taken = _mm256_and_ps(weights, heavy);
            let [low, high] = [_mm256_castps256_ps128(taken), _mm256_extractf128_ps::<1>(taken)];
            let lane = at % 2 * 2;
            sums[lane] = _mm256_add_pd(sums[lane], _mm256_cvtps_pd(low));
            sums[lane + 1] = _mm256_add_pd(sums[lane + 1], _mm256_cvtps_pd(high));
            most_bits = _mm256_max_epu32(most_bits, _mm256_castps_si256(weights));
        }
        [*heavy_word, *open_word] = [is_heavy, is_least & !is_heavy];
        seen.num_heavy += is_heavy.count_ones() as usize;
        for bit in bits(*open_word) {
            between[seen.num_between] = chunk[bit];
            seen.num_between += 1;
        }
    }
    for (out, sums) in seen.sums.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        // SAFETY: the array has the 32 bytes of this unaligned store.
        unsafe { _mm256_storeu_pd(out.as_mut_ptr(), sums) };
    }
    let mut most = [0u32; 8];
    // SAFETY: the array has the 32 bytes of this unaligned store.
    unsafe { _mm256_storeu_si256(most.as_mut_ptr().cast(), most_bits) };
    seen.most_bits = most.into_iter().fold(0, u32::max);
    seen
}

/// [`super::mark`] of whole words.
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn mark(chunks: &[[f32; WORD]], least: f32, words: &mut [u64]) {
    let least = _mm256_set1_ps(least);
    for (chunk, word) in chunks.iter().zip(words) {
        *word = 0;
        for (at, eight) in chunk.as_chunks::<8>().0.iter().enumerate() {
            let is_least = _mm256_cmp_ps::<_CMP_GE_OQ>(load(eight), least);
            *word |= u64::from(_mm256_movemask_ps(is_least) as u32) << (8 * at);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn load(weights: &[f32; 8]) -> __m256 {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_ps(weights.as_ptr()) }
}
