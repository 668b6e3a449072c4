//! The largest of many scores.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use crate::Level;

/// Scores that are looked at side by side.
const LANES: usize = 32;

/// The largest of `start` and `scores`; NaN among the scores is passed over or comes out, as it happens to lie.
pub(crate) fn largest(level: Level, scores: &[f32], start: f32) -> f32 {
    let (chunks, rest) = scores.as_chunks::<LANES>();
    #[cfg(target_arch = "x86_64")]
    let lanes = if level.is_avx2() {
        // SAFETY: an AVX2 level exists only where AVX2 does.
        unsafe { avx2::largest(chunks, start) }
    } else {
        largest_scalar(chunks, start)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let lanes = {
        let _ = level;
        largest_scalar(chunks, start)
    };
    lanes.iter().chain(rest).copied().fold(start, larger)
}

/// Lane by lane, which compilers turn into vector code as they do not a fold over `f32::max`.
fn largest_scalar(chunks: &[[f32; LANES]], start: f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, score);
        }
    }
    lanes
}

fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Four vectors of eight, so that none waits for the one before it.

    use std::arch::x86_64::*;

    use super::LANES;
    use crate::simd::lanes::{load, store};

    #[target_feature(enable = "avx2")]
    pub(super) fn largest(chunks: &[[f32; LANES]], start: f32) -> [f32; LANES] {
        let mut lanes = [_mm256_set1_ps(start); LANES / 8];
        for chunk in chunks {
            for (lanes, scores) in lanes.iter_mut().zip(chunk.as_chunks().0) {
                *lanes = _mm256_max_ps(load(scores), *lanes);
            }
        }
        let mut largest = [0.0; LANES];
        for (out, lanes) in largest.as_chunks_mut().0.iter_mut().zip(lanes) {
            store(out, lanes);
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for level in Level::available() {
            for len in [0, 1, 31, 32, 33, 100] {
                assert_eq!(largest(level, &vec![-3.0; len], -2.0), -2.0, "{level} {len}");
                for place in 0..len {
                    let mut scores = vec![-3.0; len];
                    scores[place] = -1.0;
                    assert_eq!(largest(level, &scores, -2.0), -1.0, "{level} {len} {place}");
                }
            }
        }
    }
}
