//! The testkit itself: each tool is seen to fail where it must.

use heterokv_testkit::compare::MismatchKind;
use heterokv_testkit::inputs::constant_rows;
use heterokv_testkit::{
    Controls, GuardBreach, Guarded, Inputs, Sabotage, Tolerance, compare,
    normalised_mean_square_error,
};

const LOOSE: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-6 };

#[test]
fn near_values_pass_and_the_summary_says_how_near() {
    let summary = compare(&[1.0, 2.0, -3.0], &[1.0, 2.0 + 1e-6, -3.0], LOOSE).expect("near");
    assert_eq!((summary.num_compared, summary.worst_index), (3, 1));
    assert!((summary.max_error - 1e-6).abs() < 1e-12);
    assert!(summary.worst_share > 0.3 && summary.worst_share < 0.4);
    assert!((summary.nmse - 1e-12 / 14.0).abs() < 1e-15);
}

#[test]
fn far_values_fail_with_the_worst_place() {
    let mismatch = compare(&[1.0, 2.1, 9.0], &[1.0, 2.0, 3.0], LOOSE).expect_err("far");
    let message = mismatch.clone().at("case a", 17).to_string();
    for part in ["case a", "2 of 3", "worst at 2", "9e0", "3e0", "seed 17"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(matches!(mismatch.kind, MismatchKind::NotWithin { index: 2, num_failed: 2, .. }));
}

#[test]
fn nan_fails_on_either_side_under_any_tolerance() {
    let anything = Tolerance { absolute: f64::INFINITY, relative: 0.0 };
    for tolerance in [LOOSE, anything] {
        let mismatch = compare(&[5.0, f32::NAN], &[1.0, 1.0], tolerance).expect_err("nan");
        assert!(matches!(mismatch.kind, MismatchKind::NotWithin { index: 1, .. }));
        assert!(compare(&[1.0], &[f64::NAN], tolerance).is_err());
        assert!(compare(&[f32::NAN], &[f64::NAN], tolerance).is_err());
    }
}

#[test]
fn infinities_must_agree_in_sign() {
    let (up, down) = (f32::INFINITY, f32::NEG_INFINITY);
    assert!(compare(&[up, down], &[f64::INFINITY, f64::NEG_INFINITY], LOOSE).is_ok());
    assert!(compare(&[up], &[f64::INFINITY], Tolerance::EXACT).is_ok());
    assert!(compare(&[up], &[f64::NEG_INFINITY], LOOSE).is_err());
    assert!(compare(&[up], &[1.0], LOOSE).is_err());
    assert!(compare(&[1.0], &[f64::INFINITY], LOOSE).is_err());
}

#[test]
fn nothing_and_unequal_lengths_fail() {
    assert_eq!(compare(&[], &[], LOOSE).expect_err("empty").kind, MismatchKind::Empty);
    let mismatch = compare(&[1.0], &[1.0, 2.0], LOOSE).expect_err("lengths");
    assert_eq!(mismatch.kind, MismatchKind::Length { actual: 1, expected: 2 });
}

#[test]
fn exact_tolerance_accepts_only_equal_numbers() {
    assert!(compare(&[0.0, 1.5], &[-0.0, 1.5], Tolerance::EXACT).is_ok());
    assert!(compare(&[1.5], &[1.5 + 1e-12], Tolerance::EXACT).is_err());
}

#[test]
fn derived_tolerance_doubles_the_naive_error_and_rejects_a_broken_naive_path() {
    let derived = Tolerance::derived(&[1.0, 2.0], &[1.0, 2.5], 1e-3, 4.0);
    assert!((derived.absolute - 1.004).abs() < 1e-12);
    assert_eq!(derived.relative, 1e-3);
    for naive in [&[f32::NAN, 2.0][..], &[f32::INFINITY, 2.0], &[1.0]] {
        let derived = Tolerance::derived(naive, &[1.0, 2.0], 1e-3, 4.0);
        assert!(compare(&[1.0, 2.0], &[1.0, 2.0], derived).is_err(), "{naive:?}");
    }
}

#[test]
fn nmse_is_a_share_of_energy_and_nan_spreads() {
    assert_eq!(normalised_mean_square_error(&[2.0, 0.0], &[1.0, 0.0]), 1.0);
    assert_eq!(normalised_mean_square_error(&[0.0], &[0.0]), 0.0);
    assert_eq!(normalised_mean_square_error(&[1.0], &[0.0]), f64::INFINITY);
    assert!(normalised_mean_square_error(&[f32::NAN], &[1.0]).is_nan());
    assert!(normalised_mean_square_error(&[], &[]).is_nan());
    assert!(normalised_mean_square_error(&[1.0], &[]).is_nan());
}

#[test]
fn the_generator_is_splitmix64() {
    // The published sequence of seed 1234567.
    let mut inputs = Inputs::new(1_234_567);
    let first: Vec<u64> = (0..3).map(|_| inputs.bits()).collect();
    assert_eq!(
        first,
        [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
    );
    assert_eq!(inputs.seed(), 1_234_567);
}

#[test]
fn gaussian_rows_repeat_by_seed_and_have_the_moments() {
    let rows = Inputs::new(3).gaussian_rows(200, 64, 2.0);
    assert_eq!(rows, Inputs::new(3).gaussian_rows(200, 64, 2.0));
    assert_ne!(rows, Inputs::new(4).gaussian_rows(200, 64, 2.0));
    let count = rows.len() as f64;
    let mean = rows.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let variance = rows.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
    assert!(mean.abs() < 0.1, "mean {mean}");
    assert!((variance - 4.0).abs() < 0.2, "variance {variance}");
}

#[test]
fn outliers_are_where_they_are_asked_for() {
    let energy = |rows: &[f32]| rows.iter().map(|x| x * x).sum::<f32>() / rows.len() as f32;
    let sinks = Inputs::new(5).sink_tokens(10, 32, 2, 20.0);
    assert!(energy(&sinks[..64]) > 100.0 * energy(&sinks[64..]));
    let heavy = Inputs::new(6).heavy_channels(50, 32, 1, 20.0);
    let channel_energy: Vec<f32> = (0..32)
        .map(|c| heavy.iter().skip(c).step_by(32).map(|x| x * x).sum::<f32>() / 50.0)
        .collect();
    assert_eq!(channel_energy.iter().filter(|&&e| e > 100.0).count(), 1, "{channel_energy:?}");
    assert_eq!(constant_rows(2, 3, 1.5), [1.5; 6]);
    assert!(Inputs::new(7).heavy_channels(3, 0, 2, 9.0).is_empty());
}

#[test]
fn guard_bands_see_stray_and_missing_writes() {
    let mut output = Guarded::<f32>::new(5);
    assert_eq!(output.check().err(), Some(GuardBreach::Untouched { first: 0, count: 5 }));
    output.payload_mut().copy_from_slice(&[0.0, 1.0, 2.0, 3.0, f32::NAN]);
    assert_eq!(output.check().map(<[f32]>::len), Ok(5), "an ordinary nan is not poison");
    let end = output.surroundings_mut().len() - 64;
    output.surroundings_mut()[end] = 0.0;
    assert_eq!(output.check_bands().err(), Some(GuardBreach::Overwritten { offset: 5 }));

    let mut bytes = Guarded::<u8>::new(0);
    assert_eq!(bytes.check(), Ok(&[][..]));
    bytes.surroundings_mut()[63] = 0;
    assert_eq!(bytes.check().err(), Some(GuardBreach::Overwritten { offset: -1 }));
}

#[test]
fn controls_reject_every_sabotage_of_an_honest_check() {
    let good = Inputs::new(8).gaussian_rows(3, 2 * 4, 1.0);
    let expected: Vec<f64> = good.iter().map(|&x| f64::from(x)).collect();
    let controls = Controls { num_heads: 2, head_dim: 4 };
    let tried = controls.assert_rejects(&good, |answer| compare(answer, &expected, LOOSE));
    assert_eq!(tried, Sabotage::ALL);

    let single = Controls { num_heads: 1, head_dim: 8 };
    let tried = single.assert_rejects(&good[..8], |a| compare(a, &expected[..8], LOOSE));
    assert!(!tried.contains(&Sabotage::ShiftedToken) && !tried.contains(&Sabotage::SwappedHeads));
}

#[test]
fn controls_expose_a_check_that_is_too_kind() {
    type Check = fn(&[f32]) -> Result<(), &'static str>;
    let good = Inputs::new(9).gaussian_rows(2, 8, 1.0);
    let controls = Controls { num_heads: 2, head_dim: 4 };
    // Each is blind to at least one sabotage.
    let blind: [Check; 3] = [
        |_| Ok(()),
        |answer| if answer.iter().any(|x| x.is_nan()) { Err("nan") } else { Ok(()) },
        |answer| if answer.iter().any(|x| *x > 99.0) { Err("large") } else { Ok(()) },
    ];
    for check in blind {
        let outcome = std::panic::catch_unwind(|| controls.assert_rejects(&good, check));
        assert!(outcome.is_err());
    }
    let refuses_all = std::panic::catch_unwind(|| {
        controls.assert_rejects(&good, |_| Err::<(), _>("never right"))
    });
    assert!(refuses_all.is_err());
}
