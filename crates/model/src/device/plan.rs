//! What a model on a device takes of it.

use heterokv_attn::device::{DeviceMatrix, WeightForm};
use heterokv_quant::weights::ComputeType;

use super::BLOCK_TOKENS;
use super::weights::form_of;
use crate::checkpoint::TensorRole;
use crate::{Checkpoint, ModelConfig, Result};

/// Bytes of a model on a device, its cache not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceModelPlan {
    /// Weights, with norms and biases.
    pub weights: u64,
    /// What a block of tokens is worked out in.
    pub work: u64,
    /// What a prompt takes beside that while it is processed: hidden states, and one layer's exact keys and values.
    pub prompt: u64,
}

impl DeviceModelPlan {
    /// Of a model of this shape with a prompt of `prompt_tokens`, whose weights are not there yet.
    ///
    /// # Errors
    /// [`Error::NoDeviceForm`](crate::Error::NoDeviceForm) for a form that no kernel computes with.
    pub fn new(config: &ModelConfig, compute: ComputeType, prompt_tokens: usize) -> Result<Self> {
        Self::with(config, prompt_tokens, |_| form_of(compute, None))
    }

    /// Of a checkpoint, whose weights of 4 bits stay so where the model computes in 8.
    ///
    /// # Errors
    /// As [`DeviceModelPlan::new`]; a missing or misshapen tensor.
    pub fn of_checkpoint(
        checkpoint: &Checkpoint,
        compute: ComputeType,
        prompt_tokens: usize,
    ) -> Result<Self> {
        Self::with(checkpoint.config(), prompt_tokens, |role| {
            form_of(compute, Some(checkpoint.tensor(role)?.ty))
        })
    }

    fn with(
        config: &ModelConfig,
        prompt_tokens: usize,
        form: impl Fn(TensorRole) -> Result<WeightForm>,
    ) -> Result<Self> {
        // A tied output projection is the embedding; biases go with their matrices.
        let is_tied = |role: &TensorRole| config.tie_word_embeddings && *role == TensorRole::Output;
        let roles = TensorRole::all(config).filter(|role| !is_tied(role) && !role.is_bias());
        let mut weights = 0;
        for role in roles {
            weights += match role.shape(config)[..] {
                [rows, cols] => DeviceMatrix::bytes(form(role)?, [rows as usize, cols as usize]),
                ref shape => 4 * shape.iter().product::<u64>(),
            };
        }
        Ok(Self {
            weights,
            work: WorkSizes::new(config).total(),
            prompt: prompt_bytes(config, prompt_tokens),
        })
    }

    /// What stays while tokens are generated.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.weights + self.work
    }
}

/// Bytes of a prompt's hidden states, angles, query energies, and one layer's exact keys and values.
fn prompt_bytes(config: &ModelConfig, num_tokens: usize) -> u64 {
    let blocks = num_tokens.div_ceil(BLOCK_TOKENS) as u64;
    let of_token = config.hidden_size + config.head_dim + 2 * config.num_kv_heads * config.head_dim;
    blocks * (4 * BLOCK_TOKENS as u64 * of_token as u64 + energy_bytes(config))
}

/// Bytes of the query energies of a block.
pub(super) fn energy_bytes(config: &ModelConfig) -> u64 {
    let stretches = BLOCK_TOKENS / heterokv_attn::device::QueryEnergy::STRETCH;
    (4 * stretches * config.num_kv_heads * config.head_dim) as u64
}

/// Bytes of what a block is worked out in.
pub(super) struct WorkSizes {
    pub(super) ids: u64,
    pub(super) turns: u64,
    pub(super) hidden: u64,
    pub(super) last: u64,
    pub(super) q: u64,
    pub(super) k: u64,
    pub(super) lse: u64,
    pub(super) inner: u64,
    /// Of queries or outputs, and of a key or value.
    pub(super) token: [u64; 2],
    pub(super) logits: u64,
    /// Of a number, and of an id.
    pub(super) pick: u64,
}

impl WorkSizes {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let block = |width: usize| (4 * BLOCK_TOKENS * width) as u64;
        let (qo_len, kv_len) =
            (config.num_qo_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        Self {
            ids: block(1),
            turns: block(config.head_dim),
            hidden: block(config.hidden_size),
            last: 4 * config.hidden_size as u64,
            q: block(qo_len),
            k: block(kv_len),
            lse: block(config.num_qo_heads),
            inner: block(config.intermediate_size),
            token: [4 * qo_len as u64, 4 * kv_len as u64],
            logits: 4 * config.vocab_size as u64,
            pick: 4,
        }
    }

    fn total(&self) -> u64 {
        let Self { ids, turns, hidden, last, q, k, lse, inner, token, logits, pick } = *self;
        let doubled = hidden + last + token[0] + token[1] + logits + pick;
        ids + turns + 2 * doubled + 3 * (q + k + inner) + lse
    }
}
