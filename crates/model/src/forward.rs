//! The forward pass: a prompt layer by layer in blocks of tokens, or one token at a time.
//!
//! Weights stay in the form that [`ComputeType`] names; norms, softmax and sums are f32. Keys enter the
//! cache post-RoPE, in the half-split pairing, whatever the checkpoint's own.

mod step;

use heterokv_cache::{HeadShape, KvCache, KvShape, PromptLayer};
use heterokv_quant::Level;
use heterokv_quant::weights::{ComputeType, WeightMatrix};
use rayon::prelude::*;

pub use step::Scratch;
use step::{Work, fit};

use crate::checkpoint::{LayerTensor, TensorRole};
use crate::loader::Loader;
use crate::ops::{Rope, Turns, rms_norm};
use crate::{Checkpoint, Error, ModelConfig, Result};

/// Tokens that pass through the projections of a layer together while a prompt is processed.
const BLOCK_TOKENS: usize = 512;

/// Layers that are loaded side by side, so that small tensors occupy all threads too.
const LAYERS_AT_ONCE: usize = 8;

/// A model's weights, ready to compute.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    shape: KvShape,
    level: Level,
    rope: Rope,
    embedding: WeightMatrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// None where the output projection is the embedding.
    output: Option<WeightMatrix>,
}

#[derive(Debug)]
struct Layer {
    attn_norm: Vec<f32>,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    norm_q: Option<Vec<f32>>,
    norm_k: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// A matrix and the bias that is added to its product.
#[derive(Debug)]
struct Projection {
    weights: WeightMatrix,
    bias: Option<Vec<f32>>,
}

/// What reports how far a piece of work is: `(done, total)`, for a prompt in tokens times layers.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// One block of a prompt, or of one of several texts, on its way through the attention of one layer.
#[derive(Clone, Copy, Debug)]
pub struct PromptBlock<'a> {
    /// Index of the layer.
    pub layer: usize,
    /// Index of the text; 0 for a prompt.
    pub text: usize,
    /// Position of the block's first token.
    pub first: usize,
    /// What enters the layer, of the block: the residual stream `[n, hidden_size]`, f32.
    pub hidden: &'a [f32],
    /// Post-RoPE queries of the block `[n, num_qo_heads, head_dim]`, f32.
    pub q: &'a [f32],
    /// Post-RoPE keys of the whole text `[num_tokens, num_kv_heads, head_dim]`, f32.
    pub k: &'a [f32],
    /// Values of the whole text, of the same shape.
    pub v: &'a [f32],
}

