//! From logits to the next token.
//!
//! The steps and their order are those of the `transformers` library: repetition penalty
//! (Keskar et al. 2019), temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p
//! (Nguyen et al. 2024), then one draw. A seed gives the same tokens for the same logits on every
//! platform: the generator is named (xoshiro256++), sums run in a fixed order, and the
//! exponential is this file's own, as the one of the C library differs between systems.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerSettings {
    /// Logits are divided by it. 0 is greedy: the highest logit, of equal ones the lowest id.
    pub temperature: f32,
    /// Only that many of the highest logits stay. `None` keeps all.
    pub top_k: Option<usize>,
    /// Only the smallest set of the most probable tokens stays whose probabilities reach this sum;
    /// above 0, at most 1. 1 keeps all.
    pub top_p: f32,
    /// Only tokens stay that have at least this share of the highest probability; 0 to 1. 0 keeps
    /// all.
    pub min_p: f32,
    /// A logit of a token of the history is divided by it if positive, else multiplied; above 0.
    /// 1 changes nothing. It holds for the greedy choice too.
    pub repetition_penalty: f32,
    /// Beginning of the random numbers.
    pub seed: u64,
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Why settings or logits cannot be sampled from.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// The temperature is negative or not finite.
    #[error("temperature must be finite and at least 0, not {temperature}")]
    Temperature {
        /// The setting.
        temperature: f32,
    },
    /// No token could be kept.
    #[error("top-k must be at least 1; leave it out to keep all tokens")]
    TopK,
    /// The probability is not above 0 and at most 1.
    #[error("top-p must be above 0 and at most 1, not {top_p}")]
    TopP {
        /// The setting.
        top_p: f32,
    },
    /// The share is not from 0 to 1.
    #[error("min-p must be from 0 to 1, not {min_p}")]
    MinP {
        /// The setting.
        min_p: f32,
    },
    /// The penalty is not positive and finite.
    #[error("repetition penalty must be finite and above 0, not {repetition_penalty}")]
    RepetitionPenalty {
        /// The setting.
        repetition_penalty: f32,
    },
    /// A logit is NaN or +∞.
    #[error("the logit of token {id} is {value}")]
    Logit {
        /// The token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// There is no logit above −∞.
    #[error("no token is possible: there are no logits above minus infinity")]
    NoCandidate,
    /// A token of the history has no logit.
    #[error("token {id} of the history lies outside of the {num_logits} logits")]
    History {
        /// The token.
        id: u32,
        /// The number of logits.
        num_logits: usize,
    },
}

/// Chooses tokens. Holds the state of the random numbers: one sampler per sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: SamplerSettings,
    rng: Xoshiro256PlusPlus,
}

/// A token that may come next.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    /// exp((logit − highest logit) / temperature): a probability up to a factor.
    weight: f64,
}

/// Ordered by logit, then lower id first: the greatest candidate is the greedy choice. The weight
/// follows from the logit, but different logits may have one weight.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        // Adding zero makes the two zeros one.
        let by_logit = (self.logit + 0.0).total_cmp(&(other.logit + 0.0));
        by_logit.then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

