//! The scales and zeros of a strip of 32 tokens, and scores from them.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use super::rows::halves;
use crate::keys::{PreparedQueries, STRIP, Tail, exponent_scale};

/// Where the scores of many strips go.
pub(super) struct StripScores<'a> {
    /// Tokens of all strips.
    pub(super) num_tokens: usize,
    pub(super) stride: usize,
    /// `[head · stride + token]` of all strips.
    pub(super) out: &'a mut [f32],
}

impl StripScores<'_> {
    /// The scores of one head in a strip, as many as there are tokens.
    #[inline(always)]
    pub(super) fn of(&mut self, head: usize, strip: usize) -> &mut [f32] {
        let first = strip * STRIP;
        let len = STRIP.min(self.num_tokens - first);
        &mut self.out[head * self.stride + first..][..len]
    }
}

/// What turns the sums of a head into scores.
#[derive(Clone, Copy)]
pub(super) struct HeadTerms {
    step: f32,
    offset: f32,
    sum: f32,
    bias: f32,
}

impl HeadTerms {
    pub(super) fn new(prepared: &PreparedQueries, head: usize) -> Self {
        let or_zero = |numbers: &[f32]| numbers.get(head).copied().unwrap_or(0.0);
        Self {
            step: prepared.steps()[head],
            offset: or_zero(prepared.offsets()),
            sum: or_zero(prepared.sums()),
            bias: prepared.bias()[head],
        }
    }
}

/// The scales and zeros of a strip.
pub(super) struct Tails {
    scales: [f32; STRIP],
    zeros: [f32; STRIP],
}

impl Tails {
    const NONE: Self = Self { scales: [1.0; STRIP], zeros: [0.0; STRIP] };

    pub(super) fn read(tail: Tail, bytes: &[u8]) -> Self {
        let mut tails = Self::NONE;
        match tail {
            Tail::None => {}
            Tail::Exponent => {
                for (scale, &byte) in tails.scales.iter_mut().zip(bytes) {
                    *scale = exponent_scale(byte);
                }
            }
            Tail::Scale | Tail::ScaleZero => {
                let mut numbers = halves(bytes);
                tails.scales.iter_mut().zip(&mut numbers).for_each(|(x, number)| *x = number);
                tails.zeros.iter_mut().zip(&mut numbers).for_each(|(x, number)| *x = number);
            }
        }
        tails
    }

    /// The scores of one head, from its sums in units of its step.
    pub(super) fn finish(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        totals: &[f32; STRIP],
    ) -> [f32; STRIP] {
        let HeadTerms { step, offset, sum, bias } = HeadTerms::new(prepared, head);
        let mut scores = [0.0; STRIP];
        for (i, score) in scores.iter_mut().enumerate() {
            let value = self.scales[i] * (step * totals[i] + offset);
            *score = value + (self.zeros[i] * sum + bias);
        }
        scores
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    //! Eight tokens at a time.

    use std::arch::x86_64::*;

    use super::HeadTerms;
    use crate::keys::{EIGHTHS, OCTAVE_BIAS, STRIP, Tail};
    use crate::simd::lanes::{load, store};

    /// What a strip takes in vectors of eight f32.
    const VECTORS: usize = STRIP / 8;

    /// Sums of 32 tokens, in f32.
    #[derive(Clone, Copy)]
    pub(in crate::simd) struct Totals([__m256; VECTORS]);

    impl Totals {
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(in crate::simd) fn zero() -> Self {
            Self([_mm256_setzero_ps(); VECTORS])
        }

        /// From integers, eight tokens a vector.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(in crate::simd) fn of(sums: [__m256i; VECTORS]) -> Self {
            let mut totals = Self::zero();
            for (total, sums) in totals.0.iter_mut().zip(sums) {
                *total = _mm256_cvtepi32_ps(sums);
            }
            totals
        }

        /// Adds integers.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(in crate::simd) fn add(&mut self, sums: [__m256i; VECTORS]) {
            let added = Self::of(sums);
            for (total, added) in self.0.iter_mut().zip(added.0) {
                *total = _mm256_add_ps(*total, added);
            }
        }

