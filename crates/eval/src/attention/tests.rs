//! The measure against its definition, and what it has to see.

use super::*;
use crate::heads::{ExactTokens, HeadRows};

/// A head with 64 coded tokens and three tokens of three query heads that ask, of numbers without a pattern.
pub(crate) fn sample() -> HeadSample {
    let mut state = 1u64;
    let mut draw = |len: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The sum of two uniform numbers, from -2 to 2.
            (((state >> 33) & 0xffff) as f32 + ((state >> 49) & 0x7fff) as f32 * 2.0) / 32_768.0
                - 2.0
        };
        (0..len).map(|_| next()).collect()
    };
    let num_tokens = 4 + 64 + 63 + 3;
    let rows = HeadRows {
        head_dim: 16,
        group_size: 3,
        sm_scale: 0.25,
        keys: draw(16 * num_tokens),
        values: draw(16 * num_tokens),
        queries: draw(3 * 16 * num_tokens),
    };
    let exact = ExactTokens { sinks: 4, recent: 64 };
    HeadSample::split(&rows, exact, 3).expect("64 tokens are left to code")
}

#[test]
fn exact_scores_have_no_error() {
    let sample = sample();
    let exact = ExactAttention::of(&sample);
    let scores: Vec<f32> = exact.scores.iter().map(|&s| s as f32).collect();
    let error = exact.compare(&sample, &scores);
    assert_eq!(error.num_queries, 9);
    // What is left is the rounding of the scores to f32.
    assert!(error.kl_sum.abs() < 1e-6, "{}", error.kl_sum);
    assert!(error.out_error < 1e-10 * error.out_energy && error.out_energy > 0.0);
}

/// Against the definition, written down once more: all tokens in one row of probabilities.
#[test]
fn the_divergence_and_the_output_are_those_of_the_definition() {
    let sample = sample();
    let exact = ExactAttention::of(&sample);
    let coded: Vec<f32> =
        exact.scores.iter().enumerate().map(|(i, &s)| s as f32 + 0.3 * (i % 3) as f32).collect();
    let softmax = |scores: &[f64]| -> Vec<f64> {
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        scores.iter().map(|s| s.exp() / sum).collect()
    };
    let error = exact.compare(&sample, &coded);
    let (mut kl, mut out_error) = (0.0, 0.0);
    for query in 0..9 {
        let resident = &exact.resident[query * 70..][..sample.visible(query / 3)];
        let full = softmax(&[&exact.scores[query * 64..][..64], resident].concat());
        let own: Vec<f64> = coded[query * 64..][..64].iter().map(|&s| f64::from(s)).collect();
        let own = softmax(&[&own[..], resident].concat());
        kl += full.iter().zip(&own).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        let values = [&sample.coded.values[..], &sample.resident.values].concat();
        for channel in 0..16 {
            let value = |token: usize| f64::from(values[token * 16 + channel]);
            let moved: f64 =
                full.iter().zip(&own).enumerate().map(|(t, (p, q))| (q - p) * value(t)).sum();
            assert!((error.outputs[query * 16 + channel] - moved).abs() < 1e-12);
            out_error += moved * moved;
        }
    }
    assert!((error.kl_sum - kl).abs() < 1e-9 && kl > 1e-3, "{} {kl}", error.kl_sum);
    assert!((error.out_error - out_error).abs() < 1e-9 * out_error && out_error > 1e-6);
    assert!(error.scores.iter().all(|e| *e < 0.61) && error.scores.iter().any(|e| *e > 0.59));
}

#[test]
fn scores_of_other_tokens_are_far_off() {
    let sample = sample();
    let exact = ExactAttention::of(&sample);
    let mut scores: Vec<f32> = exact.scores.iter().map(|&s| s as f32).collect();
    scores.rotate_left(1);
    let error = exact.compare(&sample, &scores);
    assert!(error.kl_sum > 0.1 && error.out_error > 0.01 * error.out_energy, "{}", error.kl_sum);
}
