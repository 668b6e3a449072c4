//! Scorers against their definitions, on made-up attention and rows.

use proptest::prelude::*;

use super::*;
use crate::{keep_best, keep_voted};

const PLAIN: Scoring =
    Scoring { scorer: Scorer::Accumulated, window: usize::MAX, pool: Pool::None, gqa: Gqa::Mean };

/// Softmax rows `[head][position]` of `position + 1` weights, of numbers that a seed gives.
fn attention(group_size: usize, num_tokens: usize, seed: u64) -> Vec<Vec<Vec<f32>>> {
    let mut state = seed;
    let mut number = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut row = |len: usize| -> Vec<f32> {
        let terms: Vec<f32> = (0..len).map(|_| (4.0 * number()).exp()).collect();
        let sum: f32 = terms.iter().sum();
        terms.iter().map(|term| term / sum).collect()
    };
    (0..group_size).map(|_| (1..=num_tokens).map(&mut row).collect()).collect()
}

fn evidence(scoring: Scoring, attention: &[Vec<Vec<f32>>]) -> Vec<f32> {
    let num_tokens = attention[0].len();
    let mut evidence = PromptEvidence::new(scoring, attention.len(), num_tokens).unwrap();
    for (head, rows) in attention.iter().enumerate() {
        for (position, weights) in rows.iter().enumerate() {
            evidence.add(head, position, weights).unwrap();
        }
    }
    evidence.finish()
}

#[track_caller]
fn assert_close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (token, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(error <= 1e-6 * expected.abs().max(1e-6), "{token}: {actual} and {expected}");
    }
}

/// What a query head gives token `t` in all, by definition.
fn of_head(scoring: Scoring, rows: &[Vec<f32>], t: usize) -> f64 {
    let n = rows.len();
    let looked_at = (0..n).filter(|&position| scoring.window >= n - position && position >= t);
    let weights = looked_at.map(|position| (position, f64::from(rows[position][t])));
    match scoring.scorer {
        Scorer::Window if n - t <= scoring.window => 0.0,
        Scorer::LastQuery => f64::from(rows[n - 1][t]),
        Scorer::Squared => weights.map(|(_, x)| x * x).sum(),
        Scorer::Votes | Scorer::VotesSeen => {
            let votes = weights.filter(|&(position, x)| x >= 1.0 / (position + 1) as f64);
            votes.map(|(position, _)| (position + 1) as f64).fold(0.0, f64::max)
        }
        _ => weights.map(|(_, x)| x).sum(),
    }
}

#[test]
fn evidence_of_a_prompt_is_its_definition() {
    let attention = attention(3, 23, 7);
    let attention_scorers = SCORERS.iter().filter(|(_, scorer)| scorer.sees_attention());
    for &(word, scorer) in attention_scorers {
        for window in [0, 1, 6, 22, 23, usize::MAX] {
            for (_, gqa) in GQAS {
                let scoring = Scoring { scorer, window, gqa, ..PLAIN };
                let expected: Vec<f64> = (0..23)
                    .map(|t| {
                        let heads: Vec<f64> =
                            attention.iter().map(|rows| of_head(scoring, rows, t)).collect();
                        let most = heads.iter().copied().fold(0.0, f64::max);
                        match gqa {
                            _ if word.starts_with("votes") => most,
                            Gqa::Mean => heads.iter().sum::<f64>() / 3.0,
                            Gqa::Max => most,
                            Gqa::Sum => heads.iter().sum(),
                            Gqa::SumSquares => heads.iter().map(|x| x * x).sum(),
                        }
                    })
                    .collect();
                assert_close(&evidence(scoring, &attention), &expected);
            }
        }
    }
}

