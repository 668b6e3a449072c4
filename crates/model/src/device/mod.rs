//! The model on a GPU: weights uploaded once, a prompt layer by layer, a token through all layers.
//!
//! A [`DeviceModel`] computes what a [`Model`](crate::Model) does, by the kernels of `heterokv_attn::device`; where its
//! cache keeps values on the host, every layer of a decode step stops for the host's part. Norms, softmax and sums are
//! f32; the weights are those of the host's form, so that the two differ by roundings alone.

mod decoder;
mod forward;
mod plan;
mod prompt;
mod weights;

use std::sync::Arc;

use heterokv_attn::device::{Device, DeviceMatrix, Linear, RmsNorm, Rope as DeviceRope, SwiGlu};
use heterokv_cache::{HeadShape, KvShape};
use heterokv_gpu::{Bound, Buffer, Commands};
use heterokv_quant::Level;
use heterokv_quant::weights::ComputeType;

pub use decoder::DeviceDecoder;
pub use plan::DeviceModelPlan;
use plan::WorkSizes;

use crate::checkpoint::{LayerTensor, TensorRole};
use crate::loader::Loader;
use crate::ops::Rope;
use crate::{Checkpoint, ModelConfig, Progress, Result};

/// Tokens that pass through a layer together.
const BLOCK_TOKENS: usize = 256;

/// A model's weights on a device, ready to compute.
#[derive(Debug)]
pub struct DeviceModel {
    device: Arc<Device>,
    config: ModelConfig,
    shape: KvShape,
    rope: Rope,
    embedding: DeviceMatrix,
    layers: Vec<Layer>,
    output_norm: Buffer,
    /// None where the output projection is the embedding.
    output: Option<DeviceMatrix>,
    work: Work,
}

#[derive(Debug)]
struct Layer {
    attn_norm: Buffer,
    q: DeviceMatrix,
    k: DeviceMatrix,
    v: DeviceMatrix,
    o: DeviceMatrix,
    norm_q: Option<Buffer>,
    norm_k: Option<Buffer>,
    ffn_norm: Buffer,
    gate: DeviceMatrix,
    up: DeviceMatrix,
    down: DeviceMatrix,
}

/// What a block of tokens is worked out in, f32 but for the ids.
#[derive(Debug)]
struct Work {
    /// `[BLOCK_TOKENS]`.
    ids: Buffer,
    /// Cosines and sines `[BLOCK_TOKENS, head_dim / 2, 2]`.
    turns: Buffer,
    /// `[BLOCK_TOKENS, hidden_size]`: the residual stream, and what is normed.
    hidden: Buffer,
    normed: Buffer,
    /// `[hidden_size]`: the last token's of both.
    last: Buffer,
    last_normed: Buffer,
    /// `[BLOCK_TOKENS, num_qo_heads, head_dim]`.
    q: Buffer,
    q_raw: Buffer,
    attended: Buffer,
    /// `[BLOCK_TOKENS, num_kv_heads, head_dim]`.
    k: Buffer,
    k_raw: Buffer,
    v: Buffer,
    /// `[BLOCK_TOKENS, num_qo_heads]`.
    lse: Buffer,
    /// `[BLOCK_TOKENS, intermediate_size]`.
    gate: Buffer,
    up: Buffer,
    inner: Buffer,
    /// One token's queries, key, value and output.
    token: [Buffer; 4],
    /// `[vocab_size]`, and as many of what excludes a token.
    logits: Buffer,
    excluded: Buffer,
    /// What a token is drawn by, and what was picked.
    uniform: Buffer,
    picked: Buffer,
}

