//! What codes may leave of keys: the rules of the formats in scalar f64, which share no code with coders or kernels.

use heterokv_quant::{AllocatedChannel, TokenRule};

/// What rounding of f32 may add to an error that a rule leaves, as a share of it.
const SLACK: f64 = 1e-3;

/// And as a share of the largest value.
const NOISE: f64 = 1e-6;

/// Steps of a normal distribution's optimal scale, first far, then near, in eighths of an octave.
const FAR: [i32; 13] = [-48, -40, -32, -24, -20, -16, -12, -8, -4, 0, 4, 8, 12];
const NEAR: [i32; 6] = [-3, -2, -1, 1, 2, 3];

/// Whether what a key decodes to is as near to it as its rule has it.
pub(crate) fn is_near(rule: &TokenRule, key: &[f32], decoded: &[f32]) -> bool {
    let key = wide(key);
    let apart: Vec<f64> = wide(decoded).iter().zip(&key).map(|(a, b)| a - b).collect();
    let largest = key.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    match rule {
        TokenRule::Integers { bits, rotation } => {
            let in_frame = |x: &[f64]| match rotation {
                Some(rotation) => rotated(x, rotation.signs(), rotation.block()),
                None => x.to_vec(),
            };
            let limit = half_step(&in_frame(&key), *bits) + 4.0 * NOISE * largest;
            in_frame(&apart).iter().all(|x| x.abs() <= limit)
        }
        TokenRule::Levels { levels, centre, rotation } => {
            let centred: Vec<f64> =
                key.iter().zip(centre).map(|(x, centre)| x - f64::from(*centre)).collect();
            let x = rotated(&centred, rotation.signs(), rotation.block());
            squares(&apart) <= level_error(&x, levels) * (1.0 + SLACK) + (NOISE * largest).powi(2)
        }
        TokenRule::Allocated { channels } => {
            let weighted = |of: &AllocatedChannel| {
                let steps = apart[of.channel as usize] / f64::from(of.step);
                if of.step > 0.0 { f64::from(of.weight) * steps * steps } else { 0.0 }
            };
            let error: f64 = channels.iter().map(weighted).sum();
            error <= allocated_error(&key, channels) * (1.0 + SLACK)
        }
    }
}