#[test]
fn the_order_of_queries_does_not_matter_and_early_ones_may_be_left_out() {
    let attention = attention(2, 17, 3);
    for (_, scorer) in SCORERS.iter().filter(|(_, scorer)| scorer.sees_attention()) {
        let scoring = Scoring { scorer: *scorer, window: 5, ..PLAIN };
        let mut backwards = PromptEvidence::new(scoring, 2, 17).unwrap();
        for position in (backwards.first_query()..17).rev() {
            for head in [1, 0] {
                backwards.add(head, position, &attention[head][position]).unwrap();
            }
        }
        let expected: Vec<f64> =
            evidence(scoring, &attention).iter().map(|&x| f64::from(x)).collect();
        assert_close(&backwards.finish(), &expected);
    }
}

/// Fed step by step with what a full cache sees, the evidence of decoding is that of the prompt.
#[test]
fn decoding_goes_on_as_the_prompt_did() {
    let attention = attention(2, 19, 5);
    for scorer in
        [Scorer::Accumulated, Scorer::Squared, Scorer::Votes, Scorer::VotesSeen, Scorer::LastQuery]
    {
        let scoring = Scoring { scorer, gqa: Gqa::Sum, ..PLAIN };
        let begun: Vec<_> = attention.iter().map(|rows| rows[..11].to_vec()).collect();
        let mut held = evidence(scoring, &begun);
        let rows = attention[0].iter().zip(&attention[1]).enumerate();
        for (position, (first, second)) in rows.skip(11) {
            held.push(0.0);
            let weights = [&first[..], second].concat();
            scoring.observe(position + 1, 2, &weights, &mut held).unwrap();
        }
        let expected: Vec<f64> =
            evidence(scoring, &attention).iter().map(|&x| f64::from(x)).collect();
        assert_close(&held, &expected);
    }
}

#[test]
fn a_step_adds_what_it_says() {
    // Two query heads over three tokens; 12 tokens were seen.
    let weights = [0.5, 0.3, 0.2, 0.1, 0.3, 0.6];
    let after = |scorer, gqa| {
        let mut evidence = [1.0, 2.0, 4.0];
        Scoring { scorer, gqa, ..PLAIN }.observe(12, 2, &weights, &mut evidence).unwrap();
        evidence
    };
    assert_close(&after(Scorer::Window, Gqa::Mean), &[1.3, 2.3, 4.4]);
    assert_close(&after(Scorer::Accumulated, Gqa::Max), &[1.5, 2.3, 4.6]);
    assert_close(&after(Scorer::LastQuery, Gqa::Sum), &[0.6, 0.6, 0.8]);
    assert_close(&after(Scorer::Squared, Gqa::Sum), &[1.26, 2.18, 4.4]);
    assert_close(&after(Scorer::Window, Gqa::SumSquares), &[1.26, 2.18, 4.4]);
    assert_eq!(after(Scorer::Votes, Gqa::Mean), [12.0, 2.0, 12.0], "a third of those held");
    assert_eq!(after(Scorer::VotesSeen, Gqa::Mean), [12.0; 3], "a twelfth of those seen");
}

#[test]
fn observed_attention_is_a_mean_over_the_queries_that_saw_a_token() {
    let rows = attention(1, 9, 11);
    let positions: Vec<u32> = (0..9).collect();
    let mean = per_query(&evidence(PLAIN, &rows), &positions, 9).unwrap();
    let expected = |t: usize| of_head(PLAIN, &rows[0], t) / (9 - t) as f64;
    assert_close(&mean, &(0..9).map(expected).collect::<Vec<_>>());
    assert!(matches!(per_query(&[1.0], &[], 9), Err(Error::Length { .. })));
    assert!(matches!(per_query(&[1.0], &[9], 9), Err(Error::Index { index: 9, .. })));
    assert_eq!(per_query(&[], &[], 0), Ok(vec![]));
}

