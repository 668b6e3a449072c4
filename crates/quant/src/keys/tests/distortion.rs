//! Mean squared errors on normal keys against the textbook, on keys that the fit has not seen.

use heterokv_testkit::Inputs;

use super::*;

/// Distortion of the optimal scalar quantizer of 0 to 8 bits on the standard normal distribution
/// (Max 1960, table I up to 5 bits; beyond, the high-rate law (√3 π / 2) 4^-bits that it approaches).
const LLOYD_MAX: [f64; 9] =
    [1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000664, 0.000166, 0.0000415];

/// The same for uniform steps (Max 1960, table II, continued numerically).
const UNIFORM: [f64; 9] =
    [1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.00008714];

/// Mean squared error over variance of `format` on unseen normal keys.
fn distortion(format: KeyFormat, head_dim: usize) -> f64 {
    let mut inputs = Inputs::new(31);
    let coder = fitted(format, head_dim, &inputs.gaussian_rows(4096, head_dim, 2.0));
    let keys = inputs.gaussian_rows(1024, head_dim, 2.0);
    let back = decoded(&coder, &encoded(&coder, &keys));
    let errors = keys.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2));
    errors.sum::<f64>() / 4.0 / keys.len() as f64
}

/// The distortion of `bits`, not whole ones too, when part of the channels gets one bit more.
fn mixed(table: &[f64; 9], bits: f64) -> f64 {
    let (low, share) = (bits.floor() as usize, bits.fract());
    (1.0 - share) * table[low] + if share > 0.0 { share * table[low + 1] } else { 0.0 }
}

#[test]
fn lloyd_max_codes_reach_the_textbook() {
    for bits in 1..=4u8 {
        for head_dim in [64, 128] {
            for format in [KeyFormat::LloydMax { bits }, KeyFormat::LloydMaxPlain { bits }] {
                let found = distortion(format, head_dim);
                let share = found / LLOYD_MAX[usize::from(bits)];
                // The scale of a token is fitted to it, which is worth a little; its f16 costs nothing.
                assert!((0.9..=1.05).contains(&share), "{format} {head_dim}: {found}, {share}");
            }
        }
    }
}

#[test]
fn allocated_codes_reach_the_textbook() {
    for name in ["0.5", "1", "1.25", "2", "3.25", "4", "6", "8"] {
        for head_dim in [64, 128] {
            let format: KeyFormat = format!("alloc/{name}").parse().unwrap();
            let layout = format.layout(head_dim).unwrap();
            let row_bytes = layout.block_bytes / layout.block_tokens;
            // One byte of a row is the token's scale.
            let bits = 8.0 * (row_bytes - 1) as f64 / head_dim as f64;
            let found = distortion(format, head_dim);
            let share = found / mixed(&UNIFORM, bits);
            // The steps are fitted on 1,024 tokens, whose largest value is near 3.2 deviations: at many
            // bits, whose codes reach further, rarer values of other tokens fall beyond the last code.
            let most = if bits > 6.0 { 2.3 } else { 1.1 };
            assert!(share <= most, "{format} {head_dim}: {found}, {share}");
            // The scale of a token is fitted to it, which is worth something, but no code of this many
            // bytes can do better than this.
            let bound = 4.0f64.powf(-8.0 * row_bytes as f64 / head_dim as f64);
            assert!(found > bound, "{format} {head_dim}: {found} beats the rate bound {bound}");
        }
    }
}

#[test]
fn product_codes_lie_between_the_rate_bound_and_scalar_codes() {
    for (width, code_bits) in
        [(2, 4), (2, 5), (2, 6), (2, 7), (2, 8), (4, 4), (4, 5), (4, 6), (4, 7), (4, 8)]
    {
        let found = distortion(format!("pq/{width}x{}", 1 << code_bits).parse().unwrap(), 16);
        let bits = f64::from(code_bits) / f64::from(width);
        let (low, share) = (bits.floor() as usize, bits.fract());
        let scalar = LLOYD_MAX[low].powf(1.0 - share) * LLOYD_MAX[low + 1].powf(share);
        let bound = 4.0f64.powf(-bits);
        assert!(
            found > bound,
            "pq/{width}, {code_bits} bits: {found} beats the rate bound {bound}"
        );
        assert!(found < 1.1 * scalar, "pq/{width}, {code_bits} bits: {found}, scalar {scalar}");
    }
}

