//! Budgets: exact, within their bounds, the same in whatever order heads come.

use proptest::prelude::*;

use super::*;
use crate::{keep_best, keep_voted};

#[test]
fn words_go_both_ways() {
    let words = [
        ("uniform", Budget::Uniform),
        ("pyramid:20", Budget::Pyramid(20.0)),
        ("pyramid:1.5", Budget::Pyramid(1.5)),
        ("pyramid-within:2", Budget::PyramidWithin(2.0)),
        ("adaptive:0.2", Budget::Adaptive(0.2)),
        ("global", Budget::Global),
        ("norm-drop:0.05", Budget::NormDrop(0.05)),
        ("norm-drop-tail:0", Budget::NormDropTail(0.0)),
        ("votes", Budget::Votes),
        ("stability", Budget::Stability),
        ("profile", Budget::Profile),
    ];
    for (word, budget) in words {
        assert_eq!(word.parse(), Ok(budget));
        assert_eq!(budget.to_string(), word);
    }
    for word in ["", "pyramid", "uniform:1", "global:", "adaptive:x", "norm-drop", "Votes"] {
        let error = word.parse::<Budget>().unwrap_err();
        assert!(matches!(error, Error::UnknownWord { what: "budget", .. }), "{word}: {error}");
        assert!(error.to_string().contains("norm-drop-tail:THETA"), "{error}");
    }
    for word in [
        "pyramid:0.9",
        "pyramid-within:0.9",
        "pyramid:nan",
        "pyramid:inf",
        "adaptive:1.1",
        "adaptive:nan",
        "norm-drop:-1",
    ] {
        let error = word.parse::<Budget>().unwrap_err();
        assert!(matches!(error, Error::Range { .. }), "{word}: {error}");
    }
}

/// (weight, least, most) of shares.
fn shares() -> impl Strategy<Value = Vec<(f64, usize, usize)>> {
    let weight = prop_oneof![
        Just(0.0),
        (1u32..9).prop_map(f64::from),
        0.01..100.0,
        Just(1e-300),
        Just(1e300)
    ];
    let share =
        (weight, 0usize..50, 0usize..80).prop_map(|(w, least, more)| (w, least, least + more));
    prop::collection::vec(share, 0..24)
}

fn columns(shares: &[(f64, usize, usize)]) -> (Vec<f64>, Vec<usize>, Vec<usize>) {
    let weights = shares.iter().map(|share| share.0).collect();
    let least = shares.iter().map(|share| share.1).collect();
    (weights, least, shares.iter().map(|share| share.2).collect())
}

