//! Vectors against a group of heads: scores of queries, and sums under weights.
//!
//! The query heads of a group share the keys and values of one KV head, so both kernels read and convert
//! a vector once for all of them:
//!
//! - [`score`] keeps a group's sums of products with a few vectors in registers, along those vectors;
//! - [`weighted_sum`] keeps some channels of a group's sums in registers along a run of vectors. The
//!   vectors are read again for the next channels, from the first-level cache, where a run should fit.
//!
//! Both ask the memory for the vectors that come next (`soon`), line by line as they go: many at a time would have the
//! processor wait, and then the memory.
//!
//! What lies in the bytes is a [`Vector`]: it hands out eight values at a time, or sixteen. The kernels are written
//! once per instruction set, the formats once for both (`formats`, `grouped`).

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod formats;
mod grouped;
#[cfg(target_arch = "x86_64")]
mod runs;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(crate) use formats::{Bf16, F16, Fp8, Int8};
pub(crate) use grouped::Integers;

use half::f16;

use crate::Level;
use crate::rows::VectorList;
#[cfg(target_arch = "x86_64")]
use runs::{Beside, InRows, Run};

/// Values per chunk: the lanes of a vector register.
const LANES: usize = 8;

/// Vectors of a weighted sum that are walked over again for the next channels, from the first-level cache.
#[cfg(target_arch = "x86_64")]
const RUN: usize = 64;

/// Heads of a pass over vectors at most.
#[cfg(target_arch = "x86_64")]
const HEADS: usize = 4;

/// Bytes of a line of the caches.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// How vectors of one format and length lie in their bytes.
pub(crate) trait Vector: Copy {
    /// Whether each vector has a scale of its own. [`Vector::eight`] and the lanes give values that are yet to be multiplied
    /// by it.
    #[cfg(target_arch = "x86_64")]
    const HAS_SCALE: bool = false;

    /// Whether chunks may be of different groups.
    #[cfg(target_arch = "x86_64")]
    const HAS_GROUPS: bool = false;

    /// What the chunks of a group have in common beside the vector's scale. A group is some fours of chunks, each from a
    /// multiple of four.
    #[cfg(target_arch = "x86_64")]
    type Group: Copy;

    /// Values of a vector.
    fn head_dim(&self) -> usize;

    /// Bytes of a vector.
    fn num_bytes(&self) -> usize;

    /// The scale of the vector in `bytes`; 1 where there is none.
    fn scale(&self, _bytes: &[u8]) -> f16 {
        f16::ONE
    }

    /// The values from `8 · chunk` on of the vector in `bytes`, zero beyond its end.
    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES];

    /// What the chunks of a chunk's group have in common.
    ///
    /// # Safety
    /// - AVX2, FMA and F16C are available.
    /// - `bytes` is `num_bytes` long and the chunk lies within `head_dim`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn group(&self, bytes: &[u8], chunk: usize) -> Self::Group;

    /// The values of a chunk, as [`Vector::eight`] gives them up to one rounding.
    ///
    /// # Safety
    /// As [`Vector::group`], which gave `group` for this chunk.
    #[cfg(target_arch = "x86_64")]
    unsafe fn lanes(&self, bytes: &[u8], chunk: usize, group: Self::Group) -> __m256;

    /// The values of a chunk, which is even, and of the next, as [`Vector::lanes`] gives them.
    ///
    /// # Safety
    /// As [`Vector::lanes`], for both chunks; AVX-512 F is available, too.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    unsafe fn wide(&self, bytes: &[u8], chunk: usize, group: Self::Group) -> __m512 {
        // SAFETY: the vector has the two chunks, which are of one group.
        let (low, high) =
            unsafe { (self.lanes(bytes, chunk, group), self.lanes(bytes, chunk + 1, group)) };
        let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
        _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(low), high))
    }
}

/// Whether both kernels have a form for `level`; they run their scalar one where not.
pub(crate) fn have_form(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        return true;
    }
    level == Level::SCALAR
}

