//! What the kernels for x86-64 share: eight f32 lanes, loaded, stored and summed.

#![expect(unsafe_code, reason = "loads and stores by pointer")]

use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load(values: &[f32; 8]) -> __m256 {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn store(out: &mut [f32; 8], values: __m256) {
    // SAFETY: the array has the 32 bytes of this unaligned store.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) }
}

/// The sum of the eight lanes, pairwise.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn horizontal_sum(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
