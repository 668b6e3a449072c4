//! Rows of a head that no model made, with what makes those of models hard to code: planes that turn with
//! the position, a few heavy channels of one sign, sinks and stray tokens far from all others.
//!
//! A plane joins channel `i` with `i + head_dim / 2`, as the models' rows after RoPE do (Su et al., "RoFormer",
//! arXiv 2104.09864, in the half-split pairing), and turns by `10000^(-2i / head_dim)` per token.

use heterokv_eval::HeadRows;
use heterokv_testkit::Inputs;

pub use heterokv_eval::relative_energy as energy;

/// Tokens at the beginning that attention rests on, far from all others.
const SINKS: usize = 4;

/// One token in so many is an outlier, as some delimiters are.
const STRAY: usize = 512;

/// The rows of a head whose `head_dim` is even, by seed.
#[must_use]
pub fn head(seed: u64, head_dim: usize, group_size: usize, num_tokens: usize) -> HeadRows {
    let mut inputs = Inputs::new(seed);
    let planes = Planes::draw(&mut inputs, head_dim);
    let mut rows = HeadRows {
        head_dim,
        group_size,
        sm_scale: 1.0 / (head_dim as f32).sqrt(),
        keys: Vec::with_capacity(num_tokens * head_dim),
        values: Vec::with_capacity(num_tokens * head_dim),
        queries: Vec::with_capacity(num_tokens * group_size * head_dim),
    };
    // What tokens say of themselves before they are placed, which queries look for.
    let mut contents: Vec<Vec<f32>> = Vec::with_capacity(num_tokens);
    for token in 0..num_tokens {
        let size = match token {
            0..SINKS => 6.0,
            _ if token % STRAY == STRAY / 2 => 3.0,
            _ => 1.0,
        };
        let content = planes.spread.iter().map(|spread| size * spread * inputs.gaussian());
        let content: Vec<f32> = content.collect();
        let key: Vec<f32> = planes.centre.iter().zip(&content).map(|(c, x)| c + x).collect();
        rows.keys.extend(planes.turned(&key, token));
        rows.values.extend((0..head_dim).map(|_| inputs.gaussian()));
        contents.push(content);
        for _ in 0..group_size {
            let sought = &contents[inputs.below(contents.len())];
            let query =
                planes.bias.iter().zip(sought).map(|(b, x)| b + x + 0.5 * inputs.gaussian());
            let query: Vec<f32> = query.collect();
            rows.queries.extend(planes.turned(&query, token));
        }
    }
    rows
}

/// What all tokens of a head share.
struct Planes {
    /// Turn per token, radians `[head_dim / 2]`.
    step: Vec<f64>,
    /// Mean of the keys before they turn `[head_dim]`.
    centre: Vec<f32>,
    /// Deviation of the keys `[head_dim]`.
    spread: Vec<f32>,
    /// Mean of the queries before they turn `[head_dim]`.
    bias: Vec<f32>,
}

impl Planes {
    fn draw(inputs: &mut Inputs, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let step = (0..half).map(|i| 1e4f64.powf(-2.0 * i as f64 / head_dim as f64));
        let mut centre = inputs.gaussian_rows(1, head_dim, 0.7);
        let spread: Vec<f32> = (0..head_dim).map(|_| 0.3 + 0.9 * inputs.unit()).collect();
        // The slowest planes keep their sign over a whole context: there heavy channels are seen.
        for _ in 0..3 {
            let plane = half - 1 - inputs.below(half.div_ceil(4));
            let channel = plane + half * inputs.below(2);
            centre[channel] = centre[channel].signum() * (6.0 + 4.0 * inputs.unit());
        }
        let bias = centre.iter().map(|c| 0.3 * c.clamp(-2.0, 2.0) + 0.5 * inputs.gaussian());
        Self { step: step.collect(), bias: bias.collect(), centre, spread }
    }

    fn turned(&self, row: &[f32], token: usize) -> Vec<f32> {
        let half = self.step.len();
        let mut out = vec![0.0; row.len()];
        for (i, step) in self.step.iter().enumerate() {
            let (sin, cos) = (token as f64 * step).sin_cos();
            let (x, y) = (f64::from(row[i]), f64::from(row[i + half]));
            out[i] = (x * cos - y * sin) as f32;
            out[i + half] = (x * sin + y * cos) as f32;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_heavy_channels_outliers_and_nothing_that_is_not_finite() {
        let rows = head(1, 64, 3, 2048);
        assert_eq!((rows.keys.len(), rows.queries.len()), (2048 * 64, 2048 * 3 * 64));
        assert!(rows.keys.iter().chain(&rows.queries).chain(&rows.values).all(|x| x.is_finite()));
        let energies = energy(&rows.keys, 64);
        assert!(energies.iter().any(|&e| e > 8.0), "{energies:?}");
        let norm = |token: usize| -> f32 {
            rows.keys[token * 64..][..64].iter().map(|x| x * x).sum::<f32>().sqrt()
        };
        let usual = (600..700).map(norm).sum::<f32>() / 100.0;
        assert!(norm(0) > 1.5 * usual && norm(256) > 1.2 * usual, "{} {usual}", norm(0));
        assert_eq!(head(1, 64, 3, 100).keys, rows.keys[..100 * 64]);
    }
}
