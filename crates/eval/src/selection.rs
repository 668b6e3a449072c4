//! Attention over the tokens that coded scores choose, under exact scores: what re-scoring leaves of the error
//! of coded keys, in f64.

use heterokv_evict::{SelectScratch, Selector, TokenSet};

use crate::Result;
use crate::attention::ExactAttention;
use crate::heads::HeadSample;

impl ExactAttention {
    /// How many coded tokens each query takes by its exact scores, `[num_queries]`.
    ///
    /// # Errors
    /// Weights that are not numbers.
    pub(crate) fn taken(&self, sample: &HeadSample, selector: &Selector) -> Result<Vec<usize>> {
        let (mut scratch, mut taken) = (SelectScratch::default(), TokenSet::default());
        let mut counts = Vec::new();
        for weights in self.weights.chunks_exact(sample.num_coded()) {
            let resident_mass = 1.0 - weights.iter().sum::<f64>();
            let weights: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
            counts.push(selector.select(&weights, resident_mass, &mut scratch, &mut taken)?);
        }
        Ok(counts)
    }

    /// Errors of the outputs `[num_queries, head_dim]` where query i takes `counts[i]` coded tokens, those of
    /// the highest of its scores `coded [num_queries, num_coded]` (of equals the first), and attends, under
    /// exact scores, to all that any query head of the group takes, and to the tokens that are exact anyway.
    /// As many tokens of every format: one whose errors make it take more is not the better for it.
    ///
    /// # Panics
    /// When there is not a count for every query, and a score for every query and coded token.
    pub(crate) fn selected(
        &self,
        sample: &HeadSample,
        coded: &[f32],
        counts: &[usize],
    ) -> Vec<f64> {
        let (num_coded, head_dim) = (sample.num_coded(), sample.head_dim);
        assert_eq!(coded.len(), self.weights.len(), "a score per query and coded token");
        assert_eq!(counts.len() * num_coded, coded.len(), "a count per query");
        let group = sample.group_size * num_coded;
        let mut errors = Vec::with_capacity(self.out.len());
        for (step, scores) in coded.chunks_exact(group).enumerate() {
            let mut taken = vec![false; num_coded];
            let counts = &counts[step * sample.group_size..];
            for (scores, &count) in scores.chunks_exact(num_coded).zip(counts) {
                highest(scores, count).into_iter().for_each(|token| taken[token] = true);
            }
            let weights = self.weights[step * group..][..group].chunks_exact(num_coded);
            let outputs = self.out[step * sample.group_size * head_dim..].chunks_exact(head_dim);
            for (weights, out) in weights.zip(outputs) {
                errors.extend(left_out(weights, &taken, &sample.coded.values, out));
            }
        }
        errors
    }
}

/// The `count` tokens of the highest scores, in no order.
fn highest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, |&a, &b| {
            scores[b].total_cmp(&scores[a]).then(a.cmp(&b))
        });
        order.truncate(count);
    }
    order
}

/// How far leaving out the tokens that are not taken moves an output: what they held of it is missing, and the
/// weights of the others rise until they sum to one. Where nothing else has weight to speak of, as much as all of it.
fn left_out(weights: &[f64], taken: &[bool], values: &[f32], out: &[f64]) -> Vec<f64> {
    let (mut mass, mut held) = (0.0, vec![0.0; out.len()]);
    for ((weight, taken), value) in weights.iter().zip(taken).zip(values.chunks_exact(out.len())) {
        if !taken {
            mass += weight;
            held.iter_mut().zip(value).for_each(|(held, &v)| *held += weight * f64::from(v));
        }
    }
    // Below this the difference is rounding, and what is left says nothing of the values.
    const LEAST_KEPT: f64 = 1e-9;
    let kept = 1.0 - mass;
    if kept < LEAST_KEPT {
        return out.iter().map(|out| -out).collect();
    }
    held.iter().zip(out).map(|(held, out)| (out * mass - held) / kept).collect()
}

#[cfg(test)]
mod tests;
