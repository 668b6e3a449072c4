//! The exponential that makes softmax weights.
//!
//! `exp(x) = 2^n e^r` with `n = round(x / ln 2)` and `|r| <= ln(2) / 2`; `e^r = 1 + r + r^2 q(r)` with a
//! polynomial q of degree 4 whose relative error was minimised over the interval (3.1e-9, well below
//! the rounding of the steps around it). `n ln 2` is subtracted in two parts so that r keeps its low bits.
//!
//! **Domain and error.** For `x` in [-87.3, 88] the relative error is at most 1e-7 (1.7 times the
//! unit roundoff 2^-24) on every level; a test walks the floats of that range. Below -87.3, where the
//! result would approach the subnormal numbers, the weight is exactly 0; so it is at minus infinity,
//! which is how masked tokens vanish. NaN gives NaN. Above 88 the result means nothing: softmax
//! subtracts the largest score, so its arguments are never positive.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector intrinsics and the calls into them")
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use heterokv_quant::Level;

/// Arguments below this give a weight of zero.
const LOWEST: f32 = -87.3;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in nine bits, so that `n * LN2_HIGH` is exact for every n that occurs.
const LN2_HIGH: f32 = 355.0 / 512.0;
/// The rest of ln 2.
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the significand; 127 more and those
/// bits are the biased exponent of 2^n.
const ROUND: f32 = 12_582_912.0 + 127.0;
const Q: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_717, 0.001_381_459_9];

/// The weight `exp(x)` of a score that is `x` above the largest, portable form; see the module for
/// domain and error.
#[inline(always)]
#[must_use]
pub fn exp_weight(x: f32) -> f32 {
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let q = (((Q[4] * r + Q[3]) * r + Q[2]) * r + Q[1]) * r + Q[0];
    let power = 1.0 + (r + r * r * q);
    let scale = f32::from_bits(shifted.to_bits() << 23);
    // Not an `else` of "at least": a NaN must come through.
    if x < LOWEST { 0.0 } else { power * scale }
}

/// Turns scores `[num_tokens]` into their weights `exp(score - max)` and returns the sum of the weights.
///
/// `max` is the largest score. With `max` minus infinity every score must be so too; the weights and
/// the sum are then 0, as they are for no scores at all. The sum is taken in several partial sums whose
/// order depends on the level only.
#[must_use]
pub fn exp_weights(level: Level, scores: &mut [f32], max: f32) -> f32 {
    let reference = finite_reference(max);
    #[cfg(target_arch = "x86_64")]
    if level.is_avx512() {
        // SAFETY: a level for which `is_avx512` is true exists only on a CPU with AVX-512 F.
        return unsafe { exp_weights_avx512(scores, reference) };
    }
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level for which `is_avx2` is true exists only on a CPU with AVX2 and FMA.
        return unsafe { exp_weights_avx2(scores, reference) };
    }
    let _ = level;
    exp_weights_scalar(scores, reference)
}

