//! What a model takes besides its cache: bytes of weights, and of a prompt while it is processed.
//!
//! The numbers follow from shapes alone, so that they are known before anything is allocated.

use heterokv_quant::weights::{ComputeType, TensorType, WeightMatrix};

use crate::checkpoint::TensorRole;
use crate::{Checkpoint, ModelConfig, Result};

/// What [`Model::prefill`](crate::Model::prefill) holds beside the caches for the whole prompt at once, f32.
/// Queries, outputs and activations exist for a block of tokens only and are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PrefillBytes {
    /// One layer's exact keys and values.
    pub keys_and_values: u64,
    /// The same once more, packed as attention reads them; a tile of tokens or a few channels may be filled up beside.
    pub packed: u64,
    /// The hidden states.
    pub hidden_states: u64,
    /// Sines and cosines of all positions.
    pub turns: u64,
}

impl PrefillBytes {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { keys_and_values, packed, hidden_states, turns } = *self;
        [keys_and_values, packed, hidden_states, turns].into_iter().fold(0, u64::saturating_add)
    }
}

/// What a prompt of `num_tokens` takes while it is processed; `u64::MAX` for a part that no machine has.
#[must_use]
pub fn prefill_bytes(config: &ModelConfig, num_tokens: usize) -> PrefillBytes {
    let f32s = |width: usize| (size_of::<f32>() * width) as u64;
    let of_prompt = |width: usize| f32s(width).saturating_mul(num_tokens as u64);
    PrefillBytes {
        keys_and_values: of_prompt(2 * config.num_kv_heads * config.head_dim),
        packed: of_prompt(2 * config.num_kv_heads * config.head_dim),
        hidden_states: of_prompt(config.hidden_size),
        turns: of_prompt(config.head_dim),
    }
}

/// Bytes of the weights of a model of this shape with two bytes each, norms and biases included.
#[must_use]
pub fn f16_weight_bytes(config: &ModelConfig) -> u64 {
    let roles = TensorRole::all(config).filter(|&role| is_held(role, config));
    // A validated configuration bounds every axis and the number of layers, so that the sum fits.
    roles.map(|role| 2 * role.shape(config).iter().product::<u64>()).sum()
}

/// Bytes of the weight matrices of `checkpoint` as a [`Model`](crate::Model) of the form `compute` holds them.
///
/// # Errors
/// As [`Checkpoint::tensor`].
pub fn held_weight_bytes(checkpoint: &Checkpoint, compute: ComputeType) -> Result<u64> {
    let config = checkpoint.config();
    let mut bytes = 0u64;
    for role in TensorRole::all(config).filter(|&role| is_held(role, config)) {
        if role.shape(config).len() < 2 {
            continue;
        }
        let tensor = checkpoint.tensor(role)?;
        bytes = bytes.saturating_add(matrix_bytes(tensor.ty, tensor.rows, tensor.cols, compute));
    }
    Ok(bytes)
}

/// A tied output projection is the embedding and held once.
fn is_held(role: TensorRole, config: &ModelConfig) -> bool {
    !(config.tie_word_embeddings && role == TensorRole::Output)
}

fn matrix_bytes(ty: TensorType, rows: usize, cols: usize, compute: ComputeType) -> u64 {
    WeightMatrix::bytes_of(ty, [rows, cols], compute).map_or(u64::MAX, |bytes| bytes as u64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use heterokv_quant::Level;

    use super::*;
    use crate::Model;

    #[test]
    fn held_bytes_are_those_of_a_loaded_model() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for name in ["llama-hf", "llama.gguf", "all_types_v2.gguf", "qwen2.gguf", "qwen3.gguf"] {
            let checkpoint = Checkpoint::open(&fixtures.join(name)).unwrap();
            for compute in [ComputeType::F32, ComputeType::Q8] {
                let Ok(model) = Model::load(&checkpoint, compute, Level::SCALAR) else {
                    // Random blocks may hold weights that are not finite in a form.
                    assert_eq!(name, "all_types_v2.gguf");
                    continue;
                };
                let bytes = held_weight_bytes(&checkpoint, compute).unwrap();
                assert_eq!(bytes, model.weight_bytes() as u64, "{name} {compute}");
            }
        }
    }

    #[test]
    fn llama_3_8b_has_eight_billion_weights() {
        let config = ModelConfig::builtin("llama-3-8b").unwrap();
        assert_eq!(f16_weight_bytes(&config), 2 * 8_030_261_248);
        let bytes = prefill_bytes(&config, 1000);
        assert_eq!(bytes.hidden_states, 1000 * 4096 * 4);
        assert_eq!(bytes.keys_and_values, 1000 * 2 * 8 * 128 * 4);
        assert_eq!(bytes.turns, 1000 * 128 * 4);
        assert_eq!(bytes.packed, bytes.keys_and_values);
        assert_eq!(bytes.total(), 1000 * 4 * (4 * 8 * 128 + 4096 + 128));
    }
}
