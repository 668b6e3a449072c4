//! `config.json`: each key that changes the maths is honoured or refused by its name.

use heterokv_model::{
    Error, ModelConfig,
    config::{Architecture, Biases, ContextLimit},
    rope_config::{RopeConfig, RopeScaling},
};
use serde_json::{Map, Value, json};

use crate::check_error;

fn base(architecture: &str) -> Map<String, Value> {
    let config = json!({
        "architectures": [architecture], "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 160, "num_attention_heads": 8, "num_hidden_layers": 3,
        "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "vocab_size": 320,
        "max_position_embeddings": 4096, "sliding_window": null, "bos_token_id": 1,
        "eos_token_id": 2, "rope_theta": 10000.0
    });
    config.as_object().unwrap().clone()
}

/// The base with some keys replaced.
fn read(architecture: &str, changes: Value) -> heterokv_model::Result<ModelConfig> {
    let mut config = base(architecture);
    config.extend(changes.as_object().unwrap().clone());
    ModelConfig::from_hf_json(&Value::Object(config).to_string())
}

fn llama(changes: Value) -> heterokv_model::Result<ModelConfig> {
    read("LlamaForCausalLM", changes)
}

fn without(architecture: &str, key: &str) -> heterokv_model::Result<ModelConfig> {
    let mut config = base(architecture);
    assert!(config.remove(key).is_some());
    ModelConfig::from_hf_json(&Value::Object(config).to_string())
}

#[test]
fn shapes() {
    let config = llama(json!({})).unwrap();
    assert_eq!(
        config,
        ModelConfig {
            architecture: Architecture::Llama,
            num_layers: 3,
            hidden_size: 64,
            intermediate_size: 160,
            num_qo_heads: 8,
            num_kv_heads: 2,
            head_dim: 16,
            vocab_size: 320,
            rms_norm_eps: 1e-6,
            max_context_tokens: 4096,
            context_limit: ContextLimit::Trained,
            rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
            tie_word_embeddings: false,
            qk_norm: false,
            biases: Biases::default(),
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
        }
    );
    assert_eq!(config.group_size(), 4);
    assert!(llama(json!({ "tie_word_embeddings": true })).unwrap().tie_word_embeddings);
    assert!(read("Qwen3ForCausalLM", json!({})).unwrap().qk_norm);
    assert_eq!(llama(json!({ "eos_token_id": [7, 9] })).unwrap().eos_token_ids, [7, 9]);
    assert!(llama(json!({ "eos_token_id": null })).unwrap().eos_token_ids.is_empty());
    check_error(llama(json!({ "eos_token_id": -1 })), &["eos_token_id", "-1"]);
}

#[test]
fn builtin_shapes() {
    let config = ModelConfig::builtin("llama-3-8b").unwrap();
    assert_eq!((config.num_layers, config.num_kv_heads, config.head_dim), (32, 8, 128));
    check_error(ModelConfig::builtin("llama-9"), &["llama-9", "llama-3-8b"]);
}

#[test]
fn head_dim_and_kv_heads() {
    assert_eq!(llama(json!({ "head_dim": null })).unwrap().head_dim, 8);
    assert_eq!(llama(json!({ "head_dim": 32 })).unwrap().head_dim, 32);
    check_error(llama(json!({ "head_dim": 7 })), &["head_dim", "7", "even"]);
    check_error(llama(json!({ "head_dim": 0 })), &["head_dim"]);
    check_error(llama(json!({ "head_dim": null, "hidden_size": 65 })), &["hidden_size", "65"]);
    check_error(llama(json!({ "head_dim": null, "num_attention_heads": 0 })), &["heads"]);
    check_error(without("Qwen3ForCausalLM", "head_dim"), &["head_dim"]);
    assert_eq!(without("LlamaForCausalLM", "num_key_value_heads").unwrap().num_kv_heads, 8);
    check_error(without("MistralForCausalLM", "num_key_value_heads"), &["num_key_value_heads"]);
    check_error(llama(json!({ "num_key_value_heads": 3 })), &["attention heads", "3 key-value"]);
    check_error(llama(json!({ "num_key_value_heads": 0 })), &["key-value heads"]);
}

