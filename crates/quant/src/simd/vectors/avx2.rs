//! The kernels of [`super`] on eight lanes.

use std::arch::x86_64::*;

use super::{LANES, Vector};
use crate::simd::lanes::{horizontal_sum, load, store};

/// See [`super::score`].
///
/// # Safety
/// AVX2, FMA and F16C are available.
pub(super) unsafe fn score<V: Vector>(
    vector: V,
    queries: &[f32],
    vectors: &[u8],
    out: &mut [f32],
    stride: usize,
) {
    for (batch, queries) in queries.chunks(4 * vector.head_dim()).enumerate() {
        let out = &mut out[4 * batch * stride..];
        // SAFETY: as this function.
        unsafe {
            match queries.len() / vector.head_dim() {
                1 => score_heads::<V, 1>(vector, queries, vectors, out, stride),
                2 => score_heads::<V, 2>(vector, queries, vectors, out, stride),
                3 => score_heads::<V, 3>(vector, queries, vectors, out, stride),
                _ => score_heads::<V, 4>(vector, queries, vectors, out, stride),
            }
        }
    }
}

/// [`score`] for `G` heads.
///
/// # Safety
/// AVX2, FMA and F16C are available.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_heads<V: Vector, const G: usize>(
    vector: V,
    queries: &[f32],
    vectors: &[u8],
    out: &mut [f32],
    stride: usize,
) {
    let head_dim = vector.head_dim();
    let chunks = head_dim / LANES;
    let queries: [&[f32]; G] = std::array::from_fn(|g| &queries[g * head_dim..][..head_dim]);
    let query_chunks = queries.map(|query| query.as_chunks::<LANES>().0);
    for (i, bytes) in vectors.chunks_exact(vector.num_bytes()).enumerate() {
        let mut sums = [_mm256_setzero_ps(); G];
        let mut chunk = 0;
        while chunk + 4 <= chunks {
            // SAFETY: `bytes` is one vector, which has these chunks.
            let values = unsafe { vector.lanes::<4>(bytes, chunk) };
            for (sum, query) in sums.iter_mut().zip(&query_chunks) {
                for (k, &x) in values.iter().enumerate() {
                    *sum = _mm256_fmadd_ps(load(&query[chunk + k]), x, *sum);
                }
            }
            chunk += 4;
        }
        while chunk < chunks {
            // SAFETY: `bytes` is one vector, which has this chunk.
            let [x] = unsafe { vector.lanes::<1>(bytes, chunk) };
            for (sum, query) in sums.iter_mut().zip(&query_chunks) {
                *sum = _mm256_fmadd_ps(load(&query[chunk]), x, *sum);
            }
            chunk += 1;
        }
        for (g, sum) in sums.iter().enumerate() {
            out[g * stride + i] = horizontal_sum(*sum);
        }
        if !head_dim.is_multiple_of(LANES) {
            let rest = vector.eight(bytes, chunks);
            for (g, query) in queries.iter().enumerate() {
                let products = query[chunks * LANES..].iter().zip(rest).map(|(q, x)| q * x);
                out[g * stride + i] += products.sum::<f32>();
            }
        }
    }
}

/// See [`super::weighted_sum`]. A tile of `G` heads and `C` chunks holds at most twelve sums, so that
/// they, the values and a weight stay in the sixteen registers.
///
/// # Safety
/// - AVX2, FMA and F16C are available.
/// - Every vector is `num_bytes` long and `weights` holds one of each head for it.
pub(super) unsafe fn weighted_sum<V: Vector>(
    vector: V,
    vectors: &[&[u8]],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    for (batch, sums) in sums.chunks_mut(8 * vector.head_dim()).enumerate() {
        let weights = &weights[8 * batch * stride..];
        // SAFETY: as this function.
        unsafe {
            match sums.len() / vector.head_dim() {
                1 => sum_heads::<V, 1, 4>(vector, vectors, weights, stride, sums),
                2 => sum_heads::<V, 2, 4>(vector, vectors, weights, stride, sums),
                3 => sum_heads::<V, 3, 2>(vector, vectors, weights, stride, sums),
                4 => sum_heads::<V, 4, 2>(vector, vectors, weights, stride, sums),
                5 => sum_heads::<V, 5, 2>(vector, vectors, weights, stride, sums),
                6 => sum_heads::<V, 6, 2>(vector, vectors, weights, stride, sums),
                7 => sum_heads::<V, 7, 1>(vector, vectors, weights, stride, sums),
                _ => sum_heads::<V, 8, 1>(vector, vectors, weights, stride, sums),
            }
        }
    }
}

