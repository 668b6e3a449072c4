//! Rows of a model's heads over a text, and their split into what a cache codes and what it keeps exact.

use heterokv_model::Model;

use crate::{Error, Result};

/// Rows of one (layer, KV head) over a text, post-RoPE, f32.
#[derive(Clone, Debug)]
pub struct HeadRows {
    /// Length of a row.
    pub head_dim: usize,
    /// Query heads that share the keys.
    pub group_size: usize,
    /// What a dot product of a query and a key is multiplied by.
    pub sm_scale: f32,
    /// Keys `[num_tokens, head_dim]`.
    pub keys: Vec<f32>,
    /// Values `[num_tokens, head_dim]`.
    pub values: Vec<f32>,
    /// Queries `[num_tokens, group_size, head_dim]`.
    pub queries: Vec<f32>,
}

/// The heads of one layer over a text.
#[derive(Clone, Debug)]
pub struct LayerRows {
    /// Index of the layer.
    pub layer: usize,
    /// Index of the text.
    pub text: usize,
    /// `[num_kv_heads]`.
    pub heads: Vec<HeadRows>,
    /// Squared length of what enters the layer, of each token `[num_tokens]`.
    pub residual_energy: Vec<f64>,
}

/// Runs `texts` through the model with exact attention, each by itself, and gives `visit` the heads of each
/// layer in turn, text after text; those of one layer and text exist at a time. After an error of `visit` it is
/// not called again. No texts: no visit.
///
/// # Errors
/// As [`Model::observe`], and the error of `visit`.
pub fn visit_layers(
    model: &Model,
    texts: &[&[u32]],
    visit: &mut dyn FnMut(LayerRows) -> Result<()>,
) -> Result<()> {
    let shape = model.kv_shape().heads;
    let (mut queries, mut residual_energy) = (Vec::new(), Vec::new());
    let mut visited = Ok(());
    model.observe(texts, &mut |block| {
        if visited.is_err() {
            return;
        }
        queries.extend_from_slice(block.q);
        let squares = block.hidden.chunks_exact(model.config().hidden_size);
        let energy = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        residual_energy.extend(squares.map(energy));
        if queries.len() < texts[block.text].len() * shape.qo_row_len() {
            return;
        }
        let group_len = shape.group_size() * shape.head_dim;
        let heads = (0..shape.num_kv_heads).map(|head| HeadRows {
            head_dim: shape.head_dim,
            group_size: shape.group_size(),
            sm_scale: shape.sm_scale,
            keys: columns(block.k, shape.kv_row_len(), head, shape.head_dim),
            values: columns(block.v, shape.kv_row_len(), head, shape.head_dim),
            queries: columns(&queries, shape.qo_row_len(), head, group_len),
        });
        visited = visit(LayerRows {
            layer: block.layer,
            text: block.text,
            heads: heads.collect(),
            residual_energy: std::mem::take(&mut residual_energy),
        });
        queries.clear();
    })?;
    visited
}

/// Columns `index · width..` of rows of `row_len`.
fn columns(rows: &[f32], row_len: usize, index: usize, width: usize) -> Vec<f32> {
    rows.chunks_exact(row_len).flat_map(|row| &row[index * width..][..width]).copied().collect()
}

/// Tokens that a cache keeps exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactTokens {
    /// At the beginning.
    pub sinks: usize,
    /// Before a query, its own included; one at least.
    pub recent: usize,
}

impl ExactTokens {
    /// Tokens between the exact ones of a text of `num_tokens`, of which the last `num_steps` ask.
    ///
    /// # Errors
    /// [`Error::ShortSample`] where no token is left to be coded, and [`Error::NoContinuation`] where none
    /// asks.
    pub(crate) fn num_coded(self, num_tokens: usize, num_steps: usize) -> Result<usize> {
        if num_steps == 0 {
            return Err(Error::NoContinuation);
        }
        let behind = self.recent.saturating_sub(1).saturating_add(num_steps);
        let num_coded = num_tokens.saturating_sub(behind).saturating_sub(self.sinks);
        if num_coded == 0 {
            return Err(Error::ShortSample { num_tokens, exact: self, num_steps });
        }
        Ok(num_coded)
    }
}