proptest! {
    #[test]
    fn shares_are_exact_and_within_bounds(shares in shares(), total in 0usize..4000, unit in 1usize..20) {
        let (weights, least, most) = columns(&shares);
        let units = |x: &[usize]| x.iter().map(|x| x.div_ceil(unit)).sum::<usize>();
        match apportion(total, &weights, &least, &most, unit) {
            Err(error) => {
                let needed = units(&least) * unit;
                prop_assert_eq!(error, Error::BudgetTooSmall { budget: total, least: needed });
                prop_assert!(needed > total / unit * unit);
            }
            Ok(counts) => {
                prop_assert_eq!(units(&counts), (total / unit).min(units(&most)));
                prop_assert!(counts.iter().sum::<usize>() <= total);
                if unit == 1 {
                    prop_assert_eq!(counts.iter().sum::<usize>(), total.min(most.iter().sum()));
                }
                for (share, &count) in counts.iter().enumerate() {
                    prop_assert!(least[share] <= count && count <= most[share]);
                    prop_assert!(count % unit == 0 || count == most[share]);
                }
            }
        }
    }

    /// A share that is not at a bound has what its weight says, to within a unit.
    #[test]
    fn shares_are_in_proportion(
        shares in prop::collection::vec((0.1..10.0f64, 0usize..40, 40usize..400), 1..20),
        part in 0.0..1.0f64,
        unit in 1usize..5,
    ) {
        let (weights, least, most) = columns(&shares);
        let up = |x: &[usize]| x.iter().map(|x| x.div_ceil(unit) * unit).sum::<usize>();
        let total = up(&least) + ((up(&most) - up(&least)) as f64 * part) as usize;
        let counts = apportion(total, &weights, &least, &most, unit).unwrap();
        for a in 0..shares.len() {
            for b in 0..shares.len() {
                // Neither could the one give a unit nor the other take it: else they are level to within one.
                let gives = counts[a] >= least[a].div_ceil(unit) * unit + unit && counts[a].is_multiple_of(unit);
                let takes = counts[b] + unit <= most[b];
                if gives && takes {
                    let (after, before) = (counts[a] - unit, counts[b] + unit);
                    prop_assert!(
                        after as f64 / weights[a] <= before as f64 / weights[b] * (1.0 + 1e-9),
                        "{counts:?}: share {a} has too much, {b} too little"
                    );
                }
            }
        }
    }

    #[test]
    fn permuting_shares_permutes_counts(
        (shares, order) in shares().prop_flat_map(|shares| {
            let order: Vec<usize> = (0..shares.len()).collect();
            (Just(shares), Just(order).prop_shuffle())
        }),
        total in 0usize..4000,
        unit in 1usize..20,
    ) {
        let (weights, least, most) = columns(&shares);
        let permuted: Vec<_> = order.iter().map(|&share| shares[share]).collect();
        let (weights_p, least_p, most_p) = columns(&permuted);
        let counts = apportion(total, &weights, &least, &most, unit);
        let permuted = apportion(total, &weights_p, &least_p, &most_p, unit);
        prop_assert_eq!(counts.is_ok(), permuted.is_ok());
        if let (Ok(counts), Ok(permuted)) = (counts, permuted) {
            for (place, &share) in order.iter().enumerate() {
                // Equal remainders are given by index: a unit may go to another of them.
                prop_assert!(counts[share].abs_diff(permuted[place]) <= unit);
            }
        }
    }
}

