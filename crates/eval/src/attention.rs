//! Attention under coded keys against the exact one, head by head: errors of scores, distributions and
//! outputs, in f64.

use crate::heads::{HeadSample, KeyValues};

/// The exact attention of one head.
#[derive(Clone, Debug)]
pub struct ExactAttention {
    /// Scores of the coded tokens `[num_queries, num_coded]`.
    pub(crate) scores: Vec<f64>,
    /// Their weights, of all tokens that the query sees.
    pub(crate) weights: Vec<f64>,
    /// Scores of the exact tokens `[num_queries, num_resident]`.
    pub(crate) resident: Vec<f64>,
    /// ln Σ exp(score) `[num_queries]`.
    lse: Vec<f64>,
    /// Attention outputs `[num_queries, head_dim]`.
    pub(crate) out: Vec<f64>,
}

/// What coding did to the attention of one head, in sums over its queries.
#[derive(Clone, Debug, Default)]
pub struct AttentionError {
    /// |error| of every score `[num_queries, num_coded]`.
    pub scores: Vec<f32>,
    /// KL(exact ‖ coded) of the attention distributions, nats.
    pub kl_sum: f64,
    /// Queries, of all query heads.
    pub num_queries: usize,
    /// Errors of the outputs under exact values `[num_queries, head_dim]`.
    pub outputs: Vec<f64>,
    /// Squared length of those errors.
    pub out_error: f64,
    /// Squared length of the exact outputs.
    pub out_energy: f64,
}

impl ExactAttention {
    /// Computes it.
    #[must_use]
    pub fn of(sample: &HeadSample) -> Self {
        let scores = |keys: &KeyValues| {
            exact_scores(sample.head_dim, sample.sm_scale, &sample.queries, &keys.keys)
        };
        let (scores, resident) = (scores(&sample.coded), scores(&sample.resident));
        let (weights, lse, out) = (Vec::new(), Vec::new(), Vec::new());
        let mut exact = Self { scores, weights, resident, lse, out };
        for query in 0..sample.num_steps * sample.group_size {
            let attention = exact.attention(sample, query, exact.scores_of(sample, query));
            let weights = exact.scores_of(sample, query).iter().map(|s| (s - attention.lse).exp());
            let weights: Vec<f64> = weights.collect();
            exact.weights.extend(weights);
            exact.lse.push(attention.lse);
            exact.out.extend(attention.out);
        }
        exact
    }

    fn scores_of(&self, sample: &HeadSample, query: usize) -> &[f64] {
        &self.scores[query * sample.num_coded()..][..sample.num_coded()]
    }

    fn attention(&self, sample: &HeadSample, query: usize, scores: &[f64]) -> Attention {
        let num_resident = sample.resident.keys.len() / sample.head_dim;
        let visible = sample.visible(query / sample.group_size);
        let resident = &self.resident[query * num_resident..][..visible];
        let parts = [(scores, &sample.coded.values), (resident, &sample.resident.values)];
        let all = scores.iter().chain(resident).copied();
        let largest = all.fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut out) = (0.0, vec![0.0; sample.head_dim]);
        for (scores, values) in parts {
            for (score, value) in scores.iter().zip(values.chunks_exact(sample.head_dim)) {
                let weight = (score - largest).exp();
                sum += weight;
                for (out, &v) in out.iter_mut().zip(value) {
                    *out += weight * f64::from(v);
                }
            }
        }
        out.iter_mut().for_each(|out| *out /= sum);
        Attention { lse: largest + sum.ln(), out }
    }

    /// What the scores `coded [num_queries, num_coded]`, `sm_scale · q·k` under coded keys, do to the
    /// attention of `sample`, of which this is the exact one.
    ///
    /// # Panics
    /// When there is not a score for every query and coded token.
    #[must_use]
    pub fn compare(&self, sample: &HeadSample, coded: &[f32]) -> AttentionError {
        assert_eq!(coded.len(), self.scores.len(), "a score per query and coded token");
        let mut error = AttentionError::default();
        for (query, coded) in coded.chunks_exact(sample.num_coded()).enumerate() {
            let coded: Vec<f64> = coded.iter().map(|&s| f64::from(s)).collect();
            let exact = self.scores_of(sample, query);
            let weights = &self.weights[query * sample.num_coded()..];
            let attention = self.attention(sample, query, &coded);
            let mut kl = attention.lse - self.lse[query];
            for ((exact, weight), coded) in exact.iter().zip(weights).zip(&coded) {
                kl += weight * (exact - coded);
                error.scores.push((exact - coded).abs() as f32);
            }
            error.kl_sum += kl;
            error.num_queries += 1;
            let out = &self.out[query * sample.head_dim..][..sample.head_dim];
            for (exact, coded) in out.iter().zip(&attention.out) {
                error.outputs.push(coded - exact);
                error.out_error += (exact - coded).powi(2);
                error.out_energy += exact.powi(2);
            }
        }
        error
    }
}

/// `sm_scale · q·k` of `queries [m, head_dim]` and `keys [n, head_dim]`, in f64: `[m, n]`.
#[must_use]
pub fn exact_scores(head_dim: usize, sm_scale: f32, queries: &[f32], keys: &[f32]) -> Vec<f64> {
    let scale = f64::from(sm_scale);
    let queries = queries.chunks_exact(head_dim);
    let scores = queries.flat_map(|query| {
        let keys = keys.chunks_exact(head_dim);
        keys.map(move |key| {
            let products = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
            scale * products.sum::<f64>()
        })
    });
    scores.collect()
}

/// One query's softmax.
struct Attention {
    lse: f64,
    /// `[head_dim]`.
    out: Vec<f64>,
}

#[cfg(test)]
pub(crate) mod tests;
