//! The kernels of [`super`] on eight lanes.

use std::arch::x86_64::*;

use super::{LANES, Vector};
use crate::rows::VectorList;
use crate::simd::lanes::{load, store};

/// Vectors that are scored side by side.
const VECTORS: usize = 4;

/// See [`super::score`]. The sums of `G` heads with four vectors are twelve at most, so that they and two values stay in
/// the sixteen registers.
///
/// # Safety
/// AVX2, FMA and F16C are available.
pub(super) unsafe fn score<V: Vector>(
    vector: V,
    queries: &[f32],
    (vectors, soon): (VectorList<'_>, VectorList<'_>),
    out: &mut [f32],
    stride: usize,
) {
    for (batch, queries) in queries.chunks(3 * vector.head_dim()).enumerate() {
        let out = &mut out[3 * batch * stride..];
        let lists = (vectors, if batch == 0 { soon } else { VectorList::NONE });
        // SAFETY: as this function.
        unsafe {
            match queries.len() / vector.head_dim() {
                1 => score_heads::<V, 1>(vector, queries, lists, out, stride),
                2 => score_heads::<V, 2>(vector, queries, lists, out, stride),
                _ => score_heads::<V, 3>(vector, queries, lists, out, stride),
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
    (vectors, soon): (VectorList<'_>, VectorList<'_>),
    out: &mut [f32],
    stride: usize,
) {
    let (head_dim, num_bytes) = (vector.head_dim(), vector.num_bytes());
    let (count, chunks) = (vectors.count(num_bytes), head_dim / LANES);
    let queries: [&[f32]; G] = std::array::from_fn(|g| &queries[g * head_dim..][..head_dim]);
    let query_chunks = queries.map(|query| query.as_chunks::<LANES>().0);
    let query_rest = queries.map(|query| padded(&query[chunks * LANES..]));
    for first in (0..count).step_by(VECTORS) {
        let four: [&[u8]; VECTORS] =
            std::array::from_fn(|i| vectors.get((first + i).min(count - 1), num_bytes));
        soon.request(first..first + VECTORS, num_bytes);
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; G];
        for chunk in (0..chunks / 2 * 2).step_by(2) {
            for (i, bytes) in four.iter().enumerate() {
                // SAFETY: `bytes` is one vector, which has these chunks.
                let [x, y] = unsafe { vector.lanes::<2>(bytes, chunk) };
                for (sums, query) in sums.iter_mut().zip(&query_chunks) {
                    sums[i] = _mm256_fmadd_ps(load(&query[chunk]), x, sums[i]);
                    sums[i] = _mm256_fmadd_ps(load(&query[chunk + 1]), y, sums[i]);
                }
            }
        }
        if !chunks.is_multiple_of(2) {
            for (i, bytes) in four.iter().enumerate() {
                // SAFETY: `bytes` is one vector, which has this chunk.
                let [x] = unsafe { vector.lanes::<1>(bytes, chunks - 1) };
                for (sums, query) in sums.iter_mut().zip(&query_chunks) {
                    sums[i] = _mm256_fmadd_ps(load(&query[chunks - 1]), x, sums[i]);
                }
            }
        }
        if !head_dim.is_multiple_of(LANES) {
            for (i, bytes) in four.iter().enumerate() {
                let x = load(&vector.eight(bytes, chunks));
                for (sums, query) in sums.iter_mut().zip(&query_rest) {
                    sums[i] = _mm256_fmadd_ps(load(query), x, sums[i]);
                }
            }
        }
        for (g, &[a, b, c, d]) in sums.iter().enumerate() {
            let four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let four = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four));
            put(four, &mut out[g * stride + first..], count - first);
        }
    }
}

/// The values, then zeros.
fn padded(values: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..values.len()].copy_from_slice(values);
    out
}

/// Writes the first of four scores, as many as there are vectors left.
#[inline]
#[target_feature(enable = "avx")]
fn put(four: __m128, out: &mut [f32], left: usize) {
    let mut scores = [0.0; VECTORS];
    // SAFETY: the array has the 16 bytes of this unaligned store.
    unsafe { _mm_storeu_ps(scores.as_mut_ptr(), four) };
    match out.first_chunk_mut() {
        Some(out) if left >= VECTORS => *out = scores,
        _ => out[..left].copy_from_slice(&scores[..left]),
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
