//! Tokens shared out by weight, in whole units, between bounds.

use crate::{Error, Result};

/// Remainders of a unit that are told apart.
const REMAINDERS: f64 = 1e9;

/// Shares out `total` tokens by `weights`: `[n]` counts of tokens.
///
/// A share has whole units of `unit` tokens, or is at its bound: where `most` is not whole units, its last one is
/// not full but counts as one. It is never less than `least`, never more than `most`; between these it is in
/// proportion to its weight, and what a bound takes or leaves, the others leave or take. Units that are left by
/// rounding go to the largest remainders, the first among equals. So the units are exactly as many as `total`
/// and the sum of `most` allow, and with units of 1 the counts sum to the lesser of the two. A share of weight
/// 0 stays at `least` until all others are at `most`; such shares get the rest in equal parts.
///
/// As with every rule of largest remainders, a share can lose a unit while `total` grows; it is won back as
/// `total` grows further.
///
/// No shares: none.
///
/// # Errors
/// [`Error::Length`] for lengths that differ, [`Error::ShareWeight`], [`Error::Zero`] for a unit of 0,
/// [`Error::MinAboveMax`] for a share whose bounds cross, [`Error::BudgetTooSmall`] where `total` is below the
/// sum of `least` in whole units.
pub fn apportion(
    total: usize,
    weights: &[f64],
    least: &[usize],
    most: &[usize],
    unit: usize,
) -> Result<Vec<usize>> {
    for (what, bounds) in [("least tokens of shares", least), ("most tokens of shares", most)] {
        if bounds.len() != weights.len() {
            let (actual, expected) = (bounds.len(), weights.len());
            return Err(Error::Length { what, actual, expected });
        }
    }
    if unit == 0 {
        return Err(Error::Zero { what: "tokens of a unit" });
    }
    let bad = |weight: &f64| !(weight.is_finite() && *weight >= 0.0);
    if let Some(share) = weights.iter().position(bad) {
        return Err(Error::ShareWeight { share, weight: weights[share] });
    }
    if let Some((&min, &max)) = least.iter().zip(most).find(|(least, most)| least > most) {
        return Err(Error::MinAboveMax { min, max });
    }
    let units = |tokens: &[usize]| tokens.iter().map(|x| x.div_ceil(unit)).collect::<Vec<_>>();
    let (least, most_units) = (units(least), units(most));
    let (needed, wanted) = (sum(&least), (total / unit).min(sum(&most_units)));
    if wanted < needed {
        let least = needed.saturating_mul(unit);
        return Err(Error::BudgetTooSmall { budget: total, least });
    }
    let shares: Vec<Share> = weights
        .iter()
        .zip(least.iter().zip(&most_units))
        .map(|(&weight, (&least, &most))| Share { weight, least, most })
        .collect();
    let tokens = |(units, &most): (usize, &usize)| units.saturating_mul(unit).min(most);
    Ok(share_out(wanted, shares).into_iter().zip(most).map(tokens).collect())
}

/// Counts `[n]` where heads of weight 0 keep all of `num_tokens`, and the others share what is left of `total` by
/// weight, as [`apportion`] does, each at least `least`, in whole units of `unit`.
///
/// Of `H` heads of which `F` keep all, a ratio `r` leaves `(r·H − F)·L / (H − F)` tokens to one of weight 1 where
/// the weights' mean is 1 (HeteroCache, arXiv 2601.13684; its weights are inverse stabilities). There, a head
/// whose share is beyond `L` keeps `L` and the rest is not used; here the others get it.
///
/// # Errors
/// As [`apportion`]; [`Error::BudgetTooSmall`] also where the whole heads alone are beyond `total`: no ratio
/// below `F / H` can be.
pub fn beside_whole(
    total: usize,
    weights: &[f64],
    least: usize,
    num_tokens: usize,
    unit: usize,
) -> Result<Vec<usize>> {
    let least: Vec<usize> = weights
        .iter()
        .map(|&weight| if weight == 0.0 { num_tokens } else { least.min(num_tokens) })
        .collect();
    apportion(total, weights, &least, &vec![num_tokens; weights.len()], unit)
}

fn sum(units: &[usize]) -> usize {
    units.iter().fold(0, |sum, &x| sum.saturating_add(x))
}

/// What bounds one share, in units.
#[derive(Clone, Copy)]
struct Share {
    weight: f64,
    least: usize,
    most: usize,
}

impl Share {
    /// What it takes where a weight of 1 takes `rate`.
    fn at(&self, rate: f64) -> f64 {
        (self.weight * rate).clamp(self.least as f64, self.most as f64)
    }
}

/// Units of each share, `wanted` together, which lies between the sums of the bounds.
fn share_out(wanted: usize, mut shares: Vec<Share>) -> Vec<usize> {
    let largest = shares.iter().fold(0.0, |largest, share| share.weight.max(largest));
    if largest > 0.0 {
        shares.iter_mut().for_each(|share| share.weight /= largest);
    }
    // Where those of some weight can take all of it, those of weight 0 stay at least; else they share the rest.
    let takes = |share: &Share| if share.weight > 0.0 { share.most } else { share.least };
    if sum(&shares.iter().map(takes).collect::<Vec<_>>()) < wanted {
        for share in &mut shares {
            if share.weight > 0.0 {
                share.least = share.most;
            }
            share.weight = 1.0;
        }
    }
    let taken = |rate: f64| shares.iter().map(|share| share.at(rate)).sum::<f64>();
    // Positive floats are ordered like their bits, so that halving these finds the rate to the last one.
    let (mut low, mut high) = (0, f64::MAX.to_bits());
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if taken(f64::from_bits(middle)) <= wanted as f64 {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let low = f64::from_bits(low);
    let exact: Vec<f64> = shares.iter().map(|share| share.at(low)).collect();
    let mut units: Vec<usize> = exact.iter().map(|&x| x as usize).collect();
    let mut left = wanted.saturating_sub(sum(&units));
    let mut order: Vec<usize> = (0..units.len()).collect();
    // Remainders that are equal but for rounding are equal.
    let rest = |share: usize| ((exact[share] - exact[share].floor()) * REMAINDERS).round();
    order.sort_by(|&a, &b| rest(b).total_cmp(&rest(a)).then(a.cmp(&b)));
    while left > 0 {
        let before = left;
        for &share in &order {
            let has_room = units[share] < shares[share].most && shares[share].weight > 0.0;
            if left > 0 && has_room {
                units[share] += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    units
}
