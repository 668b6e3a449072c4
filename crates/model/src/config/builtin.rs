//! Shapes of well-known models, for planning without a checkpoint.

use super::{Architecture, Biases, ContextLimit, ModelConfig};
use crate::{
    error::{Error, Result},
    rope_config::{RopeConfig, RopeScaling},
};

const NAMES: [&str; 1] = ["llama-3-8b"];

pub(super) fn by_name(name: &str) -> Result<ModelConfig> {
    match name {
        "llama-3-8b" => llama_3_8b().validated(),
        _ => Err(Error::UnknownBuiltin { name: name.to_owned(), known: &NAMES }),
    }
}

/// Meta Llama 3 8B as published in April 2024 (8,192 tokens, no RoPE scaling).
fn llama_3_8b() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        num_layers: 32,
        hidden_size: 4096,
        intermediate_size: 14336,
        num_qo_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        vocab_size: 128_256,
        rms_norm_eps: 1e-5,
        max_context_tokens: 8192,
        context_limit: ContextLimit::Trained,
        rope: RopeConfig { theta: 500_000.0, scaling: RopeScaling::None },
        tie_word_embeddings: false,
        qk_norm: false,
        biases: Biases::default(),
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_001],
    }
}
