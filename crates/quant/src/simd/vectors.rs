//! Vectors against a group of heads: scores of queries, and sums under weights.
//!
//! The query heads of a group share the keys and values of one KV head, so both kernels read and convert
//! a vector once for all of them:
//!
//! - [`score`] keeps a group's sums of products with a few vectors in registers, along those vectors;
//! - [`weighted_sum`] keeps some channels of a group's sums in registers along a run of vectors. The
//!   vectors are read again for the next channels, from the first-level cache, where a run should fit.
//!
//! Both ask the memory for the vectors that come next (`soon`), a few for every few that they are done with.
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
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(crate) use formats::{Bf16, F16, Fp8, Int8};
pub(crate) use grouped::Integers;

use crate::Level;
use crate::rows::VectorList;

/// Values per chunk: the lanes of a vector register.
const LANES: usize = 8;

/// Vectors of a weighted sum that are looked up in their list, and the memory asked for as many, at a time.
#[cfg(target_arch = "x86_64")]
const RUN: usize = 32;

/// How vectors of one format and length lie in their bytes.
pub(crate) trait Vector: Copy {
    /// Values of a vector.
    fn head_dim(&self) -> usize;

    /// Bytes of a vector.
    fn num_bytes(&self) -> usize;

    /// The values from `8 · chunk` on of the vector in `bytes`, zero beyond its end.
    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES];

    /// The values of chunks `first..first + C`, as [`Vector::eight`] gives them up to one rounding.
    ///
    /// # Safety
    /// - AVX2, FMA and F16C are available.
    /// - `bytes` is `num_bytes` long and the chunks lie within `head_dim`.
    /// - `C` is 1, 2 or 4 and divides `first`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn lanes<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m256; C];

    /// The values of chunks `first..first + 2 · C`, two in a register, as [`Vector::lanes`] gives them.
    ///
    /// # Safety
    /// - AVX-512 F, AVX2, FMA and F16C are available.
    /// - `bytes` is `num_bytes` long and the chunks lie within `head_dim`.
    /// - `first` is even, and `C` is 1, or 4 and 2 · `C` divides `first`.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    unsafe fn wide<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m512; C] {
        let mut out = [_mm512_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the vector has the two chunks, and two divides the first.
            let [low, high] = unsafe { self.lanes::<2>(bytes, first + 2 * i) };
            let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
            let both = _mm512_insertf64x4::<1>(_mm512_castpd256_pd512(low), high);
            *out = _mm512_castpd_ps(both);
        }
        out
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
/// When `out` is too short, or a vector has another length than its format.
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
    assert!(out.len() >= (num_heads - 1) * stride + count, "a place for every score");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
        unsafe { avx2::score(vector, queries, (vectors, soon), out, stride) };
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
    }
}

/// `sums[head] += Σ weights[head · stride + i] · vector i` for `sums [num_heads, head_dim]`.
///
/// # Panics
/// When a vector has another length than its format, or there is not a weight for each.
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
    assert!(weights.len() >= (num_heads - 1) * stride + count, "a weight for each vector");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        for first in (0..count).step_by(RUN) {
            let mut run: [&[u8]; RUN] = [&[]; RUN];
            let len = RUN.min(count - first);
            for (i, bytes) in run[..len].iter_mut().enumerate() {
                *bytes = vectors.get(first + i, num_bytes);
            }
            soon.request(first..first + len, num_bytes);
            let weights = &weights[first..];
            // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do, an AVX-512 level only where F does, too; vectors
            // are of that length as they come, and the weights were just counted.
            unsafe {
                match level.is_avx512() {
                    true => avx512::weighted_sum(vector, &run[..len], weights, stride, sums),
                    false => avx2::weighted_sum(vector, &run[..len], weights, stride, sums),
                }
            }
        }
        return;
    }
    let _ = (level, soon);
    for i in 0..count {
        let bytes = vectors.get(i, num_bytes);
        for chunk in 0..head_dim.div_ceil(LANES) {
            let values = vector.eight(bytes, chunk);
            for (head, sums) in sums.chunks_exact_mut(head_dim).enumerate() {
                let weight = weights[head * stride + i];
                for (sum, x) in sums[chunk * LANES..].iter_mut().zip(values) {
                    *sum += weight * x;
                }
            }
        }
    }
}
