//! Pooling along tokens: a token counts with its neighbours, so that what is kept is kept in pieces.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, words};

/// The widest kernel that a word may name: every token looks at that many.
const MAX_KERNEL: usize = 255;

const KNOWN: &str = "none, mean:N, max:N with odd N from 1 to 255";

/// How the evidence of a token is spread over its neighbours, stride 1, as many values as before.
///
/// Kernels are odd; an even one reaches as far as the next odd one. As words: `none`, `mean:5`, `max:7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Not at all.
    None,
    /// The mean over the kernel, where beyond the ends there are zeros that count (SnapKV: 5).
    Mean(usize),
    /// The largest in the kernel, where beyond the ends there is nothing (KV-Compress: 7).
    Max(usize),
}

impl Pool {
    /// Pools `values [n]`; a value that is not a number makes its neighbours so too. Empty: empty.
    #[must_use]
    pub fn apply(&self, values: &[f32]) -> Vec<f32> {
        match *self {
            Self::None => values.to_vec(),
            Self::Mean(kernel) => {
                let mut sums = vec![0.0_f64; values.len()];
                for_neighbours(kernel, values, &mut sums, |sum, &x| *sum += f64::from(x));
                let width = (kernel / 2 * 2 + 1) as f64;
                sums.into_iter().map(|sum| (sum / width) as f32).collect()
            }
            Self::Max(kernel) => {
                let mut most = vec![f32::NEG_INFINITY; values.len()];
                for_neighbours(kernel, values, &mut most, |most, &x| {
                    if x > *most || x.is_nan() {
                        *most = x;
                    }
                });
                most
            }
        }
    }
}

/// Shows every place the values around it that the kernel reaches, from the first to the last: one distance after the other for
/// all places.
fn for_neighbours<T>(
    kernel: usize,
    values: &[f32],
    places: &mut [T],
    mut show: impl FnMut(&mut T, &f32),
) {
    let (reach, n) = (kernel / 2, values.len());
    for distance in (1..=reach.min(n)).rev() {
        let behind = places[distance..].iter_mut().zip(values);
        behind.for_each(|(place, x)| show(place, x));
    }
    places.iter_mut().zip(values).for_each(|(place, x)| show(place, x));
    for distance in 1..=reach.min(n) {
        let before = places.iter_mut().zip(&values[distance..]);
        before.for_each(|(place, x)| show(place, x));
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Mean(kernel) => write!(f, "mean:{kernel}"),
            Self::Max(kernel) => write!(f, "max:{kernel}"),
        }
    }
}

impl FromStr for Pool {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let unknown = || words::unknown("pooling", word, KNOWN);
        let (name, kernel) = match word.split_once(':') {
            None if word == "none" => return Ok(Self::None),
            None => return Err(unknown()),
            Some((name, kernel)) => (name, words::number::<usize>("pooling", word, kernel, KNOWN)?),
        };
        if kernel.is_multiple_of(2) || kernel > MAX_KERNEL {
            return Err(unknown());
        }
        match name {
            "mean" => Ok(Self::Mean(kernel)),
            "max" => Ok(Self::Max(kernel)),
            _ => Err(unknown()),
        }
    }
}
