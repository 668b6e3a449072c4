//! Hard bounds: no decoded key is further from its key than its format allows, whatever the input.

use heterokv_testkit::{Inputs, Tolerance, assert_close};
use proptest::prelude::*;

use super::*;
use crate::affine::tests::window_bound;

/// Half a step of f16 at `x`.
fn f16_rounding(x: f64) -> f64 {
    x.abs() / 2048.0 + 2.0f64.powi(-25)
}

/// The largest error of `x ≈ zero + scale · code` in a group of values.
fn affine_bound(group: &[f64], bits: u8) -> f64 {
    let low = group.iter().copied().fold(f64::INFINITY, f64::min);
    let high = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let max_code = f64::from((1u32 << bits) - 1);
    let rounding = 1e-6 * low.abs().max(high.abs());
    // Half of the step from a zero below the smallest value to the largest value, both in f16.
    let zero = low - rounding - 2.0 * f16_rounding(low);
    let scale = (high + rounding - zero) / max_code;
    0.5 * (scale + 2.0 * f16_rounding(scale)) + rounding
}

/// The affine groups of keys `[n, head_dim]`, each as indices.
fn affine_groups(format: KeyFormat, num_tokens: usize, head_dim: usize) -> Vec<(u8, Vec<usize>)> {
    match format.unrotated() {
        KeyFormat::IntToken { bits } => {
            (0..num_tokens).map(|t| (bits, (t * head_dim..(t + 1) * head_dim).collect())).collect()
        }
        KeyFormat::IntTokenGroups { bits, group } => (0..num_tokens)
            .flat_map(|t| {
                let firsts = (0..head_dim).step_by(group.channels());
                firsts.map(move |c| (t * head_dim + c, (c + group.channels()).min(head_dim) - c))
            })
            .map(|(first, len)| (bits, (first..first + len).collect()))
            .collect(),
        KeyFormat::IntChannel { bits, group_tokens } => {
            let group_tokens = usize::from(group_tokens);
            let group = |first: usize, c: usize| {
                (first..first + group_tokens).map(|t| t * head_dim + c).collect()
            };
            (0..num_tokens)
                .step_by(group_tokens)
                .flat_map(|first| (0..head_dim).map(move |c| (bits, group(first, c))))
                .collect()
        }
        _ => vec![],
    }
}

/// Keys and decoded keys as the integers of a format stand for them, and what the way there rounds.
fn in_frame(
    format: KeyFormat,
    head_dim: usize,
    mut keys: Vec<f64>,
    mut back: Vec<f64>,
) -> (Vec<f64>, Vec<f64>, f64) {
    if format.unrotated() == format {
        return (keys, back, 0.0);
    }
    let columns = rotation_columns(head_dim);
    let mut longest = 0.0f64;
    for key in keys.chunks_mut(head_dim).chain(back.chunks_mut(head_dim)) {
        longest = longest.max(norm(key));
        key.copy_from_slice(&rotated(&columns, key));
    }
    (keys, back, 16.0 * f64::from(f32::EPSILON) * longest)
}

/// The matrix of the rotation `[head_dim, head_dim]`, a column per channel, by what it does to unit vectors.
fn rotation_columns(head_dim: usize) -> Vec<Vec<f32>> {
    let rotation = crate::Rotation::new(head_dim, lloyd_max::ROTATION_SEED).unwrap();
    let column = |c: usize| {
        let mut column = vec![0.0; head_dim];
        column[c] = 1.0;
        rotation.forward(&mut column);
        column
    };
    (0..head_dim).map(column).collect()
}

/// A key under that matrix, in f64.
fn rotated(columns: &[Vec<f32>], key: &[f64]) -> Vec<f64> {
    let mut rotated = vec![0.0; key.len()];
    for (column, x) in columns.iter().zip(key) {
        rotated.iter_mut().zip(column).for_each(|(sum, &entry)| *sum += f64::from(entry) * x);
    }
    rotated
}

/// Whether scales and zeros are stored as steps and multiples.
fn is_window(format: KeyFormat) -> bool {
    match format.unrotated() {
        KeyFormat::IntTokenGroups { bits, .. } | KeyFormat::IntChannel { bits, .. } => bits <= 4,
        _ => false,
    }
}

