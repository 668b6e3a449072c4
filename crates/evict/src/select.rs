//! Which coded tokens one query head reads: top-p, top-k, a threshold or all, with a floor and a cap.
//!
//! HCAttention (arXiv 2507.19823, §3.3) sorts the weights in falling order and keeps the smallest set
//! whose mass reaches τ. Here nothing is sorted. A sample of the weights says between which two the
//! lightest token that is taken probably weighs; one pass over all of them takes those above, and marks those
//! between, which are few. The bits of a non-negative float are ordered like the float, so its upper bits put
//! these into bins, a walk over the bins finds the one in which the set is completed, and that bin's
//! members alone go on to the next bits. A sample that misled is found out by that one pass, and all tokens on
//! the other side are gone through. The result is the exact set, down to the boundary token; among
//! equal weights the lower position is kept.

use std::fmt;

use crate::simd::{Form, LANES, Sides, Split, WORD, split};
use crate::{Error, Result, TokenSet};

/// Bits by which tokens are put into bins at a time.
const BIN_BITS: u32 = 11;

const NUM_BINS: usize = 1 << BIN_BITS;

/// Bits of a non-negative f32 below its first [`BIN_BITS`].
const UPPER_SHIFT: u32 = u32::BITS - 1 - BIN_BITS;

/// Bits of a weight above every finite one.
const INFINITE: u32 = f32::INFINITY.to_bits();

/// Weights of a sample, about: a sixteenth of all, but no fewer and no more.
const SAMPLE: [usize; 2] = [512, 4096];

/// Neighbours that a sample takes together: they lie in the same line of memory, though they resemble each other.
const NEIGHBOURS: usize = 4;

/// So many weights are rather sorted than put into bins.
const FEW: usize = 32;

/// Standard deviations of a sample's sums that its bounds leave on either side: the wider, the more tokens are between, the
/// narrower, the more often a second pass is needed.
const DEVIATIONS: f64 = 3.0;

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
/// use heterokv_evict::{Rule, SelectScratch, Selector, TokenSet};
///
/// // Coded tokens weigh 0.7 together, resident ones 0.3: to reach 0.8, half is missing.
/// let weights = [0.05, 0.4, 0.05, 0.2];
/// let selector = Selector::new(Rule::TopP(0.8), 0, usize::MAX)?;
/// let mut taken = TokenSet::default();
/// let count = selector.select(&weights, 0.3, &mut SelectScratch::default(), &mut taken)?;
/// assert_eq!((count, taken.positions()), (2, vec![1, 3]));
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
    /// How many of a sample are in each bin; none between two calls.
    sampled: Vec<u32>,
    bins: Bins,
    /// Bits of the tokens of which some are to be taken, and their weights.
    open: Vec<u64>,
    between: Vec<f32>,
    /// Those of the bin in which a set is completed.
    members: Vec<f32>,
}

/// How many weights are in each bin, and what they come to.
#[derive(Clone, Debug)]
struct Bins {
    counts: Vec<u32>,
    masses: Vec<f64>,
}

impl Default for SelectScratch {
    fn default() -> Self {
        let bins = Bins { counts: vec![0; NUM_BINS], masses: vec![0.0; NUM_BINS] };
        let sampled = vec![0; NUM_BINS];
        Self { sampled, bins, open: Vec::new(), between: Vec::new(), members: Vec::new() }
    }
}

/// The lightest token that is taken weighs at least the first, and less than the second: bits of weights that are not
/// negative, which are ordered like them.
type Bounds = [u32; 2];

/// Tokens that are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Taken {
    count: usize,
    mass: f64,
}

/// The last token that is taken.
#[derive(Clone, Copy, Debug)]
struct Last {
    weight: f32,
    /// Tokens of the same weight behind it.
    num_left: usize,
    /// All that are taken.
    count: usize,
}

/// [`Enough`] of coded tokens alone.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    mass: f64,
    at_least: usize,
    at_most: usize,
}

