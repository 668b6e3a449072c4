//! Bits between heads: one format per head, so that all of them together lose least under one budget.
//!
//! Every head has candidates, each with the bytes that it takes and the distortion that it leaves, and
//! distortions of heads add up. The lower convex hull of a head's candidates is a chain of steps of falling
//! gain per byte; taking the steps of all heads in the order of their gain per byte is optimal at every
//! budget at which a step ends (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of
//! quantizers", IEEE Trans. ASSP 36, 1988; reverse water-filling where curves are continuous, Cover and
//! Thomas, "Elements of Information Theory", §10.3).

use crate::{Error, Result};

/// One way to code a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Bytes that it takes, in whatever measure the budget is given: of a row, or of all rows with tables.
    pub bytes: u64,
    /// What it costs in quality: any finite number, of one unit in all heads; less is better.
    pub distortion: f64,
}

/// A step on a head's hull, to the next dearer candidate.
#[derive(Clone, Copy, Debug)]
struct Step {
    head: usize,
    /// The candidate that it leads to.
    to: usize,
    bytes: u64,
    /// Distortion that it takes away, above 0.
    gain: f64,
}

/// Chooses one of `heads[h]` for every head h, so that all choices together take at most `budget` bytes and
/// leave little distortion; `[num_heads]` indices into the candidates of each.
///
/// Steps along the convex hulls are taken by falling gain per byte; of equals the one of the lower head
/// first. A step that no longer fits ends the way of its head, and the others go on. What is left of the
/// optimum is less than the gain of the first step that did not fit. Where the same place in every list is
/// better than that (on curves that are far from convex), it is what is returned. More budget never leaves
/// more distortion. Of candidates with equal bytes and distortion the first one is taken.
///
/// No heads: an empty choice, whatever the budget.
///
/// ```
/// use heterokv_quant::mix::{Candidate, choose};
///
/// // Two heads, each of 2, 4 or 8 bytes a row; the second one is more sensitive.
/// let curve = |distortions: [f64; 3]| {
///     [2, 4, 8].iter().zip(distortions).map(|(&bytes, distortion)| Candidate { bytes, distortion })
/// };
/// let heads = [curve([0.4, 0.2, 0.1]).collect(), curve([9.0, 3.0, 0.5]).collect()];
///
/// // Of twelve bytes it gets eight, and the first head what is left.
/// assert_eq!(choose(&heads, 12)?, [1, 2]);
/// // Ten bytes pay for its second step, but not for the first step of the other.
/// assert_eq!(choose(&heads, 10)?, [0, 2]);
/// // Fewer than twice two are too few.
/// assert!(choose(&heads, 3).is_err());
/// # Ok::<(), heterokv_quant::Error>(())
/// ```
///
/// # Errors
/// [`Error::NoCandidates`], [`Error::Distortion`] for one that is not finite, and [`Error::Budget`] where even
/// the cheapest choice exceeds it.
pub fn choose(heads: &[Vec<Candidate>], budget: u64) -> Result<Vec<usize>> {
    let mut chosen = Vec::with_capacity(heads.len());
    let mut steps = Vec::new();
    for (head, candidates) in heads.iter().enumerate() {
        let bad = candidates.iter().position(|candidate| !candidate.distortion.is_finite());
        if let Some(candidate) = bad {
            let distortion = candidates[candidate].distortion;
            return Err(Error::Distortion { head, candidate, distortion });
        }
        let hull = convex_hull(candidates);
        let Some(&cheapest) = hull.first() else { return Err(Error::NoCandidates { head }) };
        chosen.push(cheapest);
        for pair in hull.windows(2) {
            let [from, to] = [pair[0], pair[1]].map(|index| candidates[index]);
            let (bytes, gain) = (to.bytes - from.bytes, from.distortion - to.distortion);
            steps.push(Step { head, to: pair[1], bytes, gain });
        }
    }
    let least = total_bytes(heads, &chosen);
    let Some(mut left) = u128::from(budget).checked_sub(least) else {
        return Err(Error::Budget { budget, least });
    };
    // Stable: steps of one head stay in order, since none gains more per byte than the one before it.
    steps.sort_by(|a, b| b.gain_per_byte().total_cmp(&a.gain_per_byte()).then(a.head.cmp(&b.head)));
    let mut is_at_its_end = vec![false; heads.len()];
    for step in steps {
        match left.checked_sub(u128::from(step.bytes)) {
            Some(rest) if !is_at_its_end[step.head] => {
                left = rest;
                chosen[step.head] = step.to;
            }
            _ => is_at_its_end[step.head] = true,
        }
    }
    let uniform = best_uniform(heads, budget);
    Ok(match uniform {
        Some(uniform) if total_distortion(heads, &uniform) < total_distortion(heads, &chosen) => {
            uniform
        }
        _ => chosen,
    })
}

/// Distortion of one choice per head, summed.
fn total_distortion(heads: &[Vec<Candidate>], chosen: &[usize]) -> f64 {
    heads.iter().zip(chosen).map(|(candidates, &index)| candidates[index].distortion).sum()
}

fn total_bytes(heads: &[Vec<Candidate>], chosen: &[usize]) -> u128 {
    heads.iter().zip(chosen).map(|(candidates, &index)| u128::from(candidates[index].bytes)).sum()
}

impl Step {
    fn gain_per_byte(&self) -> f64 {
        self.gain / self.bytes as f64
    }
}

/// The candidates on the lower convex hull, by rising bytes and falling distortion.
fn convex_hull(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| {
        let (x, y) = (&candidates[a], &candidates[b]);
        x.bytes.cmp(&y.bytes).then(x.distortion.total_cmp(&y.distortion)).then(a.cmp(&b))
    });
    let mut hull: Vec<usize> = Vec::new();
    for index in order {
        let next = candidates[index];
        // More bytes for no less distortion are never worth it.
        if hull.last().is_some_and(|&last| next.distortion >= candidates[last].distortion) {
            continue;
        }
        while let [.., before, last] = hull[..] {
            let slope = |from: Candidate, to: Candidate| {
                (from.distortion - to.distortion) / (to.bytes - from.bytes) as f64
            };
            let (before, last) = (candidates[before], candidates[last]);
            if slope(before, last) >= slope(last, next) {
                break;
            }
            hull.pop();
        }
        hull.push(index);
    }
    hull
}

/// The same place in every list that fits the budget with the least distortion, the first of equals.
fn best_uniform(heads: &[Vec<Candidate>], budget: u64) -> Option<Vec<usize>> {
    let places = heads.iter().map(Vec::len).min().unwrap_or(0);
    let uniform = (0..places).map(|place| vec![place; heads.len()]);
    uniform
        .filter(|chosen| total_bytes(heads, chosen) <= u128::from(budget))
        .min_by(|a, b| total_distortion(heads, a).total_cmp(&total_distortion(heads, b)))
}

#[cfg(test)]
mod tests;
