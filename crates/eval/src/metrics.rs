//! Distributions over the vocabulary and how they differ, in f64.

/// A next-token distribution as natural-log probabilities `[vocab_size]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution(Vec<f32>);

impl Distribution {
    /// The softmax of `logits`. The sum is taken in f64.
    #[must_use]
    pub fn of_logits(logits: &[f32]) -> Self {
        let lse = log_sum_exp(logits);
        Self(logits.iter().map(|&x| (f64::from(x) - lse) as f32).collect())
    }

    /// The log-probability of a token; −∞ for one outside the vocabulary.
    #[must_use]
    pub fn log_probability(&self, token: u32) -> f64 {
        self.0.get(token as usize).map_or(f64::NEG_INFINITY, |&x| f64::from(x))
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
}

/// KL(p ‖ q) = Σ p · (ln p − ln q), in nats. Exactly 0 when both are the same. NaN in either gives NaN.
///
/// # Panics
/// When the vocabularies differ.
#[must_use]
pub fn kl_divergence(p: &Distribution, q: &Distribution) -> f64 {
    assert_eq!(p.0.len(), q.0.len(), "distributions over one vocabulary");
    let terms = p.0.iter().zip(&q.0).map(|(&p, &q)| {
        let (p, q) = (f64::from(p), f64::from(q));
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    });
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
    fn quantiles_are_nearest_ranks() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&values, 0.5), 50.0);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
