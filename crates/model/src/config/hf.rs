//! `config.json` and `generation_config.json` of Hugging Face folders.

use serde_json::{Map, Value};

use super::{
    Architecture, Biases, ContextLimit, ModelConfig, fields::Fields, invalid, unsupported,
};
use crate::{
    error::{Error, Result},
    rope_config::{RopeConfig, RopeScaling},
};

/// Keys of related models that change the maths, with the value that leaves it as it is here.
const NEUTRAL_VALUES: [(&str, f64); 6] = [
    ("attention_multiplier", f64::NAN),
    ("attn_logit_softcapping", f64::NAN),
    ("embedding_multiplier", 1.0),
    ("final_logit_softcapping", f64::NAN),
    ("logits_scaling", 1.0),
    ("residual_multiplier", 1.0),
];

pub(super) fn from_json(json: &str) -> Result<ModelConfig> {
    let object = parse(json, "config.json")?;
    let fields = Fields::new(&object);
    let architecture = architecture(&fields)?;
    refuse_other_maths(&fields)?;
    let require = |key| fields.usize(key).and_then(|value| fields.required(key, value));

    let hidden_size = require("hidden_size")?;
    let num_layers = require("num_hidden_layers")?;
    let num_qo_heads = require("num_attention_heads")?;
    let num_kv_heads = match fields.usize("num_key_value_heads")? {
        Some(num) => num,
        // Llama 2 was published before the key existed; elsewhere its default is a number of its own.
        None if architecture == Architecture::Llama => num_qo_heads,
        None => return Err(Error::MissingConfig { key: "num_key_value_heads".to_owned() }),
    };
    let head_dim = match fields.usize("head_dim")? {
        Some(head_dim) => head_dim,
        None if architecture == Architecture::Qwen3 => {
            return Err(Error::MissingConfig { key: "head_dim".to_owned() });
        }
        None if num_qo_heads == 0 || !hidden_size.is_multiple_of(num_qo_heads) => {
            let rule = format!("a multiple of the {num_qo_heads} attention heads");
            return Err(invalid("hidden_size", hidden_size, rule));
        }
        None => hidden_size / num_qo_heads,
    };
    let max_positions = require("max_position_embeddings")?;
    let rope = rope(&fields, max_positions)?;
    let trained_tokens = rope.scaled_context_tokens(max_positions);
    let (max_context_tokens, context_limit) =
        match sliding_window(&fields, architecture, num_layers)? {
            Some(window) if window < trained_tokens => {
                (window, ContextLimit::SlidingWindow { trained_tokens })
            }
            _ => (trained_tokens, ContextLimit::Trained),
        };
    let eps = fields.f64("rms_norm_eps")?;

    ModelConfig {
        architecture,
        num_layers,
        hidden_size,
        intermediate_size: require("intermediate_size")?,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        vocab_size: require("vocab_size")?,
        rms_norm_eps: fields.required("rms_norm_eps", eps)? as f32,
        max_context_tokens,
        context_limit,
        rope,
        tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
        qk_norm: architecture == Architecture::Qwen3,
        biases: biases(&fields, architecture)?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id")?,
    }
    .validated()
}

pub(super) fn add_generation_json(config: &mut ModelConfig, json: &str) -> Result<()> {
    let object = parse(json, "generation_config.json")?;
    for id in Fields::new(&object).token_ids("eos_token_id")? {
        config.add_eos_token_id(id);
    }
    Ok(())
}

