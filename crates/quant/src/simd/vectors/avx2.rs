//! The kernels of [`super`] on eight lanes.

use std::arch::x86_64::*;

use super::runs::Run;
use super::{HEADS, LANES, LINE, RUN, Vector};
use crate::simd::lanes::{load, store};

/// Chunks that are of one group.
const GROUP: usize = 4;

/// See [`super::score`]. A tile of `G` heads and `N` vectors has nine sums at most, so that they, a chunk of each query
/// and what is read ahead stay in the sixteen registers: a sum that did not would be waited for.
///
/// # Safety
/// - AVX2, FMA and F16C are available.
/// - Every vector is `num_bytes` long, and there is one.
pub(super) unsafe fn score<'a, V: Vector, R: Run<'a>>(
    vector: V,
    queries: &[f32],
    vectors: R,
    out: &mut [f32],
    stride: usize,
) {
    let batches = queries.chunks(HEADS * vector.head_dim());
    for (batch, queries) in batches.enumerate() {
        let out = &mut out[HEADS * batch * stride..];
        // SAFETY: as this function.
        unsafe {
            match queries.len() / vector.head_dim() {
                1 => score_heads::<V, R, 1, 4>(vector, queries, vectors, out, stride),
                2 => score_heads::<V, R, 2, 4>(vector, queries, vectors, out, stride),
                3 => score_heads::<V, R, 3, 3>(vector, queries, vectors, out, stride),
                _ => score_heads::<V, R, 4, 2>(vector, queries, vectors, out, stride),
            }
        }
    }
}

/// [`score`] for `G` heads, `N` vectors at a time: where they are not whole tiles, the last tile has some of the one before.
///
/// # Safety
/// As [`score`]; there is a vector.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_heads<'a, V: Vector, R: Run<'a>, const G: usize, const N: usize>(
    vector: V,
    queries: &[f32],
    vectors: R,
    out: &mut [f32],
    stride: usize,
) {
    let count = vectors.len();
    if count < N {
        // SAFETY: as this function.
        return unsafe { score_heads::<V, R, G, 1>(vector, queries, vectors, out, stride) };
    }
    for first in (0..count).step_by(N) {
        let first = first.min(count - N);
        // SAFETY: these vectors are there, and the rest is as this function.
        unsafe {
            // A closure would not be compiled into this function.
            let mut tile = [vectors.get(first); N];
            for (i, bytes) in tile.iter_mut().enumerate() {
                *bytes = vectors.get(first + i);
            }
            for line in (0..vector.num_bytes()).step_by(LINE) {
                for i in 0..N {
                    vectors.ask(first + i, line);
                }
            }
            for (head, &four) in score_tile::<V, G, N>(vector, queries, &tile).iter().enumerate() {
                let mut scores = [0.0; 4];
                _mm_storeu_ps(scores.as_mut_ptr(), four);
                out[head * stride + first..][..N].copy_from_slice(&scores[..N]);
            }
        }
    }
}

/// The scores of `G` heads with `N` vectors, four at most.
///
/// # Safety
/// As [`score`]; there are `G` queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn score_tile<V: Vector, const G: usize, const N: usize>(
    vector: V,
    queries: &[f32],
    tile: &[&[u8]; N],
) -> [__m128; G] {
    let head_dim = vector.head_dim();
    let chunks = head_dim / LANES;
    let mut sums = [[_mm256_setzero_ps(); N]; G];
    let whole = chunks / GROUP * GROUP;
    for begin in (0..whole).step_by(GROUP) {
        // SAFETY: each is one vector, which has these chunks, and so have the queries.
        unsafe { add_products::<V, G, N, GROUP>(vector, queries, tile, begin, &mut sums) };
    }
    for chunk in whole..chunks {
        // SAFETY: as before.
        unsafe { add_products::<V, G, N, 1>(vector, queries, tile, chunk, &mut sums) };
    }
    if !head_dim.is_multiple_of(LANES) {
        for (i, bytes) in tile.iter().enumerate() {
            let x = load(&vector.eight(bytes, chunks));
            for (sums, query) in sums.iter_mut().zip(queries.chunks_exact(head_dim)) {
                let query = load(&padded(&query[chunks * LANES..]));
                sums[i] = _mm256_fmadd_ps(query, x, sums[i]);
            }
        }
    }
    let scales = scales(vector, tile);
    let mut scores = [scales; G];
    for (scores, sums) in scores.iter_mut().zip(&sums) {
        let mut four = [_mm256_setzero_ps(); 4];
        four[..N].copy_from_slice(sums);
        let four = totals(four);
        *scores = if V::HAS_SCALE { _mm_mul_ps(four, scales) } else { four };
    }
    scores
}

