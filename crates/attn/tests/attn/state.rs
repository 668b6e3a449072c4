//! Laws of the merge, as properties, and of the running softmax.

use heterokv_attn::reference::{ReferenceHead, merge, partial_softmax};
use heterokv_attn::{Accumulator, AttnError, AttnState};
use heterokv_testkit::{Controls, Inputs, Mismatch, Sabotage, Tolerance, compare};
use proptest::prelude::*;

const HEAD_DIM: usize = 5;
/// States in f32 carry rounded outputs and an lse rounded at its own size, whose error reaches the
/// weights; scores here are below 1e4, where half a unit in the last place is 5e-4.
const NEAR: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };

/// The state of one head over `scores [num_tokens]` and `values [num_tokens, HEAD_DIM]`.
fn state_of(scores: &[f32], values: &[f32]) -> AttnState {
    let mut rows = Accumulator::new(1, HEAD_DIM);
    for (score, value) in scores.iter().zip(values.chunks_exact(HEAD_DIM)) {
        rows.push(0, *score, value).expect("one row");
    }
    rows.finish()
}

fn reference_of(scores: &[f32], values: &[f32]) -> ReferenceHead {
    let scores: Vec<f64> = scores.iter().map(|&s| f64::from(s)).collect();
    partial_softmax(&scores, values, HEAD_DIM)
}

fn merged(a: &AttnState, b: &AttnState) -> AttnState {
    let mut merged = a.clone();
    merged.merge(b).expect("one shape");
    merged
}

fn check(
    state: &AttnState,
    expected: &ReferenceHead,
    tolerance: Tolerance,
) -> Result<(), Mismatch> {
    compare(state.lse(), &[expected.lse], tolerance)?;
    compare(state.out(), &expected.out, tolerance)?;
    Ok(())
}

fn as_f64(state: &AttnState) -> ReferenceHead {
    ReferenceHead {
        out: state.out().iter().map(|&x| f64::from(x)).collect(),
        lse: f64::from(state.lse()[0]),
    }
}

/// Scores of ordinary size, some masked, and their values.
fn tokens(max_len: usize) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    let score = prop_oneof![8 => -30.0_f32..30.0, 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec((score, prop::array::uniform5(-4.0_f32..4.0)), 0..max_len)
        .prop_map(|rows| rows.into_iter().unzip())
        .prop_map(|(scores, values): (Vec<f32>, Vec<[f32; HEAD_DIM]>)| (scores, values.concat()))
}

/// A state as it may arrive: any lse, far apart too, or empty.
fn state() -> impl Strategy<Value = AttnState> {
    let lse = prop_oneof![
        4 => -50.0_f32..50.0,
        2 => -1e4_f32..1e4,
        1 => Just(f32::NEG_INFINITY),
    ];
    (lse, prop::array::uniform5(-4.0_f32..4.0)).prop_map(|(lse, out)| {
        let empty = lse == f32::NEG_INFINITY;
        let out = if empty { vec![0.0; HEAD_DIM] } else { out.to_vec() };
        AttnState::from_parts(HEAD_DIM, out, vec![lse]).expect("one head")
    })
}