/// One (layer, KV head) over a text as a cache holds it: sinks and recent tokens exact, those between them to
/// be coded, and the queries of the last tokens, before which the same tokens are coded for all of them.
#[derive(Clone, Debug)]
pub struct HeadSample {
    pub(crate) head_dim: usize,
    pub(crate) group_size: usize,
    pub(crate) sm_scale: f32,
    pub(crate) exact: ExactTokens,
    pub(crate) num_steps: usize,
    pub(crate) coded: KeyValues,
    /// In order of position: sinks, then `recent - 1 + num_steps` tokens.
    pub(crate) resident: KeyValues,
    /// `[num_steps, group_size, head_dim]`.
    pub(crate) queries: Vec<f32>,
    /// `[head_dim]`.
    query_energy: Vec<f32>,
}

/// Keys and values of the same tokens, each `[n, head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct KeyValues {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl HeadSample {
    /// Splits the rows of a head: sinks, coded tokens, exact tokens, of which the last `num_steps` ask.
    ///
    /// # Errors
    /// [`Error::ShortSample`] where no token is left to be coded, and [`Error::NoContinuation`] where none
    /// asks.
    pub fn split(rows: &HeadRows, exact: ExactTokens, num_steps: usize) -> Result<Self> {
        let HeadRows { head_dim, group_size, sm_scale, .. } = *rows;
        let num_tokens = rows.keys.len() / head_dim;
        let num_coded = exact.num_coded(num_tokens, num_steps)?;
        let (first, end) = (exact.sinks * head_dim, (exact.sinks + num_coded) * head_dim);
        let coded = |rows: &[f32]| rows[first..end].to_vec();
        let resident = |rows: &[f32]| [&rows[..first], &rows[end..]].concat();
        let first_query = (num_tokens - num_steps) * group_size * head_dim;
        let (context, queries) = rows.queries.split_at(first_query);
        Ok(Self {
            head_dim,
            group_size,
            sm_scale,
            exact,
            num_steps,
            coded: KeyValues { keys: coded(&rows.keys), values: coded(&rows.values) },
            resident: KeyValues { keys: resident(&rows.keys), values: resident(&rows.values) },
            queries: queries.to_vec(),
            query_energy: relative_energy(context, head_dim),
        })
    }

    /// Length of a key.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// What a dot product is multiplied by.
    #[must_use]
    pub fn sm_scale(&self) -> f32 {
        self.sm_scale
    }

    /// The keys to be coded `[num_coded, head_dim]`.
    #[must_use]
    pub fn keys(&self) -> &[f32] {
        &self.coded.keys
    }

    /// The queries that are asked `[num_steps, group_size, head_dim]`.
    #[must_use]
    pub fn queries(&self) -> &[f32] {
        &self.queries
    }

    /// Mean of q² per channel `[head_dim]` over the queries before those, over its mean.
    #[must_use]
    pub fn query_energy(&self) -> &[f32] {
        &self.query_energy
    }

    /// Exact tokens that the queries of step `step` see.
    pub(crate) fn visible(&self, step: usize) -> usize {
        self.exact.sinks + self.exact.recent + step
    }

    pub(crate) fn num_coded(&self) -> usize {
        self.coded.keys.len() / self.head_dim
    }
}

/// Mean squares of the channels `[head_dim]` of `rows [n, head_dim]`, over their own mean; all ones where
/// there is nothing.
#[must_use]
pub fn relative_energy(rows: &[f32], head_dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; head_dim];
    for row in rows.chunks_exact(head_dim) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    let mean = sums.iter().sum::<f64>() / head_dim as f64;
    sums.iter().map(|sum| if mean > 0.0 { (sum / mean) as f32 } else { 1.0 }).collect()
}

#[cfg(test)]
mod tests;
