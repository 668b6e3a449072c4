//! What stays, against its definition by a sort.

use proptest::prelude::*;

use super::*;

/// The definition: sort, take from the top beside what stays in any case.
fn by_definition(scores: &[f32], num_keep: usize, sinks: usize, recent: usize) -> Vec<u32> {
    let n = scores.len();
    let always = |token: usize| token < sinks || token + recent >= n;
    let mut order: Vec<usize> = (0..n).filter(|&token| !always(token)).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
    let chosen = num_keep.min(n) - (n - order.len());
    let mut kept: Vec<u32> = (0..n).filter(|&token| always(token)).map(|x| x as u32).collect();
    kept.extend(order[..chosen].iter().map(|&token| token as u32));
    kept.sort_unstable();
    kept
}

/// Scores with many ties, zeros of both signs and infinities.
fn scores() -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![
        (-3i32..4).prop_map(|x| x as f32 / 2.0),
        Just(-0.0f32),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
    ];
    prop::collection::vec(score, 0..120)
}

proptest! {
    #[test]
    fn equals_the_definition(
        scores in scores(),
        sinks in 0usize..20,
        recent in 0usize..20,
        more in 0usize..140,
    ) {
        let always = (sinks + recent).min(scores.len());
        let kept = keep_best(&scores, always + more, sinks, recent).unwrap();
        prop_assert_eq!(kept.len(), (always + more).min(scores.len()), "the budget is exact");
        prop_assert_eq!(kept, by_definition(&scores, always + more, sinks, recent));
        if always > 0 {
            let error = keep_best(&scores, always - 1, sinks, recent);
            prop_assert_eq!(error, Err(Error::BudgetTooSmall { budget: always - 1, least: always }));
        }
    }

    #[test]
    fn equals_the_definition_where_scores_lie_close(
        seeds in prop::collection::vec(any::<u16>(), 1..3000),
        spread in 1u16..20_000,
        share in 0.0f64..1.0,
    ) {
        let scores: Vec<f32> =
            seeds.iter().map(|seed| 0.1 * f32::from(seed % spread) / f32::from(spread) + 1.0).collect();
        let num_keep = (share * scores.len() as f64) as usize;
        let kept = keep_best(&scores, num_keep, 0, 0).unwrap();
        prop_assert_eq!(kept, by_definition(&scores, num_keep, 0, 0));
    }

    #[test]
    fn sinks_and_recent_tokens_stay(
        scores in scores(),
        sinks in 0usize..20,
        recent in 0usize..20,
        step in 0usize..9,
        window in 0usize..9,
    ) {
        let n = scores.len();
        let always: Vec<u32> =
            (0..n).filter(|&t| t < sinks || t + recent >= n).map(|t| t as u32).collect();
        let best = keep_best(&scores, (sinks + recent).max(n / 2), sinks, recent).unwrap();
        let voted = keep_voted(&scores, step, window, sinks, recent).unwrap();
        for kept in [best, voted] {
            prop_assert!(always.iter().all(|token| kept.contains(token)));
            prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}

#[test]
fn a_vote_keeps_for_as_long_as_the_window() {
    // Of six tokens the last is too new to judge; the latest votes were at steps 0 (never) to 9.
    let evidence = [0.0, 9.0, 7.0, 6.0, 0.0, 0.0];
    assert_eq!(keep_voted(&evidence, 9, 3, 0, 1), Ok(vec![1, 2, 5]));
    assert_eq!(keep_voted(&evidence, 9, 4, 1, 1), Ok(vec![0, 1, 2, 3, 5]));
    assert_eq!(keep_voted(&evidence, 9, 10, 0, 0), Ok((0..6).collect()), "too few steps to judge");
    assert_eq!(keep_voted(&[], 9, 3, 4, 4), Ok(vec![]));
}

#[test]
fn what_is_not_a_number_is_named_wherever_it_is() {
    for token in 0..5 {
        let mut scores = [1.0; 5];
        scores[token] = f32::NAN;
        assert_eq!(keep_best(&scores, 5, 1, 1), Err(Error::NotANumber { token }));
        assert_eq!(top_positions(&scores, 2), Err(Error::NotANumber { token }));
        assert_eq!(keep_voted(&scores, 1, 1, 1, 1), Err(Error::NotANumber { token }));
    }
}

#[test]
fn the_top_is_in_order_of_position() {
    assert_eq!(top_positions(&[0.1, 0.9, 0.5, 0.9, 0.5], 3), Ok(vec![1, 2, 3]));
    assert_eq!(top_positions(&[0.1], 3), Ok(vec![0]));
    assert_eq!(top_positions(&[], 3), Ok(vec![]));
    assert_eq!(top_positions(&[0.1, 0.2], 0), Ok(vec![]));
}