/// Adds the products of chunks `begin..begin + C`, which are of one group.
///
/// # Safety
/// As [`score_tile`]; vectors have these chunks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_products<V: Vector, const G: usize, const N: usize, const C: usize>(
    vector: V,
    queries: &[f32],
    tile: &[&[u8]; N],
    begin: usize,
    sums: &mut [[__m256; N]; G],
) {
    // SAFETY: the vectors have this chunk.
    let mut groups = [unsafe { vector.group(tile[0], begin) }; N];
    for (group, bytes) in groups.iter_mut().zip(tile) {
        // SAFETY: as before.
        *group = unsafe { vector.group(bytes, begin) };
    }
    for chunk in begin..begin + C {
        for (i, (bytes, &group)) in tile.iter().zip(&groups).enumerate() {
            // SAFETY: the vector has this chunk.
            let x = unsafe { vector.lanes(bytes, chunk, group) };
            for (head, sums) in sums.iter_mut().enumerate() {
                let at = head * vector.head_dim() + chunk * LANES;
                // SAFETY: the chunk lies within the head's query; the load is unaligned.
                let query = unsafe { _mm256_loadu_ps(queries.as_ptr().add(at)) };
                sums[i] = _mm256_fmadd_ps(query, x, sums[i]);
            }
        }
    }
}

/// The sum of the lanes of each.
#[inline]
#[target_feature(enable = "avx")]
fn totals([a, b, c, d]: [__m256; 4]) -> __m128 {
    let four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four))
}

/// The values, then zeros.
fn padded(values: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..values.len()].copy_from_slice(values);
    out
}

/// The scales of up to four vectors.
#[inline]
#[target_feature(enable = "avx,f16c")]
fn scales<V: Vector>(vector: V, vectors: &[&[u8]]) -> __m128 {
    let mut bits = [0; 4];
    for (bits, bytes) in bits.iter_mut().zip(vectors) {
        *bits = vector.scale(bytes).to_bits();
    }
    // SAFETY: the array has the 8 bytes of this unaligned load.
    _mm_cvtph_ps(unsafe { _mm_loadl_epi64(bits.as_ptr().cast()) })
}

/// The weights of a run of vectors times the scales of the vectors, of each of some heads in a row of its own.
///
/// # Safety
/// AVX and F16C are available. There are `RUN` vectors at most.
#[target_feature(enable = "avx,f16c")]
pub(super) unsafe fn scale_weights<'a, V: Vector, R: Run<'a>>(
    vector: V,
    vectors: R,
    (weights, stride): (&[f32], usize),
    scaled: &mut [[f32; RUN]],
) {
    let mut bits = [0; RUN];
    let count = vectors.len();
    for (i, bits) in bits[..count].iter_mut().enumerate() {
        // SAFETY: there is an i-th vector.
        *bits = vector.scale(unsafe { vectors.get(i) }).to_bits();
    }
    let mut scales = [0.0; RUN];
    for (bits, scales) in bits.as_chunks::<LANES>().0.iter().zip(scales.as_chunks_mut().0) {
        // SAFETY: the array has the 16 bytes of this unaligned load.
        store(scales, _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) }));
    }
    for (head, scaled) in scaled.iter_mut().enumerate() {
        let weights = &weights[head * stride..][..count];
        for ((scaled, weight), scale) in scaled.iter_mut().zip(weights).zip(&scales) {
            *scaled = weight * scale;
        }
    }
}

/// See [`super::weighted_sum`]: of up to [`HEADS`] heads. A tile of `G` heads and `C` chunks has nine sums at most, as one of
/// [`score`].
///
/// # Safety
/// - AVX2, FMA and F16C are available.
/// - Every vector is `num_bytes` long, and each head has a weight for it.
pub(super) unsafe fn weighted_sum<'a, V: Vector, R: Run<'a>>(
    vector: V,
    vectors: R,
    weights: (&[f32], usize),
    sums: &mut [f32],
) {
    // SAFETY: as this function.
    unsafe {
        match sums.len() / vector.head_dim() {
            1 => sum_heads::<V, R, 1, 4>(vector, vectors, weights, sums),
            2 => sum_heads::<V, R, 2, 4>(vector, vectors, weights, sums),
            // Three chunks may be of two groups.
            3 if V::HAS_GROUPS => sum_heads::<V, R, 3, 2>(vector, vectors, weights, sums),
            3 => sum_heads::<V, R, 3, 3>(vector, vectors, weights, sums),
            _ => sum_heads::<V, R, HEADS, 2>(vector, vectors, weights, sums),
        }
    }
}