/// `out[head · stride + i] = queries[head] · vector i` for `queries [num_heads, head_dim]`. A score does not depend on
/// what else is in the list. Nothing is written for vectors of no values.
///
/// # Panics
/// When `out` is too short, `stride` less than the vectors of several heads, or a vector has another length than its format.
pub(crate) fn score<V: Vector>(
    level: Level,
    vector: V,
    queries: &[f32],
    (vectors, soon): (VectorList<'_>, VectorList<'_>),
    out: &mut [f32],
    stride: usize,
) {
    let (head_dim, num_bytes) = (vector.head_dim(), vector.num_bytes());
    let count = vectors.count(num_bytes);
    if head_dim == 0 || queries.is_empty() || count == 0 {
        return;
    }
    let num_heads = queries.len() / head_dim;
    assert!(queries.len().is_multiple_of(head_dim), "whole queries");
    assert!(has_rows(out.len(), num_heads, stride, count), "a place for every score");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do; vectors are as long as they have to be.
        unsafe {
            match vectors {
                VectorList::Beside(bytes) => {
                    let run = Beside::new(bytes, soon, num_bytes);
                    avx2::score(vector, queries, run, out, stride);
                }
                VectorList::InRows { rows, at } => {
                    let run = InRows::new(rows, at, soon, num_bytes);
                    avx2::score(vector, queries, run, out, stride);
                }
            }
        }
        return;
    }
    let _ = (level, soon);
    for i in 0..count {
        let bytes = vectors.get(i, num_bytes);
        for head in 0..num_heads {
            out[head * stride + i] = 0.0;
        }
        for chunk in 0..head_dim.div_ceil(LANES) {
            let values = vector.eight(bytes, chunk);
            for (head, query) in queries.chunks_exact(head_dim).enumerate() {
                let products = query[chunk * LANES..].iter().zip(values).map(|(q, x)| q * x);
                out[head * stride + i] += products.sum::<f32>();
            }
        }
        let scale = vector.scale(bytes).to_f32();
        for head in 0..num_heads {
            out[head * stride + i] *= scale;
        }
    }
}

/// `sums[head] += Σ weights[head · stride + i] · vector i` for `sums [num_heads, head_dim]`.
///
/// # Panics
/// When a vector has another length than its format, or there is not a weight of each head for it.
pub(crate) fn weighted_sum<V: Vector>(
    level: Level,
    vector: V,
    (vectors, soon): (VectorList<'_>, VectorList<'_>),
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    let (head_dim, num_bytes) = (vector.head_dim(), vector.num_bytes());
    let count = vectors.count(num_bytes);
    if sums.is_empty() || count == 0 {
        return;
    }
    assert!(sums.len().is_multiple_of(head_dim), "whole rows of sums");
    let num_heads = sums.len() / head_dim;
    assert!(has_rows(weights.len(), num_heads, stride, count), "a weight for each vector");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        match vectors {
            VectorList::Beside(bytes) => {
                let run = Beside::new(bytes, soon, num_bytes);
                sum_runs(level, vector, run, weights, stride, sums);
            }
            VectorList::InRows { rows, at } => {
                let run = InRows::new(rows, at, soon, num_bytes);
                sum_runs(level, vector, run, weights, stride, sums);
            }
        }
        return;
    }
    let _ = (level, soon);
    for i in 0..count {
        let bytes = vectors.get(i, num_bytes);
        let scale = vector.scale(bytes).to_f32();
        for chunk in 0..head_dim.div_ceil(LANES) {
            let values = vector.eight(bytes, chunk);
            for (head, sums) in sums.chunks_exact_mut(head_dim).enumerate() {
                let weight = weights[head * stride + i] * scale;
                for (sum, x) in sums[chunk * LANES..].iter_mut().zip(values) {
                    *sum += weight * x;
                }
            }
        }
    }
}

/// [`weighted_sum`] on an AVX2 level.
#[cfg(target_arch = "x86_64")]
fn sum_runs<'a, V: Vector, R: Run<'a>>(
    level: Level,
    vector: V,
    vectors: R,
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    let head_dim = vector.head_dim();
    for first in (0..vectors.len()).step_by(RUN) {
        let run = vectors.part(first, RUN.min(vectors.len() - first));
        for (batch, sums) in sums.chunks_mut(HEADS * head_dim).enumerate() {
            let weights = &weights[HEADS * batch * stride + first..];
            let mut scaled = [[0.0; RUN]; HEADS];
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do, an AVX-512 level only where F does, too; vectors
            // are as long as they have to be, and there are as many weights.
            unsafe {
                let of_batch = if V::HAS_SCALE {
                    let heads = &mut scaled[..sums.len() / head_dim];
                    avx2::scale_weights(vector, run, (weights, stride), heads);
                    (heads.as_flattened(), RUN)
                } else {
                    (weights, stride)
                };
                match level.is_avx512() {
                    true => avx512::weighted_sum(vector, run, of_batch, sums),
                    false => avx2::weighted_sum(vector, run, of_batch, sums),
                }
            }
        }
    }
}

/// Whether `len` numbers are a row of `count` for each head, one every `stride`, of which the last may end with them.
pub(crate) fn has_rows(len: usize, num_heads: usize, stride: usize, count: usize) -> bool {
    let before = (num_heads - 1).checked_mul(stride);
    let needed = before.and_then(|before| before.checked_add(count));
    needed.is_some_and(|needed| len >= needed) && (stride >= count || num_heads == 1)
}
