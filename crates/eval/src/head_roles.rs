//! What each KV head of a model is to its cache, measured on a text by the definitions of HeteroCache (arXiv
//! 2601.13684).
//!
//! A query attends to the positions of the prompt that weigh most: the softmax weights of a head's query group, their
//! mean, spread over five neighbours, and of these the highest. A head is stable where the queries of the text behind
//! the prompt attend to the positions of the prompt's last one, and like another where they attend to the same.

use heterokv_cache::{HeadMeasure, HeadProfile, SimilarityAt};
use heterokv_evict::{Gqa, Pool, Scorer, Scoring, classify, overlap, top_positions};
use heterokv_model::{Model, Progress};
use rayon::prelude::*;

use crate::attention::exact_scores;
use crate::divergence::median;
use crate::heads::{HeadRows, visit_layers};
use crate::{Error, Result};

/// How the positions that a query attends to are found.
const SCORING: Scoring =
    Scoring { scorer: Scorer::LastQuery, window: 1, pool: Pool::Mean(5), gqa: Gqa::Mean };

/// Measures the heads of `model`, whose fingerprint is `fingerprint`, on `tokens`: a prompt of
/// [`HeadMeasure::prompt_tokens`] and, as if they were generated behind it, [`HeadMeasure::steps`] more. Reports
/// `(layers measured, layers)`.
///
/// Attention is exact and causal, so that a token behind the prompt sees what it would see as it is generated. The
/// heads of one layer exist at a time.
///
/// # Errors
/// What [`HeadMeasure::check`] refuses and another number of tokens, before anything is computed; what the model
/// refuses; and [`Error::HeadAttention`].
pub fn measure_heads(
    model: &Model,
    tokens: &[u32],
    measure: &HeadMeasure,
    fingerprint: &str,
    mut progress: Option<Progress<'_>>,
) -> Result<HeadProfile> {
    let shape = model.kv_shape();
    measure.check()?;
    let (actual, expected) = (tokens.len(), measure.prompt_tokens.saturating_add(measure.steps));
    if actual != expected {
        Err(heterokv_cache::Error::Length { tensor: "tokens", actual, expected })?;
    }
    let (mut stability, mut roles) = (Vec::new(), Vec::new());
    visit_layers(model, &[tokens], &mut |rows| {
        let attended = rows.heads.par_iter().enumerate().map(|(kv_head, head)| {
            let layer = rows.layer;
            attended(head, measure).map_err(|source| Error::HeadAttention {
                layer,
                kv_head,
                source,
            })
        });
        let layer = LayerOverlaps::of(&attended.collect::<Result<Vec<_>>>()?, measure.similarity);
        let (tau_stable, tau_sim) = (measure.tau_stable, measure.tau_sim);
        roles.extend(classify(&layer.stability, &layer.similarity, tau_stable, tau_sim)?);
        stability.extend(layer.stability);
        if let Some(progress) = &mut progress {
            progress(rows.layer + 1, shape.num_layers);
        }
        Ok(())
    })?;
    Ok(HeadProfile::new(fingerprint, &shape, *measure, stability, roles)?)
}

/// Positions of the prompt that each query attends to, ascending, by query: the last one of the prompt, then those
/// of the steps.
fn attended(rows: &HeadRows, measure: &HeadMeasure) -> heterokv_evict::Result<Vec<Vec<u32>>> {
    let HeadRows { head_dim, group_size, sm_scale, .. } = *rows;
    let prompt_tokens = measure.prompt_tokens;
    let positions = prompt_tokens - 1..prompt_tokens + measure.steps;
    let attended_by = |position: usize| {
        let group_len = group_size * head_dim;
        let queries = &rows.queries[position * group_len..][..group_len];
        let seen = &rows.keys[..(position + 1) * head_dim];
        let mut weights = Vec::with_capacity(group_size * prompt_tokens);
        for scores in exact_scores(head_dim, sm_scale, queries, seen).chunks_exact(position + 1) {
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            let weight = |score: &f64| ((score - largest).exp() / sum) as f32;
            weights.extend(scores[..prompt_tokens].iter().map(weight));
        }
        top_positions(&SCORING.scores_of_query(group_size, &weights)?, measure.top_k)
    };
    positions.map(attended_by).collect()
}

/// How far the heads of one layer attend to the same positions.
#[derive(Debug)]
struct LayerOverlaps {
    /// Of each head with itself at the end of the prompt, the median over the steps `[num_kv_heads]`.
    stability: Vec<f64>,
    /// Of every two heads `[num_kv_heads, num_kv_heads]`.
    similarity: Vec<f64>,
}

impl LayerOverlaps {
    /// Of heads by what each attends to at the end of the prompt and at every step.
    fn of(attended: &[Vec<Vec<u32>>], similarity: SimilarityAt) -> Self {
        let stability = attended.iter().map(|head| {
            let (prompt, steps) = (&head[0], &head[1..]);
            median(&steps.iter().map(|step| overlap(step, prompt)).collect::<Vec<_>>())
        });
        let similar = |a: &[Vec<u32>], b: &[Vec<u32>]| match similarity {
            SimilarityAt::Prompt => overlap(&a[0], &b[0]),
            SimilarityAt::Steps => {
                let steps = a[1..].iter().zip(&b[1..]).map(|(a, b)| overlap(a, b));
                median(&steps.collect::<Vec<_>>())
            }
        };
        let pairs = attended.iter().flat_map(|a| attended.iter().map(move |b| (a, b)));
        Self {
            stability: stability.collect(),
            similarity: pairs.map(|(a, b)| similar(a, b)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