#[test]
fn missing_and_absurd_numbers() {
    for key in [
        "architectures",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "vocab_size",
        "max_position_embeddings",
    ] {
        check_error(without("LlamaForCausalLM", key), &[key]);
        check_error(llama(json!({ key: {} })), &[key, "{}"]);
    }
    for key in ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"] {
        check_error(llama(json!({ key: u64::MAX })), &["18446744073709551615"]);
        check_error(llama(json!({ key: -3 })), &[key, "-3"]);
    }
    check_error(llama(json!({ "rms_norm_eps": -1.0 })), &["epsilon", "-1"]);
    check_error(ModelConfig::from_hf_json("{"), &["config.json"]);
    check_error(ModelConfig::from_hf_json("[]"), &["config.json"]);
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    check_error(ModelConfig::from_hf_json(&deep), &["config.json", "recursion"]);
}

#[test]
fn architectures() {
    for (name, architecture) in [
        ("LlamaForCausalLM", Architecture::Llama),
        ("MistralForCausalLM", Architecture::Mistral),
        ("Qwen2ForCausalLM", Architecture::Qwen2),
        ("Qwen3ForCausalLM", Architecture::Qwen3),
    ] {
        assert_eq!(read(name, json!({})).unwrap().architecture, architecture);
    }
    let result = read("MixtralForCausalLM", json!({}));
    assert!(matches!(&result, Err(Error::UnsupportedArchitecture { found, .. })
        if found == "MixtralForCausalLM"));
    check_error(result, &["MixtralForCausalLM", "LlamaForCausalLM"]);
    let two = json!({ "architectures": ["LlamaForCausalLM", "MistralForCausalLM"] });
    check_error(llama(two), &["architectures", "one name"]);
    check_error(llama(json!({ "architectures": [] })), &["architectures"]);
}

#[test]
fn biases() {
    let all = json!({ "attention_bias": true, "mlp_bias": true });
    let biases = |qkv, attn_output, mlp| Biases { qkv, attn_output, mlp };
    assert_eq!(llama(all).unwrap().biases, biases(true, true, true));
    let attention = json!({ "attention_bias": true });
    assert_eq!(llama(attention.clone()).unwrap().biases, biases(true, true, false));
    let of = |name: &str| read(name, json!({})).unwrap().biases;
    assert_eq!(of("Qwen2ForCausalLM"), biases(true, false, false));
    assert_eq!(of("Qwen3ForCausalLM"), biases(false, false, false));
    let qwen3 = read("Qwen3ForCausalLM", attention.clone()).unwrap();
    assert_eq!(qwen3.biases, biases(true, true, false));
    check_error(read("MistralForCausalLM", attention), &["attention_bias", "true"]);
    let none = json!({ "attention_bias": false });
    check_error(read("Qwen2ForCausalLM", none), &["attention_bias", "false"]);
    check_error(read("Qwen2ForCausalLM", json!({ "mlp_bias": true })), &["mlp_bias"]);
}