/// The largest share of its bound that an error takes; NaN where an error is NaN.
fn worst_share(coder: &KeyCoder, keys: &[f32], back: &[f32]) -> f64 {
    let (format, head_dim) = (coder.format(), coder.head_dim);
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
    let (keys, back) = (wide(keys), wide(back));
    let mut worst = 0.0f64;
    let mut see = |error: f64, bound: f64| {
        let share = error / bound;
        worst = if share.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(share) };
    };
    match format {
        KeyFormat::F16 => {
            keys.iter().zip(&back).for_each(|(x, y)| see((x - y).abs(), f16_rounding(*x)));
        }
        KeyFormat::Bf16 => {
            let bound = |x: f64| x.abs() / 256.0 + 2.0f64.powi(-134);
            keys.iter().zip(&back).for_each(|(x, y)| see((x - y).abs(), bound(*x)));
        }
        KeyFormat::Fp8 => {
            // Half a step, or the way to the largest value.
            let bound = |x: f64| (x.abs() / 16.0 + 2.0f64.powi(-10)).max(x.abs() - 448.0);
            keys.iter().zip(&back).for_each(|(x, y)| see((x - y).abs(), bound(*x)));
        }
        KeyFormat::IntToken { .. }
        | KeyFormat::IntTokenGroups { .. }
        | KeyFormat::IntChannel { .. }
        | KeyFormat::Rotated { .. } => {
            let (keys, back, rounding) = in_frame(format, head_dim, keys, back);
            for (bits, group) in affine_groups(format, keys.len() / head_dim, head_dim) {
                let values: Vec<f64> = group.iter().map(|&i| keys[i]).collect();
                if is_window(format) {
                    let squares: f64 = group.iter().map(|&i| (keys[i] - back[i]).powi(2)).sum();
                    let root_mean_square = (squares / group.len() as f64).sqrt();
                    see(root_mean_square, window_bound(&values, bits) + rounding);
                } else {
                    let bound = affine_bound(&values, bits) + rounding;
                    group.iter().for_each(|&i| see((keys[i] - back[i]).abs(), bound));
                }
            }
        }
        KeyFormat::LloydMax { bits } | KeyFormat::LloydMaxPlain { bits } => {
            let tables = coder.tables();
            let centre: Vec<f64> = match format {
                KeyFormat::LloydMaxPlain { .. } => vec![0.0; head_dim],
                _ => table(&tables, "centre").iter().map(|c| c.to_f64()).collect(),
            };
            let upper = lloyd_max::LEVELS[usize::from(bits) - 1];
            let columns = rotation_columns(head_dim);
            for (key, back) in keys.chunks(head_dim).zip(back.chunks(head_dim)) {
                let apart: Vec<f64> = key.iter().zip(&centre).map(|(k, c)| k - c).collect();
                let x = rotated(&columns, &apart);
                let rms = norm(&x) / (head_dim as f64).sqrt();
                // The scale is the projection of the key onto its levels, so what is left is no longer than under
                // the scale that the levels are chosen for; its own rounding counts by the levels' length.
                let left: Vec<f64> = x
                    .iter()
                    .map(|x| {
                        let levels = upper.iter().map(|&level| rms * f64::from(level));
                        levels.map(|y| (x.abs() - y).abs()).fold(f64::INFINITY, f64::min)
                    })
                    .collect();
                let levels = 2.8 * (head_dim as f64).sqrt();
                let rounding = levels * f16_rounding(rms) + 1e-6 * (norm(key) + norm(&centre));
                let error: Vec<f64> = key.iter().zip(back).map(|(k, b)| k - b).collect();
                see(norm(&error), norm(&left) + rounding);
            }
        }
        KeyFormat::Alloc { .. } => {
            let tables = coder.tables();
            let wide =
                |name| -> Vec<f64> { table(&tables, name).iter().map(|x| x.to_f64()).collect() };
            let (order, centre, step) = (wide("order"), wide("centre"), wide("step"));
            let widths = wide("widths");
            let weight = wide("weight");
            for (key, back) in keys.chunks(head_dim).zip(back.chunks(head_dim)) {
                // The scale of a token is chosen by the error it leaves, so that error is no larger
                // than under the scale 1: half a step within reach of the codes, the way to the last
                // code beyond it.
                let (mut error, mut bound) = (0.0, 0.0);
                for i in 0..head_dim {
                    let c = order[i] as usize;
                    let reach = step[i] * (2.0f64.powf(widths[i / 8]) - 1.0) / 2.0;
                    let distance = (key[c] - centre[i]).abs();
                    let own = if widths[i / 8] == 0.0 {
                        distance
                    } else {
                        (0.5 * step[i]).max(distance - reach)
                    };
                    let rounding = 1e-6 * (key[c].abs() + centre[i].abs() + reach);
                    error += weight[i] * (key[c] - back[c]).powi(2);
                    bound += weight[i] * (own + rounding).powi(2);
                }
                see(error.sqrt(), bound.sqrt() + f64::MIN_POSITIVE);
            }
        }
        KeyFormat::Pq { .. } => see_groups(coder, &keys, &back, &mut see),
    }
    worst
}

