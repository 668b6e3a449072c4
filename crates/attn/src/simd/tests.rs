//! The vector code against f64 and against its portable form.

use heterokv_quant::Level;
use heterokv_testkit::{Controls, Guarded, Inputs, Tolerance, compare};

use super::exp::{exp_weight, exp_weights};
use super::pack::{HeadRows, pack_keys, pack_values};
use super::strip::{KEY_LANES, VALUE_LANES};

/// The bound that the module of the exponential states.
const EXP_BOUND: f64 = 1e-7;

/// Checks the arguments whose bits are `first, first + step, ..= last` on every level, and returns the
/// largest relative error.
fn walk_exp(first: f32, last: f32, step: usize) -> f64 {
    let mut worst = 0.0_f64;
    let mut bits = (first.to_bits()..=last.to_bits()).step_by(step);
    loop {
        let xs: Vec<f32> = bits.by_ref().take(4096).map(f32::from_bits).collect();
        if xs.is_empty() {
            return worst;
        }
        for level in Level::available() {
            let mut weights = xs.clone();
            let _ = exp_weights(level, &mut weights, 0.0);
            for (&x, &weight) in xs.iter().zip(&weights) {
                let expected = f64::from(x).exp();
                let error = (f64::from(weight) - expected).abs() / expected;
                assert!(error <= EXP_BOUND, "{level}: exp({x:e}) is {weight:e}, off by {error:e}");
                worst = worst.max(error);
            }
        }
    }
}

#[test]
fn exp_is_within_its_bound_over_its_range() {
    let negative = walk_exp(-0.0, -87.3, 1021);
    let positive = walk_exp(0.0, 88.0, 1021);
    println!("largest relative errors: {negative:e} below zero, {positive:e} above");
}

#[test]
#[ignore = "every float of the range takes a minute; the stride above is the everyday check"]
fn exp_is_within_its_bound_at_every_float() {
    println!("largest relative error below zero: {:e}", walk_exp(-0.0, -87.3, 1));
}

#[test]
fn exp_is_exact_at_zero_vanishes_far_below_and_keeps_nan() {
    for level in Level::available() {
        let below = [-87.300_01_f32, -88.0, -103.0, -1e4, -1e30, f32::MIN, f32::NEG_INFINITY];
        let mut weights = below.to_vec();
        assert_eq!(exp_weights(level, &mut weights, 0.0), 0.0, "{level}");
        assert_eq!(weights, [0.0; 7], "{level}");

        let mut weights = vec![0.0, -0.0, 3.0];
        weights.resize(13, f32::NEG_INFINITY);
        assert_eq!(exp_weights(level, &mut weights[..2], 0.0), 2.0, "{level}");

        for payload in
            [f32::NAN, -f32::NAN, f32::from_bits(0x7FD0_DEAD), f32::from_bits(0xFFFF_FFFF)]
        {
            for position in [0, 7, 8] {
                let mut weights = [0.0; 9];
                weights[position] = payload;
                assert!(exp_weights(level, &mut weights, 0.0).is_nan(), "{level} at {position}");
                assert!(weights[position].is_nan(), "{level} at {position}");
            }
        }
    }
    assert!(exp_weight(f32::NAN).is_nan());
}

#[test]
fn exp_weights_match_f64_at_every_length() {
    let seed = 11;
    for level in Level::available() {
        for len in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 100, 257] {
            let scores = Inputs::new(seed).gaussian_rows(1, len, 6.0);
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut output = Guarded::<f32>::new(len);
            output.payload_mut().copy_from_slice(&scores);
            let sum = exp_weights(level, output.payload_mut(), max);
            let expected: Vec<f64> =
                scores.iter().map(|&s| (f64::from(s) - f64::from(max)).exp()).collect();
            let weights = output.check().expect("every weight is written and nothing else");
            // Rounding of the difference reaches the weight at the size of the difference.
            let tolerance = Tolerance { absolute: 1e-7, relative: 4e-6 };
            let total = [expected.iter().sum::<f64>()];
            compare(&[sum], &total, tolerance).unwrap_or_else(|e| panic!("{level}: {e}"));
            if len > 0 {
                let label = format!("{level}, {len} scores");
                compare(weights, &expected, tolerance)
                    .unwrap_or_else(|e| panic!("{}", e.at(label, seed)));
            }
        }
    }
}

