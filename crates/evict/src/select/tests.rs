//! The selector against its definition: sort, then take while the set is not sufficient.

use proptest::prelude::*;

use super::*;

/// The definition, word for word, sharing nothing with the fast path.
fn by_definition(rule: Rule, min: usize, max: usize, weights: &[f32], resident: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let mut mass = resident;
    let mut kept = Vec::new();
    for token in order {
        let enough = match rule {
            Rule::All => false,
            Rule::TopP(top_p) => top_p < 1.0 && mass >= f64::from(top_p),
            Rule::TopK(k) => kept.len() >= k,
            Rule::Threshold(least) => weights[token] < least,
        };
        if kept.len() >= max || (enough && kept.len() >= min) {
            break;
        }
        mass += f64::from(weights[token]);
        kept.push(token);
    }
    let mut taken = vec![false; weights.len()];
    kept.into_iter().for_each(|token| taken[token] = true);
    taken
}

fn select(selector: &Selector, weights: &[f32], resident: f64) -> Result<Vec<bool>> {
    // What an earlier call left is of no meaning.
    let (mut scratch, mut taken) = (SelectScratch::default(), TokenSet::default());
    let everything = Selector::new(Rule::All, 0, usize::MAX)?;
    everything.select(&[1.0; 70], 0.0, &mut scratch, &mut taken)?;
    let count = selector.select(weights, resident, &mut scratch, &mut taken)?;
    assert_eq!((count, taken.num_tokens()), (taken.count(), weights.len()));
    Ok((0..weights.len()).map(|token| taken.contains(token)).collect())
}

/// Of so many weights and more a sample is taken.
const MANY: usize = 8 * SAMPLE[0];

/// Weights on a grid of 2⁻¹⁶, whose sums are exact in any order, with many ties.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((0u32..64).prop_map(|x| (x * x) as f32 / 65_536.0), 0..300)
}

/// Weights whose sums are exact in any order, so many that a sample of them is looked at first: what some neighbours of every
/// few weigh is drawn apart, so that the sample may be of the others, or of these alone.
fn many_weights() -> impl Strategy<Value = Vec<f32>> {
    let draw = |bits: std::ops::Range<u32>| bits.prop_map(|bits| (1u64 << bits) as u32);
    let shape = (3 * MANY..6 * MANY, 1usize..20, draw(1..20), draw(1..20), any::<u64>());
    shape.prop_map(|(len, every, most, apart, seed)| {
        let mut state = seed | 1;
        let mut below = |most: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32 % most
        };
        let is_apart = |token: usize| token % (NEIGHBOURS * every) < NEIGHBOURS;
        let most = |token: usize| if is_apart(token) { apart } else { most };
        (0..len).map(|token| below(most(token)) as f32 / (1u32 << 30) as f32).collect()
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::All),
        (1u32..=64).prop_map(|p| Rule::TopP(p as f32 / 64.0)),
        (1usize..300).prop_map(Rule::TopK),
        (1u32..64).prop_map(|x| Rule::Threshold((x * x) as f32 / 65_536.0)),
    ]
}