#[test]
fn windows_reach_the_textbook_of_uniform_steps() {
    // Below it too: a group's own window fits it better than one for all could.
    for bits in [2, 3, 4u8] {
        for group in [32, 64, 128] {
            for axis in ["token", "channel"] {
                let format: KeyFormat = format!("int{bits}-{axis}/{group}").parse().unwrap();
                let found = distortion(format, 128);
                let share = found / UNIFORM[usize::from(bits)];
                assert!((0.5..=1.02).contains(&share), "{format}: {found}, {share}");
            }
        }
    }
}

#[test]
fn more_bits_are_never_worse() {
    for family in [
        vec!["fp8", "bf16", "f16"],
        vec!["int2-token", "int3-token", "int4-token", "int6-token", "int8-token"],
        vec!["int2-token/64", "int3-token/64", "int4-token/64", "int6-token/64", "int8-token/64"],
        vec!["int4-token/128", "int4-token/64", "int4-token/32"],
        vec!["int8-token/128", "int8-token/64", "int8-token/32"],
        vec!["int2-channel/64", "int3-channel/64", "int4-channel/64", "int6-channel/64"],
        vec!["int6-channel/128", "int8-channel/128", "int8-channel/64", "int8-channel/32"],
        vec!["int4-channel/128", "int4-channel/64", "int4-channel/32"],
        vec!["rot-int2-token", "rot-int3-token", "rot-int4-token", "rot-int8-token"],
        vec!["rot-int2-channel/64", "rot-int3-channel/64", "rot-int4-channel/64"],
        vec!["lm1", "lm2", "lm3", "lm4"],
        vec!["lm1-plain", "lm2-plain", "lm3-plain", "lm4-plain"],
        vec!["pq/2x16", "pq/2x32", "pq/2x64", "pq/2x128", "pq/2x256"],
        vec!["alloc/0.5", "alloc/1", "alloc/1.25", "alloc/2", "alloc/3.25", "alloc/4", "alloc/8"],
    ] {
        let errors: Vec<f64> = family.iter().map(|f| distortion(f.parse().unwrap(), 128)).collect();
        assert!(errors.is_sorted_by(|a, b| a > b), "{family:?}: {errors:?}");
    }
}

#[test]
fn a_centre_is_worth_its_table_where_channels_stand_off() {
    let (head_dim, mut inputs) = (64, Inputs::new(18));
    let keys = inputs.heavy_channels(512, head_dim, 3, 30.0);
    let error = |name: &str| -> f64 {
        let coder = fitted(name.parse().unwrap(), head_dim, &keys);
        let back = decoded(&coder, &encoded(&coder, &keys));
        keys.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    };
    for bits in 1..=4 {
        let share = error(&format!("lm{bits}")) / error(&format!("lm{bits}-plain"));
        assert!(share < 0.2, "lm{bits}: {share}");
    }
}

#[test]
fn a_rotation_spreads_heavy_channels_over_all() {
    // Three channels of thirty deviations set the scale of a whole token, unless they are spread.
    let (head_dim, mut inputs) = (128, Inputs::new(17));
    let keys = inputs.heavy_channels(512, head_dim, 3, 30.0);
    let error = |name: &str| -> f64 {
        let coder = fitted(name.parse().unwrap(), head_dim, &keys);
        let back = decoded(&coder, &encoded(&coder, &keys));
        keys.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    };
    for scale in ["int4-token", "int3-token/128", "int8-token"] {
        let share = error(&format!("rot-{scale}")) / error(scale);
        assert!(share < 0.7, "{scale}: {share}");
    }
}