impl Wanted {
    fn is_met(&self, taken: Taken) -> bool {
        let Taken { count, mass } = taken;
        count >= self.at_most || (count >= self.at_least && mass >= self.mass)
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

    /// Makes `taken` the tokens that one query head takes, and returns how many these are.
    ///
    /// `weights [n]` are softmax weights of the coded tokens under the normaliser of **all** tokens,
    /// and `resident_mass` is what the resident tokens, always taken, add to them. No weights: none.
    ///
    /// # Errors
    /// [`Error::Weight`] for a weight that is NaN, infinite or negative; `taken` then means nothing.
    pub fn select(
        &self,
        weights: &[f32],
        resident_mass: f64,
        scratch: &mut SelectScratch,
        taken: &mut TokenSet,
    ) -> Result<usize> {
        let num_tokens = weights.len();
        let enough = match self.rule {
            Rule::Threshold(least) => {
                check(weights)?;
                taken.mark(weights, least);
                let above = taken.count();
                if (self.min..=self.max).contains(&above) {
                    return Ok(above);
                }
                // They are the heaviest.
                Self { rule: Rule::TopK(above), ..*self }.enough()?
            }
            _ => self.enough()?,
        };
        let Enough { mass, at_least, at_most } = enough;
        let wanted = Wanted { mass: f64::from(mass) - resident_mass, at_least, at_most };
        if wanted.mass == f64::INFINITY && at_most >= num_tokens {
            check(weights)?;
            taken.fill(num_tokens);
            return Ok(num_tokens);
        }
        if wanted.is_met(Taken::default()) {
            check(weights)?;
            taken.clear(num_tokens);
            return Ok(0);
        }
        let (mut bounds, mut is_guess) = (scratch.guess(weights, &enough), true);
        loop {
            let (heavy, num_between) = scratch.split(weights, bounds, taken)?;
            if wanted.is_met(heavy) && is_guess {
                bounds = [bounds[1], INFINITE];
            } else if wanted.is_met(heavy) {
                // Sums of the same weights in another order may differ in the last place.
                return Ok(heavy.count);
            } else if let Some(last) = scratch.last(bounds, num_between, heavy, &wanted) {
                taken.add_open(&scratch.open, &scratch.between, last.weight);
                taken.remove_last(last.num_left, weights, last.weight.next_up());
                return Ok(last.count);
            } else if bounds[0] == 0 {
                taken.fill(num_tokens);
                return Ok(num_tokens);
            } else {
                bounds = [0, bounds[0]];
            }
            is_guess = false;
        }
    }
}

impl SelectScratch {
    /// Bytes of what a choice among `num_tokens` tokens works in.
    #[must_use]
    pub fn bytes(num_tokens: usize) -> usize {
        16 * NUM_BINS + TokenSet::bytes(num_tokens) + 4 * (2 * num_tokens + LANES)
    }

    /// Makes `heavy` the tokens above the bounds; gives what they come to, and how many tokens are between: `open` marks
    /// them then, and `between` begins with their weights.
    fn split(
        &mut self,
        weights: &[f32],
        bounds: Bounds,
        heavy: &mut TokenSet,
    ) -> Result<(Taken, usize)> {
        let Self { open, between, .. } = self;
        open.resize(weights.len().div_ceil(WORD), 0);
        let room = weights.len() + LANES;
        between.reserve_exact(room.saturating_sub(between.len()));
        between.resize(between.len().max(room), 0.0);
        let edges = bounds.map(f32::from_bits);
        let sides = Sides { heavy: heavy.words_of(weights.len()), open, between };
        let found = split(Form::detect(), weights, edges, sides);
        let Split { num_heavy, heavy_mass, num_between, is_sound } = found;
        if !is_sound {
            check(weights)?;
        }
        Ok((Taken { count: num_heavy, mass: heavy_mass }, num_between))
    }

    /// Bounds that a sample makes likely: those of the first bits between which it is open, by [`DEVIATIONS`] of its
    /// sums, whether a set is complete.
    ///
    /// What is left out is estimated, not what is taken: there no token weighs much, and a sample is the nearer for it.
    fn guess(&mut self, weights: &[f32], enough: &Enough) -> Bounds {
        let stride = sample_stride(weights.len());
        let counts = &mut self.sampled;
        let (mut num_sampled, mut first, mut last) = (0.0, NUM_BINS - 1, 0);
        for stretch in weights.chunks(stride) {
            let sampled = &stretch[..stretch.len().min(NEIGHBOURS)];
            for &weight in sampled {
                let bin = (bits(weight) >> UPPER_SHIFT) as usize;
                counts[bin] += 1;
                (first, last) = (first.min(bin), last.max(bin));
            }
            num_sampled += sampled.len() as f64;
        }
        let scale = weights.len() as f64 / f64::max(num_sampled, 1.0);
        let left_out = 1.0 - f64::from(enough.mass);
        // Whether the tokens that are not light are enough, where the light ones are fewer and lighter by so much.
        let is_enough = |light: f64, light_mass: f64| {
            let count = weights.len() as f64 - light;
            count >= enough.at_most as f64
                || (count >= enough.at_least as f64 && light_mass <= left_out)
        };
        let mut bounds = [0, INFINITE];
        let (mut light, mut light_mass, mut light_squares) = (0.0, 0.0, 0.0);
        let counts = counts.get_mut(first..=last).unwrap_or_default();
        let bins = counts.iter().zip(first as u32..).filter(|(count, _)| **count > 0);
        for (&count, bin) in bins {
            let [edge, next] = [bin, bin + 1].map(|bin| f32::from_bits(bin << UPPER_SHIFT));
            let count_slack = DEVIATIONS * (f64::min(light, num_sampled - light) + 1.0).sqrt();
            // As if there were one more, which weighs as much as the edge.
            let mass_slack = DEVIATIONS * (light_squares + f64::from(edge).powi(2)).sqrt();
            if is_enough(scale * (light + count_slack), scale * (light_mass + mass_slack)) {
                bounds[0] = edge.to_bits();
            }
            if !is_enough(scale * (light - count_slack), scale * (light_mass - mass_slack)) {
                bounds[1] = edge.to_bits();
                break;
            }
            light += f64::from(count);
            // As if weights were in the middle of their bin.
            let middle = 0.5 * (f64::from(edge) + f64::from(next));
            light_mass += f64::from(count) * middle;
            light_squares += f64::from(count) * middle.powi(2);
        }
        counts.fill(0);
        bounds
    }

