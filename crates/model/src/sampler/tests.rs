//! Laws of sampling, against plain definitions on sorted probabilities.

use proptest::prelude::*;

use super::*;

const SEED: u64 = 0x5EED;

fn sampler(settings: SamplerSettings) -> Sampler {
    Sampler::new(settings).unwrap()
}

fn warm() -> SamplerSettings {
    SamplerSettings { temperature: 1.0, seed: SEED, ..Default::default() }
}

/// Kept ids with their probabilities.
fn kept(settings: SamplerSettings, logits: &[f32]) -> Vec<(u32, f64)> {
    let sampler = sampler(settings);
    let kept = sampler.kept(sampler.penalized(logits, &[]).unwrap()).unwrap();
    let total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
    let mut ids: Vec<(u32, f64)> =
        kept.iter().map(|candidate| (candidate.id, candidate.weight / total)).collect();
    ids.sort_by_key(|&(id, _)| id);
    ids
}

/// Softmax by the definition, with the exponential of the standard library.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|&l| ((f64::from(l) - f64::from(best)) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// Ids from most to least probable, of equal logits the lower id first.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    ids
}

#[test]
fn settings_out_of_range_are_named() {
    let bad = |change: fn(&mut SamplerSettings)| {
        let mut settings = warm();
        change(&mut settings);
        Sampler::new(settings).unwrap_err().to_string()
    };
    let all = [
        (bad(|s| s.temperature = f32::NAN), "temperature"),
        (bad(|s| s.temperature = -0.5), "temperature"),
        (bad(|s| s.temperature = f32::INFINITY), "temperature"),
        (bad(|s| s.top_k = Some(0)), "top-k"),
        (bad(|s| s.top_p = 0.0), "top-p"),
        (bad(|s| s.top_p = 1.5), "top-p"),
        (bad(|s| s.top_p = f32::NAN), "top-p"),
        (bad(|s| s.min_p = -0.1), "min-p"),
        (bad(|s| s.min_p = 1.1), "min-p"),
        (bad(|s| s.min_p = f32::NAN), "min-p"),
        (bad(|s| s.repetition_penalty = 0.0), "repetition penalty"),
        (bad(|s| s.repetition_penalty = f32::NAN), "repetition penalty"),
        (bad(|s| s.repetition_penalty = f32::INFINITY), "repetition penalty"),
    ];
    for (message, name) in all {
        assert!(message.starts_with(name), "{message}");
    }
}

#[test]
fn bad_logits_are_errors() {
    for settings in [SamplerSettings::default(), warm()] {
        let mut sampler = sampler(settings);
        let error = sampler.sample(&[0.0, f32::NAN], &[]).unwrap_err();
        assert!(matches!(error, SamplerError::Logit { id: 1, value } if value.is_nan()));
        let error = sampler.sample(&[f32::INFINITY], &[]).unwrap_err();
        assert!(matches!(error, SamplerError::Logit { id: 0, .. }));
        assert_eq!(sampler.sample(&[], &[]), Err(SamplerError::NoCandidate));
        let none = [f32::NEG_INFINITY; 3];
        assert_eq!(sampler.sample(&none, &[]), Err(SamplerError::NoCandidate));
        let error = sampler.sample(&[0.0], &[1]).unwrap_err();
        assert_eq!(error, SamplerError::History { id: 1, num_logits: 1 });
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3.0], &[]), Ok(1));
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let mut sampler = sampler(SamplerSettings::default());
    assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0], &[]), Ok(1));
    assert_eq!(sampler.sample(&[-0.0, 0.0], &[]), Ok(0));
}

#[test]
fn repetition_penalty_by_hand() {
    let settings = SamplerSettings { repetition_penalty: 2.0, ..Default::default() };
    let logits = [4.0, 3.0, -1.0, f32::NEG_INFINITY];
    let sampler = sampler(settings);
    let penalized = sampler.penalized(&logits, &[0, 2, 0, 3]).unwrap();
    let changed: Vec<(u32, f32)> = penalized.iter().map(|c| (c.id, c.logit)).collect();
    assert_eq!(changed, [(0, 2.0), (1, 3.0), (2, -2.0)]);
    assert_eq!(sampler.clone().sample(&logits, &[0]), Ok(1));
    let tiny = Sampler::new(SamplerSettings { repetition_penalty: f32::MIN_POSITIVE, ..settings });
    assert_eq!(tiny.unwrap().sample(&[1e30, 2.0], &[0]), Ok(0));
}