impl DeviceModel {
    /// Uploads the weights of `checkpoint` in the form `compute`, a few rows at a time out of the mapped file: no copy of
    /// them is held in RAM. `progress` is told `(layers, of them)`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, one that the form cannot hold, `f32`, which no kernel computes with, and what the
    /// device lacks.
    pub fn load(
        device: Arc<Device>,
        checkpoint: &Checkpoint,
        compute: ComputeType,
        level: Level,
        mut progress: Option<Progress<'_>>,
    ) -> Result<Self> {
        let config = checkpoint.config().clone();
        let loader = Loader { checkpoint, compute, level };
        let gpu = device.gpu();
        let heads = HeadShape::new(config.num_qo_heads, config.num_kv_heads, config.head_dim)
            .map_err(heterokv_cache::Error::from)?;
        let mut layers = Vec::new();
        for index in 0..config.num_layers {
            layers.push(Layer::load(gpu, &loader, index)?);
            if let Some(progress) = &mut progress {
                progress(index + 1, config.num_layers);
            }
        }
        let output = match config.tie_word_embeddings {
            true => None,
            false => Some(weights::upload(gpu, &loader, TensorRole::Output, None)?),
        };
        let output_norm = loader.vector(TensorRole::OutputNorm)?;
        Ok(Self {
            shape: KvShape { num_layers: config.num_layers, heads },
            rope: Rope::new(&config.rope, config.head_dim),
            embedding: weights::upload(gpu, &loader, TensorRole::TokenEmbedding, None)?,
            layers,
            output_norm: gpu.upload("norm", bytemuck::cast_slice(&output_norm))?,
            output,
            work: Work::new(gpu, &config)?,
            config,
            device,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What a cache needs to know.
    #[must_use]
    pub fn kv_shape(&self) -> KvShape {
        self.shape
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Root mean square norm of `x [rows, weight's length]`, f32, into `y`.
    fn norm(
        &self,
        commands: &mut Commands<'_>,
        rows: usize,
        weight: &Buffer,
        [x, y]: [Bound<'_>; 2],
    ) -> Result<()> {
        let cols = weight.num_bytes() as usize / 4;
        let eps = self.config.rms_norm_eps;
        let norm = RmsNorm { rows, cols, eps, weight: Bound::all(weight), x, y };
        Ok(self.device.rms_norm(commands, &norm)?)
    }

    /// `y [tokens, rows] = W x + bias` of `x [tokens, cols]`, f32; with `adds`, added to what `y` holds.
    fn multiply(
        &self,
        commands: &mut Commands<'_>,
        matrix: &DeviceMatrix,
        tokens: usize,
        [x, y]: [Bound<'_>; 2],
        adds: bool,
    ) -> Result<()> {
        Ok(self.device.linear(commands, &Linear { matrix, tokens, x, y, adds })?)
    }

    /// Cosines and sines of the tokens from `position` on.
    fn turns(&self, position: usize, tokens: usize) -> Vec<f32> {
        (position..position + tokens)
            .flat_map(|position| self.rope.turns(position))
            .flat_map(|(sin, cos)| [cos, sin])
            .collect()
    }

    /// A projection of normed rows to heads, each normed where the model does so, and turned to its position.
    fn project(
        &self,
        commands: &mut Commands<'_>,
        tokens: usize,
        projection: &Projection<'_>,
        y: Bound<'_>,
        turns: Bound<'_>,
    ) -> Result<()> {
        let Projection { matrix, norm, raw, num_heads } = *projection;
        let x = Bound::all(&self.work.normed);
        match norm {
            None => self.multiply(commands, matrix, tokens, [x, y], false)?,
            Some(norm) => {
                self.multiply(commands, matrix, tokens, [x, Bound::all(raw)], false)?;
                self.norm(commands, tokens * num_heads, norm, [Bound::all(raw), y])?;
            }
        }
        let head_dim = self.config.head_dim;
        let rope = DeviceRope { tokens, num_heads, head_dim, turns, x: y };
        Ok(self.device.rope(commands, &rope)?)
    }

    /// The attention output's projection and the MLP, added to the residual stream `hidden`.
    fn finish_layer(
        &self,
        commands: &mut Commands<'_>,
        layer: &Layer,
        tokens: usize,
        hidden: Bound<'_>,
    ) -> Result<()> {
        let Work { attended, normed, gate, up, inner, .. } = &self.work;
        let [attended, normed, gate, up, inner] =
            [attended, normed, gate, up, inner].map(Bound::all);
        self.multiply(commands, &layer.o, tokens, [attended, hidden], true)?;
        self.norm(commands, tokens, &layer.ffn_norm, [hidden, normed])?;
        self.multiply(commands, &layer.gate, tokens, [normed, gate], false)?;
        self.multiply(commands, &layer.up, tokens, [normed, up], false)?;
        let len = tokens * self.config.intermediate_size;
        self.device.swiglu(commands, &SwiGlu { len, gate, up, y: inner })?;
        self.multiply(commands, &layer.down, tokens, [inner, hidden], true)
    }
}

/// A matrix to heads, and what follows it.
#[derive(Clone, Copy)]
struct Projection<'a> {
    matrix: &'a DeviceMatrix,
    norm: Option<&'a Buffer>,
    /// Where rows are before they are normed.
    raw: &'a Buffer,
    num_heads: usize,
}

impl Layer {
    fn load(gpu: &heterokv_gpu::Gpu, loader: &Loader<'_>, index: usize) -> Result<Self> {
        let role = |tensor| TensorRole::Layer(index, tensor);
        let biased = |weights, bias| {
            weights::upload(gpu, loader, role(weights), loader.optional_vector(role(bias))?)
        };
        let vector = |values: Vec<f32>| gpu.upload("norm", bytemuck::cast_slice(&values));
        let norm = |tensor| Ok::<_, crate::Error>(vector(loader.vector(role(tensor))?)?);
        let optional = |tensor| {
            let values = loader.optional_vector(role(tensor))?;
            Ok::<_, crate::Error>(values.map(vector).transpose()?)
        };
        Ok(Self {
            attn_norm: norm(LayerTensor::AttnNorm)?,
            q: biased(LayerTensor::Wq, LayerTensor::BiasQ)?,
            k: biased(LayerTensor::Wk, LayerTensor::BiasK)?,
            v: biased(LayerTensor::Wv, LayerTensor::BiasV)?,
            o: biased(LayerTensor::Wo, LayerTensor::BiasO)?,
            norm_q: optional(LayerTensor::NormQ)?,
            norm_k: optional(LayerTensor::NormK)?,
            ffn_norm: norm(LayerTensor::FfnNorm)?,
            gate: biased(LayerTensor::Gate, LayerTensor::BiasGate)?,
            up: biased(LayerTensor::Up, LayerTensor::BiasUp)?,
            down: biased(LayerTensor::Down, LayerTensor::BiasDown)?,
        })
    }

    fn projection_q<'a>(&'a self, work: &'a Work, config: &ModelConfig) -> Projection<'a> {
        Projection {
            matrix: &self.q,
            norm: self.norm_q.as_ref(),
            raw: &work.q_raw,
            num_heads: config.num_qo_heads,
        }
    }

    fn projection_k<'a>(&'a self, work: &'a Work, config: &ModelConfig) -> Projection<'a> {
        Projection {
            matrix: &self.k,
            norm: self.norm_k.as_ref(),
            raw: &work.k_raw,
            num_heads: config.num_kv_heads,
        }
    }
}

impl Work {
    fn new(gpu: &heterokv_gpu::Gpu, config: &ModelConfig) -> Result<Self> {
        let sizes = WorkSizes::new(config);
        let buffer = |label, bytes: u64| gpu.buffer(label, bytes);
        let WorkSizes { ids, turns, hidden, last, q, k, lse, inner, token, logits, pick } = sizes;
        let excluded = vec![f32::NEG_INFINITY; config.vocab_size];
        Ok(Self {
            ids: buffer("ids", ids)?,
            turns: buffer("cosines and sines", turns)?,
            hidden: buffer("residual stream", hidden)?,
            normed: buffer("normed rows", hidden)?,
            last: buffer("last hidden state", last)?,
            last_normed: buffer("last hidden state, normed", last)?,
            q: buffer("queries", q)?,
            q_raw: buffer("queries before their norm", q)?,
            attended: buffer("attention outputs", q)?,
            k: buffer("keys", k)?,
            k_raw: buffer("keys before their norm", k)?,
            v: buffer("values", k)?,
            lse: buffer("lse", lse)?,
            gate: buffer("gate", inner)?,
            up: buffer("up", inner)?,
            inner: buffer("activations", inner)?,
            token: [
                buffer("a token's queries", token[0])?,
                buffer("a token's key", token[1])?,
                buffer("a token's value", token[1])?,
                buffer("a token's output", token[0])?,
            ],
            logits: buffer("logits", logits)?,
            excluded: gpu.upload("logits of what is excluded", bytemuck::cast_slice(&excluded))?,
            uniform: buffer("a uniform number", pick)?,
            picked: buffer("what was picked", pick)?,
        })
    }
}