/// Whether what the values of a channel decode to is as near to them as integers of so many bits are.
pub(crate) fn is_channel_near(bits: u8, values: &[f32], decoded: &[f32]) -> bool {
    let values = wide(values);
    let apart: Vec<f64> = wide(decoded).iter().zip(&values).map(|(a, b)| a - b).collect();
    let largest = values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    if bits > 4 {
        let limit = half_step(&values, bits) + 4.0 * NOISE * largest;
        return apart.iter().all(|x| x.abs() <= limit);
    }
    let count = values.len() as f64;
    squares(&apart)
        <= window_error(&values, bits) * (1.0 + SLACK) + count * (NOISE * largest).powi(2)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn squares(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// By the matrix: an entry of the transform is the sign of the bits that row and column share.
fn rotated(x: &[f64], signs: &[f32], block: usize) -> Vec<f64> {
    let product = |row: usize| {
        let first = row / block * block;
        let term = |column: usize| {
            let is_odd = ((row % block) & column).count_ones() % 2 == 1;
            let signed = x[first + column] * f64::from(signs[first + column]);
            if is_odd { -signed } else { signed }
        };
        (0..block).map(term).sum()
    };
    (0..x.len()).map(product).collect()
}

fn ends(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    (low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// Half of the widest step that a zero rounded down to f16 and a scale rounded up leave.
fn half_step(values: &[f64], bits: u8) -> f64 {
    let ulp = |x: f64| (x.abs() / 1024.0).max(2.0f64.powi(-24));
    let (low, high) = ends(values);
    let step = (high - low + ulp(low)) / (f64::from(1u32 << bits) - 1.0);
    0.5 * (step + ulp(step)) * (1.0 + SLACK)
}

/// The squared error of the nearest levels under the scale that brings them closest, rounded to f16.
fn level_error(x: &[f64], levels: &[f32]) -> f64 {
    let rms = (squares(x) / x.len() as f64).sqrt();
    if rms == 0.0 {
        return 0.0;
    }
    let nearest = |x: &f64| {
        let distance = |level: &f32| (x / rms - f64::from(*level)).abs();
        let best = levels.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        best.map_or(0.0, |level| f64::from(*level))
    };
    let found: Vec<f64> = x.iter().map(nearest).collect();
    let along: f64 = x.iter().zip(&found).map(|(x, level)| x * level).sum();
    let scale = along / squares(&found);
    let rounding = scale * 2.0f64.powi(-11) + 2.0f64.powi(-25);
    let left: f64 = x.iter().zip(&found).map(|(x, level)| (x - scale * level).powi(2)).sum();
    left + rounding * rounding * squares(&found)
}

/// The least weighted error of the scales that are tried.
fn allocated_error(key: &[f64], channels: &[AllocatedChannel]) -> f64 {
    let is_coded = |of: &&AllocatedChannel| of.usual > 0.0 && of.step > 0.0;
    let steps = |of: &AllocatedChannel| {
        (key[of.channel as usize] - f64::from(of.centre)) / f64::from(of.step)
    };
    let coded: Vec<&AllocatedChannel> = channels.iter().filter(is_coded).collect();
    let spread: f64 = coded.iter().map(|of| (steps(of) / f64::from(of.usual)).powi(2)).sum();
    let ratio = (spread / (coded.len() as f64).max(1.0)).sqrt().max(1e-4);
    let error = |eighths: i32| {
        let scale = 2.0f64.powf(f64::from(eighths.clamp(-128, 127)) / 8.0);
        let of_channel = |of: &AllocatedChannel| {
            let (x, middle) = (if is_coded(&of) { steps(of) } else { 0.0 }, f64::from(of.middle));
            let code = (x / scale + middle).clamp(0.0, 2.0 * middle).round_ties_even();
            f64::from(of.weight) * (x - scale * (code - middle)).powi(2)
        };
        channels.iter().map(of_channel).sum::<f64>()
    };
    let around = |centre: i32, scales: &[i32]| {
        let tried = scales.iter().map(|step| (error(centre + step), centre + step));
        tried.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    };
    let far = around((8.0 * ratio.log2()).round() as i32, &FAR);
    far.0.min(around(far.1, &NEAR).0)
}

/// The least squared error of the windows that are looked at.
fn window_error(values: &[f64], bits: u8) -> f64 {
    let last = f64::from(1u32 << bits) - 1.0;
    let (low, high) = ends(values);
    let eighths = |x: f64| if x > 0.0 { 8.0 * x.log2() } else { -1e4 };
    let step = |exponent: i32| 2.0f64.powf(f64::from(exponent) / 8.0);
    let error = |exponent: i32, centre: f64| {
        let (step, first) = (step(exponent), 0.5 * (centre - last));
        let left = |x: &f64| {
            let code = (x / step - first).round_ties_even().clamp(0.0, last);
            (x - step * (first + code)).powi(2)
        };
        values.iter().map(left).sum::<f64>()
    };
    let smallest = eighths(low.abs().max(high.abs()) / 59.48).ceil() as i32;
    let filled = (eighths((high - low) / last) + 1e-3).floor() as i32;
    let bottom = filled - [9, 9, 9, 5, 3][usize::from(bits)];
    let reaching = smallest.clamp(-128, 127);
    let middle = 2.0 * (0.5 * (low + high) / step(reaching)).floor() + 1.0;
    let of_reaching = error(reaching, middle.clamp(-127.0, 127.0));
    let candidates =
        (bottom.clamp(-128, 127)..=(filled + 1).clamp(-128, 127)).filter_map(|exponent| {
            let centre = ((low + high) / step(exponent)).round_ties_even();
            let place = |x: f64| (x / step(exponent) - 0.5 * (centre - last)).round_ties_even();
            let is_filled = place(low) <= 0.0 && place(high) >= last;
            (is_filled && (-128.0..128.0).contains(&centre)).then(|| error(exponent, centre))
        });
    let least = candidates.fold(f64::INFINITY, f64::min);
    if smallest < bottom && least.is_finite() { least } else { least.min(of_reaching) }
}
