//! The choice against brute force, uniform choices and itself at other budgets.

use proptest::prelude::*;

use super::*;

fn candidates(points: &[(u64, f64)]) -> Vec<Candidate> {
    points.iter().map(|&(bytes, distortion)| Candidate { bytes, distortion }).collect()
}

#[test]
fn nothing_to_choose_is_an_empty_choice() {
    assert_eq!(choose(&[], 0).unwrap(), [0usize; 0]);
    assert_eq!(choose(&[], 9).unwrap(), [0usize; 0]);
}

#[test]
fn what_cannot_be_chosen_is_an_error_that_says_why() {
    let error = choose(&[candidates(&[(1, 0.0)]), vec![]], 9).unwrap_err();
    assert!(matches!(error, Error::NoCandidates { head: 1 }), "{error}");
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = choose(&[candidates(&[(1, 0.0), (2, bad)])], 9).unwrap_err();
        assert!(matches!(error, Error::Distortion { head: 0, candidate: 1, .. }), "{error}");
    }
    let dear = candidates(&[(u64::MAX, 0.0), (u64::MAX - 1, 1.0)]);
    let error = choose(&[dear.clone(), dear], u64::MAX).unwrap_err();
    let least = 2 * u128::from(u64::MAX - 1);
    assert!(matches!(error, Error::Budget { budget: u64::MAX, least: l } if l == least), "{error}");
}

#[test]
fn of_equals_the_first_is_taken() {
    let equal = candidates(&[(2, 1.0), (2, 1.0), (3, 0.5), (3, 0.5), (9, 0.5)]);
    assert_eq!(choose(std::slice::from_ref(&equal), 2).unwrap(), [0]);
    assert_eq!(choose(std::slice::from_ref(&equal), 99).unwrap(), [2]);
    // One step for two heads that gain the same by it: the lower one has it.
    assert_eq!(choose(&[equal.clone(), equal], 5).unwrap(), [2, 0]);
}

#[test]
fn off_the_hull_a_better_uniform_choice_is_taken() {
    // The middle one lies above the line between its neighbours.
    let curve = candidates(&[(1, 10.0), (2, 9.9), (10, 0.0)]);
    assert_eq!(choose(std::slice::from_ref(&curve), 2).unwrap(), [1]);
    assert_eq!(choose(&[curve.clone(), curve.clone()], 4).unwrap(), [1, 1]);
    assert_eq!(choose(&[curve.clone(), curve], 11).unwrap(), [2, 0]);
}

/// The least distortion of all choices that fit.
fn brute_force(heads: &[Vec<Candidate>], budget: u64) -> Option<f64> {
    let Some((first, rest)) = heads.split_first() else { return Some(0.0) };
    let with = |candidate: &Candidate| {
        let rest = brute_force(rest, budget.checked_sub(candidate.bytes)?)?;
        Some(candidate.distortion + rest)
    };
    first.iter().filter_map(with).min_by(f64::total_cmp)
}

/// Any curves, whole numbers so that sums are exact.
fn curves() -> impl Strategy<Value = Vec<Vec<Candidate>>> {
    let candidate =
        (0u64..12, 0u32..100).prop_map(|(bytes, d)| Candidate { bytes, distortion: f64::from(d) });
    prop::collection::vec(prop::collection::vec(candidate, 1..6), 0..5)
}

/// Curves along which every next byte gains less: falling gains per byte, over steps of some bytes.
fn convex_curves() -> impl Strategy<Value = Vec<Vec<Candidate>>> {
    let steps = prop::collection::vec((1u64..4, 0u32..40), 0..5);
    let curve = (0u64..4, steps).prop_map(|(first, mut steps)| {
        steps.sort_by_key(|&(_, gain)| std::cmp::Reverse(gain));
        let (mut bytes, mut distortion) = (first, 1000.0);
        let mut curve = vec![Candidate { bytes, distortion }];
        for (more, gain) in steps {
            bytes += more;
            distortion -= f64::from(gain) * more as f64;
            curve.push(Candidate { bytes, distortion });
        }
        curve
    });
    prop::collection::vec(curve, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_choice_fits_and_is_no_worse_than_the_best_uniform_one(heads in curves(), budget in 0u64..50) {
        let Ok(chosen) = choose(&heads, budget) else {
            prop_assert!(brute_force(&heads, budget).is_none());
            return Ok(());
        };
        prop_assert_eq!(chosen.len(), heads.len());
        prop_assert!(total_bytes(&heads, &chosen) <= u128::from(budget));
        let distortion = total_distortion(&heads, &chosen);
        prop_assert!(distortion >= brute_force(&heads, budget).unwrap());
        for place in 0..heads.iter().map(Vec::len).min().unwrap_or(0) {
            let uniform = vec![place; heads.len()];
            if total_bytes(&heads, &uniform) <= u128::from(budget) {
                prop_assert!(distortion <= total_distortion(&heads, &uniform));
            }
        }
    }

    #[test]
    fn more_budget_leaves_no_more_distortion(heads in curves(), budget in 0u64..50) {
        let distortion = |budget| choose(&heads, budget).map(|chosen| total_distortion(&heads, &chosen));
        if let Ok(less) = distortion(budget) {
            prop_assert!(distortion(budget + 1).unwrap() <= less);
        }
    }

    /// Up to the step that the greedy way could not pay for, on convex curves there is nothing better.
    #[test]
    fn on_convex_curves_it_is_within_a_step_of_the_optimum(heads in convex_curves(), budget in 0u64..40) {
        let Ok(chosen) = choose(&heads, budget) else { return Ok(()) };
        let optimum = brute_force(&heads, budget).unwrap();
        let distortion = total_distortion(&heads, &chosen);
        let steps = heads.iter().flat_map(|curve| curve.windows(2));
        let largest = steps.map(|pair| pair[0].distortion - pair[1].distortion).fold(0.0, f64::max);
        prop_assert!(distortion == optimum || distortion < optimum + largest);
        // What it spends, it spends as well as can be, where it stopped at no step.
        let spent = u64::try_from(total_bytes(&heads, &chosen)).unwrap();
        if heads.iter().flat_map(|curve| curve.windows(2)).all(|p| p[1].bytes - p[0].bytes == 1) {
            prop_assert_eq!(distortion, brute_force(&heads, spent).unwrap());
            prop_assert_eq!(distortion, optimum);
        }
    }
}