/// The coordinates of keys in product quantization, in f64: weighted, then rotary partners together or under the
/// stored rotation, made orthonormal by Gram and Schmidt.
fn coordinates(tables: &Tables, width: usize, keys: &[f64]) -> Vec<Vec<f64>> {
    let weights: Vec<f64> = table(tables, "weights").iter().map(|x| x.to_f64()).collect();
    let head_dim = weights.len();
    let half = width / 2;
    let rotation = tables.iter().find(|(name, _)| *name == "rotation");
    let rows: Vec<Vec<f64>> = match rotation {
        None => (0..head_dim)
            .map(|i| i / width * half + i % half + i % width / half * (head_dim / 2))
            .map(|c| (0..head_dim).map(|i| if i == c { 1.0 } else { 0.0 }).collect())
            .collect(),
        Some((_, rotation)) => {
            let mut rows: Vec<Vec<f64>> = Vec::new();
            for row in rotation.chunks(head_dim) {
                let mut row: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
                for other in &rows {
                    let along: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                    row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
                }
                let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                rows.push(row.iter().map(|x| x / norm).collect());
            }
            rows
        }
    };
    let of_key = |key: &[f64]| -> Vec<f64> {
        let weighted: Vec<f64> = key.iter().zip(&weights).map(|(x, w)| x * w).collect();
        rows.iter().map(|row| row.iter().zip(&weighted).map(|(r, x)| r * x).sum()).collect()
    };
    keys.chunks(head_dim).map(of_key).collect()
}

/// Every group decodes to its nearest centroid, up to the rounding of distances in f32; a token kept exactly to its
/// coordinates in f16.
fn see_groups(coder: &KeyCoder, keys: &[f64], back: &[f64], see: &mut dyn FnMut(f64, f64)) {
    let KeyFormat::Pq { width, num_exact, .. } = coder.format() else { unreachable!() };
    let width = usize::from(width);
    let tables = coder.tables();
    let codebooks: Vec<f64> = table(&tables, "codebooks").iter().map(|x| x.to_f64()).collect();
    let per_group = codebooks.len() / (coder.head_dim / width);
    let all = coordinates(&tables, width, keys);
    let decoded = coordinates(&tables, width, back);
    let mut exact_tokens = vec![0; all.len().div_ceil(128)];
    for (token, (key, back)) in all.iter().zip(&decoded).enumerate() {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        let size = norm(key) + norm(back);
        let distance =
            |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
        // Of weighting, rotating and the way back.
        let rounding = 1e-10 * size + f64::MIN_POSITIVE;
        let mut groups = codebooks.chunks(per_group).zip(key.chunks(width)).zip(back.chunks(width));
        let is_coded = groups.clone().all(|((codebook, _), own)| {
            codebook.chunks(width).any(|row| distance(row, own) <= rounding)
        });
        if num_exact > 0 && !is_coded {
            exact_tokens[token / 128] += 1;
            for (x, y) in key.iter().zip(back) {
                see((x - y).abs(), f16_rounding(*x) + 1e-5 * size.sqrt());
            }
            continue;
        }
        assert!(is_coded, "token {token} decodes to centroids");
        groups.by_ref().for_each(|((codebook, key), own)| {
            let rows = codebook.chunks(width);
            let least = rows.map(|row| distance(row, key)).fold(f64::INFINITY, f64::min);
            see(distance(own, key), least * (1.0 + 1e-5) + 1e-6 * size + f64::MIN_POSITIVE);
        });
    }
    assert!(exact_tokens.iter().all(|&n| n <= num_exact.into()), "{exact_tokens:?}");
}

#[test]
fn errors_stay_within_the_bound_of_every_format() {
    for (seed, (format, head_dim)) in shapes(&[8, 16, 64, 80, 96, 128]).into_iter().enumerate() {
        for input in Input::ALL {
            let mut inputs = Inputs::new(seed as u64);
            let keys = input.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
            let coder = fitted(format, head_dim, &keys);
            // Keys of the fit, and keys that it has not seen.
            let fresh = input.keys(&mut inputs, 128, head_dim);
            for keys in [&keys[..128 * head_dim], &fresh] {
                let back = decoded(&coder, &encoded(&coder, keys));
                let share = worst_share(&coder, keys, &back);
                assert!(share <= 1.0, "{format} {head_dim} {input:?} seed {seed}: {share}");
            }
        }
    }
}