#[test]
fn remainders_go_to_the_largest_and_then_the_first() {
    let count = |total, weights: &[f64]| {
        let n = weights.len();
        apportion(total, weights, &vec![0; n], &vec![100; n], 1).unwrap()
    };
    assert_eq!(count(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
    assert_eq!(count(10, &[1.0, 2.0, 1.0]), [3, 5, 2]);
    assert_eq!(count(7, &[0.0, 1.0, 0.0]), [0, 7, 0], "no weight, no more than the least");
    assert_eq!(count(103, &[0.0, 1.0, 0.0]), [2, 100, 1], "until the others are full");
    assert_eq!(count(3, &[0.0, 0.0]), [2, 1]);
    assert_eq!(count(9, &[]), [0; 0]);
    let least = usize::MAX;
    assert_eq!(apportion(least, &[1.0], &[0], &[least], 1).unwrap().len(), 1, "no overflow");
    assert_eq!(apportion(100, &[3.0, 1.0], &[0, 0], &[50, 90], 16), Ok(vec![50, 32]));
}

#[test]
fn whole_heads_stand_beside_shared_ones() {
    // Two of six heads keep 100 tokens each; at a ratio of a half, (3 − 2) · 100 are left to four.
    let weights = [0.5, 0.0, 1.5, 1.0, 0.0, 1.0];
    let counts = beside_whole(300, &weights, 4, 100, 1).unwrap();
    assert_eq!(counts, [13, 100, 37, 25, 100, 25]);
    let error = beside_whole(199, &weights, 0, 100, 1).unwrap_err();
    assert_eq!(error, Error::BudgetTooSmall { budget: 199, least: 200 });
    let error = beside_whole(210, &weights, 4, 100, 1).unwrap_err();
    assert_eq!(error, Error::BudgetTooSmall { budget: 210, least: 216 });
    assert_eq!(beside_whole(9999, &weights, 4, 100, 1), Ok(vec![100; 6]));
}

#[test]
fn bad_shares_are_refused_by_name() {
    let refused = |weights: &[f64], least: &[usize], most: &[usize], unit| {
        apportion(10, weights, least, most, unit).unwrap_err()
    };
    assert!(matches!(refused(&[1.0], &[], &[1], 1), Error::Length { .. }));
    assert!(matches!(refused(&[1.0], &[0], &[], 1), Error::Length { .. }));
    assert!(matches!(refused(&[1.0], &[0], &[1], 0), Error::Zero { .. }));
    assert_eq!(refused(&[1.0], &[2], &[1], 1), Error::MinAboveMax { min: 2, max: 1 });
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let error = refused(&[1.0, weight], &[0, 0], &[1, 1], 1);
        assert!(matches!(error, Error::ShareWeight { share: 1, .. }), "{error}");
    }
}

#[test]
fn the_pyramid_of_kvpress() {
    let pyramid = Pyramid { beta: 2.0, window: 8, counts_window: true };
    assert_eq!(pyramid.shares(80.0, 3, 160), Ok(vec![120.0, 80.0, 40.0]));
    // The widest layer is no wider than the tokens before the window.
    assert_eq!(pyramid.shares(110.0, 3, 160), Ok(vec![152.0, 110.0, 68.0]));
    // The narrowest would be less than the window.
    let steep = Pyramid { beta: 20.0, ..pyramid };
    assert_eq!(steep.shares(80.0, 3, 160), Ok(vec![152.0, 80.0, 8.0]));
    assert_eq!(steep.shares(20.0, 3, 160), Ok(vec![20.0; 3]));
}

#[test]
fn the_published_pyramid() {
    let pyramid = Pyramid { beta: 20.0, window: 32, counts_window: false };
    // C = 128: (C − w) / 20 = 4.8 and 2 · 96 − 4.8 beside the window.
    let shares = pyramid.shares(128.0, 32, 8000).unwrap();
    assert!((shares[0] - 219.2).abs() < 1e-9 && (shares[31] - 36.8).abs() < 1e-9, "{shares:?}");
    assert!((shares.iter().sum::<f64>() - 128.0 * 32.0).abs() < 1e-6);
    assert_eq!(pyramid.shares(128.0, 4, 150), Ok(vec![128.0; 4]), "shorter than twice the mean");
    assert_eq!(pyramid.shares(128.0, 4, 100), Ok(vec![100.0; 4]), "nothing to leave");
    assert_eq!(pyramid.shares(128.0, 1, 8000), Ok(vec![128.0]));
    assert_eq!(pyramid.shares(128.0, 0, 8000), Ok(vec![]));
    let error = pyramid.shares(31.0, 4, 8000).unwrap_err();
    assert_eq!(error, Error::BudgetTooSmall { budget: 31, least: 32 });
    for (beta, mean) in [(0.5, 64.0), (f64::NAN, 64.0), (20.0, f64::NAN), (20.0, -1.0)] {
        let error = Pyramid { beta, ..pyramid }.shares(mean, 4, 8000).unwrap_err();
        assert!(matches!(error, Error::Range { .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn a_pyramid_falls_around_its_mean(
        beta in 1.0..40.0f64,
        window in 0usize..40,
        counts_window: bool,
        mean in 0.0..300.0f64,
        num_layers in 1usize..12,
        num_tokens in 0usize..400,
    ) {
        let pyramid = Pyramid { beta, window, counts_window };
        let window = window.min(num_tokens) as f64;
        match pyramid.shares(mean, num_layers, num_tokens) {
            Err(_) => prop_assert!(mean < window),
            Ok(shares) => {
                let expected = mean.min(num_tokens as f64) * num_layers as f64;
                prop_assert!((shares.iter().sum::<f64>() - expected).abs() < 1e-6);
                prop_assert!(shares.windows(2).all(|pair| pair[0] >= pair[1] - 1e-9));
                let bounds = window - 1e-9..=num_tokens as f64 + 1e-9;
                prop_assert!(shares.iter().all(|share| bounds.contains(share)), "{shares:?}");
            }
        }
    }
}

/// Scores of some heads, of different lengths, all distinct, so that no result hangs on a tie.
fn heads() -> impl Strategy<Value = Vec<Vec<f32>>> {
    prop::collection::vec(0usize..60, 1..7).prop_flat_map(|lengths| {
        let count: usize = lengths.iter().sum();
        Just((0..count).map(|x| x as f32).collect::<Vec<_>>()).prop_shuffle().prop_map(move |all| {
            let mut rest = all.as_slice();
            let mut take = |n: usize| {
                let (head, behind) = rest.split_at(n);
                rest = behind;
                head.to_vec()
            };
            lengths.iter().map(|&n| take(n)).collect()
        })
    })
}

fn slices(heads: &[Vec<f32>]) -> Vec<&[f32]> {
    heads.iter().map(Vec::as_slice).collect()
}

/// What each head keeps under its count: the score of every (head, token) kept.
fn kept(heads: &[Vec<f32>], counts: &[usize], sinks: usize, recent: usize) -> Vec<Vec<f32>> {
    let of_head = |(scores, &count): (&Vec<f32>, &usize)| {
        let kept = keep_best(scores, count, sinks, recent).unwrap();
        kept.iter().map(|&token| scores[token as usize]).collect()
    };
    heads.iter().zip(counts).map(of_head).collect()
}

proptest! {
    #[test]
    fn adaptive_is_one_sort_above_a_floor(
        heads in heads(),
        floor in (0u32..=8).prop_map(|x| f64::from(x) / 8.0),
        sinks in 0usize..4,
        recent in 0usize..4,
        total in 0usize..300,
    ) {
        let all: usize = heads.iter().map(Vec::len).sum();
        let equal = total.min(all) as f64 / heads.len() as f64;
        let least: Vec<usize> = heads
            .iter()
            .map(|head| ((equal * floor) as usize).max(sinks + recent).min(head.len()))
            .collect();
        match adaptive(&slices(&heads), total, floor, sinks, recent) {
            Err(error) => {
                let least = least.iter().sum();
                prop_assert_eq!(error, Error::BudgetTooSmall { budget: total, least });
                prop_assert!(least > total);
            }
            Ok(counts) => {
                prop_assert_eq!(counts.iter().sum::<usize>(), total.min(all), "exact");
                prop_assert!(counts.iter().zip(&least).all(|(count, least)| count >= least));
                // Nothing above the floors is worth less than what any head gave up.
                let sure = kept(&heads, &least, sinks, recent);
                let kept = kept(&heads, &counts, sinks, recent);
                let gained = kept.iter().flatten().filter(|x| !sure.iter().flatten().any(|y| y == *x));
                let worst = gained.copied().fold(f32::INFINITY, f32::min);
                let lost = heads.iter().flatten().filter(|x| !kept.iter().flatten().any(|y| y == *x));
                prop_assert!(lost.copied().all(|score| score < worst));
                let mut reversed = heads.clone();
                reversed.reverse();
                let mut back = adaptive(&slices(&reversed), total, floor, sinks, recent).unwrap();
                back.reverse();
                prop_assert_eq!(back, counts, "heads in another order");
            }
        }
    }

    #[test]
    fn global_frees_the_lowest_pages(
        heads in heads(),
        page in 1usize..9,
        sinks in 0usize..4,
        recent in 0usize..4,
        total in 0usize..300,
    ) {
        let pages = |counts: &[usize]| counts.iter().map(|n| n.div_ceil(page)).sum::<usize>();
        let all: Vec<usize> = heads.iter().map(Vec::len).collect();
        match global(&slices(&heads), total, page, sinks, recent) {
            Err(error) => {
                let sure = (sinks + recent).div_ceil(page) + 1;
                let Error::BudgetTooSmall { budget, least } = error else { panic!("{error}") };
                prop_assert!(budget == total && total / page * page < least);
                prop_assert!(least <= all.iter().map(|&n| n.min(sure * page).next_multiple_of(page)).sum());
            }
            Ok(counts) => {
                prop_assert_eq!(pages(&counts), pages(&all).min(total / page), "exact in pages");
                for (count, n) in counts.iter().zip(&all) {
                    prop_assert!(count == n || (count < n && count % page == 0));
                    prop_assert!(*count >= (sinks + recent).min(*n));
                }
                let mut reversed = heads.clone();
                reversed.reverse();
                let mut back = global(&slices(&reversed), total, page, sinks, recent).unwrap();
                back.reverse();
                prop_assert_eq!(&back, &counts, "heads in another order");
                if page == 1 {
                    // Pages of one token: the plain sort over all heads.
                    let always: Vec<usize> = all.iter().map(|n| (sinks + recent).min(*n)).collect();
                    let sure = kept(&heads, &always, sinks, recent).concat();
                    let kept = kept(&heads, &counts, sinks, recent).concat();
                    let worst = kept.iter().filter(|x| !sure.contains(x)).copied().fold(f32::INFINITY, f32::min);
                    let is_lost = |x: &&f32| !kept.contains(x);
                    prop_assert!(heads.iter().flatten().filter(is_lost).all(|&x| x < worst));
                }
            }
        }
    }
}

#[test]
fn pages_leave_by_their_best_token() {
    // Ten tokens in pages of four: two hang over, and are the first to leave.
    let a = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 0.0];
    let b = [2.5, 2.6, 2.7, 2.8];
    // a: {0, 1} counts 1, {2, 3, 4, 5} counts 5, {6 .. 9} counts 9; b: {2.5 .. 2.8} counts 2.8.
    let counts = |total| global(&[&a, &b], total, 4, 0, 0).unwrap();
    assert_eq!(counts(16), [10, 4]);
    assert_eq!(counts(15), [8, 4]);
    assert_eq!(counts(8), [8, 0]);
    assert_eq!(counts(4), [4, 0]);
    assert_eq!(counts(0), [0, 0]);
    // The best tokens of `b` are recent ones: its page stays.
    assert_eq!(global(&[&a, &b], 8, 4, 0, 1), Ok(vec![4, 4]));
    let error = global(&[&a, &b], 7, 4, 0, 1).unwrap_err();
    assert_eq!(error, Error::BudgetTooSmall { budget: 7, least: 8 });
    assert!(matches!(global(&[&a], 7, 0, 0, 1), Err(Error::Zero { .. })));
    assert_eq!(global(&[&[f32::NAN]], 7, 4, 0, 1), Err(Error::NotANumber { token: 0 }));
    assert_eq!(global(&[], 7, 4, 0, 1), Ok(vec![]));
    assert_eq!(adaptive(&[], 7, 0.5, 0, 1), Ok(vec![]));
    assert_eq!(adaptive(&[&[f32::NAN]], 7, 0.5, 0, 1), Err(Error::NotANumber { token: 0 }));
    assert!(matches!(adaptive(&[&a], 7, f64::NAN, 0, 1), Err(Error::Range { .. })));
}

/// The norm of what is left of a head's attention, by definition.
fn norm_left(weights: &[f32], left: &[u32], uncounted: usize) -> f64 {
    let left = left.iter().filter(|&&token| token as usize >= uncounted);
    left.map(|&token| f64::from(weights[token as usize]).powi(2)).sum::<f64>().sqrt()
}

proptest! {
    #[test]
    fn the_norm_drop_is_the_largest_that_is_allowed(
        (attention, scores) in (1usize..40).prop_flat_map(|n| {
            let row = |least: f32| prop::collection::vec(least..1.0f32, n);
            (prop::collection::vec(row(0.0), 4), prop::collection::vec(row(-1.0), 2))
        }),
        theta in 0.0..0.5f64,
        sinks in 0usize..4,
        recent in 0usize..4,
        counts_sinks: bool,
    ) {
        let (attention, scores) = (slices(&attention), slices(&scores));
        let layer = LastQueries { attention: &attention, scores: &scores };
        let count = norm_drop(layer, theta, sinks, recent, counts_sinks).unwrap();
        let n = scores[0].len();
        let always = (sinks + recent).min(n);
        prop_assert!((always..=n).contains(&count));
        let uncounted = if counts_sinks { 0 } else { sinks };
        let left = |count: usize| -> f64 {
            let heads = attention.iter().enumerate();
            heads.map(|(head, weights)| {
                let kept = keep_best(scores[head / 2], count, sinks, recent).unwrap();
                norm_left(weights, &kept, uncounted)
            }).sum()
        };
        let all = left(n);
        prop_assert!(all - left(count) <= theta * all + 1e-9);
        if count > always {
            prop_assert!(all - left(count - 1) > theta * all - 1e-9, "one more could leave");
        }
    }
}

#[test]
fn sinks_hide_the_rest_of_the_norm() {
    let weights: &[f32] = &[0.9, 0.04, 0.03, 0.02, 0.01];
    let scores: &[f32] = &[0.0, 4.0, 3.0, 2.0, 1.0];
    let layer = LastQueries { attention: &[weights], scores: &[scores] };
    assert_eq!(norm_drop(layer, 0.05, 1, 0, true), Ok(1), "the sink is all of the norm");
    assert_eq!(norm_drop(layer, 0.05, 1, 0, false), Ok(4), "of 0.0548 in the tail 0.0010 may go");
    assert_eq!(norm_drop(layer, 0.0, 1, 0, false), Ok(5));
    assert_eq!(norm_drop(layer, 1.0, 1, 1, false), Ok(2));
    let zeros: &[f32] = &[1.0, 0.0, 0.0, 0.0, 0.0];
    let layer = LastQueries { attention: &[zeros], scores: &[scores] };
    assert_eq!(norm_drop(layer, 0.0, 1, 0, false), Ok(1), "what weighs nothing is free");
}

#[test]
fn bad_norms_are_refused_by_name() {
    let (weights, scores): (&[f32], &[f32]) = (&[0.5, 0.5], &[1.0, 2.0]);
    let drop = |attention: &[&[f32]], scores: &[&[f32]], theta| {
        norm_drop(LastQueries { attention, scores }, theta, 0, 0, true)
    };
    assert_eq!(drop(&[], &[], 0.1), Ok(0));
    assert!(matches!(drop(&[], &[scores], 0.1), Err(Error::Length { .. })));
    assert!(matches!(drop(&[weights; 3], &[scores; 2], 0.1), Err(Error::Length { .. })));
    assert!(matches!(drop(&[&weights[..1]], &[scores], 0.1), Err(Error::Length { .. })));
    assert!(matches!(drop(&[weights], &[scores], 1.1), Err(Error::Range { .. })));
    assert!(matches!(drop(&[weights], &[scores], f64::NAN), Err(Error::Range { .. })));
    let error = drop(&[&[0.5, f32::NAN]], &[scores], 0.1);
    assert!(matches!(error, Err(Error::Weight { token: 1, .. })));
    let error = drop(&[weights], &[&[f32::NAN, 1.0]], 0.1);
    assert_eq!(error, Err(Error::NotANumber { token: 0 }));
}

#[test]
fn votes_set_their_own_budget() {
    assert_eq!(keep_voted(&[0.0, 5.0, 0.0, 4.0, 0.0], 5, 2, 0, 1), Ok(vec![1, 3, 4]));
}