#[test]
fn allocation_follows_the_queries() {
    let (head_dim, hot) = (64, 37);
    let mut inputs = Inputs::new(8);
    let keys = inputs.gaussian_rows(512, head_dim, 1.0);
    let mut query_energy = vec![1e-3; head_dim];
    query_energy[hot] = 1e3;
    let fit = |query_energy: &[f32]| {
        let input =
            FitInput { head_dim, keys: &keys, query_energy, seed: 0, level: Level::detect() };
        KeyCoder::fit("alloc/1".parse().unwrap(), &input).unwrap()
    };
    let coder = fit(&query_energy);
    let tables = coder.tables();
    let place = table(&tables, "order").iter().position(|c| c.to_f32() == hot as f32).unwrap();
    assert_eq!(table(&tables, "widths")[place / 8].to_f32(), 8.0, "all the bits it can take");
    let back = decoded(&coder, &encoded(&coder, &keys));
    let mean_error = |c: usize| -> f64 {
        let errors = keys.iter().zip(&back).skip(c).step_by(head_dim);
        errors.map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>() / 512.0
    };
    assert!(mean_error(hot) < 1e-3, "{}", mean_error(hot));
    // Where nothing is known of the queries every channel counts the same.
    let back = decoded(&fit(&vec![0.0; head_dim]), &encoded(&fit(&vec![0.0; head_dim]), &keys));
    let error: f64 = keys.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    let error = error / keys.len() as f64;
    assert!(error < 1.1 * UNIFORM[1], "queries without energy leave an error of {error}");
}

/// Squared error of a format on keys that it was fitted on.
fn fitted_error(name: &str, head_dim: usize, keys: &[f32]) -> f64 {
    let coder = fitted(name.parse().unwrap(), head_dim, keys);
    let back = decoded(&coder, &encoded(&coder, keys));
    keys.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

#[test]
fn a_learned_rotation_follows_keys_that_few_directions_hold() {
    // Energy in directions of which no group has its share: each key is a mix of eight fixed vectors.
    let (head_dim, mut inputs) = (32, Inputs::new(23));
    let directions = inputs.gaussian_rows(8, head_dim, 1.0);
    let mut keys = inputs.gaussian_rows(1024, head_dim, 0.05);
    for key in keys.chunks_mut(head_dim) {
        for direction in directions.chunks(head_dim) {
            let along = inputs.gaussian();
            key.iter_mut().zip(direction).for_each(|(x, d)| *x += along * d);
        }
    }
    for shape in ["2x16", "4x64", "8x64"] {
        let [plain, rotated] =
            ["pq", "opq"].map(|f| fitted_error(&format!("{f}/{shape}"), head_dim, &keys));
        assert!(rotated < 0.6 * plain, "{shape}: {rotated} and {plain}");
    }
}

#[test]
fn tokens_that_no_centroid_is_near_are_kept_exactly() {
    let (head_dim, mut inputs) = (32, Inputs::new(29));
    let mut keys = inputs.gaussian_rows(512, head_dim, 1.0);
    let far: Vec<usize> = (0..4).map(|block| 128 * block + 31 * block + 7).collect();
    for &token in &far {
        keys[token * head_dim..][..head_dim].iter_mut().for_each(|x| *x *= 40.0);
    }
    let coder = fitted("pq/4x16+x1".parse().unwrap(), head_dim, &keys);
    let back = decoded(&coder, &encoded(&coder, &keys));
    for &token in &far {
        let rows = [&keys, &back].map(|rows| &rows[token * head_dim..][..head_dim]);
        for (&x, &y) in rows[0].iter().zip(rows[1]) {
            assert!((x - y).abs() <= x.abs() / 2048.0, "token {token}: {x} and {y}");
        }
    }
    // The codebooks do not stretch for what they need not hold.
    let [plain, error] = ["pq/4x16", "pq/4x16+x1"].map(|name| fitted_error(name, head_dim, &keys));
    assert!(error < plain, "{error} and {plain}");
}
