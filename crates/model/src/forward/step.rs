//! A block of tokens on its way through a layer, and the working memory that it does so in.

use heterokv_attn::simd::swiglu;
use heterokv_cache::AttentionCache;
use heterokv_quant::weights::{Activations, gemv_many};

use super::{Layer, Model, Projection};
use crate::Result;
use crate::ops::{
    TurnRows, Turns, add_and_norm, add_bias, add_to, rms_norm, rms_norm_in_place, spread,
};

/// Working memory of a forward pass, for any model. Kept from one call to the next, it lets a token pass without an
/// allocation for what its layers are worked out in; a new one is empty.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The residual stream, `[n, hidden_size]`.
    hidden: Vec<f32>,
    /// `[n, num_qo_heads, head_dim]`.
    q: Vec<f32>,
    /// `[n, num_kv_heads, head_dim]`.
    k: Vec<f32>,
    /// Of the shape of `k`.
    v: Vec<f32>,
    /// Of the shape of `q`.
    attended: Vec<f32>,
    turns: Turns,
    work: Work,
    /// `[vocab_size]`.
    logits: Vec<f32>,
}

/// What the projections of a layer are worked out in.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// `[n, hidden_size]`.
    normed: Vec<f32>,
    /// `[n, hidden_size]`: what is added to the residual stream.
    product: Vec<f32>,
    /// `[n, intermediate_size]`.
    gate: Vec<f32>,
    /// Of the shape of `gate`.
    up: Vec<f32>,
    /// Of no vector; its memory is reused.
    activations: Activations<'static>,
}

/// The vector at this length, whatever is in it. It gives no memory back.
pub(super) fn fit(vector: &mut Vec<f32>, len: usize) -> &mut [f32] {
    vector.resize(len, 0.0);
    vector
}

impl Model {
    /// Runs further tokens through the model behind what `cache` holds, each attending over the cache
    /// as it then is. Returns the last hidden states `[num_tokens, hidden_size]`.
    ///
    /// Whoever decodes token by token saves allocations with [`Model::extend_in`].
    ///
    /// # Errors
    /// As [`Model::prefill`].
    pub fn extend(&self, tokens: &[u32], cache: &mut dyn AttentionCache) -> Result<Vec<f32>> {
        let mut scratch = Scratch::default();
        self.extend_in(&mut scratch, tokens, cache)?;
        Ok(scratch.hidden)
    }

