//! Budgets that heads compete for by their scores: within a layer, or over all layers in pages.

use super::share;
use crate::keep::{check, compare, falling, middle};
use crate::{Error, Result, keep_best};

/// Counts `[num_heads]` of tokens for the heads of one layer, `total` together, by one sort over all of their
/// scores (Ada-KV, arXiv 2407.11550, §4).
///
/// - `scores`: of each head, `[n]`, f32; heads may hold different numbers of tokens.
/// - `floor`: each head keeps at least this part of an equal share of `total`, in [0, 1]; kvpress: 0.2.
/// - `sinks`, `recent`: kept in every head, whatever their scores, and counted within the floor.
///
/// Where `total` is no less than all tokens, these. Equal scores go to the head of lower index, there to the lower
/// token. No heads: none.
///
/// # Errors
/// [`Error::Range`] for a floor outside of [0, 1], [`Error::NotANumber`], [`Error::BudgetTooSmall`] where `total`
/// is less than what all heads keep in any case.
pub fn adaptive(
    scores: &[&[f32]],
    total: usize,
    floor: f64,
    sinks: usize,
    recent: usize,
) -> Result<Vec<usize>> {
    let floor = share("floor", floor)?;
    let num_tokens: usize = scores.iter().map(|scores| scores.len()).sum();
    let budget = total.min(num_tokens);
    let equal = budget as f64 / scores.len().max(1) as f64;
    let mut counts = Vec::with_capacity(scores.len());
    // (head, token) of all that no head is sure of.
    let mut others: Vec<(u32, u32)> = Vec::new();
    for (head, scores) in scores.iter().enumerate() {
        let always = scores.len() - middle_len(scores.len(), sinks, recent);
        let least = always.max(((equal * floor) as usize).min(scores.len()));
        let mut kept = keep_best(scores, least, sinks, recent)?.into_iter().peekable();
        let is_other = |token: &u32| kept.next_if_eq(token).is_none();
        others.extend((0..scores.len() as u32).filter(is_other).map(|token| (head as u32, token)));
        counts.push(least);
    }
    let least: usize = counts.iter().sum();
    let Some(left) = budget.checked_sub(least) else {
        return Err(Error::BudgetTooSmall { budget: total, least });
    };
    if left > 0 {
        let score = |&(head, token): &(u32, u32)| scores[head as usize][token as usize];
        others.select_nth_unstable_by(left - 1, |a, b| {
            compare(score(b), score(a)).then_with(|| a.cmp(b))
        });
        others[..left].iter().for_each(|&(head, _)| counts[head as usize] += 1);
    }
    Ok(counts)
}

/// Counts of tokens for the heads of all layers, by one sort of their pages (KV-Compress, arXiv 2410.00161, §3).
///
/// Of each head, the tokens are sorted by score and cut into pages of `page` tokens, the first, of the lowest
/// scores, with as many as hang over its whole pages; a page counts by its best token. The lowest pages of all
/// heads leave until no more than `total / page` are left. So every head that gives something up ends at whole
/// pages. Pages with a sink or a recent token never leave. Equal pages leave from the head of lower index first.
/// No heads: none.
///
/// `scores` are those of each head of each layer, `[n]`, f32, and may be of different lengths.
///
/// # Errors
/// [`Error::Zero`] for a page of no tokens, [`Error::NotANumber`], [`Error::BudgetTooSmall`] where `total` is less
/// than the pages that cannot leave.
pub fn global(
    scores: &[&[f32]],
    total: usize,
    page: usize,
    sinks: usize,
    recent: usize,
) -> Result<Vec<usize>> {
    if page == 0 {
        return Err(Error::Zero { what: "tokens of a page" });
    }
    let mut counts: Vec<usize> = scores.iter().map(|scores| scores.len()).collect();
    let held: usize = counts.iter().map(|n| n.div_ceil(page)).sum();
    // (score, head, tokens) of every page that may leave.
    let mut pages: Vec<(f32, usize, usize)> = Vec::new();
    for (head, scores) in scores.iter().enumerate() {
        check(scores)?;
        let (first, end) = middle(scores.len(), sinks, recent);
        let mut order: Vec<u32> = (first as u32..end as u32).collect();
        order.sort_unstable_by(|&a, &b| falling(scores, b, a));
        let hanging = match scores.len() % page {
            0 => page,
            hanging => hanging,
        };
        let mut rest = order.as_slice();
        let mut size = hanging;
        while let Some((leaving, behind)) = rest.split_at_checked(size) {
            let best = leaving.last().map_or(f32::NEG_INFINITY, |&best| scores[best as usize]);
            pages.push((best, head, size));
            (rest, size) = (behind, page);
        }
    }
    let excess = held.saturating_sub(total / page);
    if excess > pages.len() {
        let least = (held - pages.len()).saturating_mul(page);
        return Err(Error::BudgetTooSmall { budget: total, least });
    }
    // A stable sort: among equals, pages of a head leave in their order.
    pages.sort_by(|a, b| compare(a.0, b.0));
    pages[..excess].iter().for_each(|&(_, head, size)| counts[head] -= size);
    Ok(counts)
}

fn middle_len(num_tokens: usize, sinks: usize, recent: usize) -> usize {
    let (first, end) = middle(num_tokens, sinks, recent);
    end - first
}
