//! The scales and zeros of a strip of 32 tokens, and scores from them.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use super::rows::halves;
use crate::keys::{PreparedQueries, STRIP, Tail, exponent_scale};

/// Where the scores of one strip go.
pub(super) struct StripScores<'a> {
    /// The strip's first token.
    pub(super) first: usize,
    /// Tokens of all strips.
    pub(super) num_tokens: usize,
    pub(super) stride: usize,
    /// `[head · stride + token]` of all strips.
    pub(super) out: &'a mut [f32],
}

impl StripScores<'_> {
    /// Writes the scores of one head, as many as there are tokens.
    #[inline(always)]
    pub(super) fn write(&mut self, head: usize, scores: &[f32; STRIP]) {
        let len = STRIP.min(self.num_tokens - self.first);
        let out = &mut self.out[head * self.stride + self.first..];
        match out.first_chunk_mut() {
            Some(out) if len == STRIP => *out = *scores,
            _ => out[..len].copy_from_slice(&scores[..len]),
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
    #[inline(always)]
    pub(super) fn finish(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        totals: &[f32; STRIP],
    ) -> [f32; STRIP] {
        let or_zero = |numbers: &[f32]| numbers.get(head).copied().unwrap_or(0.0);
        let (step, offset) = (prepared.steps()[head], or_zero(prepared.offsets()));
        let sum = or_zero(prepared.sums());
        let bias = prepared.bias()[head];
        let mut scores = [0.0; STRIP];
        for (i, score) in scores.iter_mut().enumerate() {
            let value = self.scales[i] * (step * totals[i] + offset);
            *score = value + (self.zeros[i] * sum + bias);
        }
        scores
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    //! Eight tokens at a time.

    use std::arch::x86_64::*;

    use super::Tails;
    use crate::keys::{EIGHTHS, OCTAVE_BIAS, Tail};
    use crate::simd::lanes::{load, store};

    #[target_feature(enable = "avx2,f16c")]
    pub(in crate::simd) fn read(tail: Tail, bytes: &[u8]) -> Tails {
        let mut tails = Tails::NONE;
        let scales = tails.scales.as_chunks_mut::<8>().0;
        match tail {
            Tail::None => {}
            Tail::Exponent => {
                let eighths = load(&EIGHTHS);
                for (scales, bytes) in scales.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    let bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
                    let eighth = _mm256_permutevar8x32_ps(eighths, bytes);
                    // An octave adds 1 to the exponent of the float, eight bits up from its fraction.
                    let octave = _mm256_sub_epi32(
                        _mm256_srli_epi32::<3>(bytes),
                        _mm256_set1_epi32(OCTAVE_BIAS as i32),
                    );
                    let scale = _mm256_add_epi32(
                        _mm256_castps_si256(eighth),
                        _mm256_slli_epi32::<23>(octave),
                    );
                    store(scales, _mm256_castsi256_ps(scale));
                }
            }
            Tail::Scale | Tail::ScaleZero => {
                let zeros = tails.zeros.as_chunks_mut::<8>().0;
                let numbers = scales.iter_mut().chain(zeros).zip(bytes.as_chunks::<16>().0);
                for (numbers, bytes) in numbers {
                    store(numbers, _mm256_cvtph_ps(load_half(bytes)));
                }
            }
        }
        tails
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_half(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: the array has the 16 bytes of this unaligned load.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }
}