#[test]
fn the_exponential_is_exact_enough() {
    let mut worst = 0.0_f64;
    for step in 0..=700_000 {
        let x = -f64::from(step) / 1000.0;
        let relative = (exp(x) - x.exp()).abs() / x.exp();
        worst = worst.max(relative);
    }
    println!("largest relative difference from std: {worst:e}");
    assert!(worst <= 4.0 * f64::EPSILON);
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(f64::NEG_INFINITY), 0.0);
}

#[test]
fn a_seed_gives_known_tokens() {
    // Computed by another implementation of xoshiro256++ and its seeding, with plain sums.
    let logits: Vec<f32> = (0..50_u8).map(|i| f32::from(i % 7) * 0.5).collect();
    let mut sampler = sampler(SamplerSettings { seed: 7, ..warm() });
    let ids: Vec<u32> = (0..8).map(|_| sampler.sample(&logits, &[]).unwrap()).collect();
    assert_eq!(ids, KNOWN);
    let again = Sampler::new(SamplerSettings { seed: 8, ..warm() });
    let mut again = again.unwrap();
    let other: Vec<u32> = (0..8).map(|_| again.sample(&logits, &[]).unwrap()).collect();
    assert_ne!(ids, other);
}

const KNOWN: [u32; 8] = [5, 11, 36, 20, 48, 25, 37, 18];

/// Counts of `num_draws` tokens against their probabilities; the value of chi-square.
fn chi_square(settings: SamplerSettings, logits: &[f32], expected: &[f64]) -> f64 {
    let num_draws = 200_000_u32;
    let mut sampler = sampler(settings);
    let mut counts = vec![0_u32; logits.len()];
    for _ in 0..num_draws {
        counts[sampler.sample(logits, &[]).unwrap() as usize] += 1;
    }
    counts
        .iter()
        .zip(expected)
        .map(|(&count, &p)| {
            if p == 0.0 {
                assert_eq!(count, 0, "a token that was left out came up");
                return 0.0;
            }
            let mean = p * f64::from(num_draws);
            (f64::from(count) - mean).powi(2) / mean
        })
        .sum()
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [1.0_f32, 0.5, 2.0, -1.0, 0.0, 1.5, -0.5, 0.25, 1.75, -2.0];
    // 9 degrees of freedom at most: 27.9 is passed once in a thousand seeds.
    for temperature in [0.5_f32, 1.0, 2.0] {
        let settings = SamplerSettings { temperature, ..warm() };
        let found = chi_square(settings, &logits, &softmax(&logits, f64::from(temperature)));
        println!("seed {SEED:#x}, temperature {temperature}: chi-square {found:.2}");
        assert!(found < 27.9, "seed {SEED:#x}, temperature {temperature}: {found}");
        // The comparison can fail: the probabilities of another temperature do not pass.
        let wrong = softmax(&logits, f64::from(temperature) * 1.1);
        assert!(chi_square(settings, &logits, &wrong) > 27.9);
    }
    let settings = SamplerSettings { top_k: Some(4), top_p: 0.9, min_p: 0.1, ..warm() };
    let mut expected = vec![0.0; logits.len()];
    for (id, p) in kept(settings, &logits) {
        expected[id as usize] = p;
    }
    let found = chi_square(settings, &logits, &expected);
    println!("seed {SEED:#x}, filtered: chi-square {found:.2}");
    assert!(found < 27.9);
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    // Halves, so that equal logits are common.
    prop::collection::vec((-20_i8..20).prop_map(|half| f32::from(half) / 2.0), 1..60)
}

