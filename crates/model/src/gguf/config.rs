//! The model configuration that GGUF metadata and the tensor directory state together.

use super::{Gguf, Metadata};
use crate::{
    checkpoint::StoredTensor,
    config::{Architecture, Biases, ContextLimit, ModelConfig, invalid, unsupported},
    error::{Error, Result},
    rope_config::{RopeConfig, RopeScaling},
};

/// The tensor that states one RoPE divisor per pair.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Keys below the architecture's name that change the maths, with the value that leaves it alone.
/// `NaN` stands for none.
const NEUTRAL_FLOATS: [(&str, f64); 13] = [
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.output_scale", 1.0),
    ("attention.scale", f64::NAN),
    ("attention.temperature_scale", f64::NAN),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
];

/// The same for whole numbers.
const NEUTRAL_INTEGERS: [(&str, u64); 3] =
    [("attention.shared_kv_layers", 0), ("expert_count", 0), ("nextn_predict_layers", 0)];

/// Keys of tokens that end a text or a turn.
const EOS_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl Gguf {
    /// The configuration, validated.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_hf_json`], in GGUF's words.
    pub(crate) fn config(&self, bytes: &[u8]) -> Result<ModelConfig> {
        let metadata = &self.metadata;
        let name = required("general.architecture", metadata.str("general.architecture")?)?;
        let architecture = Architecture::from_gguf(name)?;
        let scope = Scope { metadata, architecture: name };
        refuse_other_files(metadata)?;
        refuse_other_maths(&scope)?;

        let hidden_size = scope.required_usize("embedding_length")?;
        let num_qo_heads = scope.per_layer_usize("attention.head_count")?;
        let num_qo_heads = required(&scope.key("attention.head_count"), num_qo_heads)?;
        let num_kv_heads =
            scope.per_layer_usize("attention.head_count_kv")?.unwrap_or(num_qo_heads);
        let head_dim = head_dim(&scope, hidden_size, num_qo_heads)?;
        let vocab_size = match scope.usize("vocab_size")? {
            Some(size) => size,
            None => required("tokenizer.ggml.tokens", metadata.get("tokenizer.ggml.tokens"))
                .and_then(|tokens| match tokens {
                    super::Value::Array(tokens) => Ok(tokens.len()),
                    other => Err(Error::ValueType {
                        key: "tokenizer.ggml.tokens".to_owned(),
                        expected: "an array of strings",
                        actual: other.to_string(),
                    }),
                })?,
        };
        let trained_tokens = scope.required_usize("context_length")?;
        let (max_context_tokens, context_limit) = match scope.usize("attention.sliding_window")? {
            Some(window) if window > 0 && window < trained_tokens => {
                (window, ContextLimit::SlidingWindow { trained_tokens })
            }
            _ => (trained_tokens, ContextLimit::Trained),
        };
        let rope = RopeConfig {
            theta: scope.f64("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: self.rope_scaling(&scope, bytes, trained_tokens)?,
        };
        let eps = scope.f64("attention.layer_norm_rms_epsilon")?;
        let mut config = ModelConfig {
            architecture,
            num_layers: scope.required_usize("block_count")?,
            hidden_size,
            intermediate_size: required(
                &scope.key("feed_forward_length"),
                scope.per_layer_usize("feed_forward_length")?,
            )?,
            num_qo_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: required(&scope.key("attention.layer_norm_rms_epsilon"), eps)? as f32,
            max_context_tokens,
            context_limit,
            rope,
            // The format states ties by leaving the tensor out.
            tie_word_embeddings: self.tensor("output.weight").is_none(),
            qk_norm: architecture == Architecture::Qwen3,
            // It has no keys for biases: the first layer shows them.
            biases: Biases {
                qkv: architecture == Architecture::Qwen2
                    || self.tensor("blk.0.attn_q.bias").is_some(),
                attn_output: self.tensor("blk.0.attn_output.bias").is_some(),
                mlp: self.tensor("blk.0.ffn_gate.bias").is_some(),
            },
            bos_token_id: metadata.u32("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: Vec::new(),
        };
        for key in EOS_KEYS {
            if let Some(id) = metadata.u32(key)? {
                config.add_eos_token_id(id);
            }
        }
        config.validated()
    }

    fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    fn rope_scaling(
        &self,
        scope: &Scope<'_>,
        bytes: &[u8],
        trained_tokens: usize,
    ) -> Result<RopeScaling> {
        let factor = match scope.f64("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => scope.f64("rope.scale_linear")?,
        };
        // A factor without a type is linear, and 0 means none: files from before the key are so.
        let factor = factor.filter(|&factor| factor != 0.0);
        let ty = match scope.metadata.str(&scope.key("rope.scaling.type"))? {
            Some(ty) => ty,
            None if factor.is_some() => "linear",
            None => "none",
        };
        let need_factor = || required(&scope.key("rope.scaling.factor"), factor);
        let scaling = match ty {
            "none" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor.unwrap_or(1.0) },
            "yarn" => {
                if let Some(ext) = scope.f64("rope.scaling.yarn_ext_factor")?
                    && ext != 1.0
                {
                    let reason = "only the full YaRN blend is computed";
                    return Err(unsupported(
                        &scope.key("rope.scaling.yarn_ext_factor"),
                        ext,
                        reason,
                    ));
                }
                let factor = need_factor()?;
                RopeScaling::Yarn {
                    factor,
                    original_context_tokens: scope
                        .usize("rope.scaling.original_context_length")?
                        .unwrap_or(trained_tokens),
                    beta_fast: scope.f64("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: scope.f64("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    attention_factor: RopeScaling::yarn_mscale(factor, 1.0),
                    truncate: true,
                }
            }
            _ => {
                return Err(Error::UnsupportedRopeType {
                    found: ty.to_owned(),
                    known: &["none", "linear", "yarn"],
                });
            }
        };
        let Some(factors) = self.tensor(ROPE_FACTORS) else { return Ok(scaling) };
        if scaling != RopeScaling::None {
            let reason = "rope_freqs.weight states a scaling of its own";
            return Err(unsupported(&scope.key("rope.scaling.type"), ty, reason));
        }
        if factors.ty != heterokv_quant::weights::TensorType::F32 {
            return Err(Error::UnsupportedTensorType {
                tensor: ROPE_FACTORS.to_owned(),
                found: factors.ty.to_string(),
                known: "F32".to_owned(),
            });
        }
        let (factors, _) = bytes[factors.range.clone()].as_chunks::<4>();
        Ok(RopeScaling::Factors(factors.iter().copied().map(f32::from_le_bytes).collect()))
    }
}

/// The keys below one architecture's name.
struct Scope<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Scope<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn usize(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(value) = self.metadata.u64(&key)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(invalid(&key, value, "within the address space".to_owned())),
        }
    }

    fn required_usize(&self, key: &str) -> Result<usize> {
        required(&self.key(key), self.usize(key)?)
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.f64(&self.key(key))
    }

    /// A number for all layers, or a list of them that must be equal.
    fn per_layer_usize(&self, key: &str) -> Result<Option<usize>> {
        let full_key = self.key(key);
        if !matches!(self.metadata.get(&full_key), Some(super::Value::Array(_))) {
            return self.usize(key);
        }
        let per_layer = self.metadata.u32_array(&full_key)?.unwrap_or_default();
        match per_layer.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other == first) => {
                Ok(Some(*first as usize))
            }
            _ => {
                let value = format!("{} unequal numbers", per_layer.len());
                Err(unsupported(&full_key, value, "all layers have the same shape here"))
            }
        }
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::MissingConfig { key: key.to_owned() })
}

