//! Coded scores against exact ones: errors of scores, distributions and outputs, in f64.

use super::HeadData;

/// The exact attention of one head.
pub(crate) struct Truth {
    /// Scores of the coded tokens `[num_queries, num_coded]`.
    scores: Vec<f64>,
    /// Scores of the exact tokens `[num_queries, num_resident]`.
    resident: Vec<f64>,
    /// ln Σ exp(score) `[num_queries]`.
    lse: Vec<f64>,
    /// Attention outputs `[num_queries, head_dim]`.
    out: Vec<f64>,
}

/// What coding did to one head, in sums over its queries.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadError {
    /// |error| of every score.
    pub(crate) scores: Vec<f32>,
    /// KL(exact ‖ coded) of the attention distributions, nats.
    pub(crate) kl_sum: f64,
    pub(crate) num_queries: usize,
    /// Squared distance of the outputs, and their squared length.
    pub(crate) out_error: f64,
    pub(crate) out_energy: f64,
}

impl Truth {
    pub(crate) fn of(head: &HeadData) -> Self {
        let keys = head.as_keys();
        let scores = keys.dot_products(keys.queries, keys.keys);
        let resident = keys.dot_products(keys.queries, &head.resident_keys);
        let mut truth = Self { scores, resident, lse: Vec::new(), out: Vec::new() };
        for query in 0..truth.num_queries(head) {
            let attention = truth.attention(head, query, truth.scores_of(head, query));
            truth.lse.push(attention.lse);
            truth.out.extend(attention.out);
        }
        truth
    }

    fn num_queries(&self, head: &HeadData) -> usize {
        head.queries.len() / head.head_dim
    }

    fn scores_of(&self, head: &HeadData, query: usize) -> &[f64] {
        let num_coded = head.keys.len() / head.head_dim;
        &self.scores[query * num_coded..][..num_coded]
    }

    fn attention(&self, head: &HeadData, query: usize, scores: &[f64]) -> Attention {
        let num_resident = head.resident_keys.len() / head.head_dim;
        let visible = head.visible(query / head.group_size);
        let resident = &self.resident[query * num_resident..][..visible];
        let parts = [(scores, &head.values), (resident, &head.resident_values)];
        let all = || scores.iter().chain(resident).copied();
        let largest = all().fold(f64::NEG_INFINITY, f64::max);
        let lse = largest + all().map(|s| (s - largest).exp()).sum::<f64>().ln();
        let mut out = vec![0.0; head.head_dim];
        for (scores, values) in parts {
            for (score, value) in scores.iter().zip(values.chunks_exact(head.head_dim)) {
                let weight = (score - lse).exp();
                for (out, &v) in out.iter_mut().zip(value) {
                    *out += weight * f64::from(v);
                }
            }
        }
        Attention { lse, out }
    }

    /// What the scores `coded [num_queries, num_coded]` do to the attention.
    pub(crate) fn compare(&self, head: &HeadData, coded: &[f32]) -> HeadError {
        assert_eq!(coded.len(), self.scores.len(), "a score per query and coded token");
        let mut error = HeadError::default();
        let num_coded = head.keys.len() / head.head_dim;
        for (query, coded) in coded.chunks_exact(num_coded).enumerate() {
            let coded: Vec<f64> = coded.iter().map(|&s| f64::from(s)).collect();
            let exact = self.scores_of(head, query);
            let attention = self.attention(head, query, &coded);
            let mut kl = attention.lse - self.lse[query];
            for (exact, coded) in exact.iter().zip(&coded) {
                kl += (exact - self.lse[query]).exp() * (exact - coded);
                error.scores.push((exact - coded).abs() as f32);
            }
            error.kl_sum += kl;
            error.num_queries += 1;
            let out = &self.out[query * head.head_dim..][..head.head_dim];
            for (exact, coded) in out.iter().zip(&attention.out) {
                error.out_error += (exact - coded).powi(2);
                error.out_energy += exact.powi(2);
            }
        }
        error
    }
}

/// One query's softmax.
struct Attention {
    lse: f64,
    /// `[head_dim]`.
    out: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::DataSet;

    fn head() -> HeadData {
        DataSet::synthetic(1, 64, 3).expect("it is small").heads.remove(0)
    }

    #[test]
    fn exact_scores_have_no_error() {
        let head = head();
        let truth = Truth::of(&head);
        let scores: Vec<f32> = truth.scores.iter().map(|&s| s as f32).collect();
        let error = truth.compare(&head, &scores);
        assert_eq!(error.num_queries, 9);
        // What is left is the rounding of the scores to f32.
        assert!(error.kl_sum.abs() < 1e-6, "{}", error.kl_sum);
        assert!(error.out_error < 1e-10 * error.out_energy && error.out_energy > 0.0);
    }

    /// Against the definition, written down once more: all tokens in one row of probabilities.
    #[test]
    fn the_divergence_is_that_of_the_definition() {
        let head = head();
        let truth = Truth::of(&head);
        let coded: Vec<f32> = truth
            .scores
            .iter()
            .enumerate()
            .map(|(i, &s)| s as f32 + 0.3 * (i % 3) as f32)
            .collect();
        let softmax = |scores: &[f64]| -> Vec<f64> {
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            scores.iter().map(|s| s.exp() / sum).collect()
        };
        let mut kl = 0.0;
        for query in 0..9 {
            let resident = &truth.resident[query * 70..][..head.visible(query / 3)];
            let exact = softmax(&[&truth.scores[query * 64..][..64], resident].concat());
            let own: Vec<f64> = coded[query * 64..][..64].iter().map(|&s| f64::from(s)).collect();
            let own = softmax(&[&own[..], resident].concat());
            kl += exact.iter().zip(&own).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        }
        let error = truth.compare(&head, &coded);
        assert!((error.kl_sum - kl).abs() < 1e-9 && kl > 1e-3, "{} {kl}", error.kl_sum);
        assert!(error.scores.iter().all(|e| *e < 0.61) && error.scores.iter().any(|e| *e > 0.59));
    }

    #[test]
    fn scores_of_other_tokens_are_far_off() {
        let head = head();
        let truth = Truth::of(&head);
        let mut scores: Vec<f32> = truth.scores.iter().map(|&s| s as f32).collect();
        scores.rotate_left(1);
        let error = truth.compare(&head, &scores);
        assert!(error.kl_sum > 0.1 && error.out_error > 0.01 * error.out_energy, "{error:?}");
    }
}