/// [`weighted_sum`] for `G` heads, `C` chunks at a time, then chunk by chunk, then what is left.
///
/// # Safety
/// As [`weighted_sum`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum_heads<'a, V: Vector, R: Run<'a>, const G: usize, const C: usize>(
    vector: V,
    vectors: R,
    weights: (&[f32], usize),
    sums: &mut [f32],
) {
    let chunks = vector.head_dim() / LANES;
    let mut chunk = 0;
    while chunk + C <= chunks {
        // SAFETY: as this function; these chunks lie within the vectors.
        unsafe { sum_tile::<V, R, G, C>(vector, vectors, weights, chunk, sums) };
        chunk += C;
    }
    if C > 2 && chunk + 2 <= chunks {
        // SAFETY: as this function; these chunks lie within the vectors.
        unsafe { sum_tile::<V, R, G, 2>(vector, vectors, weights, chunk, sums) };
        chunk += 2;
    }
    // SAFETY: as this function; so many chunks were summed.
    unsafe { sum_rest::<V, R, G>(vector, vectors, weights, chunk, sums) };
}

/// The sums of `G` heads from chunk `chunk` on: chunk by chunk, then what is left.
///
/// # Safety
/// As [`weighted_sum`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn sum_rest<'a, V: Vector, R: Run<'a>, const G: usize>(
    vector: V,
    vectors: R,
    (weights, stride): (&[f32], usize),
    mut chunk: usize,
    sums: &mut [f32],
) {
    let head_dim = vector.head_dim();
    let chunks = head_dim / LANES;
    while chunk < chunks {
        // SAFETY: as this function; this chunk lies within the vectors.
        unsafe { sum_tile::<V, R, G, 1>(vector, vectors, (weights, stride), chunk, sums) };
        chunk += 1;
    }
    if !head_dim.is_multiple_of(LANES) {
        for i in 0..vectors.len() {
            // SAFETY: there is an i-th vector.
            let rest = vector.eight(unsafe { vectors.get(i) }, chunks);
            for (head, sums) in sums.chunks_exact_mut(head_dim).enumerate() {
                for (sum, x) in sums[chunks * LANES..].iter_mut().zip(rest) {
                    *sum += weights[head * stride + i] * x;
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
unsafe fn sum_tile<'a, V: Vector, R: Run<'a>, const G: usize, const C: usize>(
    vector: V,
    vectors: R,
    (weights, stride): (&[f32], usize),
    chunk: usize,
    sums: &mut [f32],
) {
    // A tile reads a line of each vector at most, so that all tiles together ask for all lines; the last asks for the last.
    let line = (chunk / C * LINE).min(vector.num_bytes() - 1);
    let head_dim = vector.head_dim();
    let mut tile = [[_mm256_setzero_ps(); C]; G];
    for (row, sums) in tile.iter_mut().zip(sums.chunks_exact(head_dim)) {
        for (sum, from) in row.iter_mut().zip(&sums.as_chunks::<LANES>().0[chunk..]) {
            *sum = load(from);
        }
    }
    for i in 0..vectors.len() {
        let mut of_vector = [_mm256_setzero_ps(); G];
        // SAFETY: there is an i-th vector, and a weight of each head for it.
        let bytes = unsafe {
            vectors.ask(i, line);
            for (head, weight) in of_vector.iter_mut().enumerate() {
                *weight = _mm256_set1_ps(*weights.get_unchecked(head * stride + i));
            }
            vectors.get(i)
        };
        // SAFETY: the vector has these chunks, and they are of one group.
        let group = unsafe { vector.group(bytes, chunk) };
        for c in 0..C {
            // SAFETY: the vector has this chunk.
            let x = unsafe { vector.lanes(bytes, chunk + c, group) };
            for (row, &weight) in tile.iter_mut().zip(&of_vector) {
                row[c] = _mm256_fmadd_ps(weight, x, row[c]);
            }
        }
    }
    for (row, sums) in tile.iter().zip(sums.chunks_exact_mut(head_dim)) {
        for (sum, to) in row.iter().zip(&mut sums.as_chunks_mut::<LANES>().0[chunk..]) {
            store(to, *sum);
        }
    }
}
