//! Pooling along tokens: a token counts with its neighbours, so that what is kept is kept in
//! pieces.

use std::fmt;
use std::str::FromStr;

use super::BLOCK_TOKENS;
use crate::{Error, Result, words};

/// The widest kernel that a word may name: every token looks at that many.
const MAX_KERNEL: usize = 255;

const KNOWN: &str = "none, mean:N, max:N with odd N from 1 to 255";

/// How the evidence of a token is spread over its neighbours, stride 1, as many values as before.
///
/// Kernels are odd; an even one reaches as far as the next odd one. As words: `none`, `mean:5`,
/// `max:7`.
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
        let mut pooled = vec![0.0; values.len()];
        self.apply_from(0, values, &mut pooled);
        pooled
    }

    /// Pools `values [n]` around the places from `first` on, as many as `pooled` has, which lie
    /// within `values`.
    pub(super) fn apply_from(&self, first: usize, values: &[f32], pooled: &mut [f32]) {
        match *self {
            Self::None => pooled.copy_from_slice(&values[first..][..pooled.len()]),
            Self::Mean(kernel) => {
                let share = 1.0 / (kernel / 2 * 2 + 1) as f32;
                for (block, pooled) in pooled.chunks_mut(BLOCK_TOKENS).enumerate() {
                    gather(kernel / 2, first + block * BLOCK_TOKENS, values, pooled, |sum, x| {
                        sum + x
                    });
                    pooled.iter_mut().for_each(|sum| *sum *= share);
                }
            }
            Self::Max(kernel) => {
                let larger = |most: f32, x: f32| if x > most || x.is_nan() { x } else { most };
                for (block, pooled) in pooled.chunks_mut(BLOCK_TOKENS).enumerate() {
                    gather(kernel / 2, first + block * BLOCK_TOKENS, values, pooled, larger);
                }
            }
        }
    }
}

/// Gathers for every place from `first` on what `join` makes of the values at most `reach` away:
/// for all places together, one distance after the other, except near the ends.
fn gather(
    reach: usize,
    first: usize,
    values: &[f32],
    places: &mut [f32],
    join: impl Fn(f32, f32) -> f32,
) {
    let (n, len) = (values.len(), places.len());
    let has_all = reach.saturating_sub(first).min(len)
        ..n.saturating_sub(reach).saturating_sub(first).min(len);
    for place in (0..has_all.start).chain(has_all.end.max(has_all.start)..len) {
        let at = first + place;
        let near = &values[at.saturating_sub(reach)..n.min(at.saturating_add(reach + 1))];
        places[place] = near[1..].iter().fold(near[0], |joined, &x| join(joined, x));
    }
    if has_all.is_empty() {
        return;
    }
    let at = first + has_all.start;
    let places = &mut places[has_all];
    let len = places.len();
    places.copy_from_slice(&values[at..][..len]);
    for distance in 1..=reach {
        let (before, behind) = (&values[at - distance..][..len], &values[at + distance..][..len]);
        for (place, (&before, &behind)) in places.iter_mut().zip(before.iter().zip(behind)) {
            *place = join(join(*place, before), behind);
        }
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