fn parse(json: &str, file: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(json).map_err(|source| Error::Json { file: file.to_owned(), source })
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture> {
    let names = fields.str_array("architectures")?;
    match fields.required("architectures", names)?.as_slice() {
        [name] => Architecture::from_hf(name),
        names => Err(invalid("architectures", format!("{names:?}"), "one name".to_owned())),
    }
}

/// Refuses what the forward pass does not compute, by the key's name.
fn refuse_other_maths(fields: &Fields<'_>) -> Result<()> {
    if let Some(activation) = fields.str("hidden_act")?
        && activation != "silu"
        && activation != "swish"
    {
        return Err(unsupported("hidden_act", activation, "only silu is computed"));
    }
    refuse_partial_rotary(fields)?;
    if fields.get("quantization_config").is_some() {
        let reason = "safetensors weights are read as f32, f16 or bf16; use a GGUF file";
        return Err(unsupported("quantization_config", "{..}", reason));
    }
    for (key, neutral) in NEUTRAL_VALUES {
        if let Some(value) = fields.f64(key)?
            && value != neutral
        {
            return Err(unsupported(key, value, "the model would compute something else"));
        }
    }
    if fields.bool("rope_interleaved")? == Some(true) {
        return Err(unsupported("rope_interleaved", true, "RoPE rotates halves here"));
    }
    Ok(())
}

fn refuse_partial_rotary(fields: &Fields<'_>) -> Result<()> {
    match fields.f64("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(unsupported(
            &fields.full_key("partial_rotary_factor"),
            factor,
            "RoPE turns whole heads here",
        )),
        _ => Ok(()),
    }
}

fn biases(fields: &Fields<'_>, architecture: Architecture) -> Result<Biases> {
    let attention = fields.bool("attention_bias")?;
    let mlp = fields.bool("mlp_bias")?.unwrap_or(false);
    if mlp && architecture != Architecture::Llama {
        return Err(unsupported("mlp_bias", mlp, "this architecture has none"));
    }
    match (architecture, attention) {
        (Architecture::Llama | Architecture::Qwen3, attention) => {
            let attention = attention.unwrap_or(false);
            Ok(Biases { qkv: attention, attn_output: attention, mlp })
        }
        (Architecture::Qwen2, Some(false)) => {
            Err(unsupported("attention_bias", false, "this architecture has biases on q, k and v"))
        }
        (Architecture::Qwen2, _) => Ok(Biases { qkv: true, attn_output: false, mlp }),
        (Architecture::Mistral, Some(true)) => {
            Err(unsupported("attention_bias", true, "this architecture has none"))
        }
        (Architecture::Mistral, _) => Ok(Biases::default()),
    }
}

/// The window that bounds the context, where any layer has one.
///
/// Position i sees the positions from i − window + 1, so that the first `window` tokens attend fully.
fn sliding_window(
    fields: &Fields<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Option<usize>> {
    let is_qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3);
    let window = match fields.usize("sliding_window")? {
        // transformers' default, which it applies unless the key says null.
        None if architecture == Architecture::Mistral && !fields.contains("sliding_window") => {
            Some(4096)
        }
        window => window,
    };
    let in_use = fields.bool("use_sliding_window")?.unwrap_or(!is_qwen);
    let layer_types = fields.str_array("layer_types")?;
    let named = match &layer_types {
        None => None,
        Some(types) if types.len() != num_layers => {
            let rule = format!("one entry for each of the {num_layers} layers");
            return Err(invalid("layer_types", format!("{} entries", types.len()), rule));
        }
        Some(types) => {
            if let Some(other) =
                types.iter().find(|ty| !matches!(**ty, "full_attention" | "sliding_attention"))
            {
                let reason = "layers have full_attention or sliding_attention";
                return Err(unsupported("layer_types", other, reason));
            }
            Some(types.contains(&"sliding_attention"))
        }
    };
    let any_layer_slides = match named {
        Some(true) if !in_use || window.is_none() => {
            let reason = "no sliding_window is in use that would say how far these layers see";
            return Err(unsupported("layer_types", "sliding_attention", reason));
        }
        Some(true) => true,
        // The Qwen models go by layer_types where given; the others apply the window everywhere.
        Some(false) if is_qwen => false,
        None if is_qwen => in_use && fields.usize("max_window_layers")?.unwrap_or(28) < num_layers,
        _ => in_use,
    };
    match window {
        Some(0) if any_layer_slides => {
            Err(invalid("sliding_window", 0, "at least 1 or null".to_owned()))
        }
        window => Ok(window.filter(|_| any_layer_slides)),
    }
}