/// What to subtract from scores whose largest is `max`: over no tokens, 0, since subtracting minus
/// infinity from itself would make a NaN.
pub(crate) fn finite_reference(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

pub(crate) fn exp_weights_scalar(scores: &mut [f32], reference: f32) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    for chunk in scores.chunks_mut(LANES) {
        for (score, sum) in chunk.iter_mut().zip(&mut sums) {
            *score = exp_weight(*score - reference);
            *sum += *score;
        }
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn exp_weights_avx2(scores: &mut [f32], reference: f32) -> f32 {
    let shift = _mm256_set1_ps(reference);
    let mut sums = _mm256_setzero_ps();
    let mut chunks = scores.chunks_exact_mut(8);
    for chunk in &mut chunks {
        // SAFETY: a chunk is eight floats.
        let scores = unsafe { _mm256_loadu_ps(chunk.as_ptr()) };
        let weights = exp_avx2(_mm256_sub_ps(scores, shift));
        sums = _mm256_add_ps(sums, weights);
        // SAFETY: a chunk is eight floats.
        unsafe { _mm256_storeu_ps(chunk.as_mut_ptr(), weights) };
    }
    let tail = chunks.into_remainder();
    if !tail.is_empty() {
        // Lanes beyond the tail are masked tokens: weight zero.
        let mut padded = [f32::NEG_INFINITY; 8];
        padded[..tail.len()].copy_from_slice(tail);
        // SAFETY: `padded` is eight floats.
        let scores = unsafe { _mm256_loadu_ps(padded.as_ptr()) };
        let weights = exp_avx2(_mm256_sub_ps(scores, shift));
        sums = _mm256_add_ps(sums, weights);
        // SAFETY: `padded` is eight floats.
        unsafe { _mm256_storeu_ps(padded.as_mut_ptr(), weights) };
        tail.copy_from_slice(&padded[..tail.len()]);
    }
    sum_avx2(sums)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn exp_weights_avx512(scores: &mut [f32], reference: f32) -> f32 {
    let shift = _mm512_set1_ps(reference);
    let mut sums = _mm512_setzero_ps();
    for chunk in scores.chunks_mut(16) {
        let mask = u16::MAX >> (16 - chunk.len());
        // SAFETY: the mask lets in as many floats as the chunk has.
        let scores = unsafe { _mm512_maskz_loadu_ps(mask, chunk.as_ptr()) };
        let weights = _mm512_maskz_mov_ps(mask, exp_avx512(_mm512_sub_ps(scores, shift)));
        sums = _mm512_add_ps(sums, weights);
        // SAFETY: the mask lets out as many floats as the chunk has.
        unsafe { _mm512_mask_storeu_ps(chunk.as_mut_ptr(), mask, weights) };
    }
    _mm512_reduce_add_ps(sums)
}

/// Sixteen [`exp_weight`]s.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn exp_avx512(x: __m512) -> __m512 {
    let shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(LOG2_E), _mm512_set1_ps(ROUND));
    let n = _mm512_sub_ps(shifted, _mm512_set1_ps(ROUND));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    let mut q = _mm512_set1_ps(Q[4]);
    for coefficient in [Q[3], Q[2], Q[1], Q[0]] {
        q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(coefficient));
    }
    let power = _mm512_fmadd_ps(_mm512_mul_ps(r, r), q, r);
    let power = _mm512_add_ps(power, _mm512_set1_ps(1.0));
    let scale = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted)));
    // "Not less than" is true for NaN, which comes through.
    let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(LOWEST));
    _mm512_maskz_mul_ps(keep, power, scale)
}

/// Eight [`exp_weight`]s.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn exp_avx2(x: __m256) -> __m256 {
    let [weights] = exps_avx2([x]);
    weights
}

/// [`exp_avx2`] of several vectors, step by step of all: the steps of one wait for each other.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn exps_avx2<const N: usize>(x: [__m256; N]) -> [__m256; N] {
    let round = _mm256_set1_ps(ROUND);
    let mut shifted = x;
    for shifted in &mut shifted {
        *shifted = _mm256_fmadd_ps(*shifted, _mm256_set1_ps(LOG2_E), round);
    }
    let mut n = shifted;
    for n in &mut n {
        *n = _mm256_sub_ps(*n, round);
    }
    let mut r = x;
    for (r, n) in r.iter_mut().zip(n) {
        *r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), *r);
    }
    for (r, n) in r.iter_mut().zip(n) {
        *r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), *r);
    }
    let mut q = [_mm256_set1_ps(Q[4]); N];
    for coefficient in [Q[3], Q[2], Q[1], Q[0]] {
        for (q, r) in q.iter_mut().zip(r) {
            *q = _mm256_fmadd_ps(*q, r, _mm256_set1_ps(coefficient));
        }
    }
    for (q, r) in q.iter_mut().zip(r) {
        let power = _mm256_fmadd_ps(_mm256_mul_ps(r, r), *q, r);
        *q = _mm256_add_ps(power, _mm256_set1_ps(1.0));
    }
    for ((q, shifted), x) in q.iter_mut().zip(shifted).zip(x) {
        let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(shifted)));
        // "Not less than" is true for NaN, which comes through.
        let keep = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(LOWEST));
        *q = _mm256_and_ps(_mm256_mul_ps(*q, scale), keep);
    }
    q
}

/// The sum of eight lanes, pairwise.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn sum_avx2(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The largest of eight lanes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn max_avx2(x: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}
