//! Groups of affine integers: bounds, second passes, and why windows are stored as they are.

use heterokv_testkit::Inputs;
use proptest::prelude::*;

use super::*;

/// The largest root mean square of the errors of a group whose codes are a window of multiples of a step
/// of eighths of octaves: what the widest step that the group fills leaves, which the search betters.
pub(crate) fn window_bound(group: &[f64], bits: u8) -> f64 {
    let low = group.iter().copied().fold(f64::INFINITY, f64::min);
    let high = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let gaps = f64::from((1u32 << bits) - 1);
    // The range holds at most so many steps, of which the window leaves out half of what is too much at
    // either end, and another quarter of a step where the grid lies badly.
    let steps = gaps * 2.0f64.powf(0.126);
    let filled = (high - low) * (0.5 / gaps).max((0.5 * (steps - gaps) + 0.25) / steps);
    // Half of a step that brings the largest value within reach, and half of the smallest step.
    let largest = low.abs().max(high.abs());
    let reach = 0.5 * 2.0f64.powf(0.125) * largest / 59.48;
    filled.max(reach).max(2.0f64.powi(-17)) + 1e-6 * largest
}

/// What a group decodes to, through its stored header.
fn decoded(values: &[f32], bits: u8) -> Vec<f32> {
    let group = Group::of(values, bits);
    let mut header = vec![0; Group::header_bytes(bits)];
    group.write(&mut header);
    let stored = Group::read(&header, bits);
    let codes = values.iter().map(|&x| group.code(x));
    codes.inspect(|&code| assert!(u32::from(code) < 1 << bits)).map(|c| stored.value(c)).collect()
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// The same under the smallest value and the range over the codes, in f16, by definition.
fn min_max_error(values: &[f32], bits: u8) -> f64 {
    let wide = values.iter().map(|&x| f64::from(x));
    let low = f16::from_f64(wide.clone().fold(f64::INFINITY, f64::min)).to_f64();
    let range = wide.clone().fold(f64::NEG_INFINITY, f64::max) - low;
    let max_code = 2.0f64.powi(bits.into()) - 1.0;
    let scale = f16::from_f64(range / max_code).to_f64();
    wide.map(|x| (low + scale * ((x - low) / scale).round().clamp(0.0, max_code) - x).powi(2)).sum()
}

/// Groups of every kind that the formats meet.
fn groups(len: usize) -> Vec<(&'static str, Vec<f32>)> {
    let mut inputs = Inputs::new(len as u64);
    let mut gaussian = |deviation| inputs.gaussian_rows(1, len, deviation);
    let mut groups = vec![
        ("normal", gaussian(1.0)),
        ("large", gaussian(1e4)),
        ("small", gaussian(1e-3)),
        ("offset", gaussian(0.5).iter().map(|x| 30.0 + x).collect()),
        ("far offset", gaussian(0.05).iter().map(|x| x - 1000.3).collect()),
        ("constant", vec![-3.3; len]),
        ("zeros", vec![0.0; len]),
        ("beyond f16", gaussian(1e5)),
    ];
    let mut outlier = gaussian(1.0);
    outlier[len / 2] = 1e4;
    groups.push(("outlier", outlier));
    let two: Vec<f32> = (0..len).map(|i| if i % 3 == 0 { -1.5 } else { 2.25 }).collect();
    groups.push(("two values", two));
    groups
}

#[test]
fn what_was_decoded_is_decoded_again() {
    for bits in [2, 3, 4, 6, 8] {
        for len in [1, 2, 7, 16, 32, 64, 128] {
            for (kind, values) in groups(len) {
                let once = decoded(&values, bits);
                assert_eq!(decoded(&once, bits), once, "{bits} bits, {len} of {kind}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_group_is_found_again(
        seed: u64,
        len in 1usize..130,
        bits in prop::sample::select(vec![2u8, 3, 4, 6, 8]),
        deviation in -12i32..12,
        offset in prop::sample::select(vec![0.0f32, 0.3, 1.0, 5.0, 20.0, 100.0, 300.0]),
        heavy: bool,
    ) {
        let mut inputs = Inputs::new(seed);
        let deviation = 2.0f32.powi(deviation);
        let mut values = inputs.gaussian_rows(1, len, deviation);
        values.iter_mut().for_each(|x| *x += offset * deviation);
        if heavy {
            values[len / 2] *= 17.0;
        }
        let once = decoded(&values, bits);
        prop_assert_eq!(decoded(&once, bits), once);
    }

    #[test]
    fn any_finite_values_and_any_bytes_are_a_group(
        values in prop::collection::vec(
            any::<f32>().prop_filter("finite", |x| x.is_finite()), 0..70),
        header: [u8; 4],
        bits in prop::sample::select(vec![2u8, 3, 4, 6, 8]),
    ) {
        prop_assert!(decoded(&values, bits).iter().all(|x| x.is_finite()));
        let group = Group::read(&header[..Group::header_bytes(bits)], bits);
        let mut again = header;
        group.write(&mut again[..Group::header_bytes(bits)]);
        if bits <= 4 {
            prop_assert_eq!(again, header);
            let values = [group.value(0), group.value((1 << bits) - 1)];
            prop_assert!(values.iter().all(|x| x.is_finite()), "{:?}", values);
        }
    }
}

#[test]
fn a_line_gives_the_values() {
    for bits in [2, 3, 4, 6, 8] {
        for (kind, values) in groups(32) {
            let group = Group::of(&values, bits);
            let (scale, zero) = group.line();
            for code in 0..=(1u32 << bits) - 1 {
                let (value, expected) = (zero + scale * code as f32, group.value(code as u8));
                let rounding = f32::EPSILON * (zero.abs() + scale * code as f32);
                assert!((value - expected).abs() <= rounding, "{bits} bits of {kind}: {code}");
            }
        }
    }
}

#[test]
fn the_steps_are_eighths_of_octaves() {
    for (i, &step) in STEPS.iter().enumerate() {
        let expected = ((i as f64 - 128.0) / 8.0).exp2();
        assert!((f64::from(step) / expected - 1.0).abs() < 6e-8, "{i}: {step}, {expected}");
    }
}

#[test]
fn the_search_comes_near_the_best_of_all_windows() {
    // Every step and every centre, in f64.
    let best_of_all = |values: &[f32], bits: u8| -> f64 {
        let error = |exponent: i32, centre: i32| -> f64 {
            let step = (f64::from(exponent) / 8.0).exp2();
            let last_code = 2.0f64.powi(bits.into()) - 1.0;
            let first = (f64::from(centre) - last_code) / 2.0;
            let code = |x: f64| (x / step - first).round().clamp(0.0, last_code);
            let errors = values.iter().map(|&x| f64::from(x));
            errors.map(|x| (x - step * (first + code(x))).powi(2)).sum()
        };
        let all = (-40..40).flat_map(|e| (-128..=127).map(move |c| (e, c)));
        all.map(|(e, c)| error(e, c)).fold(f64::INFINITY, f64::min)
    };
    for bits in [2, 3, 4] {
        for len in [32, 128] {
            let mut inputs = Inputs::new(u64::from(bits));
            let (mut found, mut best) = (0.0, 0.0);
            for _ in 0..10 {
                let values = inputs.gaussian_rows(1, len, 1.0);
                found += squared_error(&values, &decoded(&values, bits));
                best += best_of_all(&values, bits);
            }
            let share: f64 = found / best;

            assert!((0.999..1.1).contains(&share), "{bits} bits, {len}: {share} of the best");
        }
    }
}

#[test]
fn two_bytes_and_a_search_are_worth_more_than_four_bytes() {
    // An error counts by 4^bits, all of them: codes and what is stored for the group.
    for bits in [2u8, 3, 4] {
        for len in [32usize, 64, 128] {
            let mut inputs = Inputs::new(u64::from(bits) + len as u64);
            let (mut window, mut min_max) = (0.0, 0.0);
            for i in 0..2000 {
                let mut values = inputs.gaussian_rows(1, len, 1.0);
                // Keys have channels that stand far from zero.
                values.iter_mut().for_each(|x| *x += f32::from((i % 5) as u8) * 3.0);
                window += squared_error(&values, &decoded(&values, bits));
                min_max += min_max_error(&values, bits);
            }
            let two_bytes_less = 4.0f64.powf(-16.0 / len as f64);
            let share = window * two_bytes_less / min_max;

            assert!(share < 0.8, "{bits} bits, groups of {len}: {share}");
        }
    }
}