        /// Adds totals of which each counts `steps`.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(in crate::simd) fn add_steps(&mut self, others: &Self, steps: u8) {
            let steps = _mm256_set1_ps(f32::from(steps));
            for (total, other) in self.0.iter_mut().zip(&others.0) {
                *total = _mm256_fmadd_ps(*other, steps, *total);
            }
        }
    }

    /// The scales and zeros of a strip.
    pub(in crate::simd) struct StripTails {
        scales: [__m256; VECTORS],
        /// None where the format has no zeros.
        zeros: Option<[__m256; VECTORS]>,
    }

    impl StripTails {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        pub(in crate::simd) fn read(tail: Tail, bytes: &[u8]) -> Self {
            match tail {
                Tail::None => Self { scales: [_mm256_set1_ps(1.0); VECTORS], zeros: None },
                Tail::Exponent => Self { scales: exponent_scales(bytes), zeros: None },
                Tail::Scale => Self { scales: halves(bytes), zeros: None },
                Tail::ScaleZero => {
                    let (scales, zeros) = bytes.split_at(2 * STRIP);
                    Self { scales: halves(scales), zeros: Some(halves(zeros)) }
                }
            }
        }

        /// Writes the scores of one head, from its sums in units of its step.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(in crate::simd) fn finish(&self, of: &HeadTerms, totals: &Totals, out: &mut [f32]) {
            let [step, offset] = [of.step, of.offset].map(|x| _mm256_set1_ps(x));
            let [sum, bias] = [of.sum, of.bias].map(|x| _mm256_set1_ps(x));
            let mut scores = [bias; VECTORS];
            if let Some(zeros) = &self.zeros {
                for (score, zero) in scores.iter_mut().zip(zeros) {
                    *score = _mm256_fmadd_ps(*zero, sum, bias);
                }
            }
            for ((score, scale), total) in scores.iter_mut().zip(&self.scales).zip(&totals.0) {
                let value = _mm256_fmadd_ps(step, *total, offset);
                *score = _mm256_fmadd_ps(*scale, value, *score);
            }
            if let Some(out) = out.first_chunk_mut::<STRIP>() {
                store_all(out, scores);
                return;
            }
            let mut part = [0.0; STRIP];
            store_all(&mut part, scores);
            out.copy_from_slice(&part[..out.len()]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_all(out: &mut [f32; STRIP], scores: [__m256; VECTORS]) {
        for (out, scores) in out.as_chunks_mut().0.iter_mut().zip(scores) {
            store(out, scores);
        }
    }

    /// The scales of 32 exponent bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn exponent_scales(bytes: &[u8]) -> [__m256; VECTORS] {
        let eighths = load(&EIGHTHS);
        let octave_bias = _mm256_set1_epi32(OCTAVE_BIAS as i32);
        let mut scales = [_mm256_setzero_ps(); VECTORS];
        for (scales, bytes) in scales.iter_mut().zip(bytes.as_chunks().0) {
            let bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
            // The permutation looks at the lowest three bits of an index.
            let eighth = _mm256_castps_si256(_mm256_permutevar8x32_ps(eighths, bytes));
            // An octave adds 1 to the exponent of the float.
            let octave = _mm256_sub_epi32(_mm256_srli_epi32::<3>(bytes), octave_bias);
            let scale = _mm256_add_epi32(eighth, _mm256_slli_epi32::<23>(octave));
            *scales = _mm256_castsi256_ps(scale);
        }
        scales
    }

    /// 32 halves.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn halves(bytes: &[u8]) -> [__m256; VECTORS] {
        let mut numbers = [_mm256_setzero_ps(); VECTORS];
        for (numbers, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<16>().0) {
            // SAFETY: the array has the 16 bytes of this unaligned load.
            *numbers = _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        }
        numbers
    }
}