/// Refuses files that hold something other than one whole model.
fn refuse_other_files(metadata: &Metadata) -> Result<()> {
    if let Some(ty) = metadata.str("general.type")?
        && ty != "model"
    {
        return Err(unsupported("general.type", ty, "only whole models are loaded"));
    }
    if let Some(count) = metadata.u64("split.count")?
        && count > 1
    {
        let reason = "merge the parts of the file into one first";
        return Err(unsupported("split.count", count, reason));
    }
    Ok(())
}

/// Refuses what the forward pass does not compute, by the key's name.
fn refuse_other_maths(scope: &Scope<'_>) -> Result<()> {
    let reason = "the model would compute something else";
    for (key, neutral) in NEUTRAL_FLOATS {
        if let Some(value) = scope.f64(key)?
            && value != neutral
        {
            return Err(unsupported(&scope.key(key), value, reason));
        }
    }
    for (key, neutral) in NEUTRAL_INTEGERS {
        if let Some(value) = scope.usize(key)?
            && value as u64 != neutral
        {
            return Err(unsupported(&scope.key(key), value, reason));
        }
    }
    for (key, neutral) in [("attention.causal", true), ("use_parallel_residual", false)] {
        if let Some(value) = scope.metadata.bool(&scope.key(key))?
            && value != neutral
        {
            return Err(unsupported(&scope.key(key), value, reason));
        }
    }
    if scope.metadata.get(&scope.key("rope.dimension_sections")).is_some() {
        return Err(unsupported(&scope.key("rope.dimension_sections"), "[..]", reason));
    }
    Ok(())
}

fn head_dim(scope: &Scope<'_>, hidden_size: usize, num_qo_heads: usize) -> Result<usize> {
    let head_dim = match scope.usize("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if num_qo_heads == 0 || !hidden_size.is_multiple_of(num_qo_heads) => {
            let rule = format!("a multiple of the {num_qo_heads} attention heads");
            return Err(invalid(&scope.key("embedding_length"), hidden_size, rule));
        }
        None => hidden_size / num_qo_heads,
    };
    if let Some(value_length) = scope.usize("attention.value_length")?
        && value_length != head_dim
    {
        let reason = "keys and values have the same length here";
        return Err(unsupported(&scope.key("attention.value_length"), value_length, reason));
    }
    if let Some(rotated) = scope.usize("rope.dimension_count")?
        && rotated != head_dim
    {
        let reason = "RoPE turns whole heads here";
        return Err(unsupported(&scope.key("rope.dimension_count"), rotated, reason));
    }
    Ok(head_dim)
}
