//! A short stable name for a model, for files that belong to one model only.

use std::fmt;

use sha2::{Digest, Sha256};

use super::Checkpoint;
use crate::config::ModelConfig;

/// Places of each tensor that are hashed, its first and last bytes among them.
const NUM_SAMPLES: usize = 8;
/// Bytes hashed at each place.
const SAMPLE_BYTES: usize = 64;

/// SHA-256 over everything that names a model: the configuration as far as it changes the maths, every
/// tensor's name, type and shape, and bytes sampled from every tensor.
///
/// It does not depend on the path, on how the tensors are spread over files, or on the tokenizer. Two
/// checkpoints that differ only in bytes between the samples have the same fingerprint: it tells
/// models, fine-tunes and quantizations apart, it is no proof of integrity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint written as 64 hexadecimal digits, `None` for any other text.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    /// 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

pub(super) fn of(checkpoint: &Checkpoint) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(b"heterokv model 1");
    add_config(&mut hash, checkpoint.config());
    for tensor in checkpoint.tensors() {
        add_usize(&mut hash, tensor.name.len());
        hash.update(tensor.name);
        hash.update(tensor.ty.ggml_id().to_le_bytes());
        add_usize(&mut hash, tensor.rows);
        add_usize(&mut hash, tensor.cols);
        let bytes = tensor.bytes;
        if bytes.len() <= NUM_SAMPLES * SAMPLE_BYTES {
            hash.update(bytes);
            continue;
        }
        let stride = (bytes.len() - SAMPLE_BYTES) / (NUM_SAMPLES - 1);
        for sample in 1..NUM_SAMPLES {
            let start = (sample - 1) * stride;
            hash.update(&bytes[start..start + SAMPLE_BYTES]);
        }
        hash.update(&bytes[bytes.len() - SAMPLE_BYTES..]);
    }
    Fingerprint(hash.finalize().into())
}

fn add_usize(hash: &mut Sha256, value: usize) {
    hash.update((value as u64).to_le_bytes());
}

fn add_config(hash: &mut Sha256, config: &ModelConfig) {
    hash.update(config.architecture.name());
    for value in [
        config.num_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_qo_heads,
        config.num_kv_heads,
        config.head_dim,
        config.vocab_size,
    ] {
        add_usize(hash, value);
    }
    hash.update(config.rms_norm_eps.to_le_bytes());
    let biases = config.biases;
    for flag in
        [config.tie_word_embeddings, config.qk_norm, biases.qkv, biases.attn_output, biases.mlp]
    {
        hash.update([u8::from(flag)]);
    }
    // What RoPE computes is the same however the checkpoint states it.
    let frequencies = config.rope.inverse_frequencies(config.head_dim);
    for value in frequencies.into_iter().chain([config.rope.attention_factor()]) {
        hash.update(value.to_le_bytes());
    }
}