impl SamplerSettings {
    /// That every setting is in its range.
    ///
    /// # Errors
    ///
    /// The first setting that is not.
    pub fn check(&self) -> Result<(), SamplerError> {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, seed: _ } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(SamplerError::Temperature { temperature });
        }
        if top_k == Some(0) {
            return Err(SamplerError::TopK);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplerError::TopP { top_p });
        }
        if !(0.0..=1.0).contains(&min_p) {
            return Err(SamplerError::MinP { min_p });
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Err(SamplerError::RepetitionPenalty { repetition_penalty });
        }
        Ok(())
    }
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    ///
    /// [`SamplerSettings::check`].
    pub fn new(settings: SamplerSettings) -> Result<Self, SamplerError> {
        settings.check()?;
        Ok(Self { settings, rng: Xoshiro256PlusPlus::seed_from_u64(settings.seed) })
    }

    /// The settings.
    pub fn settings(&self) -> &SamplerSettings {
        &self.settings
    }

    /// The next token's id. `logits` are `[vocab_size]`, one per id; −∞ excludes a token.
    /// `history` are the tokens that the repetition penalty applies to, each once however often it
    /// occurs.
    ///
    /// One random number is taken per call, none by the greedy choice and on errors.
    ///
    /// # Errors
    ///
    /// [`SamplerError::Logit`], [`SamplerError::NoCandidate`] (also for no logits at all) and
    /// [`SamplerError::History`].
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplerError> {
        check_history(history, logits.len())?;
        if self.settings.temperature == 0.0 && self.settings.repetition_penalty == 1.0 {
            return highest(logits);
        }
        let candidates = self.penalized(logits, history)?;
        if self.settings.temperature == 0.0 {
            let best = candidates.into_iter().max().ok_or(SamplerError::NoCandidate)?;
            return Ok(best.id);
        }
        let kept = self.kept(candidates)?;
        draw(&kept, self.uniform()).ok_or(SamplerError::NoCandidate)
    }

    /// The next random number, from 0 to below 1: 53 bits, so that every value is exact.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Every possible token after the repetition penalty, by id, without weights.
    fn penalized(&self, logits: &[f32], history: &[u32]) -> Result<Vec<Candidate>, SamplerError> {
        let penalty = self.settings.repetition_penalty;
        let penalized = if penalty == 1.0 { &[] } else { history };
        let seen: BTreeSet<u32> = penalized.iter().copied().collect();
        let mut candidates = Vec::with_capacity(logits.len());
        for (id, &value) in logits.iter().enumerate() {
            if value.is_nan() || value == f32::INFINITY {
                return Err(SamplerError::Logit { id, value });
            }
            candidates.push(Candidate { id: token_id(id), logit: value, weight: 0.0 });
        }
        for id in seen {
            let logit = &mut candidates[id as usize].logit;
            let changed = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            // A tiny penalty may take a finite logit past the largest number.
            *logit = changed.min(f32::MAX);
        }
        candidates.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
        Ok(candidates)
    }

    /// The candidates that top-k, top-p and min-p leave, with weights. In order of id where
    /// nothing had to be sorted, else best first.
    fn kept(&self, mut candidates: Vec<Candidate>) -> Result<Vec<Candidate>, SamplerError> {
        let SamplerSettings { temperature, top_k, top_p, min_p, .. } = self.settings;
        if let Some(top_k) = top_k.filter(|&top_k| top_k < candidates.len()) {
            // Only the split into kept and dropped matters, not the order within.
            candidates.select_nth_unstable_by(top_k - 1, |a, b| b.cmp(a));
            candidates.truncate(top_k);
            // The sums below must not depend on how the selection left them.
            candidates.sort_unstable_by_key(|candidate| candidate.id);
        }
        let best = candidates.iter().max().ok_or(SamplerError::NoCandidate)?.logit;
        for candidate in &mut candidates {
            let below = f64::from(candidate.logit) - f64::from(best);
            candidate.weight = exp(below / f64::from(temperature));
        }
        if top_p < 1.0 {
            candidates = smallest_set(candidates, f64::from(top_p));
        }
        // The best candidate has weight 1, so that a weight is the share of it.
        let min_weight = f64::from(min_p);
        candidates.retain(|candidate| candidate.weight >= min_weight);
        Ok(candidates)
    }
}

/// That every token of the history has a logit.
fn check_history(history: &[u32], num_logits: usize) -> Result<(), SamplerError> {
    match history.iter().find(|&&id| id as usize >= num_logits) {
        None => Ok(()),
        Some(&id) => Err(SamplerError::History { id, num_logits }),
    }
}

/// The id of the highest logit, of equal ones the lowest.
fn highest(logits: &[f32]) -> Result<u32, SamplerError> {
    const LANES: usize = 16;
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut is_wrong = false;
    for chunk in logits.chunks(LANES) {
        for (highest, &logit) in highest.iter_mut().zip(chunk) {
            is_wrong |= logit.is_nan() || logit == f32::INFINITY;
            *highest = if logit > *highest { logit } else { *highest };
        }
    }
    if is_wrong {
        let wrong = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
        let id = wrong.unwrap_or_default();
        return Err(SamplerError::Logit { id, value: logits[id] });
    }
    let highest = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let is_best = |&logit: &f32| logit == highest && logit > f32::NEG_INFINITY;
    let id = logits.iter().position(is_best).ok_or(SamplerError::NoCandidate)?;
    Ok(token_id(id))
}

fn token_id(index: usize) -> u32 {
    u32::try_from(index).expect("a vocabulary has fewer tokens than u32 counts")
}

/// The fewest candidates, best first, whose weights reach `top_p` of all. A heap gives them in
/// order without sorting the many that do not matter.
fn smallest_set(candidates: Vec<Candidate>, top_p: f64) -> Vec<Candidate> {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let wanted = top_p * total;
    let mut heap = BinaryHeap::from(candidates);
    let mut kept = Vec::new();
    let mut sum = 0.0;
    while let Some(candidate) = heap.pop() {
        sum += candidate.weight;
        kept.push(candidate);
        if sum >= wanted {
            break;
        }
    }
    kept
}

/// The candidate at `uniform` (0 to below 1) of the weights laid end to end.
fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    for candidate in candidates {
        sum += candidate.weight;
        if sum > target {
            return Some(candidate.id);
        }
    }
    // Only if `uniform * total` rounds up to the total.
    candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map(|last| last.id)
}

/// e to the power of `x` ≤ 0, to about two units in the last place, by the same operations on
/// every platform: x = k ln 2 + r with |r| ≤ ln 2 / 2, and the series for exp(r). 0 below −700,
/// where no weight matters any more.
fn exp(x: f64) -> f64 {
    /// ln 2 in two parts; the high one has trailing zeros, so that k times it is exact.
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x < -700.0 {
        return 0.0;
    }
    let k = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // Horner's scheme for the series up to r^14 / 14!, whose error is below 1e-18.
    let mut series = 1.0;
    for n in (1..=14).rev() {
        series = 1.0 + series * r / f64::from(n);
    }
    // k is at least −1010, so that the exponent stays that of a normal number.
    series * f64::from_bits(((1023 + k as i64) as u64) << 52)
}

#[cfg(test)]
mod tests;
