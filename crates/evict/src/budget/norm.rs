//! A budget that a prompt sets itself: tokens leave while the norm of the last query's attention stays.

use super::share;
use crate::keep::{check, falling, middle};
use crate::{Error, Result};

/// The attention of a prompt's last query in one layer, and what ranks its tokens.
#[derive(Clone, Copy, Debug)]
pub struct LastQueries<'a> {
    /// Softmax weights of each query head, `[n]`, f32.
    pub attention: &'a [&'a [f32]],
    /// Scores of each KV head, `[n]`, f32; query heads in their order share them in equal groups.
    pub scores: &'a [&'a [f32]],
}

/// How many tokens each KV head of a layer keeps, the same for all (DBudgetKV, arXiv 2502.16886, v3 ReFreeKV; as
/// its code does for the last token's attention).
///
/// Tokens leave in rising order of score, each head's own, as long as the L2 norm of the attention that is left,
/// mean over the query heads, is at most `theta` of itself below that of all tokens. The first `sinks` and the
/// last `recent` never leave. They count in the norm, except that with `counts_sinks` off the sinks do
/// not: one that has 0.9 of the attention makes everything else look free. No heads: 0.
///
/// # Errors
/// [`Error::Range`] for a `theta` outside of [0, 1], [`Error::NotANumber`] for a score, [`Error::Weight`],
/// [`Error::Length`] where query heads are not whole groups or heads differ in length.
pub fn norm_drop(
    layer: LastQueries<'_>,
    theta: f64,
    sinks: usize,
    recent: usize,
    counts_sinks: bool,
) -> Result<usize> {
    let theta = share("norm drop", theta)?;
    let LastQueries { attention, scores } = layer;
    let Some(num_tokens) = scores.first().map(|scores| scores.len()) else { return Ok(0) };
    let group_size = attention.len() / scores.len();
    if group_size == 0 || group_size * scores.len() != attention.len() {
        let (what, expected) = ("query heads of a layer", group_size.max(1) * scores.len());
        return Err(Error::Length { what, actual: attention.len(), expected });
    }
    if let Some(row) = attention.iter().chain(scores).find(|row| row.len() != num_tokens) {
        let what = "attention or scores of a head";
        return Err(Error::Length { what, actual: row.len(), expected: num_tokens });
    }
    let (first, end) = middle(num_tokens, sinks, recent);
    let counted = if counts_sinks { 0 } else { first };
    // The norm left when all, all but one, … of the middle have left, summed over the query heads.
    let mut norms = vec![0.0; end - first + 1];
    for (scores, heads) in scores.iter().zip(attention.chunks_exact(group_size)) {
        check(scores)?;
        let mut order: Vec<u32> = (first as u32..end as u32).collect();
        order.sort_unstable_by(|&a, &b| falling(scores, a, b));
        for weights in heads {
            crate::select::check(weights)?;
            let square = |token: usize| f64::from(weights[token]) * f64::from(weights[token]);
            let mut sum: f64 = (counted..first).chain(end..num_tokens).map(square).sum();
            norms[0] += sum.sqrt();
            for (norm, &token) in norms[1..].iter_mut().zip(&order) {
                sum += square(token as usize);
                *norm += sum.sqrt();
            }
        }
    }
    let all = norms.last().copied().unwrap_or_default();
    let is_enough = |norm: &f64| all - norm <= theta * all;
    let kept = norms.iter().position(is_enough).unwrap_or(end - first);
    Ok(num_tokens - (end - first) + kept)
}
