//! Distributions over the vocabulary and how they differ, in f64: step by step, and all steps together.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Most probable tokens that are compared as a set.
const TOP_TOKENS: usize = 5;

/// A next-token distribution as natural-log probabilities `[vocab_size]`, f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution(Vec<f64>);

impl Distribution {
    /// The softmax of `logits`. The sum is taken in f64.
    #[must_use]
    pub fn of_logits(logits: &[f32]) -> Self {
        let lse = log_sum_exp(logits);
        Self(logits.iter().map(|&x| f64::from(x) - lse).collect())
    }

    /// The log-probability of a token; −∞ for one outside the vocabulary.
    #[must_use]
    pub fn log_probability(&self, token: u32) -> f64 {
        self.0.get(token as usize).copied().unwrap_or(f64::NEG_INFINITY)
    }

    /// The most probable token, the lowest of equals.
    #[must_use]
    pub fn top(&self) -> u32 {
        let mut top = 0;
        for (token, x) in self.0.iter().enumerate() {
            if *x > self.0[top] {
                top = token;
            }
        }
        top as u32
    }

    /// The most probable token that is not one of `excluded`, the lowest of equals; none where nothing is a number.
    pub(crate) fn top_outside(&self, excluded: &BTreeSet<u32>) -> Option<u32> {
        let mut top: Option<(u32, f64)> = None;
        for (id, &x) in (0..).zip(&self.0) {
            let is_more = x > top.map_or(f64::NEG_INFINITY, |(_, most)| most);
            if is_more && !excluded.contains(&id) {
                top = Some((id, x));
            }
        }
        top.map(|(id, _)| id)
    }

    /// The most probable tokens, the lower of equals first.
    fn top_tokens(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.0.len() as u32).collect();
        let falling =
            |a: &u32, b: &u32| self.0[*b as usize].total_cmp(&self.0[*a as usize]).then(a.cmp(b));
        if ids.len() > TOP_TOKENS {
            ids.select_nth_unstable_by(TOP_TOKENS - 1, falling);
            ids.truncate(TOP_TOKENS);
        }
        ids
    }
}

/// How a cache's next-token distributions differ from those of `full`, step by step: five lists of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// KL(full ‖ cache), nats.
    pub kl: Vec<f64>,
    /// 1 where both have the same most probable token, 0 where not.
    pub top1: Vec<u8>,
    /// Share of the five most probable tokens of `full` that are among the five of the cache.
    pub top5: Vec<f64>,
    /// Negative log-likelihood of the token that comes next, under the cache, nats.
    pub nll: Vec<f64>,
    /// The same under `full`.
    pub full_nll: Vec<f64>,
}

impl Steps {
    /// Takes one step on.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn push(&mut self, full: &Distribution, own: &Distribution, next: u32) -> Result<()> {
        let divergence = kl_divergence(full, own);
        let (nll, full_nll) = (-own.log_probability(next), -full.log_probability(next));
        let named =
            [("the divergence", divergence), ("the likelihood", nll), ("the likelihood", full_nll)];
        for (what, value) in named {
            if !value.is_finite() {
                return Err(Error::NotFinite { what, step: self.kl.len() });
            }
        }
        let tops = own.top_tokens();
        let of_full = full.top_tokens();
        let shared = of_full.iter().filter(|id| tops.contains(id)).count();
        self.kl.push(divergence);
        self.top1.push(u8::from(own.top() == full.top()));
        self.top5.push(shared as f64 / of_full.len() as f64);
        self.nll.push(nll);
        self.full_nll.push(full_nll);
        Ok(())
    }

    /// How many steps there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kl.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kl.is_empty()
    }

    /// Whether the lists are of one length and hold numbers that steps can have.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let lens = [self.top1.len(), self.top5.len(), self.nll.len(), self.full_nll.len()];
        let finite = [&self.kl, &self.top5, &self.nll, &self.full_nll];
        lens.iter().all(|&len| len == self.len())
            && finite.iter().all(|list| list.iter().all(|x| x.is_finite()))
            && self.top1.iter().all(|&agrees| agrees <= 1)
    }

    /// Puts the steps of `other` behind these.
    pub fn extend(&mut self, other: &Self) {
        self.kl.extend_from_slice(&other.kl);
        self.top1.extend_from_slice(&other.top1);
        self.top5.extend_from_slice(&other.top5);
        self.nll.extend_from_slice(&other.nll);
        self.full_nll.extend_from_slice(&other.full_nll);
    }

    /// What all steps together come to; none where there is no step.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let num_steps = self.len();
        if num_steps == 0 {
            return None;
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / num_steps as f64;
        let top1: Vec<f64> = self.top1.iter().map(|&agrees| f64::from(agrees)).collect();
        let moved = |(nll, full): (&f64, &f64)| (-nll).exp() - (-full).exp();
        let moved: Vec<f64> = self.nll.iter().zip(&self.full_nll).map(moved).collect();
        let (ppl, full_ppl) = (mean(&self.nll).exp(), mean(&self.full_nll).exp());
        Some(Summary {
            num_steps,
            kl_mean: mean(&self.kl),
            kl_median: quantile(&self.kl, 0.5),
            kl_p99: quantile(&self.kl, 0.99),
            kl_max: self.kl.iter().copied().fold(0.0, f64::max),
            top1: mean(&top1),
            top5: mean(&self.top5),
            ppl,
            full_ppl,
            ppl_change: ppl / full_ppl - 1.0,
            probability_change: mean(&moved),
        })
    }
}