/// [`weighted_sum`] for `G` heads, `C` chunks at a time, then chunk by chunk, then what is left.
///
/// # Safety
/// As [`weighted_sum`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_heads<V: Vector, const G: usize, const C: usize>(
    vector: V,
    vectors: &[&[u8]],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    let head_dim = vector.head_dim();
    let chunks = head_dim / LANES;
    let weights: [&[f32]; G] = std::array::from_fn(|g| &weights[g * stride..][..vectors.len()]);
    let mut chunk = 0;
    while chunk + C <= chunks {
        // SAFETY: as this function; these chunks lie within the vectors.
        unsafe { sum_tile::<V, G, C>(vector, vectors, weights, chunk, sums) };
        chunk += C;
    }
    // SAFETY: as this function; so many chunks were summed.
    unsafe { sum_rest::<V, G>(vector, vectors, weights, chunk, sums) };
}

/// The sums of `G` heads from chunk `chunk` on: chunk by chunk, then what is left.
///
/// # Safety
/// As [`weighted_sum`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn sum_rest<V: Vector, const G: usize>(
    vector: V,
    vectors: &[&[u8]],
    weights: [&[f32]; G],
    mut chunk: usize,
    sums: &mut [f32],
) {
    let head_dim = vector.head_dim();
    let chunks = head_dim / LANES;
    while chunk < chunks {
        // SAFETY: as this function; this chunk lies within the vectors.
        unsafe { sum_tile::<V, G, 1>(vector, vectors, weights, chunk, sums) };
        chunk += 1;
    }
    if !head_dim.is_multiple_of(LANES) {
        for (i, bytes) in vectors.iter().enumerate() {
            let rest = vector.eight(bytes, chunks);
            for (sums, weights) in sums.chunks_exact_mut(head_dim).zip(weights) {
                for (sum, x) in sums[chunks * LANES..].iter_mut().zip(rest) {
                    *sum += weights[i] * x;
                }
            }
        }
    }
}

/// Chunks `chunk..chunk + C` of the sums of `G` heads.
///
/// # Safety
/// - AVX2, FMA and F16C are available.
/// - Every vector is `num_bytes` long and has these chunks; each head has a weight for it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_tile<V: Vector, const G: usize, const C: usize>(
    vector: V,
    vectors: &[&[u8]],
    weights: [&[f32]; G],
    chunk: usize,
    sums: &mut [f32],
) {
    let head_dim = vector.head_dim();
    let mut tile = [[_mm256_setzero_ps(); C]; G];
    for (row, sums) in tile.iter_mut().zip(sums.chunks_exact(head_dim)) {
        for (sum, from) in row.iter_mut().zip(&sums.as_chunks::<LANES>().0[chunk..]) {
            *sum = load(from);
        }
    }
    for (i, bytes) in vectors.iter().enumerate() {
        // SAFETY: the vector has these chunks.
        let values = unsafe { vector.lanes::<C>(bytes, chunk) };
        for (row, weights) in tile.iter_mut().zip(&weights) {
            // SAFETY: each head has a weight for every vector.
            let weight = _mm256_set1_ps(unsafe { *weights.get_unchecked(i) });
            for (sum, &x) in row.iter_mut().zip(&values) {
                *sum = _mm256_fmadd_ps(weight, x, *sum);
            }
        }
    }
    for (row, sums) in tile.iter().zip(sums.chunks_exact_mut(head_dim)) {
        for (sum, to) in row.iter().zip(&mut sums.as_chunks_mut::<LANES>().0[chunk..]) {
            store(to, *sum);
        }
    }
}
