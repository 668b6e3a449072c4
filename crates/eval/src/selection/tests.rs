//! Selected attention against its definition.

use heterokv_evict::Rule;

use super::*;
use crate::attention::tests::sample;

#[test]
fn as_many_tokens_are_taken_as_reach_the_mass() {
    let sample = sample();
    let exact = ExactAttention::of(&sample);
    let selector = Selector::new(Rule::TopP(0.8), 5, usize::MAX).unwrap();
    let counts = exact.taken(&sample, &selector).unwrap();
    assert_eq!(counts.len(), 9);
    assert!(counts.iter().all(|&count| count >= 5) && counts.iter().any(|&count| count > 5));
    for (count, weights) in counts.iter().zip(exact.weights.chunks_exact(64)) {
        let resident = 1.0 - weights.iter().sum::<f64>();
        let mut falling = weights.to_vec();
        falling.sort_by(|a, b| b.total_cmp(a));
        let mass = |count: usize| resident + falling[..count].iter().sum::<f64>();
        assert!(mass(*count) >= 0.8 - 1e-6, "{count}");
        assert!(*count == 5 || mass(count - 1) < 0.8 + 1e-6, "{count}");
    }
}

/// Against the definition: a softmax over the tokens that the group takes, and the exact ones.
#[test]
fn errors_are_those_of_the_definition() {
    let sample = sample();
    let exact = ExactAttention::of(&sample);
    // Scores that choose other tokens than the exact ones.
    let coded: Vec<f32> =
        exact.scores.iter().enumerate().map(|(i, &s)| s as f32 + (i % 5) as f32).collect();
    let counts: Vec<usize> = (0..9).map(|query| 3 + 4 * query).collect();
    let errors = exact.selected(&sample, &coded, &counts);
    assert_eq!(errors.len(), 9 * 16);
    for query in 0..9 {
        let step = query / 3;
        let takes = |token: usize| {
            (3 * step..3 * step + 3).any(|head| {
                let scores = &coded[head * 64..][..64];
                let higher = scores.iter().enumerate().filter(|&(other, &score)| {
                    score > scores[token] || (score == scores[token] && other < token)
                });
                higher.count() < counts[head]
            })
        };
        let resident = &exact.resident[query * 70..][..sample.visible(step)];
        let mut scores: Vec<(f64, &[f32])> = Vec::new();
        for (token, value) in sample.coded.values.chunks_exact(16).enumerate() {
            if takes(token) {
                scores.push((exact.scores[query * 64 + token], value));
            }
        }
        scores.extend(resident.iter().copied().zip(sample.resident.values.chunks_exact(16)));
        let sum: f64 = scores.iter().map(|(score, _)| score.exp()).sum();
        for channel in 0..16 {
            let out: f64 = scores
                .iter()
                .map(|(score, value)| score.exp() / sum * f64::from(value[channel]))
                .sum();
            let expected = out - exact.out[query * 16 + channel];
            let error = errors[query * 16 + channel];
            assert!((error - expected).abs() < 1e-12, "{query} {channel}: {error} {expected}");
        }
    }
}

#[test]
fn who_takes_all_errs_in_nothing_and_who_takes_none_the_most() {
    let sample = sample();
    let exact = ExactAttention::of(&sample);
    let scores: Vec<f32> = exact.scores.iter().map(|&s| s as f32).collect();
    let squares = |count: usize| -> f64 {
        exact.selected(&sample, &scores, &[count; 9]).iter().map(|x| x * x).sum()
    };
    assert_eq!((squares(64), squares(usize::MAX)), (0.0, 0.0));
    assert!(squares(0) > squares(8) && squares(8) > squares(32) && squares(32) > 0.0);
}