proptest! {
    #[test]
    fn equals_the_definition(
        weights in weights(),
        rule in rule(),
        min in 0usize..50,
        extra in prop_oneof![Just(usize::MAX), 0usize..100],
        resident in (0u32..64).prop_map(|x| f64::from(x) / 64.0),
    ) {
        let max = min.saturating_add(extra).max(1);
        let selector = Selector::new(rule, min, max).unwrap();
        let taken = select(&selector, &weights, resident).unwrap();
        prop_assert_eq!(taken, by_definition(rule, min, max, &weights, resident));
    }

    #[test]
    fn equals_the_definition_where_a_sample_is_taken(
        weights in many_weights(),
        rule in prop_oneof![
            (0.01f64..1.0).prop_map(|p| (Rule::TopP(1.0), p)),
            (0.0f64..1.0).prop_map(|p| (Rule::TopK(1 + (p * 6.0 * MANY as f64) as usize), p)),
            (0.0f64..1.0).prop_map(|p| (Rule::Threshold(((p * 20.0).exp2() / 1e9) as f32), p)),
        ],
        (min, extra) in (0usize..6 * MANY, prop_oneof![Just(usize::MAX), 0usize..MANY]),
        has_bounds in any::<bool>(),
    ) {
        let (rule, part) = rule;
        let coded: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        // Softmax weights, as far as it is for the resident tokens.
        let resident = 1.0 - coded;
        let rule = match rule {
            // A multiple of what sums are exact in.
            Rule::TopP(_) => Rule::TopP((resident.max(0.0) + part * coded) as f32),
            rule => rule,
        };
        prop_assume!(!matches!(rule, Rule::TopP(p) if p <= 0.0 || p > 1.0));
        let (min, max) = if has_bounds { (min, min.saturating_add(extra).max(1)) } else { (0, usize::MAX) };
        let selector = Selector::new(rule, min, max).unwrap();
        let taken = select(&selector, &weights, resident).unwrap();
        prop_assert!(taken == by_definition(rule, min, max, &weights, resident));
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set(
        weights in weights(),
        p in 1u32..64,
        resident in (0u32..64).prop_map(|x| f64::from(x) / 64.0),
    ) {
        let top_p = f64::from(p) / 64.0;
        let selector = Selector::new(Rule::TopP(top_p as f32), 0, usize::MAX).unwrap();
        let taken = select(&selector, &weights, resident).unwrap();
        let kept: Vec<f64> =
            weights.iter().zip(&taken).filter(|t| *t.1).map(|t| f64::from(*t.0)).collect();
        let mass = resident + kept.iter().sum::<f64>();
        if kept.len() < weights.len() {
            prop_assert!(mass >= top_p);
        }
        for weight in kept {
            prop_assert!(mass - weight < top_p);
        }
    }

    #[test]
    fn permuting_distinct_weights_permutes_the_result(
        order in Just((1..200u32).collect::<Vec<_>>()).prop_shuffle(),
        p in 1u32..64,
    ) {
        let total: u32 = order.iter().sum();
        let weights: Vec<f32> = order.iter().map(|&x| x as f32 / total as f32).collect();
        let mut sorted = weights.clone();
        sorted.sort_by(f32::total_cmp);
        let selector = Selector::new(Rule::TopP(p as f32 / 64.0), 0, usize::MAX).unwrap();
        let kept = |weights: &[f32]| {
            let taken = select(&selector, weights, 0.0).unwrap();
            let mut kept: Vec<u32> =
                weights.iter().zip(taken).filter(|t| t.1).map(|t| t.0.to_bits()).collect();
            kept.sort_unstable();
            kept
        };
        // Sums of the same numbers in another order may differ in the last place, which can move the
        // boundary by one token.
        prop_assert!(kept(&weights).len().abs_diff(kept(&sorted).len()) <= 1);
    }
}

#[test]
fn the_boundary_token_is_exact() {
    let weights = [0.1, 0.4, 0.2, 0.1, 0.2];
    let taken = |top_p| {
        select(&Selector::new(Rule::TopP(top_p), 0, usize::MAX).unwrap(), &weights, 0.0).unwrap()
    };
    assert_eq!(taken(0.4), [false, true, false, false, false]);
    assert_eq!(taken(0.5), [false, true, true, false, false], "ties go to the lower position");
    assert_eq!(taken(1.0), [true; 5]);
}

#[test]
fn bad_input_is_refused_by_name() {
    for top_p in [0.0, -0.1, 1.1, f32::NAN, f32::INFINITY] {
        let error = Selector::new(Rule::TopP(top_p), 0, usize::MAX).unwrap_err();
        assert!(matches!(error, Error::TopP { .. }), "{error}");
    }
    for least in [0.0, -0.1, 1.1, f32::NAN, f32::INFINITY] {
        let error = Selector::new(Rule::Threshold(least), 0, usize::MAX).unwrap_err();
        assert!(matches!(error, Error::Range { what: "threshold", .. }), "{error}");
    }
    assert_eq!(Selector::new(Rule::All, 5, 4).unwrap_err(), Error::MinAboveMax { min: 5, max: 4 });
    assert_eq!(Selector::new(Rule::TopK(0), 0, 1).unwrap_err(), Error::ZeroRows { what: "top-k" });
    assert_eq!(Selector::new(Rule::All, 0, 0).unwrap_err(), Error::ZeroRows { what: "max" });
    for weight in [f32::NAN, f32::INFINITY, -1.0] {
        for rule in [Rule::All, Rule::TopP(0.5), Rule::Threshold(0.2)] {
            let selector = Selector::new(rule, 0, usize::MAX).unwrap();
            let error = select(&selector, &[0.5, weight], 0.0).unwrap_err();
            assert!(matches!(error, Error::Weight { token: 1, .. }), "{error}");
        }
    }
}

#[test]
fn a_threshold_takes_what_reaches_it() {
    let weights = [0.1, 0.4, 0.2, 0.1, 0.2];
    let taken = |least, min, max| {
        select(&Selector::new(Rule::Threshold(least), min, max).unwrap(), &weights, 0.9).unwrap()
    };
    assert_eq!(taken(0.2, 0, usize::MAX), [false, true, true, false, true]);
    assert_eq!(taken(0.2, 0, 2), [false, true, true, false, false], "the heaviest under a cap");
    assert_eq!(taken(0.5, 0, usize::MAX), [false; 5]);
    assert_eq!(taken(0.5, 1, usize::MAX), [false, true, false, false, false], "a floor");
    assert_eq!(taken(0.01, 0, usize::MAX), [true; 5]);
}

#[test]
fn only_a_threshold_has_no_mass() {
    let enough = |rule| Selector::new(rule, 2, 9).unwrap().enough();
    assert_eq!(enough(Rule::Threshold(0.1)), Err(Error::NoMass));
    let top_p = Enough { mass: 0.5, at_least: 2, at_most: 9 };
    assert_eq!(enough(Rule::TopP(0.5)), Ok(top_p));
    let top_k = Enough { mass: f32::INFINITY, at_least: 2, at_most: 4 };
    assert_eq!(enough(Rule::TopK(4)), Ok(top_k));
}

/// A token in the place of another one of its set is seen.
#[test]
fn a_wrong_set_is_not_the_definitions() {
    let weights: Vec<f32> = (1..=200u32).map(|x| x as f32 / 32_768.0).collect();
    let rule = Rule::TopP(0.5);
    let taken = select(&Selector::new(rule, 0, usize::MAX).unwrap(), &weights, 0.0).unwrap();
    assert_eq!(taken, by_definition(rule, 0, usize::MAX, &weights, 0.0));
    let last = taken.iter().position(|&taken| taken).unwrap();
    let mut wrong = taken.clone();
    wrong.swap(last, last - 1);
    assert_ne!(wrong, by_definition(rule, 0, usize::MAX, &weights, 0.0));
}

/// Where all that a sample sees is light, the heavy tokens beside it are found, and the other way round.
#[test]
fn a_sample_that_misleads_is_found_out() {
    let len = 5 * MANY;
    let stride = sample_stride(len);
    // How often what is taken in the end was heavier than the guess, and how often lighter.
    let mut misled = [0; 2];
    // What is sampled weighs otherwise than the others, but for one in so many.
    for (sampled, others, every) in
        [(1.0f32, 1024.0, len), (1024.0, 1.0, len), (64.0, 1.0, len), (1.0, 64.0, 10)]
    {
        let is_apart =
            |token: usize| token % stride < NEIGHBOURS && !(token / stride).is_multiple_of(every);
        let weight = |token: usize| if is_apart(token) { sampled } else { others };
        let sum: f64 = (0..len).map(|token| f64::from(weight(token))).sum();
        let scale = f64::from(1u32 << 25);
        let weights: Vec<f32> = (0..len).map(|token| weight(token) / scale as f32).collect();
        let resident = 1.0 - sum / scale;
        for share in [0.001, 0.25, 0.5, 0.75, 0.98, 0.999] {
            let wanted = (resident + share * sum / scale) as f32;
            let count = 1 + (share * (len - 1) as f64) as usize;
            for rule in [Rule::TopP(wanted), Rule::TopK(count)] {
                let selector = Selector::new(rule, 0, usize::MAX).unwrap();
                let taken = select(&selector, &weights, resident).unwrap();
                let expected = by_definition(rule, 0, usize::MAX, &weights, resident);
                assert!(taken == expected, "{sampled} {rule:?}");
                let [least, end] =
                    SelectScratch::default().guess(&weights, &selector.enough().unwrap());
                let taken = weights.iter().zip(&taken).filter(|(_, is_taken)| **is_taken);
                let lightest = taken.map(|(weight, _)| weight.to_bits()).min().unwrap_or(end);
                misled[0] += usize::from(lightest >= end);
                misled[1] += usize::from(lightest < least);
            }
        }
    }
    assert!(misled.iter().all(|&count| count > 0), "{misled:?}");
}

#[test]
fn minus_zero_weighs_nothing() {
    let weights = [-0.0, 0.25, 0.0, -0.0, 0.5];
    let select = |rule| select(&Selector::new(rule, 0, 9).unwrap(), &weights, 0.25).unwrap();
    assert_eq!(select(Rule::TopP(0.9)), [false, true, false, false, true]);
    assert_eq!(select(Rule::TopK(3)), [true, true, false, false, true]);
    assert_eq!(select(Rule::TopK(4)), [true, true, true, false, true]);
}