#[test]
fn one_query_is_pooled_before_its_heads_meet() {
    let scoring = Scoring { pool: Pool::Mean(3), gqa: Gqa::Max, ..PLAIN };
    let weights = [0.9, 0.0, 0.0, 0.1, 0.0, 0.6, 0.3, 0.1];
    // Means (0.3, 0.3, 0.033, 0.033) and (0.2, 0.3, 0.333, 0.133).
    let scores = scoring.scores_of_query(2, &weights).unwrap();
    assert_close(&scores, &[0.3, 0.3, 1.0 / 3.0, 0.4 / 3.0]);
    // The other way round: the largest (0.9, 0.6, 0.3, 0.1), then means.
    let after = scoring.scores(&[0.9, 0.6, 0.3, 0.1]);
    assert_close(&after, &[0.5, 0.6, 1.0 / 3.0, 0.4 / 3.0]);
    assert_eq!(scoring.scores_of_query(2, &[]), Ok(vec![]));
    assert!(matches!(scoring.scores_of_query(3, &weights), Err(Error::Length { .. })));
}

#[test]
fn pools_are_those_of_torch() {
    let values = [1.0, 2.0, 4.0, 8.0];
    let pooled = |pool: Pool| pool.apply(&values);
    assert_eq!(pooled(Pool::None), values);
    assert_close(&pooled(Pool::Mean(3)), &[1.0, 7.0 / 3.0, 14.0 / 3.0, 4.0]);
    assert_close(&pooled(Pool::Mean(9)), &[15.0 / 9.0; 4]);
    assert_eq!(pooled(Pool::Max(3)), [2.0, 4.0, 8.0, 8.0]);
    assert_eq!(Pool::Max(3).apply(&[-1.0, -2.0]), [-1.0, -1.0], "nothing lies beyond the ends");
    assert_eq!(pooled(Pool::Max(usize::MAX)), [8.0; 4]);
    for pool in [Pool::None, Pool::Mean(5), Pool::Max(5)] {
        assert!(pool.apply(&[]).is_empty());
        assert!(pool.apply(&[1.0, f32::NAN, 2.0])[1].is_nan(), "{pool} hides what is not a number");
    }
}

/// The definition of a pool, at one place.
fn pooled_at(pool: Pool, values: &[f32], place: usize) -> f64 {
    let around = |kernel: usize| {
        let end = (place + kernel / 2 + 1).min(values.len());
        values[place.saturating_sub(kernel / 2)..end].iter().map(|&x| f64::from(x))
    };
    match pool {
        Pool::None => f64::from(values[place]),
        Pool::Mean(kernel) => around(kernel).sum::<f64>() / (kernel / 2 * 2 + 1) as f64,
        Pool::Max(kernel) => around(kernel).fold(f64::NEG_INFINITY, f64::max),
    }
}

/// Of more tokens than are worked on at a time, wherever one begins.
#[test]
fn long_texts_are_scored_as_short_ones() {
    let n = 2 * BLOCK_TOKENS + 77;
    let weights: Vec<f32> = (0..3 * n).map(|i| (i * i % 1009) as f32 / 1009.0).collect();
    for pool in [Pool::None, Pool::Mean(5), Pool::Mean(63), Pool::Max(7), Pool::Max(2 * n)] {
        for (_, gqa) in GQAS {
            let scoring = Scoring { pool, gqa, ..PLAIN };
            let score = |place: usize| {
                let heads = weights.chunks_exact(n).map(|head| pooled_at(pool, head, place));
                match gqa {
                    Gqa::Mean => heads.sum::<f64>() / 3.0,
                    Gqa::Sum => heads.sum(),
                    Gqa::Max => heads.fold(0.0, f64::max),
                    Gqa::SumSquares => heads.map(|x| x * x).sum(),
                }
            };
            let expected: Vec<f64> = (0..n).map(score).collect();
            let scores = scoring.scores_of_query(3, &weights).unwrap();
            for (token, (&score, &expected)) in scores.iter().zip(&expected).enumerate() {
                let near = 1e-5 * expected;
                assert!((f64::from(score) - expected).abs() <= near, "{pool} {gqa} at {token}");
            }
            for (first, len) in [(0, n), (1, 5), (700, 1400), (n - 1, 1), (n, 0)] {
                let mut part = vec![f32::NAN; len];
                scoring.scores_from(first, 3, &weights, &mut part).unwrap();
                assert_eq!(part, scores[first..][..len], "{pool} {gqa}: the same from {first}");
            }
        }
        let apart: Vec<f64> = (0..n).map(|place| pooled_at(pool, &weights[..n], place)).collect();
        let pooled = Scoring { pool, ..PLAIN }.scores(&weights[..n]);
        let is_near = |(x, e): (&f32, &f64)| (f64::from(*x) - e).abs() <= 1e-5 * e;
        assert!(pooled.iter().zip(&apart).all(is_near), "{pool}");
    }
    let index = PLAIN.scores_from(n - 3, 3, &weights, &mut [0.0; 4]);
    assert_eq!(index, Err(Error::Index { what: "token", index: n, count: n }));
    let mut unsound = weights;
    unsound[n + 1500] = f32::NAN;
    let error = PLAIN.scores_of_query(3, &unsound).unwrap_err();
    assert!(matches!(error, Error::Weight { token: 1500, .. }), "{error}");
}