#[test]
fn the_bounds_are_reached_and_damage_is_seen() {
    for (format, head_dim) in shapes(&[64]) {
        let mut inputs = Inputs::new(77);
        let keys = Input::Gaussian.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
        let coder = fitted(format, head_dim, &keys);
        let keys = &keys[..128 * head_dim];
        let mut back = decoded(&coder, &encoded(&coder, keys));
        let least = match format {
            // Of a bound on the root mean square, which uniform errors in half a step miss by √3.
            KeyFormat::Alloc { .. } => 0.3,
            _ if is_window(format) => 0.2,
            _ => 0.8,
        };
        let share = worst_share(&coder, keys, &back);
        assert!(share > least, "{format} uses {share} of its bound");
        if matches!(format, KeyFormat::Pq { .. }) {
            continue;
        }
        back[70] += 300.0;
        assert!(worst_share(&coder, keys, &back) > 1.0, "{format}");
        back[70] = f32::NAN;
        assert!(worst_share(&coder, keys, &back).is_nan(), "{format}");
    }
}

#[test]
fn a_second_pass_changes_nothing() {
    for (format, head_dim) in shapes(&[16, 64, 80, 96, 128]) {
        for input in Input::ALL {
            let mut inputs = Inputs::new(5);
            let keys = input.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
            let coder = fitted(format, head_dim, &keys);
            let codes = encoded(&coder, &keys[..128 * head_dim]);
            let back = decoded(&coder, &codes);
            let again_codes = encoded(&coder, &back);
            let again = decoded(&coder, &again_codes);
            let name = format!("{format} {head_dim} {input:?}");
            let is_gaussian = matches!(input, Input::Gaussian);
            match format {
                // A token's best scale may be another the second time; what is lost stays in the bound.
                KeyFormat::LloydMax { .. }
                | KeyFormat::LloydMaxPlain { .. }
                | KeyFormat::Alloc { .. } => {
                    let share = worst_share(&coder, &back, &again);
                    assert!(share <= 1.0, "{name}: {share}");
                }
                // The way through a rotation and back moves keys by roundings of f32, which may take a value over
                // the edge of a step, or a zero or a scale in f16 over to its neighbour.
                KeyFormat::Rotated { .. } if !(is_gaussian && is_window(format)) => {
                    let share = worst_share(&coder, &back, &again);
                    assert!(share <= 1.0, "{name}: {share}");
                }
                KeyFormat::Pq { is_rotated: true, num_exact: 1.., .. } => {
                    let expected: Vec<f64> = back.iter().map(|&x| x.into()).collect();
                    let longest = expected.chunks(head_dim).map(norm).fold(0.0, f64::max);
                    let absolute = if is_gaussian { 1e-5 } else { 1e-5 * longest };
                    let tolerance = Tolerance { absolute, relative: 0.0 };
                    assert_close(&name, 5, &again, &expected, tolerance);
                }
                _ => assert_eq!(again, back, "{name}"),
            }
            // Two equal centroids have two codes and one meaning; so have two windows of one step.
            let has_two_codes = matches!(
                format,
                KeyFormat::Pq { .. }
                    | KeyFormat::Rotated { .. }
                    | KeyFormat::LloydMax { .. }
                    | KeyFormat::LloydMaxPlain { .. }
                    | KeyFormat::Alloc { .. }
            ) || is_window(format);
            if is_gaussian && !has_two_codes {
                assert_eq!(again_codes, codes, "{name}");
            }
        }
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_finite_keys_decode_to_finite_ones(
        pattern in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 1..300),
    ) {
        for (format, head_dim) in shapes(&[16]) {
            let num_tokens = fit_tokens(format, head_dim);
            let keys: Vec<f32> =
                pattern.iter().copied().cycle().take(num_tokens * head_dim).collect();
            let coder = fitted(format, head_dim, &keys);
            let back = decoded(&coder, &encoded(&coder, &keys[..128 * head_dim]));
            prop_assert!(back.iter().all(|x| x.is_finite()), "{}", format);
            let restored = KeyCoder::restore(format, head_dim, &coder.tables());
            prop_assert!(restored.is_ok(), "{}: {:?}", format, restored.err());
        }
    }
}

#[test]
fn a_channel_of_two_values_does_not_push_another_past_its_bits() {
    // One bit more can measure worse where values sit on the coarser codes; a chunk that has all its
    // bits must still not be chosen again.
    let head_dim = 16;
    let sign = |i: usize| if (i / head_dim + i % 3).is_multiple_of(2) { 1e3 } else { -1e3 };
    let mut inputs = Inputs::new(9);
    let keys: Vec<f32> = (0..512 * head_dim)
        .map(|i| if i % head_dim < 8 { 2e3 * inputs.gaussian() } else { sign(i) })
        .collect();
    for name in ["alloc/4", "alloc/6", "alloc/8"] {
        let coder = fitted(name.parse().unwrap(), head_dim, &keys);
        let widths: Vec<f32> =
            table(&coder.tables(), "widths").iter().map(|b| b.to_f32()).collect();
        assert!(widths.iter().all(|&bits| bits <= 8.0), "{name}: {widths:?}");
    }
}