/// What looks on while a prompt is processed, block by block inside of layer by layer.
pub type Observer<'a> = &'a mut dyn FnMut(&PromptBlock<'_>);

impl Model {
    /// Loads the weights of `checkpoint` in the form `compute`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, or one that the form cannot hold, each by name.
    pub fn load(checkpoint: &Checkpoint, compute: ComputeType, level: Level) -> Result<Self> {
        Self::load_with(checkpoint, compute, level, None)
    }

    /// [`Model::load`] that reports `(layers read, layers)`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        checkpoint: &Checkpoint,
        compute: ComputeType,
        level: Level,
        mut progress: Option<Progress<'_>>,
    ) -> Result<Self> {
        let config = checkpoint.config().clone();
        let loader = Loader { checkpoint, compute, level };
        let heads = HeadShape::new(config.num_qo_heads, config.num_kv_heads, config.head_dim)
            .map_err(heterokv_cache::Error::from)?;
        let mut layers = Vec::new();
        while layers.len() < config.num_layers {
            let end = config.num_layers.min(layers.len() + LAYERS_AT_ONCE);
            let batch = (layers.len()..end).into_par_iter();
            let batch: Vec<Result<Layer>> =
                batch.map(|layer| Layer::load(&loader, layer)).collect();
            for layer in batch {
                layers.push(layer?);
            }
            if let Some(progress) = &mut progress {
                progress(layers.len(), config.num_layers);
            }
        }
        let output = match config.tie_word_embeddings {
            true => None,
            false => Some(loader.matrix(TensorRole::Output)?),
        };
        let model = Self {
            shape: KvShape { num_layers: config.num_layers, heads },
            level,
            rope: Rope::new(&config.rope, config.head_dim),
            embedding: loader.matrix(TensorRole::TokenEmbedding)?,
            layers,
            output_norm: loader.vector(TensorRole::OutputNorm)?,
            output,
            config,
        };
        // Nothing of the file is needed beside what was made of it.
        checkpoint.release();
        Ok(model)
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

    /// The instruction set in use.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// What a layer multiplies its attention outputs `[num_qo_heads, head_dim]` with before they are added to
    /// the residual stream: `[hidden_size, num_qo_heads · head_dim]`. None where there is no such layer.
    #[must_use]
    pub fn output_projection(&self, layer: usize) -> Option<&WeightMatrix> {
        self.layers.get(layer).map(|layer| &layer.o.weights)
    }

    /// Bytes of the weight matrices as held.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let embedding = self.output.as_ref().map_or(0, |_| self.embedding.bytes());
        embedding + self.output_weight_bytes() + self.layer_weight_bytes()
    }

    /// Bytes of the matrix that logits are computed with, which may be the embedding: what [`Model::logits`] reads.
    #[must_use]
    pub fn output_weight_bytes(&self) -> usize {
        self.output.as_ref().unwrap_or(&self.embedding).bytes()
    }

    /// Bytes of the weight matrices of all layers, those of embedding and output left out: what
    /// [`Model::extend`] reads for a token.
    #[must_use]
    pub fn layer_weight_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
        });
        layers.map(|projection| projection.weights.bytes()).sum()
    }

    /// Runs a whole prompt through the model and stores it in every one of `caches`, all empty, of this
    /// model, and of one [`prefill`](heterokv_cache::CacheConfig::prefill); attention is exact unless they ask
    /// for another. Returns the last hidden states `[num_tokens, hidden_size]`, which [`Model::logits`] turns
    /// into logits.
    ///
    /// Layer by layer: besides the caches, the hidden states, a block's products and one layer's exact keys and values are held
    /// at a time, these as they come and packed; [`prefill_bytes`](crate::prefill_bytes) counts all of it.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TokenId`] for an id outside the vocabulary, and what the caches
    /// refuse.
    pub fn prefill(
        &self,
        tokens: &[u32],
        caches: &mut [KvCache],
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<f32>> {
        Ok(self.process(&[tokens], caches, progress, None)?.remove(0))
    }

    /// [`Model::prefill`] under the eyes of `observer`: what statistics, dumps and policies are made of that
    /// need more of a prompt than a cache keeps.
    ///
    /// # Errors
    /// As [`Model::prefill`].
    pub fn prefill_observed(
        &self,
        tokens: &[u32],
        caches: &mut [KvCache],
        observer: Observer<'_>,
    ) -> Result<Vec<f32>> {
        Ok(self.process(&[tokens], caches, None, Some(observer))?.remove(0))
    }

    /// Shows several texts to `observer`, each as a prompt of its own, with positions from 0 on: all of them in one
    /// layer before any in the next, so that what is made of a layer can be freed before there is more. Besides
    /// that, the hidden states of all texts are held, and the exact keys and values of one text and layer.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] and [`Error::TokenId`].
    pub fn observe(&self, texts: &[&[u32]], observer: Observer<'_>) -> Result<()> {
        self.process(texts, &mut [], None, Some(observer)).map(drop)
    }

    /// The last hidden states of each of `texts`, of which there is one where there are `caches`.
    fn process(
        &self,
        texts: &[&[u32]],
        caches: &mut [KvCache],
        mut progress: Option<Progress<'_>>,
        mut observer: Option<Observer<'_>>,
    ) -> Result<Vec<Vec<f32>>> {
        let embedded = |tokens: &&[u32]| {
            let mut hidden = Vec::new();
            self.embed(tokens, &mut hidden).map(|()| hidden)
        };
        let mut streams: Vec<Vec<f32>> = texts.iter().map(embedded).collect::<Result<_>>()?;
        let longest = texts.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        let steps = self.layers.len() * texts.iter().map(|tokens| tokens.len()).sum::<usize>();
        let mut done = 0;
        let hidden_size = self.config.hidden_size;
        let (qo_len, kv_len) = (self.shape.heads.qo_row_len(), self.shape.heads.kv_row_len());
        let mut k = vec![0.0; longest * kv_len];
        let mut v = vec![0.0; longest * kv_len];
        let block_tokens = longest.min(BLOCK_TOKENS);
        let mut q = vec![0.0; block_tokens * qo_len];
        let mut attended = vec![0.0; block_tokens * qo_len];
        let mut work = Work::default();
        let mut turns = Turns::default();
        self.rope.fill_turns(0, longest, &mut turns);
        let places = (0..self.layers.len()).flat_map(|l| (0..texts.len()).map(move |t| (l, t)));
        for (index, text) in places {
            let (layer, hidden) = (&self.layers[index], &mut streams[text]);
            let rows = hidden.len() / hidden_size * kv_len;
            let (k, v) = (&mut k[..rows], &mut v[..rows]);
            // Every query needs the keys and values of all tokens before it, so these come first.
            let rows = k.chunks_mut(BLOCK_TOKENS * kv_len).zip(v.chunks_mut(BLOCK_TOKENS * kv_len));
            for (block, (hidden, (k, v))) in
                hidden.chunks(BLOCK_TOKENS * hidden_size).zip(rows).enumerate()
            {
                let of_block = turns.of_tokens(block * BLOCK_TOKENS, k.len() / kv_len);
                self.project_kv(layer, hidden, of_block, (k, v), &mut work)?;
            }
            let prompt = PromptLayer::new(self.shape.heads, self.level, k, v)?;
            let mut prompt = prompt.watch(caches, Some(self.rope.rotary_turns()))?;
            for (block, hidden) in hidden.chunks_mut(BLOCK_TOKENS * hidden_size).enumerate() {
                let (first, len) = (block * BLOCK_TOKENS, hidden.len() / hidden_size * qo_len);
                let (q, attended) = (&mut q[..len], &mut attended[..len]);
                let of_block = turns.of_tokens(first, len / qo_len);
                self.project_q(layer, hidden, of_block, q, &mut work)?;
                if let Some(observer) = &mut observer {
                    observer(&PromptBlock { layer: index, text, first, hidden, q, k, v });
                }
                prompt.attend(first, q, attended)?;
                self.finish_layer(layer, attended, hidden, &mut work)?;
                done += len / qo_len;
                if let Some(progress) = &mut progress {
                    progress(done, steps);
                }
            }
            prompt.store(caches, index)?;
        }
        Ok(streams)
    }

    /// Logits `[n, vocab_size]` of `n` hidden states `[n, hidden_size]`, multiplied together.
    ///
    /// # Errors
    /// When `hidden` is not whole rows.
    pub fn logits_of_rows(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let mut normed = vec![0.0; hidden.len()];
        rms_norm(hidden, &self.output_norm, self.config.rms_norm_eps, &mut normed);
        let num_rows = hidden.len() / self.config.hidden_size;
        let mut logits = vec![0.0; num_rows * self.config.vocab_size];
        self.output.as_ref().unwrap_or(&self.embedding).gemm(&normed, num_rows, &mut logits)?;
        Ok(logits)
    }

    /// The embeddings of `tokens`, into `hidden [n, hidden_size]`.
    fn embed(&self, tokens: &[u32], hidden: &mut Vec<f32>) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let width = self.config.hidden_size;
        let hidden = fit(hidden, tokens.len() * width);
        for (&token, row) in tokens.iter().zip(hidden.chunks_exact_mut(width)) {
            if token as usize >= self.config.vocab_size {
                return Err(Error::TokenId { token, vocab_size: self.config.vocab_size });
            }
            self.embedding.row(token as usize, row)?;
        }
        Ok(())
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, index: usize) -> Result<Self> {
        let role = |tensor| TensorRole::Layer(index, tensor);
        let projection = |weights, bias| {
            let weights = loader.matrix(role(weights))?;
            Ok::<_, Error>(Projection { weights, bias: loader.optional_vector(role(bias))? })
        };
        Ok(Self {
            attn_norm: loader.vector(role(LayerTensor::AttnNorm))?,
            q: projection(LayerTensor::Wq, LayerTensor::BiasQ)?,
            k: projection(LayerTensor::Wk, LayerTensor::BiasK)?,
            v: projection(LayerTensor::Wv, LayerTensor::BiasV)?,
            o: projection(LayerTensor::Wo, LayerTensor::BiasO)?,
            norm_q: loader.optional_vector(role(LayerTensor::NormQ))?,
            norm_k: loader.optional_vector(role(LayerTensor::NormK))?,
            ffn_norm: loader.vector(role(LayerTensor::FfnNorm))?,
            gate: projection(LayerTensor::Gate, LayerTensor::BiasGate)?,
            up: projection(LayerTensor::Up, LayerTensor::BiasUp)?,
            down: projection(LayerTensor::Down, LayerTensor::BiasDown)?,
        })
    }
}
