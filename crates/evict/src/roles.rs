//! What each KV head of a layer is to its cache, after HeteroCache (arXiv 2601.13684): by how far the positions that
//! a head attends to stay the same while tokens are generated, and by how far heads attend to the same ones.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, words};

const KNOWN: &str = "anchor, volatile, pivot and satellite:N";

/// What keeps the weight of a head finite whose positions never stay the same.
const LEAST_STABILITY: f64 = 1e-6;

/// What a KV head is to its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadRole {
    /// Attends like no other head, to positions that stay the same: chosen once, behind the prompt.
    Anchor,
    /// Attends like no other head, to positions that change: keeps all tokens.
    Volatile,
    /// Attends as its satellites do: keeps all tokens, and says when what they hold has aged.
    Pivot,
    /// Attends as its pivot does: holds a part of the tokens, chosen again when its pivot says so.
    Satellite {
        /// KV head of the pivot in the same layer.
        pivot: usize,
    },
}

impl HeadRole {
    /// Whether a head of this role holds a part of the tokens: an anchor or a satellite.
    #[must_use]
    pub fn is_compressed(self) -> bool {
        matches!(self, Self::Anchor | Self::Satellite { .. })
    }
}

impl fmt::Display for HeadRole {
    /// `anchor`, `volatile`, `pivot` or `satellite:N`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anchor => f.write_str("anchor"),
            Self::Volatile => f.write_str("volatile"),
            Self::Pivot => f.write_str("pivot"),
            Self::Satellite { pivot } => write!(f, "satellite:{pivot}"),
        }
    }
}

impl FromStr for HeadRole {
    type Err = Error;

    /// Reads what [`HeadRole`] is displayed as.
    ///
    /// # Errors
    /// [`Error::UnknownWord`].
    fn from_str(word: &str) -> Result<Self> {
        let satellite = || {
            let pivot = word.strip_prefix("satellite:")?.parse().ok()?;
            Some(Self::Satellite { pivot }).filter(|role| role.to_string() == word)
        };
        match word {
            "anchor" => Ok(Self::Anchor),
            "volatile" => Ok(Self::Volatile),
            "pivot" => Ok(Self::Pivot),
            _ => satellite().ok_or_else(|| words::unknown("role of a head", word, KNOWN)),
        }
    }
}

/// The roles of the heads of one layer: `stability [h]` is how far the positions that a head attends to stay those
/// of the end of the prompt, `similarity [h, h]` how far two heads attend to the same, both overlaps in [0, 1].
///
/// Two heads are neighbours where their similarity is at least `tau_sim`. Among the heads without a role, the one
/// with most neighbours that have none (of equals the first) becomes a pivot and these its satellites, until no
/// head without a role has such a neighbour. The others are anchors where their stability is at least
/// `tau_stable`, else volatile. No heads: no roles.
///
/// # Errors
/// [`Error::Range`] for a threshold outside (0, 1], [`Error::Length`] where `similarity` is not square,
/// [`Error::Overlap`] for what is no overlap, not a number among it, and [`Error::Asymmetric`].
pub fn classify(
    stability: &[f64],
    similarity: &[f64],
    tau_stable: f64,
    tau_sim: f64,
) -> Result<Vec<HeadRole>> {
    check_threshold("tau_stable", tau_stable)?;
    check_threshold("tau_sim", tau_sim)?;
    let num_heads = stability.len();
    check_len("similarity", similarity.len(), num_heads * num_heads)?;
    check_overlaps("stability", stability)?;
    for first in 0..num_heads {
        let row = &similarity[first * num_heads..][..num_heads];
        check_overlaps("similarity", row)?;
        if let Some(second) = (0..first).find(|&i| row[i] != similarity[i * num_heads + first]) {
            return Err(Error::Asymmetric { first: second, second: first });
        }
    }
    let mut roles = vec![None; num_heads];
    loop {
        let free = |head: &usize| roles[*head].is_none();
        let neighbours = |head: usize| -> Vec<usize> {
            let near =
                |&other: &usize| other != head && similarity[head * num_heads + other] >= tau_sim;
            (0..num_heads).filter(free).filter(near).collect()
        };
        let stars = (0..num_heads).filter(free).map(|head| (head, neighbours(head)));
        // Of equals the last one is the greatest.
        let largest = stars.rev().max_by_key(|(_, satellites)| satellites.len());
        let Some((pivot, satellites)) = largest.filter(|(_, satellites)| !satellites.is_empty())
        else {
            break;
        };
        roles[pivot] = Some(HeadRole::Pivot);
        for head in satellites {
            roles[head] = Some(HeadRole::Satellite { pivot });
        }
    }
    let alone = |&stability: &f64| {
        if stability >= tau_stable { HeadRole::Anchor } else { HeadRole::Volatile }
    };
    Ok(roles.iter().zip(stability).map(|(role, s)| role.unwrap_or_else(|| alone(s))).collect())
}

/// Refuses roles of one layer that no [`classify`] gives: a satellite whose pivot is none of the layer, and a pivot
/// without satellites.
///
/// # Errors
/// [`Error::NoPivot`] and [`Error::NoSatellite`].
pub fn check_roles(roles: &[HeadRole]) -> Result<()> {
    for (head, role) in roles.iter().enumerate() {
        match *role {
            HeadRole::Satellite { pivot } if roles.get(pivot) != Some(&HeadRole::Pivot) => {
                return Err(Error::NoPivot { head, pivot });
            }
            HeadRole::Pivot if !roles.contains(&HeadRole::Satellite { pivot: head }) => {
                return Err(Error::NoSatellite { head });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The shares by which heads divide what is left for anchors and satellites, `[h]`, of all layers together:
/// for these 1 / (stability + 10⁻⁶), scaled to a mean of 1, for all others 0. The less stable
/// a head, the more it holds. No anchors and satellites: all 0.
///
/// # Errors
/// [`Error::Length`] where there is not a role for every stability, and [`Error::Overlap`].
pub fn stability_weights(stability: &[f64], roles: &[HeadRole]) -> Result<Vec<f64>> {
    check_len("roles", roles.len(), stability.len())?;
    check_overlaps("stability", stability)?;
    let inverse = |(stability, role): (&f64, &HeadRole)| {
        if role.is_compressed() { 1.0 / (stability + LEAST_STABILITY) } else { 0.0 }
    };
    let mut weights: Vec<f64> = stability.iter().zip(roles).map(inverse).collect();
    let num_compressed = roles.iter().filter(|role| role.is_compressed()).count();
    let mean = weights.iter().sum::<f64>() / num_compressed.max(1) as f64;
    if num_compressed > 0 {
        weights.iter_mut().for_each(|weight| *weight /= mean);
    }
    Ok(weights)
}

/// Refuses a threshold of overlaps outside (0, 1]; `what` is its name.
///
/// # Errors
/// [`Error::Range`].
pub fn check_threshold(what: &'static str, value: f64) -> Result<()> {
    let fits = value > 0.0 && value <= 1.0;
    if fits { Ok(()) } else { Err(Error::Range { what, range: "(0, 1]", value }) }
}

fn check_len(what: &'static str, actual: usize, expected: usize) -> Result<()> {
    let fits = actual == expected;
    if fits { Ok(()) } else { Err(Error::Length { what, actual, expected }) }
}

fn check_overlaps(what: &'static str, overlaps: &[f64]) -> Result<()> {
    match overlaps.iter().position(|value| !(0.0..=1.0).contains(value)) {
        None => Ok(()),
        Some(head) => Err(Error::Overlap { what, head, value: overlaps[head] }),
    }
}

#[cfg(test)]
mod tests;
