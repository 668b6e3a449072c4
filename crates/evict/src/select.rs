//! Which coded tokens one query head reads: top-p, top-k, a threshold or all, with a floor and a cap.
//!
//! HCAttention (arXiv 2507.19823, §3.3) sorts the weights in falling order and keeps the smallest set
//! whose mass reaches τ. Here nothing is sorted: the bits of a non-negative float are ordered like the
//! float, so the upper bits sort tokens into bins, a walk over the bins finds the one in which the set
//! is completed, and only that bin's members are looked at one by one. The result is the exact set,
//! down to the boundary token; among equal weights the lower position is kept.

use std::fmt;

use crate::{Error, Result};

/// The bits of an f32 that choose its bin: exponent and three bits of mantissa.
const BIN_SHIFT: u32 = 20;

/// Bins of the non-negative floats.
const NUM_BINS: usize = 1 << (31 - BIN_SHIFT);

/// Which tokens a query head takes, before floor and cap.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// All of them.
    All,
    /// The smallest set whose mass, with the resident tokens', is at least this, in (0, 1].
    TopP(f32),
    /// The heaviest, this many.
    TopK(usize),
    /// Every token whose weight is at least this, in (0, 1].
    Threshold(f32),
}

/// Whose selected tokens a query head attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Union {
    /// Those of every query head of its KV head.
    Group,
    /// Its own.
    Head,
}

impl fmt::Display for Union {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group => "group",
            Self::Head => "head",
        })
    }
}

/// A rule with a floor and a cap on the tokens of one query head.
///
/// ```
/// use heterokv_evict::{Rule, SelectScratch, Selector};
///
/// // Coded tokens weigh 0.7 together, resident ones 0.3: to reach 0.8, half is missing.
/// let weights = [0.05, 0.4, 0.05, 0.2];
/// let selector = Selector::new(Rule::TopP(0.8), 0, usize::MAX)?;
/// let mut taken = [false; 4];
/// let count = selector.select(&weights, 0.3, &mut SelectScratch::default(), &mut taken)?;
/// assert_eq!((count, taken), (2, [false, true, false, true]));
/// # Ok::<(), heterokv_evict::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selector {
    rule: Rule,
    min: usize,
    max: usize,
}

/// When a query head has taken enough: what a rule, a floor and a cap come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Enough {
    /// The mass, that of the resident tokens included; infinite where all tokens are to be taken.
    pub mass: f32,
    /// Coded tokens at least, as far as there are any.
    pub at_least: usize,
    /// Coded tokens at most, whatever their mass.
    pub at_most: usize,
}

/// Working memory of [`Selector::select`], reused from call to call.
#[derive(Clone, Debug)]
pub struct SelectScratch {
    counts: Vec<u32>,
    masses: Vec<f64>,
    /// Tokens of some weight.
    candidates: Vec<u32>,
    boundary: Vec<u32>,
}

impl Default for SelectScratch {
    fn default() -> Self {
        Self {
            counts: vec![0; NUM_BINS],
            masses: vec![0.0; NUM_BINS],
            candidates: Vec::new(),
            boundary: Vec::new(),
        }
    }
}

impl Selector {
    /// A selector. `min` and `max` bound the coded tokens of a query head after the rule; `usize::MAX`
    /// is no cap.
    ///
    /// # Errors
    /// [`Error::TopP`] for a mass and [`Error::Range`] for a threshold outside (0, 1], [`Error::ZeroRows`] for
    /// a top-k or a cap of 0, [`Error::MinAboveMax`].
    pub fn new(rule: Rule, min: usize, max: usize) -> Result<Self> {
        match rule {
            Rule::TopP(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                return Err(Error::TopP { top_p });
            }
            Rule::Threshold(least) if !(least > 0.0 && least <= 1.0) => {
                let (what, range) = ("threshold", "(0, 1]");
                return Err(Error::Range { what, range, value: f64::from(least) });
            }
            Rule::TopK(0) => return Err(Error::ZeroRows { what: "top-k" }),
            _ if max == 0 => return Err(Error::ZeroRows { what: "max" }),
            _ if min > max => return Err(Error::MinAboveMax { min, max }),
            _ => {}
        }
        Ok(Self { rule, min, max })
    }

    /// When a query head has taken enough.
    ///
    /// # Errors
    /// [`Error::NoMass`] for a threshold, which depends on each weight.
    pub fn enough(&self) -> Result<Enough> {
        let Self { rule, min, max } = *self;
        let (mass, at_most) = match rule {
            Rule::All | Rule::TopP(1.0) => (f32::INFINITY, max),
            Rule::TopP(top_p) => (top_p, max),
            Rule::TopK(k) => (f32::INFINITY, k.clamp(min, max)),
            Rule::Threshold(_) => return Err(Error::NoMass),
        };
        Ok(Enough { mass, at_least: min, at_most })
    }

