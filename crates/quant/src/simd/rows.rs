//! One exact vector against a group of queries, and a weighted vector added to a group of sums.

#![expect(unsafe_code, reason = "AVX2 intrinsics behind a Level")]

use half::f16;

use crate::Level;

/// `out[head · stride] = queries[head] · row`, `row` in f16.
pub(crate) fn dot_f16(level: Level, queries: &[f32], row: &[u8], out: &mut [f32], stride: usize) {
    let head_dim = row.len() / 2;
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for (head, query) in queries.chunks_exact(head_dim).enumerate() {
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do; the slices agree.
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
            // SAFETY: an AVX2 level exists only where AVX2 and FMA do; the slices agree.
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
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do; the slices agree.
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
            // SAFETY: an AVX2 level exists only where AVX2 and FMA do; the slices agree.
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

fn halves(row: &[u8]) -> impl Iterator<Item = f32> {
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

    use half::f16;

    /// # Safety
    /// - AVX2, FMA and F16C are available.
    /// - `row` holds two bytes per value of `query`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn dot_f16(query: &[f32], row: &[u8]) -> f32 {
        debug_assert_eq!(row.len(), 2 * query.len());
        let (chunks, rest) = query.as_chunks::<8>();
        let mut sum = _mm256_setzero_ps();
        for (i, chunk) in chunks.iter().enumerate() {
            // SAFETY: chunk `i` of the row has 16 bytes, of the query 8 values.
            let (q, x) =
                unsafe { (_mm256_loadu_ps(chunk.as_ptr()), load_f16(row.as_ptr().add(16 * i))) };
            sum = _mm256_fmadd_ps(q, x, sum);
        }
        let rest_row = &row[16 * chunks.len()..];
        let tail = rest.iter().zip(super::halves(rest_row)).map(|(q, x)| q * x);
        horizontal_sum(sum) + tail.sum::<f32>()
    }

    /// # Safety
    /// - AVX2 and FMA are available.
    /// - `codes` holds one byte per value of `query`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dot_int8(query: &[f32], codes: &[u8]) -> f32 {
        debug_assert_eq!(codes.len(), query.len());
        let (chunks, rest) = query.as_chunks::<8>();
        let mut sum = _mm256_setzero_ps();
        for (i, chunk) in chunks.iter().enumerate() {
            // SAFETY: chunk `i` of the codes has 8 bytes, of the query 8 values.
            let (q, x) =
                unsafe { (_mm256_loadu_ps(chunk.as_ptr()), load_int8(codes.as_ptr().add(8 * i))) };
            sum = _mm256_fmadd_ps(q, x, sum);
        }
        let tail = rest.iter().zip(&codes[8 * chunks.len()..]);
        horizontal_sum(sum) + tail.map(|(q, &x)| q * f32::from(x as i8)).sum::<f32>()
    }

    /// # Safety
    /// - AVX2, FMA and F16C are available.
    /// - `row` holds two bytes per value of `sums`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn add_scaled_f16(weight: f32, row: &[u8], sums: &mut [f32]) {
        debug_assert_eq!(row.len(), 2 * sums.len());
        let (chunks, rest) = sums.as_chunks_mut::<8>();
        let weights = _mm256_set1_ps(weight);
        for (i, chunk) in chunks.iter_mut().enumerate() {
            // SAFETY: chunk `i` of the row has 16 bytes, of the sums 8 values.
            unsafe {
                let x = load_f16(row.as_ptr().add(16 * i));
                let sum = _mm256_fmadd_ps(weights, x, _mm256_loadu_ps(chunk.as_ptr()));
                _mm256_storeu_ps(chunk.as_mut_ptr(), sum);
            }
        }
        for (sum, x) in rest.iter_mut().zip(row[16 * chunks.len()..].as_chunks::<2>().0) {
            *sum += weight * f16::from_le_bytes(*x).to_f32();
        }
    }

    /// # Safety
    /// - AVX2 and FMA are available.
    /// - `codes` holds one byte per value of `sums`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn add_scaled_int8(weight: f32, codes: &[u8], sums: &mut [f32]) {
        debug_assert_eq!(codes.len(), sums.len());
        let (chunks, rest) = sums.as_chunks_mut::<8>();
        let weights = _mm256_set1_ps(weight);
        for (i, chunk) in chunks.iter_mut().enumerate() {
            // SAFETY: chunk `i` of the codes has 8 bytes, of the sums 8 values.
            unsafe {
                let x = load_int8(codes.as_ptr().add(8 * i));
                let sum = _mm256_fmadd_ps(weights, x, _mm256_loadu_ps(chunk.as_ptr()));
                _mm256_storeu_ps(chunk.as_mut_ptr(), sum);
            }
        }
        for (sum, &x) in rest.iter_mut().zip(&codes[8 * chunks.len()..]) {
            *sum += weight * f32::from(x as i8);
        }
    }

    /// # Safety
    /// - AVX and F16C are available; 16 bytes can be read.
    #[target_feature(enable = "avx,f16c")]
    unsafe fn load_f16(from: *const u8) -> __m256 {
        // SAFETY: the caller lets 16 bytes be read.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    /// # Safety
    /// - AVX2 is available; 8 bytes can be read.
    #[target_feature(enable = "avx2")]
    unsafe fn load_int8(from: *const u8) -> __m256 {
        // SAFETY: the caller lets 8 bytes be read.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[target_feature(enable = "avx")]
    fn horizontal_sum(x: __m256) -> f32 {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}