#[test]
fn small_keys_and_odd_keys_stay() {
    let keys = [3.0, 4.0, 1.0, 0.0, 0.0, 2.0];
    assert_eq!(key_norm(&keys, 2), Ok(vec![-5.0, -1.0, -2.0]));
    // Directions (0.6, 0.8), (1, 0), (0, 1): their sum is (1.6, 1.8).
    let length = 1.6f64.hypot(1.8);
    let expected = [(0.96 + 1.44) / length, 1.6 / length, 1.8 / length].map(|x: f64| -x);
    assert_close(&key_diff(&keys, 2).unwrap(), &expected);
    assert_eq!(key_diff(&[0.0; 4], 2), Ok(vec![0.0; 2]), "keys of zeros");
    for score in [key_norm, key_diff] {
        assert_eq!(score(&[], 2), Ok(vec![]));
        assert!(matches!(score(&keys, 4), Err(Error::Rows { len: 6, head_dim: 4, .. })));
        assert!(matches!(score(&keys, 0), Err(Error::Rows { .. })));
        assert!(score(&[f32::NAN, 1.0], 2).unwrap()[0].is_nan());
    }
}

#[test]
fn later_positions_first() {
    let scoring = Scoring { scorer: Scorer::Position, ..PLAIN };
    let scores = scoring.scores(&[0.0; 12]);
    assert_eq!(keep_best(&scores, 5, 2, 0), Ok(vec![0, 1, 9, 10, 11]), "sinks and recent ones");
}

#[test]
fn words_go_both_ways() {
    fn check<T: FromStr<Err = Error> + fmt::Display + PartialEq + fmt::Debug>(word: &str) {
        let value: T = word.parse().unwrap_or_else(|error| panic!("{word}: {error}"));
        assert_eq!(value.to_string(), word);
    }
    SCORERS.iter().for_each(|(word, _)| check::<Scorer>(word));
    GQAS.iter().for_each(|(word, _)| check::<Gqa>(word));
    ["none", "mean:5", "max:7", "mean:1", "max:255"].iter().for_each(|word| check::<Pool>(word));
    let refused = |error: Error, known: &str| {
        assert!(matches!(error, Error::UnknownWord { .. }), "{error}");
        assert!(error.to_string().contains(known), "{error}");
    };
    refused("snapkv".parse::<Scorer>().unwrap_err(), "window, accumulated, last-query, squared");
    refused("median".parse::<Gqa>().unwrap_err(), "mean, max, sum, sum-squares");
    for word in ["", "mean", "mean:", "mean:4", "mean:0", "max:-1", "max:257", "min:3", "none:3"] {
        refused(word.parse::<Pool>().unwrap_err(), "max:N with odd N");
    }
}