    /// [`Model::extend`] in the memory of `scratch`, where the hidden states stay until it is used again.
    ///
    /// # Errors
    /// As [`Model::prefill`].
    pub fn extend_in<'s>(
        &self,
        scratch: &'s mut Scratch,
        tokens: &[u32],
        cache: &mut dyn AttentionCache,
    ) -> Result<&'s [f32]> {
        let Scratch { hidden, q, k, v, attended, turns, work, .. } = scratch;
        self.embed(tokens, hidden)?;
        let (qo_len, kv_len) = (self.shape.heads.qo_row_len(), self.shape.heads.kv_row_len());
        let (q, attended) = (fit(q, tokens.len() * qo_len), fit(attended, tokens.len() * qo_len));
        let (k, v) = (fit(k, tokens.len() * kv_len), fit(v, tokens.len() * kv_len));
        self.rope.fill_turns(cache.num_tokens(), tokens.len(), turns);
        let turns = turns.of_tokens(0, tokens.len());
        for (index, layer) in self.layers.iter().enumerate() {
            self.project(layer, hidden, turns, (q, k, v), work)?;
            let rows = k.chunks_exact(kv_len).zip(v.chunks_exact(kv_len));
            let heads = q.chunks_exact(qo_len).zip(attended.chunks_exact_mut(qo_len));
            for ((k, v), (q, out)) in rows.zip(heads) {
                cache.append(index, k, v)?;
                cache.attend(index, q, out)?;
            }
            self.finish_layer(layer, attended, hidden, work)?;
        }
        Ok(hidden)
    }

    /// Logits `[vocab_size]` of one hidden state `[hidden_size]` of the last layer.
    ///
    /// # Errors
    /// When `hidden` has another length.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let mut scratch = Scratch::default();
        self.logits_in(&mut scratch, hidden)?;
        Ok(scratch.logits)
    }

    /// [`Model::logits`] in the memory of `scratch`, where they stay until it is used again.
    ///
    /// # Errors
    /// When `hidden` has another length.
    pub fn logits_in<'s>(&self, scratch: &'s mut Scratch, hidden: &[f32]) -> Result<&'s mut [f32]> {
        let normed = fit(&mut scratch.work.normed, hidden.len());
        rms_norm(hidden, &self.output_norm, self.config.rms_norm_eps, normed);
        let logits = fit(&mut scratch.logits, self.config.vocab_size);
        let activations = &mut scratch.work.activations;
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        shared(activations, normed, |normed| output.gemv_prepared(normed, logits))?;
        Ok(logits)
    }

    /// Post-RoPE queries and keys, and values, of the tokens that `turns` are of.
    fn project(
        &self,
        layer: &Layer,
        hidden: &[f32],
        turns: TurnRows<'_>,
        (q, k, v): (&mut [f32], &mut [f32], &mut [f32]),
        work: &mut Work,
    ) -> Result<()> {
        let (normed, activations) = self.attn_normed(layer, hidden, work);
        multiply(normed, activations, [(&layer.q, q), (&layer.k, k), (&layer.v, v)])?;
        self.place(&layer.norm_q, q, turns);
        self.place(&layer.norm_k, k, turns);
        Ok(())
    }

    /// The queries of [`Model::project`] alone.
    pub(super) fn project_q(
        &self,
        layer: &Layer,
        hidden: &[f32],
        turns: TurnRows<'_>,
        q: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let (normed, activations) = self.attn_normed(layer, hidden, work);
        multiply(normed, activations, [(&layer.q, &mut *q)])?;
        self.place(&layer.norm_q, q, turns);
        Ok(())
    }

    /// The keys and values of [`Model::project`] alone.
    pub(super) fn project_kv(
        &self,
        layer: &Layer,
        hidden: &[f32],
        turns: TurnRows<'_>,
        (k, v): (&mut [f32], &mut [f32]),
        work: &mut Work,
    ) -> Result<()> {
        let (normed, activations) = self.attn_normed(layer, hidden, work);
        multiply(normed, activations, [(&layer.k, &mut *k), (&layer.v, v)])?;
        self.place(&layer.norm_k, k, turns);
        Ok(())
    }

    /// What the projections of attention multiply, with the memory that they share.
    fn attn_normed<'w>(
        &self,
        layer: &Layer,
        hidden: &[f32],
        work: &'w mut Work,
    ) -> (&'w [f32], &'w mut Activations<'static>) {
        let normed = fit(&mut work.normed, hidden.len());
        rms_norm(hidden, &layer.attn_norm, self.config.rms_norm_eps, normed);
        (normed, &mut work.activations)
    }

    /// Norms each head of q or k where the model does so, then turns it to its token's position.
    fn place(&self, norm: &Option<Vec<f32>>, rows: &mut [f32], turns: TurnRows<'_>) {
        if let Some(norm) = norm {
            rms_norm_in_place(rows, norm, self.config.rms_norm_eps);
        }
        turns.rotate(rows);
    }

    /// The attention output's projection and the MLP, added to the hidden states.
    pub(super) fn finish_layer(
        &self,
        layer: &Layer,
        attended: &[f32],
        hidden: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let inner = hidden.len() / self.config.hidden_size * self.config.intermediate_size;
        let Work { normed, product, gate, up, activations } = work;
        let (normed, product) = (fit(normed, hidden.len()), fit(product, hidden.len()));
        let (gate, up) = (fit(gate, inner), fit(up, inner));
        multiply(attended, activations, [(&layer.o, &mut *product)])?;
        add_and_norm(hidden, product, &layer.ffn_norm, self.config.rms_norm_eps, normed);
        multiply(normed, activations, [(&layer.gate, &mut *gate), (&layer.up, &mut *up)])?;
        spread(gate, up, |gate, up| swiglu(self.level, gate, up));
        multiply(gate, activations, [(&layer.down, &mut *product)])?;
        spread(hidden, product, add_to);
        Ok(())
    }
}

/// Gives `product` the vector `x` to multiply matrices with, in the memory of another.
fn shared<'x, T>(
    memory: &mut Activations<'static>,
    x: &'x [f32],
    product: impl FnOnce(&mut Activations<'x>) -> T,
) -> T {
    let mut activations = std::mem::take(memory).reused_for(x);
    let result = product(&mut activations);
    *memory = activations.reused_for(&[]);
    result
}

/// Products of rows `x [n, cols]` with several projections, biases added: by vector for one row, in the memory of
/// `activations`, by matrix for more.
fn multiply<const N: usize>(
    x: &[f32],
    activations: &mut Activations<'static>,
    mut products: [(&Projection, &mut [f32]); N],
) -> Result<()> {
    let cols = products.first().map_or(1, |(projection, _)| projection.weights.cols());
    let num_rows = x.len() / cols;
    if num_rows == 1 {
        let mut pairs = products.each_mut().map(|(projection, y)| (&projection.weights, &mut **y));
        shared(activations, x, |x| gemv_many(x, &mut pairs))?;
    } else {
        for (projection, y) in &mut products {
            projection.weights.gemm(x, num_rows, y)?;
        }
    }
    for (projection, y) in products {
        if let Some(bias) = &projection.bias {
            add_bias(y, bias);
        }
    }
    Ok(())
}