    /// The last token of a set to which those above the bounds belong, whose sum is not enough, and the heaviest of the
    /// `num_between` between them; none where all of these together are not enough.
    fn last(
        &mut self,
        mut bounds: Bounds,
        num_between: usize,
        mut sum: Taken,
        wanted: &Wanted,
    ) -> Option<Last> {
        let Self { bins, between, members, .. } = self;
        let between = &between[..num_between];
        if num_between > FEW && num_values(bounds) > 1 {
            bounds = bins.narrow(between, bounds, &mut sum, wanted)?;
        }
        members.clear();
        members.reserve_exact(num_between);
        members.extend(between.iter().filter(|weight| is_within(**weight, bounds)));
        while members.len() > FEW && num_values(bounds) > 1 {
            bounds = bins.narrow(members, bounds, &mut sum, wanted)?;
            members.retain(|&weight| is_within(weight, bounds));
        }
        members.sort_unstable_by(|a, b| b.total_cmp(a));
        for (taken, &weight) in (1..).zip(&*members) {
            sum.count += 1;
            sum.mass += f64::from(weight);
            if wanted.is_met(sum) {
                let equal = members[taken..].iter().take_while(|other| **other == weight);
                return Some(Last { weight, num_left: equal.count(), count: sum.count });
            }
        }
        None
    }
}

impl Bins {
    /// The bounds of the bin in which a set is completed by the heaviest of `weights`, all within `bounds`; what is heavier
    /// than that bin goes into `sum`. None where all of them are not enough.
    fn narrow(
        &mut self,
        weights: &[f32],
        [least, end]: Bounds,
        sum: &mut Taken,
        wanted: &Wanted,
    ) -> Option<Bounds> {
        // No more bins than weights, about.
        let bin_bits = BIN_BITS.min(usize::BITS - weights.len().leading_zeros());
        let shift = (u32::BITS - (end - least - 1).leading_zeros()).saturating_sub(bin_bits);
        let num_bins = ((end - 1 - least) >> shift) as usize + 1;
        let Self { counts, masses } = self;
        let (counts, masses) = (&mut counts[..num_bins], &mut masses[..num_bins]);
        counts.fill(0);
        masses.fill(0.0);
        for &weight in weights {
            let bin = ((bits(weight) - least) >> shift) as usize;
            counts[bin] += 1;
            masses[bin] += f64::from(weight);
        }
        for (bin, (&count, &mass)) in counts.iter().zip(&*masses).enumerate().rev() {
            if count == 0 {
                continue;
            }
            let more = Taken { count: sum.count + count as usize, mass: sum.mass + mass };
            if wanted.is_met(more) {
                let first = least + ((bin as u32) << shift);
                return Some([first, end.min(first + (1 << shift))]);
            }
            *sum = more;
        }
        None
    }
}

/// Tokens from the first of some neighbours of a sample to that of the next.
fn sample_stride(num_tokens: usize) -> usize {
    let [least, most] = SAMPLE;
    // Odd but for the neighbours, since texts and pages repeat themselves at round distances.
    NEIGHBOURS * ((num_tokens / (num_tokens / 16).clamp(least, most)) | 1)
}

/// How many values a weight can have.
fn num_values([least, end]: Bounds) -> u32 {
    end - least
}

fn is_within(weight: f32, bounds: Bounds) -> bool {
    // One comparison, whose outcome is nearly always the same.
    bits(weight).wrapping_sub(bounds[0]) < num_values(bounds)
}

/// The bits of a weight, those of 0 for −0.
fn bits(weight: f32) -> u32 {
    weight.to_bits() & (u32::MAX >> 1)
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

#[cfg(test)]
mod tests;