/// RoPE from `rope_parameters`, or from `rope_theta` beside `rope_scaling`.
fn rope(fields: &Fields<'_>, max_positions: usize) -> Result<RopeConfig> {
    let outer_theta = fields.f64("rope_theta")?;
    if let (Some(_), Some(scaling)) = (fields.get("rope_parameters"), fields.get("rope_scaling")) {
        let reason =
            "rope_parameters is there as well and only one of the two can be meant; remove one";
        return Err(unsupported("rope_scaling", scaling, reason));
    }
    let (theta, scaling) = match fields.object("rope_parameters", "rope_parameters.")? {
        Some(parameters) => {
            if let Some(key) = parameters.nested_key() {
                let reason = "one RoPE for all layers is computed";
                return Err(unsupported("rope_parameters", key, reason));
            }
            let theta = parameters.f64("rope_theta")?;
            if let (Some(inner), Some(outer)) = (theta, outer_theta)
                && inner != outer
            {
                let rule = format!("the {outer} of rope_theta");
                return Err(invalid("rope_parameters.rope_theta", inner, rule));
            }
            (theta.or(outer_theta), rope_scaling(&parameters, max_positions)?)
        }
        None => match fields.object("rope_scaling", "rope_scaling.")? {
            Some(parameters) => (outer_theta, rope_scaling(&parameters, max_positions)?),
            None => (outer_theta, RopeScaling::None),
        },
    };
    // The first Llama 2 configurations were written before the key existed.
    Ok(RopeConfig { theta: theta.unwrap_or(10_000.0), scaling })
}

fn rope_scaling(parameters: &Fields<'_>, max_positions: usize) -> Result<RopeScaling> {
    refuse_partial_rotary(parameters)?;
    let require = |key| parameters.f64(key).and_then(|value| parameters.required(key, value));
    let original = parameters.usize("original_max_position_embeddings")?;
    // `type` is the key's older name.
    let ty = match (parameters.str("rope_type")?, parameters.str("type")?) {
        (Some(ty), _) | (None, Some(ty)) => ty,
        (None, None) if parameters.contains("factor") => {
            return Err(Error::MissingConfig { key: parameters.full_key("rope_type") });
        }
        (None, None) => "default",
    };
    match ty {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: require("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: require("factor")?,
            low_freq_factor: require("low_freq_factor")?,
            high_freq_factor: require("high_freq_factor")?,
            original_context_tokens: parameters
                .required("original_max_position_embeddings", original)?,
        }),
        "yarn" => {
            let factor = require("factor")?;
            let mscale = parameters.f64("mscale")?.filter(|&mscale| mscale != 0.0);
            let mscale_all = parameters.f64("mscale_all_dim")?.filter(|&mscale| mscale != 0.0);
            Ok(RopeScaling::Yarn {
                factor,
                original_context_tokens: original.unwrap_or(max_positions),
                beta_fast: parameters.f64("beta_fast")?.unwrap_or(32.0),
                beta_slow: parameters.f64("beta_slow")?.unwrap_or(1.0),
                attention_factor: match (parameters.f64("attention_factor")?, mscale, mscale_all) {
                    (Some(given), ..) => given,
                    (None, Some(mscale), Some(all)) => {
                        RopeScaling::yarn_mscale(factor, mscale)
                            / RopeScaling::yarn_mscale(factor, all)
                    }
                    _ => RopeScaling::yarn_mscale(factor, 1.0),
                },
                truncate: parameters.bool("truncate")?.unwrap_or(true),
            })
        }
        _ => Err(Error::UnsupportedRopeType {
            found: ty.to_owned(),
            known: &["default", "linear", "llama3", "yarn"],
        }),
    }
}
