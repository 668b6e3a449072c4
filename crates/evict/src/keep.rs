//! Which tokens stay: the best by score, or those with a recent vote; sinks and recent ones always.

use std::cmp::Ordering;

use crate::{Error, Result, Rule, SelectScratch, Selector, TokenSet};

/// The tokens that stay, of one KV head: `num_keep` indices into `scores [n]`, ascending; all of them where
/// there are no more.
///
/// The first `sinks` and the last `recent` tokens are kept whatever their scores; of the others those of
/// highest score, the lower index among equals. Infinite scores are scores like others. No tokens: none.
///
/// # Errors
/// [`Error::NotANumber`], wherever in `scores` it is; [`Error::BudgetTooSmall`] where `num_keep` is less
/// than `sinks + recent`, as far as there are so many tokens.
pub fn keep_best(scores: &[f32], num_keep: usize, sinks: usize, recent: usize) -> Result<Vec<u32>> {
    check(scores)?;
    let (first, end) = middle(scores.len(), sinks, recent);
    let always = scores.len() - (end - first);
    let chosen = match num_keep.min(scores.len()).checked_sub(always) {
        Some(chosen) => chosen,
        None => return Err(Error::BudgetTooSmall { budget: num_keep, least: always }),
    };
    // The last that is chosen, in falling order; whoever is not behind it is chosen too.
    let mut order: Vec<u32> = (first as u32..end as u32).collect();
    let compare = |a: &u32, b: &u32| falling(scores, *a, *b);
    let last = match chosen {
        0 => None,
        _ => Some(*order.select_nth_unstable_by(chosen - 1, compare).1),
    };
    let is_kept = |token: &u32| {
        let at = *token as usize;
        let is_chosen = || last.is_some_and(|last| falling(scores, *token, last).is_le());
        at < first || at >= end || is_chosen()
    };
    Ok((0..scores.len() as u32).filter(is_kept).collect())
}

/// The `count` tokens of highest score, ascending, all where there are no more: [`keep_best`] without sinks
/// and recent ones.
///
/// # Errors
/// [`Error::NotANumber`].
pub fn top_positions(scores: &[f32], count: usize) -> Result<Vec<u32>> {
    let is_weight = |score: &f32| (*score >= 0.0) & (*score <= f32::MAX);
    if count == 0 || !scores.iter().fold(true, |all, score| all & is_weight(score)) {
        return keep_best(scores, count, 0, 0);
    }
    // Of numbers that are ordered like their bits, without comparing them.
    let mut taken = TokenSet::default();
    let heaviest = Selector::new(Rule::TopK(count), 0, usize::MAX)?;
    heaviest.select(scores, 0.0, &mut SelectScratch::default(), &mut taken)?;
    Ok(taken.positions())
}

/// The tokens that stay where a vote decides (CORM, arXiv 2404.15949, §3): the first `sinks`, the last
/// `recent`, and whoever got a vote in the last `window` steps, ascending indices into `evidence [n]`. Before
/// there were so many steps, all of them.
///
/// `evidence` has the step of each token's latest vote, 0 for none ([`Scorer::Votes`](crate::Scorer)), and
/// `step` counts the tokens of the sequence, as [`Scoring::observe`](crate::Scoring::observe) was told last.
///
/// # Errors
/// [`Error::NotANumber`].
pub fn keep_voted(
    evidence: &[f32],
    step: usize,
    window: usize,
    sinks: usize,
    recent: usize,
) -> Result<Vec<u32>> {
    check(evidence)?;
    let (first, end) = middle(evidence.len(), sinks, recent);
    let is_kept = |token: &u32| {
        let at = *token as usize;
        at < first || at >= end || step as f64 - f64::from(evidence[at]) < window as f64
    };
    Ok((0..evidence.len() as u32).filter(is_kept).collect())
}

/// Whether every score is a number.
pub(crate) fn check(scores: &[f32]) -> Result<()> {
    match scores.iter().position(|score| score.is_nan()) {
        None => Ok(()),
        Some(token) => Err(Error::NotANumber { token }),
    }
}

/// The tokens between the sinks and the recent ones: `first..end`.
pub(crate) fn middle(num_tokens: usize, sinks: usize, recent: usize) -> (usize, usize) {
    let end = num_tokens.saturating_sub(recent);
    (sinks.min(end), end)
}

/// Higher scores first, then lower indices.
pub(crate) fn falling(scores: &[f32], a: u32, b: u32) -> Ordering {
    compare(scores[b as usize], scores[a as usize]).then(a.cmp(&b))
}

/// The order of scores that are numbers; −0 equals 0.
pub(crate) fn compare(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests;
