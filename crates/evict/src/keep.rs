//! Which tokens stay: the best by score, or those with a recent vote; sinks and recent ones always.

use std::cmp::Ordering;

use crate::{Error, Result};

/// Leading bits of a score's place in the order by which scores are counted.
const BIN_BITS: u32 = 11;

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
    let others = &scores[first..end];
    let mut kept = Vec::with_capacity(always + chosen + 1);
    kept.extend(0..first as u32);
    Bar::new(others, chosen).extend_with_in(others, first, chosen, &mut kept);
    kept.extend(end as u32..scores.len() as u32);
    Ok(kept)
}

/// The `count` tokens of highest score, ascending, all where there are no more: [`keep_best`] without sinks
/// and recent ones.
///
/// # Errors
/// [`Error::NotANumber`].
pub fn top_positions(scores: &[f32], count: usize) -> Result<Vec<u32>> {
    keep_best(scores, count, 0, 0)
}

/// What a score must reach to be among the highest of some.
#[derive(Clone, Copy, Debug)]
struct Bar {
    /// Place in the order of the last that is in.
    place: u32,
    /// Scores at this place that are in, the first ones.
    num_equal: usize,
}

impl Bar {
    /// The bar of the `count` highest of `scores`, which are numbers: all where there are no more.
    fn new(scores: &[f32], count: usize) -> Self {
        if count == 0 {
            return Self { place: u32::MAX, num_equal: 0 };
        }
        if count >= scores.len() {
            return Self { place: 0, num_equal: 0 };
        }
        // Neighbours are often alike: a count of its own for each of four in turn, so that none waits for the one before.
        let mut counts = vec![[0u32; 4]; 1 << BIN_BITS];
        let bin = |score: &f32| (place(*score) >> (32 - BIN_BITS)) as usize;
        let mut fours = scores.chunks_exact(4);
        for four in &mut fours {
            for (turn, score) in four.iter().enumerate() {
                counts[bin(score)][turn] += 1;
            }
        }
        fours.remainder().iter().for_each(|score| counts[bin(score)][0] += 1);
        let mut left = count;
        let mut last = counts.len() - 1;
        loop {
            let here = counts[last].iter().sum::<u32>() as usize;
            if here >= left {
                break;
            }
            left -= here;
            last -= 1;
        }
        let of_bin = scores.iter().filter(|score| bin(score) == last);
        let mut places: Vec<u32> = of_bin.map(|&score| place(score)).collect();
        let (higher, &mut place, _) = places.select_nth_unstable_by(left - 1, |a, b| b.cmp(a));
        let num_equal = left - higher.iter().filter(|&&higher| higher > place).count();
        Self { place, num_equal }
    }

    /// Appends the indices of the `count` of `scores` that are in, counted from `first`.
    fn extend_with_in(self, scores: &[f32], first: usize, count: usize, kept: &mut Vec<u32>) {
        let (mut next, end) = (kept.len(), kept.len() + count);
        // A place more for what is written and not counted.
        kept.resize(end + 1, 0);
        let mut num_equal = self.num_equal;
        // No branch foretells which are in.
        for (token, &score) in (first as u32..).zip(scores) {
            let place = place(score);
            let is_last = (place == self.place) & (num_equal > 0);
            num_equal -= usize::from(is_last);
            kept[next] = token;
            next += usize::from((place > self.place) | is_last);
        }
        kept.truncate(end);
    }
}

/// The place of a score in the order of scores that are numbers; −0 has that of 0.
fn place(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // Those below 0 are ordered against their bits.
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
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
    // Without a way out of the loop, many are looked at together.
    if !scores.iter().fold(false, |any, score| any | score.is_nan()) {
        return Ok(());
    }
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