    /// [`Selector::enough`] over these weights: the tokens at or above a threshold are the heaviest.
    fn enough_of(&self, weights: &[f32]) -> Result<Enough> {
        let Rule::Threshold(least) = self.rule else { return self.enough() };
        let above = weights.iter().filter(|&&weight| weight >= least).count();
        Self { rule: Rule::TopK(above), ..*self }.enough()
    }

    /// Marks the tokens that one query head takes: sets `taken[t]` where token `t` is taken, leaves the
    /// rest, and returns how many it takes.
    ///
    /// `weights [n]` are softmax weights of the coded tokens under the normaliser of **all** tokens,
    /// and `resident_mass` is what the resident tokens, always taken, add to them. No weights: none.
    ///
    /// # Errors
    /// [`Error::Weight`] for a weight that is NaN, infinite or negative.
    ///
    /// # Panics
    /// When `taken` is shorter than `weights`.
    pub fn select(
        &self,
        weights: &[f32],
        resident_mass: f64,
        scratch: &mut SelectScratch,
        taken: &mut [bool],
    ) -> Result<usize> {
        let taken = &mut taken[..weights.len()];
        let Enough { mass, at_least, at_most } = self.enough_of(weights)?;
        let wanted_mass = f64::from(mass) - resident_mass;
        if wanted_mass == f64::INFINITY && at_most >= weights.len() {
            check(weights)?;
            taken.fill(true);
            return Ok(weights.len());
        }
        check(weights)?;
        let done = |count: usize, mass: f64| {
            count >= at_most || (count >= at_least && mass >= wanted_mass)
        };
        // What all tokens of less weight than this have together may be missing, so that they are hardly ever looked at.
        let left_out = 1.0 - f64::from(mass);
        let faint = (left_out / weights.len().max(1) as f64) as f32;
        let found = match mass.is_finite() && faint > 0.0 {
            true => scratch.walk(weights, faint, done),
            false => None,
        };
        let walk = match found {
            Some(walk) => walk,
            None => scratch.walk(weights, 0.0, done).unwrap_or_default(),
        };
        let Walk { mut count, mut mass, full } = walk;
        let boundary = &mut scratch.boundary;
        boundary.clear();
        for &token in &scratch.candidates {
            let bin = bin_of(weights[token as usize]);
            taken[token as usize] |= bin >= full;
            if bin + 1 == full {
                boundary.push(token);
            }
        }
        let weight = |token: &u32| weights[*token as usize];
        boundary.sort_unstable_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
        for token in boundary.iter() {
            if done(count, mass) {
                break;
            }
            taken[*token as usize] = true;
            count += 1;
            mass += f64::from(weight(token));
        }
        Ok(count)
    }
}

/// How far a walk over the bins has come, from the heaviest down.
#[derive(Clone, Copy, Default)]
struct Walk {
    count: usize,
    mass: f64,
    /// Bins from this one up are taken whole; the boundary lies inside the bin below it.
    full: usize,
}

impl SelectScratch {
    /// Sorts the tokens of at least some weight into bins and walks over these until enough is taken. None where it is not
    /// enough, and lighter ones were left out.
    fn walk(
        &mut self,
        weights: &[f32],
        least: f32,
        done: impl Fn(usize, f64) -> bool,
    ) -> Option<Walk> {
        let Self { counts, masses, candidates, .. } = self;
        counts.fill(0);
        masses.fill(0.0);
        candidates.resize(weights.len(), 0);
        let mut num_candidates = 0;
        // No branch foretells which are.
        for (token, &weight) in weights.iter().enumerate() {
            candidates[num_candidates] = token as u32;
            num_candidates += usize::from(weight >= least);
        }
        candidates.truncate(num_candidates);
        for &token in &*candidates {
            let weight = weights[token as usize];
            let bin = bin_of(weight);
            counts[bin] += 1;
            masses[bin] += f64::from(weight);
        }
        let mut walk = Walk { full: NUM_BINS, ..Walk::default() };
        while walk.full > 0 && !done(walk.count, walk.mass) {
            let (more, heavier) = (counts[walk.full - 1] as usize, masses[walk.full - 1]);
            if more > 0 && done(walk.count + more, walk.mass + heavier) {
                return Some(walk);
            }
            walk.count += more;
            walk.mass += heavier;
            walk.full -= 1;
        }
        (done(walk.count, walk.mass) || num_candidates == weights.len()).then_some(walk)
    }
}

/// Whether all weights are finite and at least 0.
pub(crate) fn check(weights: &[f32]) -> Result<()> {
    let is_sound = |weight: &f32| (*weight >= 0.0) & (*weight <= f32::MAX);
    // Without a way out of the loop, many are looked at together.
    if weights.iter().fold(true, |sound, weight| sound & is_sound(weight)) {
        return Ok(());
    }
    match weights.iter().position(|weight| !is_sound(weight)) {
        None => Ok(()),
        Some(token) => Err(Error::Weight { token, weight: weights[token] }),
    }
}

/// The bin of a weight of at least 0; −0 counts as 0.
fn bin_of(weight: f32) -> usize {
    ((weight.to_bits() & 0x7FFF_FFFF) >> BIN_SHIFT) as usize
}

#[cfg(test)]
mod tests;
