//! What the codes of a token leave out, under each of many scales.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use crate::Level;
use crate::bits::CHUNK;

/// What has no room for a fraction below it, so that a sum with it rounds: unlike a call of the rounding function
/// this becomes vector code on every machine.
const NO_FRACTION: f32 = (1 << 23) as f32;

/// Eight channels of one width, in units of which a token is coded.
#[derive(Clone, Debug)]
pub(crate) struct ScaledChunk {
    pub(crate) centre: [f32; CHUNK],
    pub(crate) step: [f32; CHUNK],
    /// Weight of an error in units of the step.
    pub(crate) weight: [f32; CHUNK],
    /// The code value that stands for the centre; the largest code is twice that.
    pub(crate) middle: f32,
    /// The spread of a normal channel, in steps; none where nothing is coded.
    pub(crate) usual: Option<f32>,
}

/// The weighted squared error of coding `x`, a chunk of channels in units of their steps for each of `chunks`, under each
/// of the scales; the same to the bit on every level.
pub(crate) fn scale_errors<const N: usize>(
    level: Level,
    x: &[[f32; CHUNK]],
    chunks: &[ScaledChunk],
    scales: [f32; N],
) -> [f32; N] {
    let inverses = scales.map(|scale| 1.0 / scale);
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2 does.
        return unsafe { avx2::errors(x, chunks, scales, inverses) };
    }
    let _ = level;
    std::array::from_fn(|i| error(x, chunks, scales[i], inverses[i]))
}

/// Lane by lane, so that compilers make vector code of it.
fn error(x: &[[f32; CHUNK]], chunks: &[ScaledChunk], scale: f32, inverse: f32) -> f32 {
    let mut sums = [0.0; CHUNK];
    for (x, chunk) in x.iter().zip(chunks) {
        for i in 0..CHUNK {
            let level = nearest_code(x[i] * inverse, chunk.middle) - chunk.middle;
            let error = x[i] - scale * level;
            sums[i] += chunk.weight[i] * error * error;
        }
    }
    sums.iter().sum()
}

/// The code, a whole number, of a value in units of the step; halves go to the even code.
pub(crate) fn nearest_code(x: f32, middle: f32) -> f32 {
    (x + middle).clamp(0.0, 2.0 * middle) + NO_FRACTION - NO_FRACTION
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! A chunk in a vector, under all scales at once, so that no sum waits for the one before it.

    use std::arch::x86_64::*;

    use super::{CHUNK, NO_FRACTION, ScaledChunk};
    use crate::simd::lanes::{load, store};

    #[target_feature(enable = "avx2")]
    pub(super) fn errors<const N: usize>(
        x: &[[f32; CHUNK]],
        chunks: &[ScaledChunk],
        scales: [f32; N],
        inverses: [f32; N],
    ) -> [f32; N] {
        let no_fraction = _mm256_set1_ps(NO_FRACTION);
        let mut sums = [_mm256_setzero_ps(); N];
        for (x, chunk) in x.iter().zip(chunks) {
            let (x, weight) = (load(x), load(&chunk.weight));
            let (middle, most) = (_mm256_set1_ps(chunk.middle), _mm256_set1_ps(2.0 * chunk.middle));
            for i in 0..N {
                let code = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(inverses[i])), middle);
                let code = _mm256_min_ps(_mm256_max_ps(code, _mm256_setzero_ps()), most);
                let code = _mm256_sub_ps(_mm256_add_ps(code, no_fraction), no_fraction);
                let coded = _mm256_mul_ps(_mm256_set1_ps(scales[i]), _mm256_sub_ps(code, middle));
                let error = _mm256_sub_ps(x, coded);
                let error = _mm256_mul_ps(_mm256_mul_ps(weight, error), error);
                sums[i] = _mm256_add_ps(sums[i], error);
            }
        }
        sums.map(|sum| {
            let mut lanes = [0.0; CHUNK];
            store(&mut lanes, sum);
            lanes.iter().sum()
        })
    }
}

#[cfg(test)]
mod tests {
    use heterokv_testkit::Inputs;

    use super::*;

    /// The definition, in f64.
    fn expected(x: &[[f32; CHUNK]], chunks: &[ScaledChunk], scale: f32) -> f64 {
        let of_chunk = |(x, chunk): (&[f32; CHUNK], &ScaledChunk)| -> f64 {
            let (middle, scale) = (f64::from(chunk.middle), f64::from(scale));
            let of_channel = |(&x, &weight): (&f32, &f32)| {
                let (x, weight) = (f64::from(x), f64::from(weight));
                let code = (x / scale + middle).clamp(0.0, 2.0 * middle).round_ties_even();
                weight * (x - scale * (code - middle)).powi(2)
            };
            x.iter().zip(&chunk.weight).map(of_channel).sum()
        };
        x.iter().zip(chunks).map(of_chunk).sum()
    }

    #[test]
    fn errors_are_those_of_the_definition_and_equal_on_every_level() {
        let mut inputs = Inputs::new(7);
        for num_chunks in [0, 1, 3, 8, 32] {
            for spread in [0.0, 0.3, 2.0, 4000.0] {
                let values = inputs.gaussian_rows(num_chunks, CHUNK, spread);
                let x: Vec<[f32; CHUNK]> = values.as_chunks().0.to_vec();
                let chunk = |i: usize| ScaledChunk {
                    centre: [0.0; CHUNK],
                    step: [1.0; CHUNK],
                    weight: std::array::from_fn(|lane| (1 + lane + i) as f32 / 8.0),
                    middle: ((1 << (i % 9)) - 1) as f32 / 2.0,
                    usual: None,
                };
                let chunks: Vec<ScaledChunk> = (0..num_chunks).map(chunk).collect();
                let scales = [0.01, 0.7, 1.0, 1.3, 50.0];
                let scalar = scale_errors(Level::SCALAR, &x, &chunks, scales);
                for (scale, error) in scales.into_iter().zip(scalar) {
                    let expected = expected(&x, &chunks, scale);
                    // A value between two codes may go to either.
                    let slack = 1e-5 * expected + 1e-3 * f64::from(scale).powi(2);
                    assert!((f64::from(error) - expected).abs() <= slack, "{error}, {expected}");
                }
                for level in Level::available() {
                    let errors = scale_errors(level, &x, &chunks, scales);
                    assert_eq!(errors.map(f32::to_bits), scalar.map(f32::to_bits), "{level}");
                }
            }
        }
    }
}
