//! The scales and zeros of a strip and its scores, four tokens at a time.

#![expect(unsafe_code, reason = "loads by pointer")]

use std::arch::aarch64::*;

use super::HeadTerms;
use crate::keys::{EIGHTHS, OCTAVE_BIAS, PreparedQueries, STRIP, Tail};
use crate::simd::neon::{load_f16, places_of_bytes, store};

/// What a strip takes in vectors of four.
const VECTORS: usize = STRIP / 4;

/// A number of every token of a strip.
pub(in crate::simd) type PerToken = [float32x4_t; VECTORS];

#[inline]
#[target_feature(enable = "neon")]
pub(in crate::simd) fn splat(value: f32) -> PerToken {
    [vdupq_n_f32(value); VECTORS]
}

/// The scales and zeros of a strip.
pub(in crate::simd) struct StripTails {
    scales: PerToken,
    /// None where the format has no zeros.
    zeros: Option<PerToken>,
}

impl StripTails {
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn read(tail: Tail, bytes: &[u8]) -> Self {
        match tail {
            Tail::None => Self { scales: splat(1.0), zeros: None },
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
    #[target_feature(enable = "neon")]
    pub(in crate::simd) fn finish(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        totals: PerToken,
        out: &mut [f32],
    ) {
        let HeadTerms { step, offset, sum, bias } = HeadTerms::new(prepared, head);
        let mut scores = [0.0; STRIP];
        let pairs = scores.as_chunks_mut::<8>().0.iter_mut().enumerate();
        for (pair, scores) in pairs {
            let four = |i: usize| {
                let base = match &self.zeros {
                    Some(zeros) => vfmaq_n_f32(vdupq_n_f32(bias), zeros[i], sum),
                    None => vdupq_n_f32(bias),
                };
                let value = vfmaq_n_f32(vdupq_n_f32(offset), totals[i], step);
                vfmaq_f32(base, self.scales[i], value)
            };
            store(scores, [four(2 * pair), four(2 * pair + 1)]);
        }
        out.copy_from_slice(&scores[..out.len()]);
    }
}

/// The scales of 32 exponent bytes.
#[inline]
#[target_feature(enable = "neon")]
fn exponent_scales(bytes: &[u8]) -> PerToken {
    // SAFETY: the eight floats have the two times sixteen bytes that are read.
    let eighths = unsafe { vld1q_u8_x2(EIGHTHS.as_ptr().cast()) };
    let mut scales = splat(0.0);
    for (scales, bytes) in scales.iter_mut().zip(bytes.as_chunks().0) {
        let bytes = vcreate_u8(u64::from(u32::from_le_bytes(*bytes)));
        let bytes = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
        let places = places_of_bytes(vandq_u32(bytes, vdupq_n_u32(7)));
        let eighth = vreinterpretq_u32_u8(vqtbl2q_u8(eighths, places));
        // An octave adds 1 to the exponent of the float.
        let octave = vsubq_u32(vshrq_n_u32::<3>(bytes), vdupq_n_u32(OCTAVE_BIAS));
        *scales = vreinterpretq_f32_u32(vaddq_u32(eighth, vshlq_n_u32::<23>(octave)));
    }
    scales
}

/// 32 halves.
#[inline]
#[target_feature(enable = "neon")]
fn halves(bytes: &[u8]) -> PerToken {
    let mut numbers = splat(0.0);
    let pairs = numbers.as_chunks_mut().0.iter_mut();
    for (numbers, bytes) in pairs.zip(bytes.as_chunks().0) {
        *numbers = load_f16(bytes);
    }
    numbers
}
