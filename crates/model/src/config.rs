//! What a checkpoint says about its model: shapes, RoPE and everything else that changes the maths.
//!
//! A [`ModelConfig`] comes from a `config.json` ([`ModelConfig::from_hf_json`]), from GGUF metadata,
//! or from a short list of known shapes ([`ModelConfig::builtin`]). All three end in one validation,
//! so that every holder of a `ModelConfig` may rely on the rules written at its fields. A field of
//! the source that would change the maths and is not represented here is refused by name.

mod builtin;
mod fields;
mod hf;

use crate::{
    error::{Error, Result},
    rope_config::RopeConfig,
};

/// No axis of a real model comes near this, and products of two such axes fit 48 bits.
const MAX_AXIS: usize = 1 << 24;
/// Bound of the context length, for the same reason.
const MAX_CONTEXT_TOKENS: usize = 1 << 32;

/// The families, by what their forward passes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2, 3, 3.x, SmolLM2, TinyLlama. GGUF files of Mistral models say Llama, too.
    Llama,
    /// Mistral: Llama with a sliding window in its first version.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: an RMS norm over each head of q and k.
    Qwen3,
}

impl Architecture {
    const HF_NAMES: [&'static str; 4] =
        ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"];
    const GGUF_NAMES: [&'static str; 3] = ["llama", "qwen2", "qwen3"];

    fn from_hf(name: &str) -> Result<Self> {
        match name {
            "LlamaForCausalLM" => Ok(Self::Llama),
            "MistralForCausalLM" => Ok(Self::Mistral),
            "Qwen2ForCausalLM" => Ok(Self::Qwen2),
            "Qwen3ForCausalLM" => Ok(Self::Qwen3),
            _ => Err(Error::UnsupportedArchitecture {
                found: name.to_owned(),
                known: &Self::HF_NAMES,
            }),
        }
    }

    /// The family that a GGUF file calls `name`.
    pub(crate) fn from_gguf(name: &str) -> Result<Self> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            _ => Err(Error::UnsupportedArchitecture {
                found: name.to_owned(),
                known: &Self::GGUF_NAMES,
            }),
        }
    }

    /// A lower-case name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Biases {
    /// On q, k and v.
    pub qkv: bool,
    /// On the attention output projection.
    pub attn_output: bool,
    /// On gate, up and down.
    pub mlp: bool,
}

/// Why [`ModelConfig::max_context_tokens`] is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContextLimit {
    /// The length the model was trained (or its RoPE scaled) for.
    Trained,
    /// The sliding window of some of its layers: up to there, attention inside the window is full
    /// attention, and beyond it the maths would differ.
    SlidingWindow {
        /// The length it would have without the window.
        trained_tokens: usize,
    },
}

/// Shapes and constants of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Transformer blocks, at least 1.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_qo_heads: usize,
    /// Key and value heads, at least 1.
    pub num_kv_heads: usize,
    /// Elements per head, even; `num_qo_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding and of the output projection.
    pub vocab_size: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Positions that may be used, for the reason given by `context_limit`.
    pub max_context_tokens: usize,
    /// What bounds `max_context_tokens`.
    pub context_limit: ContextLimit,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether each head of q and k is RMS-normed before RoPE.
    pub qk_norm: bool,
    /// Which projections add a bias.
    pub biases: Biases,
    /// The token that begins a text, where the checkpoint names one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; empty where the checkpoint names none.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// The shape of a well-known model without its weights, for planning.
    ///
    /// # Errors
    /// [`Error::UnknownBuiltin`], which lists the names.
    pub fn builtin(name: &str) -> Result<Self> {
        builtin::by_name(name)
    }

    /// Reads a Hugging Face `config.json`, of old (`rope_theta`, `rope_scaling`) or new
    /// (`rope_parameters`) form. Defaults of absent keys are those of transformers where these are
    /// the same for every model of a family; other absent keys are errors.
    ///
    /// # Errors
    /// Any error that names a key: unknown architecture or RoPE type, missing, invalid or unsupported
    /// values; [`Error::Json`] where the text is no JSON.
    pub fn from_hf_json(json: &str) -> Result<Self> {
        hf::from_json(json)
    }

    /// Adds the end-of-text tokens of a `generation_config.json` to those of the configuration.
    pub(crate) fn add_generation_json(&mut self, json: &str) -> Result<()> {
        hf::add_generation_json(self, json)
    }

    /// Query heads per KV head.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.num_qo_heads / self.num_kv_heads
    }

    /// Adds an end-of-text token unless it is known already.
    pub(crate) fn add_eos_token_id(&mut self, id: u32) {
        if !self.eos_token_ids.contains(&id) {
            self.eos_token_ids.push(id);
        }
    }

    /// Checks the rules written at the fields. Every constructor ends here.
    pub(crate) fn validated(self) -> Result<Self> {
        for (key, value, limit) in [
            ("number of layers", self.num_layers, 1 << 16),
            ("hidden size", self.hidden_size, MAX_AXIS),
            ("intermediate size", self.intermediate_size, MAX_AXIS),
            ("number of attention heads", self.num_qo_heads, 1 << 16),
            ("number of key-value heads", self.num_kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            (
                "product of head_dim and heads",
                self.head_dim.saturating_mul(self.num_qo_heads),
                MAX_AXIS,
            ),
            ("vocabulary size", self.vocab_size, MAX_AXIS),
            ("context length", self.max_context_tokens, MAX_CONTEXT_TOKENS),
        ] {
            if value == 0 || value > limit {
                return Err(invalid(key, value, format!("from 1 to {limit}")));
            }
        }
        if !self.num_qo_heads.is_multiple_of(self.num_kv_heads) {
            return Err(invalid(
                "number of attention heads",
                self.num_qo_heads,
                format!("a multiple of the {} key-value heads", self.num_kv_heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim", self.head_dim, "even, for RoPE".to_owned()));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps < 1.0) {
            return Err(invalid("RMS norm epsilon", self.rms_norm_eps, "in 0..1".to_owned()));
        }
        self.rope.validate(self.head_dim)?;
        Ok(self)
    }
}

/// An [`Error::InvalidConfig`].
pub(crate) fn invalid(key: &str, value: impl ToString, rule: String) -> Error {
    Error::InvalidConfig { key: key.to_owned(), value: value.to_string(), rule }
}

/// An [`Error::UnsupportedConfig`].
pub(crate) fn unsupported(key: &str, value: impl ToString, reason: &'static str) -> Error {
    Error::UnsupportedConfig { key: key.to_owned(), value: value.to_string(), reason }
}
