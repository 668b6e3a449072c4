//! Logits of a token list, for comparison with another engine.

use heterokv_cache::{CacheSpec, KvCache};
use heterokv_model::Model;
use serde::Serialize;

use crate::divergence::log_sum_exp;
use crate::{Error, Result};

/// Tokens whose logits are computed together.
const BLOCK_ROWS: usize = 64;

/// Logits of one token of the list, which predict the next.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogitsRow {
    /// Index of the token.
    pub row: usize,
    /// ln Σ exp(logit).
    pub logsumexp: f64,
    /// The 32 tokens of the highest logits, falling.
    pub top32_ids: Vec<u32>,
    /// Their logits.
    pub top32_logits: Vec<f32>,
    /// All logits `[vocab_size]`.
    pub logits: Vec<f32>,
}

/// What a model makes of a token list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogitsReport {
    /// Tokens of the list.
    pub num_tokens: usize,
    /// Mean negative log-likelihood of each token given those before it; none for a single token.
    pub mean_nll: Option<f64>,
    /// The rows asked for.
    pub rows: Vec<LogitsRow>,
}

/// Runs `tokens` through the model with exact attention; `rows` counts from the end where negative.
///
/// # Errors
/// [`Error::NoSuchRow`], an empty list, an id outside the vocabulary, or [`Error::NotFinite`].
pub fn logits_report(model: &Model, tokens: &[u32], rows: &[i64]) -> Result<LogitsReport> {
    let num_tokens = tokens.len();
    let mut wanted = Vec::new();
    for &row in rows {
        let place = if row < 0 { row + num_tokens as i64 } else { row };
        let place = usize::try_from(place).ok().filter(|&place| place < num_tokens);
        wanted.push(place.ok_or(Error::NoSuchRow { row, num_tokens })?);
    }
    let shape = model.kv_shape();
    let config = CacheSpec::full().resolve(&shape, None)?;
    let mut caches = [KvCache::new(shape, config, model.level(), None)?];
    let hidden = model.prefill(tokens, &mut caches, None)?;
    let hidden_size = model.config().hidden_size;
    let vocab_size = model.config().vocab_size;
    let mut nll = 0.0;
    let mut found = Vec::new();
    for (block, hidden) in hidden.chunks(BLOCK_ROWS * hidden_size).enumerate() {
        let logits = model.logits_of_rows(hidden)?;
        for (i, logits) in logits.chunks_exact(vocab_size).enumerate() {
            let token = block * BLOCK_ROWS + i;
            let logsumexp = log_sum_exp(logits);
            if !logsumexp.is_finite() {
                return Err(Error::NotFinite { what: "the sum of the logits", step: token });
            }
            if let Some(&next) = tokens.get(token + 1) {
                nll += logsumexp - f64::from(logits[next as usize]);
            }
            if wanted.contains(&token) {
                found.push(LogitsRow::new(token, logsumexp, logits));
            }
        }
    }
    let mean_nll = (num_tokens > 1).then(|| nll / (num_tokens - 1) as f64);
    let row = |place: &usize| found.iter().find(|row| row.row == *place).cloned();
    Ok(LogitsReport { num_tokens, mean_nll, rows: wanted.iter().filter_map(row).collect() })
}

impl LogitsRow {
    fn new(row: usize, logsumexp: f64, logits: &[f32]) -> Self {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let falling =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if ids.len() > 32 {
            ids.select_nth_unstable_by(31, falling);
            ids.truncate(32);
        }
        ids.sort_by(falling);
        let top32_logits = ids.iter().map(|&id| logits[id as usize]).collect();
        Self { row, logsumexp, top32_ids: ids, top32_logits, logits: logits.to_vec() }
    }
}
