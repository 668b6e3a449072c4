//! The AVX2 forms of the row kernels: eight values at a time, then what is left one by one.

#![expect(unsafe_code, reason = "loads by pointer")]

use std::arch::x86_64::*;

use super::scalar;
use crate::simd::lanes::{horizontal_sum, load, store};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_f16(query: &[f32], row: &[u8]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<8>();
    let (values, row_rest) = row.as_chunks::<16>();
    let mut sum = _mm256_setzero_ps();
    for (query, values) in queries.iter().zip(values) {
        sum = _mm256_fmadd_ps(load(query), load_f16(values), sum);
    }
    horizontal_sum(sum) + scalar::dot_f16(query_rest, row_rest)
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn dot_int8(query: &[f32], codes: &[u8]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<8>();
    let (chunks, codes_rest) = codes.as_chunks::<8>();
    let mut sum = _mm256_setzero_ps();
    for (query, codes) in queries.iter().zip(chunks) {
        sum = _mm256_fmadd_ps(load(query), load_int8(codes), sum);
    }
    horizontal_sum(sum) + scalar::dot_int8(query_rest, codes_rest)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_scaled_f16(weight: f32, row: &[u8], sums: &mut [f32]) {
    let (sums, sums_rest) = sums.as_chunks_mut::<8>();
    let (values, row_rest) = row.as_chunks::<16>();
    let weights = _mm256_set1_ps(weight);
    for (sum, values) in sums.iter_mut().zip(values) {
        store(sum, _mm256_fmadd_ps(weights, load_f16(values), load(sum)));
    }
    scalar::add_scaled_f16(weight, row_rest, sums_rest);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn add_scaled_int8(weight: f32, codes: &[u8], sums: &mut [f32]) {
    let (sums, sums_rest) = sums.as_chunks_mut::<8>();
    let (chunks, codes_rest) = codes.as_chunks::<8>();
    let weights = _mm256_set1_ps(weight);
    for (sum, codes) in sums.iter_mut().zip(chunks) {
        store(sum, _mm256_fmadd_ps(weights, load_int8(codes), load(sum)));
    }
    scalar::add_scaled_int8(weight, codes_rest, sums_rest);
}

#[target_feature(enable = "avx,f16c")]
fn load_f16(from: &[u8; 16]) -> __m256 {
    // SAFETY: the array holds what is read.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
fn load_int8(from: &[u8; 8]) -> __m256 {
    // SAFETY: the array holds what is read.
    let codes = unsafe { _mm_loadl_epi64(from.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))
}
