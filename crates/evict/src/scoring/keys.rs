//! Scores of keys by themselves: no query is needed.

use crate::{Error, Result};

/// Scores `[n]`, f32, of post-RoPE `keys [n, head_dim]` of one KV head: minus the L2 norm, since
/// keys of small norm draw attention (Devoto et al., arXiv 2406.11430, §3). Empty: empty.
///
/// # Errors
/// [`Error::Rows`] where `keys` are not whole rows. A key that is not a number has a score that is
/// none.
pub fn key_norm(keys: &[f32], head_dim: usize) -> Result<Vec<f32>> {
    Ok(rows("keys", keys, head_dim)?.map(|key| -norm(key) as f32).collect())
}

/// Scores `[n]`, f32, of post-RoPE `keys [n, head_dim]` of one KV head: minus the cosine between a
/// key and the mean of all keys' directions (KeyDiff, arXiv 2504.15364, §3), so that what repeats
/// goes first. Every score depends on all keys. A key of zeros scores 0. Empty: empty.
///
/// # Errors
/// As [`key_norm`].
pub fn key_diff(keys: &[f32], head_dim: usize) -> Result<Vec<f32>> {
    let mut mean = vec![0.0; head_dim];
    for key in rows("keys", keys, head_dim)? {
        let scale = 1.0 / norm(key).max(LEAST_NORM);
        mean.iter_mut().zip(key).for_each(|(sum, &x)| *sum += f64::from(x) * scale);
    }
    // The length of the mean does not matter to a cosine.
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt().max(LEAST_NORM);
    let score = |key: &[f32]| {
        let product: f64 = mean.iter().zip(key).map(|(x, &k)| x * f64::from(k)).sum();
        -(product / length / norm(key).max(LEAST_NORM)) as f32
    };
    Ok(rows("keys", keys, head_dim)?.map(score).collect())
}

/// What a norm is at least where it divides.
const LEAST_NORM: f64 = 1e-12;

/// The L2 norm.
pub(super) fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// The rows of `values [n, head_dim]`.
pub(super) fn rows<'a>(
    what: &'static str,
    values: &'a [f32],
    head_dim: usize,
) -> Result<impl Iterator<Item = &'a [f32]>> {
    if head_dim == 0 || !values.len().is_multiple_of(head_dim) {
        return Err(Error::Rows { what, len: values.len(), head_dim });
    }
    Ok(values.chunks_exact(head_dim))
}