proptest! {
    #[test]
    fn merge_is_commutative_to_the_bit(a in state(), b in state()) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
    }

    #[test]
    fn merge_is_associative(a in state(), b in state(), c in state()) {
        let left = merged(&merged(&a, &b), &c);
        let right = as_f64(&merged(&a, &merged(&b, &c)));
        // An lse of up to 1e4 is rounded by 5e-4 at every merge, and so are the weights.
        let largest = [&a, &b, &c].map(|s| s.lse()[0]).into_iter()
            .filter(|lse| lse.is_finite()).fold(1.0_f32, |m, lse| m.max(lse.abs()));
        let tolerance = Tolerance { absolute: 8.0 * f64::from(largest * f32::EPSILON), relative: 1e-5 };
        let outcome = check(&left, &right, tolerance);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }

    #[test]
    fn merge_is_that_of_the_reference(a in state(), b in state()) {
        let outcome = check(&merged(&a, &b), &merge(&[as_f64(&a), as_f64(&b)], HEAD_DIM), NEAR);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }

    #[test]
    fn splitting_anywhere_is_one_softmax((scores, values) in tokens(60), at in 0.0..1.0_f64) {
        let at = (at * (scores.len() + 1) as f64) as usize;
        let (head, tail) = scores.split_at(at);
        let (head_values, tail_values) = values.split_at(at * HEAD_DIM);
        let state = merged(&state_of(head, head_values), &state_of(tail, tail_values));
        let outcome = check(&state, &reference_of(&scores, &values), NEAR);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
        let whole = check(&state_of(&scores, &values), &reference_of(&scores, &values), NEAR);
        prop_assert!(whole.is_ok(), "{}", whole.unwrap_err());
    }

    #[test]
    fn empty_is_the_identity_to_the_bit(a in state()) {
        let empty = AttnState::empty(1, HEAD_DIM);
        prop_assert_eq!(&merged(&a, &empty), &a);
        prop_assert_eq!(&merged(&empty, &a), &a);
    }

    #[test]
    fn a_negligible_part_changes_nothing(a in state(), b in state(), gap in 200.0_f32..1e4) {
        prop_assume!(a.lse()[0].is_finite());
        let b = AttnState::from_parts(HEAD_DIM, b.out().to_vec(), vec![a.lse()[0] - gap]);
        let b = b.expect("one head");
        prop_assert_eq!(&merged(&a, &b), &a);
        prop_assert_eq!(&merged(&b, &a), &a);
    }

    #[test]
    fn widening_keeps_the_weights_of_the_full_softmax((scores, values) in tokens(40)) {
        let (taken, full) = (scores.len() / 2, reference_of(&scores, &values));
        let mut state = state_of(&scores[..taken], &values[..taken * HEAD_DIM]);
        state.widen_normaliser(0, full.lse as f32).expect("head 0");
        // The same weights with the values of what was not taken at zero.
        let mut kept = values.clone();
        kept[taken * HEAD_DIM..].fill(0.0);
        let outcome = check(&state, &reference_of(&scores, &kept), NEAR);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}

#[test]
fn two_empty_states_give_an_empty_one() {
    let empty = AttnState::empty(3, 2);
    assert_eq!(merged(&empty, &empty), empty);
    assert_eq!(empty.lse(), [f32::NEG_INFINITY; 3]);
    assert_eq!(Accumulator::new(3, 2).finish(), empty);
    let mut masked = Accumulator::new(1, 2);
    masked.push(0, f32::NEG_INFINITY, &[9.0, 9.0]).expect("row 0");
    assert_eq!(masked.finish(), AttnState::empty(1, 2));
    let mut widened = AttnState::empty(1, 2);
    widened.widen_normaliser(0, 1.5).expect("head 0");
    assert_eq!((widened.out(), widened.lse()), (&[0.0, 0.0][..], &[1.5][..]));
    widened.reset();
    assert_eq!(widened, AttnState::empty(1, 2));
}

#[test]
fn nan_is_not_lost_in_either_direction() {
    let good = AttnState::from_parts(1, vec![1.0], vec![0.5]).expect("one head");
    for (out, lse) in [(1.0, f32::NAN), (f32::NAN, f32::NAN)] {
        let bad = AttnState::from_parts(1, vec![out], vec![lse]).expect("one head");
        for state in [merged(&good, &bad), merged(&bad, &good)] {
            assert!(state.out()[0].is_nan() && state.lse()[0].is_nan(), "{state:?}");
        }
        assert!(merged(&AttnState::empty(1, 1), &bad).lse()[0].is_nan());
    }
    let mut rows = Accumulator::new(1, 1);
    rows.push(0, f32::NAN, &[1.0]).expect("row 0");
    assert!(rows.finish().out()[0].is_nan() && rows.finish().lse()[0].is_nan());
    rows.push(0, 3.0, &[1.0]).expect("row 0");
    assert!(rows.finish().out()[0].is_nan() && rows.finish().lse()[0].is_nan());
}