#[test]
fn nothing_but_masked_scores_weighs_nothing() {
    for level in Level::available() {
        for len in [0, 1, 8, 11] {
            let mut scores = vec![f32::NEG_INFINITY; len];
            assert_eq!(exp_weights(level, &mut scores, f32::NEG_INFINITY), 0.0);
            assert!(scores.iter().all(|&weight| weight == 0.0), "{level}, {len}");
        }
    }
}

#[test]
fn packing_puts_every_element_where_the_kernel_looks() {
    let (num_kv_heads, capacity) = (3, 32);
    for level in Level::available() {
        for head_dim in [1, 7, 8, 9, 16, 20, 64, 80] {
            for num_tokens in [1, 15, 16, 17, 31, 32] {
                for kv_head in 0..num_kv_heads {
                    let stride = num_kv_heads * head_dim;
                    let tensor = Inputs::new(5).gaussian_rows(num_tokens + 2, stride, 1.0);
                    let start = 2 * stride + kv_head * head_dim;
                    let rows = HeadRows { start, stride, head_dim, num_tokens };
                    let element =
                        |token: usize, channel: usize| tensor[start + token * stride + channel];
                    let case = format!("{level}, {num_tokens} rows of {head_dim}, head {kv_head}");

                    let mut packed = Guarded::<f32>::new(capacity * head_dim);
                    pack_keys(level, rows, &tensor, packed.payload_mut());
                    let packed = packed.check_bands().expect("bands");
                    for token in 0..num_tokens.next_multiple_of(KEY_LANES) {
                        for channel in 0..head_dim {
                            let panel = token / KEY_LANES;
                            let at = (panel * head_dim + channel) * KEY_LANES + token % KEY_LANES;
                            let expected =
                                if token < num_tokens { element(token, channel) } else { 0.0 };
                            assert_eq!(packed[at], expected, "{case}: key {token}, {channel}");
                        }
                    }

                    let row_stride = head_dim.next_multiple_of(VALUE_LANES);
                    let mut packed = Guarded::<f32>::new(capacity * row_stride);
                    packed.payload_mut().fill(0.0);
                    pack_values(rows, &tensor, capacity, packed.payload_mut());
                    let packed = packed.check_bands().expect("bands");
                    for token in 0..capacity {
                        for channel in 0..row_stride {
                            let panel = channel / VALUE_LANES;
                            let lane = channel % VALUE_LANES;
                            let at = (panel * capacity + token) * VALUE_LANES + lane;
                            let inside = token < num_tokens && channel < head_dim;
                            let expected = if inside { element(token, channel) } else { 0.0 };
                            assert_eq!(packed[at], expected, "{case}: value {token}, {channel}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_comparison_of_weights_can_fail() {
    let scores = Inputs::new(12).gaussian_rows(1, 40, 2.0);
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let expected: Vec<f64> = scores.iter().map(|&s| f64::from(s - max).exp()).collect();
    for level in Level::available() {
        let mut weights = scores.clone();
        let _ = exp_weights(level, &mut weights, max);
        let tolerance = Tolerance { absolute: 1e-7, relative: 4e-6 };
        let tried = Controls { num_heads: 4, head_dim: 1 }
            .assert_rejects(&weights, |weights| compare(weights, &expected, tolerance));
        assert_eq!(tried.len(), 8);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn forms_for_avx_512_are_run_or_counted_as_skipped() {
    if Level::avx512().is_none() {
        println!(
            "SKIPPED: this CPU has no AVX-512 with VBMI and VNNI; attn's forms for it were not run"
        );
    }
}