/// What many steps come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Steps.
    pub num_steps: usize,
    /// Mean of KL(full ‖ cache), nats.
    pub kl_mean: f64,
    /// Median of it (nearest rank).
    pub kl_median: f64,
    /// 99th percentile of it (nearest rank).
    pub kl_p99: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of steps with the same most probable token.
    pub top1: f64,
    /// Mean share of the five most probable tokens of `full` that are among the cache's five.
    pub top5: f64,
    /// Perplexity of the tokens that come next, under the cache.
    pub ppl: f64,
    /// The same under `full`.
    pub full_ppl: f64,
    /// How much larger the cache's perplexity is: 0.01 is one percent.
    pub ppl_change: f64,
    /// Mean change of the probability of the token that comes next, cache less `full`.
    pub probability_change: f64,
}

impl Summary {
    /// Whether every figure is a number that JSON can hold.
    pub(crate) fn is_finite(&self) -> bool {
        self.figures().iter().all(|figure| figure.is_finite())
    }

    /// Whether it is the summary of `steps`, up to what another machine rounds otherwise.
    pub(crate) fn is_of(&self, steps: &Steps) -> bool {
        let Some(own) = steps.summary() else { return false };
        let near = |(a, b): (f64, f64)| (a - b).abs() <= 1e-9 * (1.0 + b.abs());
        self.num_steps == own.num_steps && self.figures().into_iter().zip(own.figures()).all(near)
    }

    fn figures(&self) -> [f64; 10] {
        [
            self.kl_mean,
            self.kl_median,
            self.kl_p99,
            self.kl_max,
            self.top1,
            self.top5,
            self.ppl,
            self.full_ppl,
            self.ppl_change,
            self.probability_change,
        ]
    }
}

/// KL(p ‖ q) = Σ p · (ln p − ln q), in nats. Exactly 0 when both are the same. NaN in either gives NaN.
///
/// # Panics
/// When the vocabularies differ.
#[must_use]
pub fn kl_divergence(p: &Distribution, q: &Distribution) -> f64 {
    assert_eq!(p.0.len(), q.0.len(), "distributions over one vocabulary");
    let terms =
        p.0.iter()
            .zip(&q.0)
            .map(|(&p, &q)| if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) });
    terms.sum()
}

/// ln Σ exp(x), in f64; −∞ of nothing.
pub(crate) fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let max = f64::from(max);
    max + x.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// The value below which `share` of `values` lie (nearest rank); 0 of nothing.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(0.0)
}

/// The one in the middle, or the mean of the two that are; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_of_a_distribution_with_itself_is_exactly_zero() {
        let p = Distribution::of_logits(&[1.0, -3.0, 0.25, 7.5]);
        assert_eq!(kl_divergence(&p, &p), 0.0);
    }

    #[test]
    fn kl_of_two_coins_is_the_textbook_number() {
        let p = Distribution::of_logits(&[0.5f32.ln(), 0.5f32.ln()]);
        let q = Distribution::of_logits(&[0.9f32.ln(), 0.1f32.ln()]);
        let expected = 0.5 * (0.5f64 / 0.9).ln() + 0.5 * (0.5f64 / 0.1).ln();
        assert!((kl_divergence(&p, &q) - expected).abs() < 1e-6);
        assert!(kl_divergence(&q, &p) > 0.0);
    }

    #[test]
    fn a_nan_shows() {
        let p = Distribution::of_logits(&[0.0, 1.0]);
        let q = Distribution::of_logits(&[f32::NAN, 1.0]);
        assert!(kl_divergence(&p, &q).is_nan());
    }

    #[test]
    fn steps_come_to_the_numbers_of_a_hand_calculation() {
        let of = |p: [f32; 6]| Distribution::of_logits(&p.map(f32::ln));
        let full = of([0.4, 0.2, 0.15, 0.1, 0.1, 0.05]);
        let other = of([0.2, 0.4, 0.05, 0.1, 0.1, 0.15]);
        let mut steps = Steps::default();
        steps.push(&full, &full, 0).unwrap();
        steps.push(&full, &other, 5).unwrap();
        assert!(steps.is_sound());
        let kl = 0.4 * 2f64.ln() - 0.2 * 2f64.ln() + 0.15 * 3f64.ln() - 0.05 * 3f64.ln();
        let summary = steps.summary().unwrap();
        assert!((summary.kl_max - kl).abs() < 1e-6 && (summary.kl_mean - kl / 2.0).abs() < 1e-6);
        assert_eq!((summary.num_steps, summary.kl_median), (2, 0.0));
        assert_eq!(summary.kl_p99, summary.kl_max);
        assert_eq!((summary.top1, summary.top5), (0.5, 0.9));
        assert!((summary.ppl - (0.4f64 * 0.15).sqrt().recip()).abs() < 1e-5);
        assert!((summary.full_ppl - (0.4f64 * 0.05).sqrt().recip()).abs() < 1e-5);
        assert!((summary.ppl_change - (3f64.sqrt().recip() - 1.0)).abs() < 1e-5);
        assert!((summary.probability_change - 0.05).abs() < 1e-6);
        let mut twice = steps.clone();
        twice.extend(&steps);
        assert_eq!(twice.summary().unwrap().kl_mean, summary.kl_mean);
        twice.top5.pop();
        assert!(!twice.is_sound());
        assert_eq!(Steps::default().summary(), None);
        let nan = Distribution::of_logits(&[f32::NAN; 6]);
        assert!(matches!(steps.push(&full, &nan, 0), Err(Error::NotFinite { step: 2, .. })));
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&values, 0.5), 50.0);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