#[test]
fn bad_attention_is_refused_and_changes_nothing() {
    let mut evidence = PromptEvidence::new(PLAIN, 2, 3).unwrap();
    evidence.add(1, 1, &[0.5, 0.5]).unwrap();
    for weight in [f32::NAN, f32::INFINITY, -0.1] {
        let error = evidence.add(0, 2, &[0.5, weight, 0.5]).unwrap_err();
        assert!(matches!(error, Error::Weight { token: 1, .. }), "{error}");
        let mut held = [1.0, 2.0];
        let error = PLAIN.observe(3, 2, &[0.5, 0.5, 0.5, weight], &mut held).unwrap_err();
        assert!(matches!(error, Error::Weight { token: 1, .. }), "{error}");
        assert_eq!(held, [1.0, 2.0]);
    }
    let refused = |evidence: &mut PromptEvidence, head, position, len: usize| {
        evidence.add(head, position, &vec![0.1; len]).unwrap_err()
    };
    assert!(matches!(refused(&mut evidence, 2, 1, 2), Error::Index { what: "query head", .. }));
    assert!(matches!(refused(&mut evidence, 0, 3, 4), Error::Index { .. }));
    assert!(matches!(refused(&mut evidence, 0, 2, 2), Error::Length { .. }));
    assert_eq!(evidence.finish(), [0.25, 0.25, 0.0]);

    assert!(matches!(PromptEvidence::new(PLAIN, 0, 3), Err(Error::Zero { .. })));
    assert_eq!(PromptEvidence::new(PLAIN, 1, 0).unwrap().finish(), [0.0; 0]);
    assert!(matches!(PLAIN.observe(3, 0, &[], &mut []), Err(Error::Zero { .. })));
    assert!(matches!(PLAIN.observe(3, 2, &[0.1; 3], &mut [0.0]), Err(Error::Length { .. })));
    assert!(matches!(PLAIN.observe(3, 1, &[0.1; 3], &mut [0.0]), Err(Error::Length { .. })));
    assert_eq!(PLAIN.observe(3, 2, &[], &mut []), Ok(()));
    for scorer in [Scorer::KeyNorm, Scorer::KeyDiff, Scorer::Expected, Scorer::Position] {
        let scoring = Scoring { scorer, ..PLAIN };
        assert!(matches!(PromptEvidence::new(scoring, 1, 3), Err(Error::NoAttention { .. })));
        let error = scoring.observe(3, 1, &[0.1], &mut [0.0]);
        assert_eq!(error, Err(Error::NoAttention { scorer }));
    }
}

proptest! {
    #[test]
    fn permuting_the_heads_of_a_group_changes_nothing(
        seed: u64,
        order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
        kind in 0usize..6,
        gqa in 0usize..4,
    ) {
        let scoring = Scoring {
            scorer: SCORERS[kind].1,
            window: 7,
            pool: Pool::Mean(5),
            gqa: GQAS[gqa].1,
        };
        let rows = attention(4, 15, seed);
        let permuted: Vec<_> = order.iter().map(|&head| rows[head].clone()).collect();
        let expected: Vec<f64> =
            scoring.scores(&evidence(scoring, &rows)).iter().map(|&x| f64::from(x)).collect();
        for (a, b) in scoring.scores(&evidence(scoring, &permuted)).iter().zip(expected) {
            prop_assert!((f64::from(*a) - b).abs() <= 1e-6 * b);
        }
    }

    /// What was voted for in a window stays: the definition of CORM over the prompt's rows.
    #[test]
    fn votes_keep_what_the_last_queries_wanted(seed: u64, window in 1usize..12, recent in 0usize..5) {
        let rows = attention(2, 20, seed);
        let scoring = Scoring { scorer: Scorer::Votes, window, ..PLAIN };
        let kept = keep_voted(&evidence(scoring, &rows), 20, window, 1, recent).unwrap();
        let wanted = |t: usize| {
            let last = (20 - window).max(t)..20;
            rows.iter().any(|head| last.clone().any(|q| head[q][t] >= 1.0 / (q + 1) as f32))
        };
        let expected: Vec<u32> =
            (0..20).filter(|&t| t < 1 || t + recent >= 20 || wanted(t)).map(|t| t as u32).collect();
        prop_assert_eq!(kept, expected);
    }
}
