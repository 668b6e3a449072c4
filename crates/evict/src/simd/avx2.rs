//! Kernels for x86-64 with AVX2.
//!
//! What is picked out of a vector is brought to its front by a look-up and stored whole, without a branch that
//! foretells how many these are.

use std::arch::x86_64::*;

use super::{LANES, Seen, Sides, WORD};

/// For each set of eight lanes which lanes are in it, ascending, then lanes that are not: what brings them to the front.
static FRONT: [[u8; 8]; 256] = {
    let mut front = [[0; 8]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut next) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 != 0 {
                front[set][next] = lane as u8;
                next += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    front
};

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
        if *open_word != 0 {
            for (eight, set) in chunk.as_chunks::<8>().0.iter().zip(open_word.to_le_bytes()) {
                store(&mut between[seen.num_between..], to_front(load(eight), set));
                seen.num_between += set.count_ones() as usize;
            }
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

/// [`super::positions`].
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn positions(words: &[u64], out: &mut [u32]) {
    let mut next = 0;
    for (at, &word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
        for (part, set) in word.to_le_bytes().into_iter().enumerate() {
            let first = _mm256_set1_epi32((WORD * at + 8 * part) as i32);
            let picked = _mm256_add_epi32(first, front_of(set));
            let out: &mut [u32] = &mut out[next..][..8];
            // SAFETY: the slice has the 32 bytes of this unaligned store.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), picked) };
            next += set.count_ones() as usize;
        }
    }
}

/// [`super::pick`].
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn pick(words: &[u64], chunks: &[[f32; WORD]], out: &mut [f32]) -> usize {
    let mut next = 0;
    for (&word, chunk) in words.iter().zip(chunks).filter(|(word, _)| **word != 0) {
        for (eight, set) in chunk.as_chunks::<8>().0.iter().zip(word.to_le_bytes()) {
            let (picked, count) = (to_front(load(eight), set), set.count_ones() as usize);
            if out[next..].len() >= 8 {
                store(&mut out[next..], picked);
            } else {
                let mut last = [0.0; 8];
                store(&mut last, picked);
                out[next..][..count].copy_from_slice(&last[..count]);
            }
            next += count;
        }
    }
    next
}

/// The lanes of a set, at the front of a vector.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn to_front(lanes: __m256, set: u8) -> __m256 {
    _mm256_permutevar8x32_ps(lanes, front_of(set))
}

/// Which lanes are in a set.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn front_of(set: u8) -> __m256i {
    let front = &FRONT[usize::from(set)];
    // SAFETY: the array has the 8 bytes of this unaligned load.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(front.as_ptr().cast()) })
}

/// Writes to the front of `out`.
///
/// # Panics
/// When it has no room for eight.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn store(out: &mut [f32], values: __m256) {
    let out = &mut out[..8];
    // SAFETY: the slice has the 32 bytes of this unaligned store.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
}

#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn load(weights: &[f32; 8]) -> __m256 {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_ps(weights.as_ptr()) }
}