#[test]
fn sets_pushed_at_once_are_their_tokens() {
    let seed = 21;
    let mut inputs = Inputs::new(seed);
    let (scores, values) =
        (inputs.gaussian_rows(1, 12, 4.0), inputs.gaussian_rows(12, HEAD_DIM, 1.0));
    let mut rows = Accumulator::new(2, HEAD_DIM);
    for set in [0..5, 5..5, 5..12] {
        let max = scores[set.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut weighted) = (0.0, [0.0; HEAD_DIM]);
        for t in set {
            let weight = (scores[t] - max).exp();
            sum += weight;
            for (w, v) in weighted.iter_mut().zip(&values[t * HEAD_DIM..]) {
                *w += weight * v;
            }
        }
        rows.push_weighted(1, max, sum, &weighted).expect("row 1");
    }
    let state = rows.finish();
    assert_eq!(
        (state.lse()[0], &state.out()[..HEAD_DIM]),
        (f32::NEG_INFINITY, &[0.0; HEAD_DIM][..])
    );
    let expected = reference_of(&scores, &values);
    let second =
        AttnState::from_parts(HEAD_DIM, state.out()[HEAD_DIM..].to_vec(), vec![state.lse()[1]]);
    check(&second.expect("one head"), &expected, NEAR)
        .unwrap_or_else(|e| panic!("{}", e.at("sets", seed)));
}

#[test]
fn the_comparison_of_merges_can_fail() {
    let seed = 22;
    let mut inputs = Inputs::new(seed);
    let mut halves = [AttnState::empty(3, HEAD_DIM), AttnState::empty(3, HEAD_DIM)];
    let mut expected = Vec::new();
    for head in 0..3 {
        let (scores, values) =
            (inputs.gaussian_rows(1, 9, 2.0), inputs.gaussian_rows(9, HEAD_DIM, 1.0));
        expected.extend(reference_of(&scores, &values).out);
        for (half, range) in halves.iter_mut().zip([0..4, 4..9]) {
            let values = &values[range.start * HEAD_DIM..range.end * HEAD_DIM];
            let part = state_of(&scores[range], values);
            half.merge_head(head, part.out(), part.lse()[0]).expect("a head of this state");
        }
    }
    let state = merged(&halves[0], &halves[1]);
    let tried = Controls { num_heads: 3, head_dim: HEAD_DIM }
        .assert_rejects(state.out(), |out| compare(out, &expected, NEAR));
    assert!(tried.contains(&Sabotage::SwappedHeads) && tried.contains(&Sabotage::UntouchedBuffer));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut state = AttnState::empty(2, 3);
    let other = AttnError::StateShape { num_heads: 2, head_dim: 3, other_heads: 3, other_dim: 2 };
    assert_eq!(state.merge(&AttnState::empty(3, 2)), Err(other));
    let head = AttnError::HeadIndex { head: 2, num_heads: 2 };
    assert_eq!(state.head_mut(2).err(), Some(head.clone()));
    assert_eq!(state.widen_normaliser(2, 0.0), Err(head.clone()));
    assert_eq!(state.merge_head(2, &[0.0; 3], 0.0), Err(head));
    assert!(matches!(state.merge_head(0, &[0.0; 4], 0.0), Err(AttnError::Length { .. })));
    assert!(AttnState::from_parts(3, vec![0.0; 5], vec![0.0; 2]).is_err());
    let mut rows = Accumulator::new(2, 3);
    assert!(rows.push(2, 0.0, &[0.0; 3]).is_err());
    assert!(rows.push(0, 0.0, &[0.0; 2]).is_err());
    assert!(rows.finish_row(2, &mut [0.0; 3]).is_err());
    assert!(rows.finish_row(0, &mut [0.0; 2]).is_err());
    assert_eq!(state, AttnState::empty(2, 3), "refused calls change nothing");
}
