//! One exact vector against a group of queries, and a weighted vector added to a group of sums.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use half::f16;

use crate::Level;

/// `out[head · stride] = queries[head] · row`, `row` in f16.
pub(crate) fn dot_f16(level: Level, queries: &[f32], row: &[u8], out: &mut [f32], stride: usize) {
    let head_dim = row.len() / 2;
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for (head, query) in queries.chunks_exact(head_dim).enumerate() {
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
            out[head * stride] = unsafe { avx2::dot_f16(query, row) };
        }
        return;
    }
    let _ = level;
    for (head, query) in queries.chunks_exact(head_dim).enumerate() {
        out[head * stride] = query.iter().zip(halves(row)).map(|(q, x)| q * x).sum();
    }
}

/// `out[head · stride] = queries[head] · row`, `row` in int8 with its scale.
pub(crate) fn dot_int8(level: Level, queries: &[f32], row: &[u8], out: &mut [f32], stride: usize) {
    let (codes, scale) = int8_row(row);
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for (head, query) in queries.chunks_exact(codes.len()).enumerate() {
            // SAFETY: an AVX2 level exists only where AVX2 and FMA do.
            out[head * stride] = scale * unsafe { avx2::dot_int8(query, codes) };
        }
        return;
    }
    let _ = level;
    for (head, query) in queries.chunks_exact(codes.len()).enumerate() {
        let dot: f32 = query.iter().zip(codes).map(|(q, &x)| q * f32::from(x as i8)).sum();
        out[head * stride] = scale * dot;
    }
}

/// `sums[head] += weights[head] · row`, `row` in f16.
pub(crate) fn add_scaled_f16(level: Level, weights: &[f32], row: &[u8], sums: &mut [f32]) {
    let head_dim = row.len() / 2;
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for (&weight, sums) in weights.iter().zip(sums.chunks_exact_mut(head_dim)) {
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
            unsafe { avx2::add_scaled_f16(weight, row, sums) };
        }
        return;
    }
    let _ = level;
    for (weight, sums) in weights.iter().zip(sums.chunks_exact_mut(head_dim)) {
        for (sum, x) in sums.iter_mut().zip(halves(row)) {
            *sum += weight * x;
        }
    }
}

/// `sums[head] += weights[head] · row`, `row` in int8 with its scale.
pub(crate) fn add_scaled_int8(level: Level, weights: &[f32], row: &[u8], sums: &mut [f32]) {
    let (codes, scale) = int8_row(row);
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for (weight, sums) in weights.iter().zip(sums.chunks_exact_mut(codes.len())) {
            // SAFETY: an AVX2 level exists only where AVX2 and FMA do.
            unsafe { avx2::add_scaled_int8(weight * scale, codes, sums) };
        }
        return;
    }
    let _ = level;
    for (weight, sums) in weights.iter().zip(sums.chunks_exact_mut(codes.len())) {
        for (sum, &x) in sums.iter_mut().zip(codes) {
            *sum += weight * scale * f32::from(x as i8);
        }
    }
}

pub(super) fn halves(row: &[u8]) -> impl Iterator<Item = f32> {
    row.as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x).to_f32())
}

fn int8_row(row: &[u8]) -> (&[u8], f32) {
    let (codes, tail) = row.split_at(row.len() - 2);
    (codes, f16::from_le_bytes([tail[0], tail[1]]).to_f32())
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Eight values at a time, then what is left one by one.

    use std::arch::x86_64::*;

    use super::halves;
    use crate::simd::lanes::{horizontal_sum, load, store};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dot_f16(query: &[f32], row: &[u8]) -> f32 {
        let (queries, query_rest) = query.as_chunks::<8>();
        let (values, row_rest) = row.as_chunks::<16>();
        let mut sum = _mm256_setzero_ps();
        for (query, values) in queries.iter().zip(values) {
            sum = _mm256_fmadd_ps(load(query), load_f16(values), sum);
        }
        let rest = query_rest.iter().zip(halves(row_rest)).map(|(q, x)| q * x);
        horizontal_sum(sum) + rest.sum::<f32>()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dot_int8(query: &[f32], codes: &[u8]) -> f32 {
        let (queries, query_rest) = query.as_chunks::<8>();
        let (chunks, codes_rest) = codes.as_chunks::<8>();
        let mut sum = _mm256_setzero_ps();
        for (query, codes) in queries.iter().zip(chunks) {
            sum = _mm256_fmadd_ps(load(query), load_int8(codes), sum);
        }
        let rest = query_rest.iter().zip(codes_rest).map(|(q, &x)| q * f32::from(x as i8));
        horizontal_sum(sum) + rest.sum::<f32>()
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn add_scaled_f16(weight: f32, row: &[u8], sums: &mut [f32]) {
        let (sums, sums_rest) = sums.as_chunks_mut::<8>();
        let (values, row_rest) = row.as_chunks::<16>();
        let weights = _mm256_set1_ps(weight);
        for (sum, values) in sums.iter_mut().zip(values) {
            store(sum, _mm256_fmadd_ps(weights, load_f16(values), load(sum)));
        }
        for (sum, x) in sums_rest.iter_mut().zip(halves(row_rest)) {
            *sum += weight * x;
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn add_scaled_int8(weight: f32, codes: &[u8], sums: &mut [f32]) {
        let (sums, sums_rest) = sums.as_chunks_mut::<8>();
        let (chunks, codes_rest) = codes.as_chunks::<8>();
        let weights = _mm256_set1_ps(weight);
        for (sum, codes) in sums.iter_mut().zip(chunks) {
            store(sum, _mm256_fmadd_ps(weights, load_int8(codes), load(sum)));
        }
        for (sum, &x) in sums_rest.iter_mut().zip(codes_rest) {
            *sum += weight * f32::from(x as i8);
        }
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
}
