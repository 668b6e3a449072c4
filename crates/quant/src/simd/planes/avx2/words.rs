//! Nibbles times words: two planes and eight bytes of each at a time.

use std::arch::x86_64::*;

use crate::keys::PLANE_BYTES;

/// Bytes of a plane whose tokens are summed in one pass.
const BYTES: usize = 8;

/// Sums of 32 tokens, eight neighbouring ones in a vector.
pub(super) type Products = [__m256i; 4];

/// The sums over planes, an even number, of each token's nibbles times the words of `HEADS` heads.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn products<const HEADS: usize>(
    codes: &[u8],
    words: [&[i16]; HEADS],
) -> [Products; HEADS] {
    let num_pairs = codes.len() / (2 * PLANE_BYTES);
    assert!(words.iter().all(|words| words.len() >= 2 * num_pairs), "a word for every plane");
    // SAFETY: so many pairs of planes lie in the codes, and there are two words for each.
    let [first, second] = unsafe { [part(codes, 0, words), part(codes, BYTES, words)] };
    let mut products = [[_mm256_setzero_si256(); 4]; HEADS];
    for (products, (first, second)) in products.iter_mut().zip(first.into_iter().zip(second)) {
        for nibble in 0..2 {
            // Of bytes of even place come eight neighbouring tokens, of those of odd place the next eight.
            let apart = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
            let first = _mm256_permutevar8x32_epi32(first[nibble], apart);
            let second = _mm256_permutevar8x32_epi32(second[nibble], apart);
            products[2 * nibble] = _mm256_permute2x128_si256::<0x20>(first, second);
            products[2 * nibble + 1] = _mm256_permute2x128_si256::<0x31>(first, second);
        }
    }
    products
}

/// The sums of the tokens of the bytes `first..first + BYTES` of every plane: of their lower nibbles, and of
/// their upper ones.
///
/// # Safety
/// - `codes` are whole pairs of planes, and there are two words for each pair.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn part<const HEADS: usize>(
    codes: &[u8],
    first: usize,
    words: [&[i16]; HEADS],
) -> [[__m256i; 2]; HEADS] {
    let mut sums = [[_mm256_setzero_si256(); 2]; HEADS];
    for pair in 0..codes.len() / (2 * PLANE_BYTES) {
        let at = 2 * pair * PLANE_BYTES + first;
        // SAFETY: both planes lie in the codes, and eight bytes from `first` on in each of them.
        let [a, b] = unsafe { [at, at + PLANE_BYTES].map(|at| codes.as_ptr().add(at)) };
        // SAFETY: as above.
        let [a, b] = unsafe { [_mm_loadl_epi64(a.cast()), _mm_loadl_epi64(b.cast())] };
        let codes = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
        let lower = _mm256_and_si256(codes, _mm256_set1_epi16(15));
        let codes = [lower, _mm256_srli_epi16::<4>(codes)];
        for (sums, words) in sums.iter_mut().zip(words) {
            // SAFETY: there are two words for every pair.
            let words = unsafe { words.as_ptr().add(2 * pair).cast::<i32>().read_unaligned() };
            let words = _mm256_set1_epi32(words);
            for (sum, codes) in sums.iter_mut().zip(codes) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(codes, words));
            }
        }
    }
    sums
}