#[test]
fn sliding_windows_bound_the_context() {
    let limit = |config: heterokv_model::Result<ModelConfig>| {
        let config = config.unwrap();
        (config.max_context_tokens, config.context_limit)
    };
    let window = (1024, ContextLimit::SlidingWindow { trained_tokens: 4096 });
    let full = (4096, ContextLimit::Trained);
    let mistral = |changes| limit(read("MistralForCausalLM", changes));
    let qwen2 = |changes| limit(read("Qwen2ForCausalLM", changes));
    assert_eq!(mistral(json!({ "sliding_window": 1024 })), window);
    assert_eq!(mistral(json!({})), full);
    assert_eq!(mistral(json!({ "sliding_window": 4096 })), full);
    assert_eq!(mistral(json!({ "sliding_window": 100_000 })), full);
    // transformers takes 4,096 for Mistral where the key is absent.
    let mut absent = base("MistralForCausalLM");
    absent.remove("sliding_window");
    absent.insert("max_position_embeddings".to_owned(), json!(32_768));
    let absent = ModelConfig::from_hf_json(&Value::Object(absent).to_string());
    let default = (4096, ContextLimit::SlidingWindow { trained_tokens: 32_768 });
    assert_eq!(limit(absent), default);

    let unused = json!({ "sliding_window": 1024, "use_sliding_window": false });
    assert_eq!(qwen2(unused), full);
    assert_eq!(qwen2(json!({ "sliding_window": 1024 })), full);
    let used = |max_window_layers: u32| {
        json!({ "sliding_window": 1024, "use_sliding_window": true,
                "max_window_layers": max_window_layers })
    };
    assert_eq!(qwen2(used(2)), window);
    assert_eq!(qwen2(used(3)), full);
    check_error(llama(json!({ "sliding_window": 0 })), &["sliding_window", "0"]);
}

#[test]
fn layer_types() {
    let qwen3 = |changes| read("Qwen3ForCausalLM", changes);
    let types = |last: &str| json!(["full_attention", "full_attention", last]);
    let full = qwen3(json!({ "layer_types": types("full_attention") })).unwrap();
    assert_eq!(full.max_context_tokens, 4096);
    let sliding = types("sliding_attention");
    check_error(
        qwen3(json!({ "layer_types": sliding })),
        &["layer_types", "sliding_attention", "sliding_window"],
    );
    let moot = json!({
        "layer_types": sliding, "sliding_window": 512, "use_sliding_window": true
    });
    let moot = qwen3(moot).unwrap();
    assert_eq!(moot.max_context_tokens, 512);
    assert_eq!(moot.context_limit, ContextLimit::SlidingWindow { trained_tokens: 4096 });
    check_error(
        qwen3(json!({ "layer_types": types("chunked_attention") })),
        &["layer_types", "chunked_attention"],
    );
    check_error(qwen3(json!({ "layer_types": ["full_attention"] })), &["layer_types", "3 layers"]);
}

#[test]
fn other_maths_is_refused_by_name() {
    for (key, value) in [
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        ("quantization_config", json!({ "quant_method": "gptq" })),
        ("attention_multiplier", json!(0.5)),
        ("attn_logit_softcapping", json!(50.0)),
        ("embedding_multiplier", json!(12.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("logits_scaling", json!(8.0)),
        ("residual_multiplier", json!(0.2)),
        ("rope_interleaved", json!(true)),
    ] {
        let result = llama(json!({ key: value }));
        assert!(matches!(result, Err(Error::UnsupportedConfig { .. })), "{key}: {result:?}");
        check_error(result, &[key]);
        llama(json!({ key: null })).unwrap();
    }
    let neutral = json!({
        "hidden_act": "swish", "partial_rotary_factor": 1.0, "residual_multiplier": 1.0,
        "attention_dropout": 0.1, "pretraining_tp": 2, "rope_interleaved": false
    });
    llama(neutral).unwrap();
    let inner = json!({ "rope_parameters": { "partial_rotary_factor": 0.25 } });
    check_error(llama(inner), &["rope_parameters.partial_rotary_factor", "0.25"]);
}

#[test]
fn rope_of_old_and_new_form() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let mut new = llama3.clone();
    new["rope_theta"] = json!(500_000.0);
    let old = llama(json!({ "rope_theta": 500_000.0, "rope_scaling": llama3 })).unwrap().rope;
    let mut config = base("LlamaForCausalLM");
    config.remove("rope_theta");
    config.insert("rope_parameters".to_owned(), new.clone());
    let new_form = ModelConfig::from_hf_json(&Value::Object(config).to_string()).unwrap();
    assert_eq!(new_form.rope, old);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_tokens: 64,
    };
    assert_eq!(old, RopeConfig { theta: 500_000.0, scaling });
    let conflict = json!({ "rope_theta": 10_000.0, "rope_parameters": new });
    check_error(llama(conflict), &["rope_parameters.rope_theta", "500000", "10000"]);
    let both = json!({
        "rope_parameters": { "rope_type": "default" },
        "rope_scaling": { "type": "linear", "factor": 2.0 }
    });
    check_error(llama(both), &["rope_parameters", "rope_scaling"]);
    let other_is_null = json!({
        "rope_parameters": { "rope_type": "linear", "factor": 2.0 }, "rope_scaling": null
    });
    let other_is_null = llama(other_is_null).unwrap().rope.scaling;
    assert_eq!(other_is_null, RopeScaling::Linear { factor: 2.0 });

    let linear = llama(json!({ "rope_scaling": { "type": "linear", "factor": 2 } })).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(linear.max_context_tokens, 4096);
    assert_eq!(linear.rope.attention_factor(), 1.0);
    let default = llama(json!({ "rope_parameters": { "rope_type": "default" } })).unwrap();
    assert_eq!(default.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });
    assert_eq!(without("LlamaForCausalLM", "rope_theta").unwrap().rope.theta, 10_000.0);
}

