//! The scales and zeros of a strip and its scores, sixteen tokens at a time.

use std::arch::x86_64::*;

use super::HeadTerms;
use crate::keys::{EIGHTHS, OCTAVE_BIAS, STRIP, Tail};

/// Tokens that one vector holds.
const TOKENS: usize = 16;

/// What a strip takes in vectors.
const VECTORS: usize = STRIP / TOKENS;

/// A number of every token of a strip.
type PerToken = [__m512; VECTORS];

/// The scales and zeros of a strip.
pub(in crate::simd) struct StripTails {
    scales: PerToken,
    zeros: PerToken,
}

impl StripTails {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::simd) fn read(tail: Tail, bytes: &[u8]) -> Self {
        let zeros = [_mm512_setzero_ps(); VECTORS];
        match tail {
            Tail::None => Self { scales: [_mm512_set1_ps(1.0); VECTORS], zeros },
            Tail::Exponent => Self { scales: exponent_scales(bytes), zeros },
            Tail::Scale => Self { scales: halves(bytes), zeros },
            Tail::ScaleZero => {
                let (scales, zeros) = bytes.split_at(2 * STRIP);
                Self { scales: halves(scales), zeros: halves(zeros) }
            }
        }
    }

    /// Writes the scores of one head, from its sums in units of its step.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::simd) fn finish(
        &self,
        of: &HeadTerms,
        totals: [__m512i; VECTORS],
        out: &mut [f32],
    ) {
        let [step, offset] = [of.step, of.offset].map(|x| _mm512_set1_ps(x));
        let [sum, bias] = [of.sum, of.bias].map(|x| _mm512_set1_ps(x));
        let mut scores = [bias; VECTORS];
        for i in 0..VECTORS {
            let value = _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(totals[i]), offset);
            let base = _mm512_fmadd_ps(self.zeros[i], sum, bias);
            scores[i] = _mm512_fmadd_ps(self.scales[i], value, base);
        }
        if let Some(out) = out.first_chunk_mut::<STRIP>() {
            store(out, scores);
            return;
        }
        let mut part = [0.0; STRIP];
        store(&mut part, scores);
        out.copy_from_slice(&part[..out.len()]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(out: &mut [f32; STRIP], scores: PerToken) {
    let out = out.as_mut_ptr();
    // SAFETY: the array has room for the two times sixteen values that are written.
    unsafe {
        _mm512_storeu_ps(out, scores[0]);
        _mm512_storeu_ps(out.add(TOKENS), scores[1]);
    }
}

/// The scales of 32 exponent bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn exponent_scales(bytes: &[u8]) -> PerToken {
    // SAFETY: the array has the 32 bytes of this unaligned load.
    let eighths =
        _mm512_castps_pd(_mm512_castps256_ps512(unsafe { _mm256_loadu_ps(EIGHTHS.as_ptr()) }));
    // Twice, since the permutation looks at the lowest four bits of an index.
    let eighths = _mm512_castpd_ps(_mm512_shuffle_f64x2::<0x44>(eighths, eighths));
    let octave_bias = _mm512_set1_epi32(OCTAVE_BIAS as i32);
    let mut scales = [_mm512_setzero_ps(); VECTORS];
    for (scales, bytes) in scales.iter_mut().zip(bytes.as_chunks::<TOKENS>().0) {
        // SAFETY: the array has the 16 bytes of this unaligned load.
        let bytes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        let eighth = _mm512_castps_si512(_mm512_permutexvar_ps(bytes, eighths));
        // An octave adds 1 to the exponent of the float.
        let octave = _mm512_sub_epi32(_mm512_srli_epi32::<3>(bytes), octave_bias);
        let scale = _mm512_add_epi32(eighth, _mm512_slli_epi32::<23>(octave));
        *scales = _mm512_castsi512_ps(scale);
    }
    scales
}

/// 32 halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(bytes: &[u8]) -> PerToken {
    let mut numbers = [_mm512_setzero_ps(); VECTORS];
    for (numbers, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<{ 2 * TOKENS }>().0) {
        // SAFETY: the array has the 32 bytes of this unaligned load.
        *numbers = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) });
    }
    numbers
}