proptest! {
    #[test]
    fn top_k_keeps_the_highest(logits in logits(), top_k in 1_usize..70) {
        let kept = kept(SamplerSettings { top_k: Some(top_k), ..warm() }, &logits);
        let mut expected: Vec<u32> = ranked(&logits)[..top_k.min(logits.len())]
            .iter()
            .map(|&id| u32::try_from(id).unwrap())
            .collect();
        expected.sort_unstable();
        prop_assert_eq!(kept.iter().map(|&(id, _)| id).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn one_of_top_k_is_greedy(logits in logits(), seed: u64) {
        let mut greedy = sampler(SamplerSettings::default());
        let mut one = sampler(SamplerSettings { top_k: Some(1), seed, ..warm() });
        let expected = greedy.sample(&logits, &[]).unwrap();
        prop_assert_eq!(one.sample(&logits, &[]).unwrap(), expected);
        prop_assert_eq!(usize::try_from(expected).unwrap(), ranked(&logits)[0]);
    }

    /// The greedy choice goes over logits by lanes; its law is the plain one at every length, wherever a logit is that
    /// cannot be chosen or is wrong.
    #[test]
    fn the_greedy_choice_is_the_best_candidate(
        mut logits in prop::collection::vec(-3i8..3, 1..70).prop_map(|logits| logits.into_iter().map(f32::from).collect::<Vec<f32>>()),
        odd in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX]),
        at: prop::sample::Index,
    ) {
        let at = at.index(logits.len());
        logits[at] = odd;
        let mut greedy = sampler(SamplerSettings::default());
        let best = greedy.penalized(&logits, &[]).and_then(|candidates| {
            candidates.into_iter().max().map(|best| best.id).ok_or(SamplerError::NoCandidate)
        });
        // Two errors about NaN are not equal.
        let text = |choice: Result<u32, SamplerError>| format!("{choice:?}");
        prop_assert_eq!(text(greedy.sample(&logits, &[])), text(best));
    }

    #[test]
    fn a_temperature_near_zero_is_greedy(logits in logits(), seed: u64) {
        let mut cold = sampler(SamplerSettings { temperature: 1e-6, seed, ..warm() });
        let id = cold.sample(&logits, &[]).unwrap();
        // Among equal highest logits any may come.
        prop_assert_eq!(logits[id as usize], logits[ranked(&logits)[0]]);
    }

    #[test]
    fn top_p_keeps_the_smallest_sufficient_set(logits in logits(), top_p in 0.01_f32..1.0) {
        let kept = kept(SamplerSettings { top_p, ..warm() }, &logits);
        let probabilities = softmax(&logits, 1.0);
        let ranked = ranked(&logits);
        let mass = |num: usize| ranked[..num].iter().map(|&id| probabilities[id]).sum::<f64>();
        // The most probable ones, enough of them, and one fewer would not be enough.
        let mut expected: Vec<u32> =
            ranked[..kept.len()].iter().map(|&id| u32::try_from(id).unwrap()).collect();
        expected.sort_unstable();
        prop_assert_eq!(kept.iter().map(|&(id, _)| id).collect::<Vec<_>>(), expected);
        prop_assert!(mass(kept.len()) >= f64::from(top_p) - 1e-12);
        prop_assert!(mass(kept.len() - 1) < f64::from(top_p) + 1e-12);
    }

    #[test]
    fn min_p_bounds_the_share_of_the_best(logits in logits(), min_p in 0.0_f32..=1.0) {
        let kept = kept(SamplerSettings { min_p, ..warm() }, &logits);
        let probabilities = softmax(&logits, 1.0);
        let best = probabilities.iter().copied().fold(0.0, f64::max);
        for (id, &p) in probabilities.iter().enumerate() {
            let is_kept = kept.iter().any(|&(kept, _)| kept as usize == id);
            let share = p / best;
            if (share - f64::from(min_p)).abs() > 1e-12 {
                prop_assert_eq!(is_kept, share > f64::from(min_p));
            }
        }
        prop_assert!(!kept.is_empty());
    }

    #[test]
    fn what_is_drawn_was_kept(logits in logits(), top_p in 0.01_f32..=1.0, seed: u64) {
        let settings = SamplerSettings { top_p, min_p: 0.05, top_k: Some(20), seed, ..warm() };
        let id = sampler(settings).sample(&logits, &[]).unwrap();
        prop_assert!(kept(settings, &logits).iter().any(|&(kept, _)| kept == id));
    }
}