#[test]
fn yarn_of_hf() {
    let yarn = |extra: Value| {
        let mut scaling = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096
        });
        scaling.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        llama(json!({ "rope_scaling": scaling }))
    };
    let config = yarn(json!({})).unwrap();
    assert_eq!(config.max_context_tokens, 4 * 4096);
    let expected = 0.1 * 4_f32.ln() + 1.0;
    assert!((config.rope.attention_factor() - expected).abs() < 1e-6);
    let RopeScaling::Yarn { beta_fast, beta_slow, truncate, .. } = config.rope.scaling else {
        panic!("{config:?}")
    };
    assert_eq!((beta_fast, beta_slow, truncate), (32.0, 1.0, true));
    let factor = |extra| yarn(extra).unwrap().rope.attention_factor();
    assert_eq!(factor(json!({ "attention_factor": 1.25 })), 1.25);
    assert_eq!(factor(json!({ "mscale": 0.7, "mscale_all_dim": 0.7 })), 1.0);
    let ratio = (0.1 * 4_f32.ln() + 1.0) / (0.05 * 4_f32.ln() + 1.0);
    let found = factor(json!({ "mscale": 1.0, "mscale_all_dim": 0.5 }));
    assert!((found - ratio).abs() < 1e-6, "{found} is not {ratio}");
    check_error(yarn(json!({ "beta_fast": 0.5 })), &["beta_fast"]);
    check_error(yarn(json!({ "factor": null })), &["rope_scaling.factor"]);
    check_error(yarn(json!({ "factor": 1e300 })), &["context length"]);
}

#[test]
fn bad_rope() {
    let result = llama(json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }));
    assert!(matches!(&result, Err(Error::UnsupportedRopeType { found, .. }) if found == "dynamic"));
    check_error(result, &["dynamic", "llama3"]);
    let no_type = json!({ "rope_scaling": { "factor": 2.0 } });
    check_error(llama(no_type), &["rope_scaling.rope_type"]);
    let no_factor = json!({ "rope_scaling": { "type": "linear" } });
    check_error(llama(no_factor), &["rope_scaling.factor"]);
    let zero = json!({ "rope_scaling": { "type": "linear", "factor": 0.0 } });
    check_error(llama(zero), &["factor", "0"]);
    check_error(llama(json!({ "rope_theta": 0.0 })), &["theta", "0"]);
    check_error(llama(json!({ "rope_scaling": "linear" })), &["rope_scaling", "object"]);
    let per_layer = json!({ "rope_parameters": { "sliding_attention": { "rope_theta": 1e4 } } });
    check_error(llama(per_layer), &["rope_parameters", "sliding_attention"]);
    let equal_bounds = json!({
        "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0,
                          "high_freq_factor": 2.0, "original_max_position_embeddings": 64 }
    });
    check_error(llama(equal_bounds), &["high_freq_factor"]);
}
