//! GGUF metadata: each key that changes the maths is honoured or refused by its name.

use heterokv_model::rope_config::RopeScaling;
use heterokv_model::{Checkpoint, Error, ModelConfig, Result, config::ContextLimit};

use crate::{
    check_error,
    gguf_bytes::{ARRAY, BOOL, F32, Header, STRING, U32, string},
};

fn open(header: &Header) -> Result<Checkpoint> {
    Checkpoint::from_gguf_bytes(header.bytes())
}

fn config(header: &Header) -> ModelConfig {
    open(header).unwrap().config().clone()
}

fn u32(header: Header, key: &str, value: u32) -> Header {
    header.pair(key, U32, &value.to_le_bytes())
}

fn f32(header: Header, key: &str, value: f32) -> Header {
    header.pair(key, F32, &value.to_le_bytes())
}

fn text(header: Header, key: &str, value: &str) -> Header {
    header.pair(key, STRING, &string(value))
}

fn u32_array(values: &[u32]) -> Vec<u8> {
    let mut bytes = U32.to_le_bytes().to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[test]
fn the_least_model() {
    let config = config(&Header::model());
    assert_eq!((config.num_layers, config.head_dim, config.vocab_size), (1, 4, 5));
    assert_eq!((config.num_qo_heads, config.num_kv_heads), (2, 1));
    assert_eq!((config.rope.theta, &config.rope.scaling), (10_000.0, &RopeScaling::None));
    assert!(config.tie_word_embeddings && config.eos_token_ids.is_empty());
}

#[test]
fn missing_keys_are_named() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        check_error(open(&Header::model().without(key)), &[key]);
    }
    // The vocabulary's size may come from the list of tokens.
    let header = Header::model().without("llama.vocab_size");
    check_error(open(&header), &["tokenizer.ggml.tokens"]);
    let mut tokens = STRING.to_le_bytes().to_vec();
    tokens.extend(5_u64.to_le_bytes());
    tokens.extend((0..5).flat_map(|_| string("x")));
    assert_eq!(config(&header.pair("tokenizer.ggml.tokens", ARRAY, &tokens)).vocab_size, 5);
    let header = Header::model().without("llama.attention.head_count_kv");
    check_error(open(&header), &["blk.0.attn_k.weight", "[8, 8]", "[4, 8]"]);
}

#[test]
fn other_maths_is_refused_by_name() {
    for (key, value) in [
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.max_alibi_bias", 8.0),
        ("llama.attention.scale", 0.5),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.embedding_scale", 12.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.logit_scale", 0.5),
        ("llama.residual_scale", 0.5),
        ("llama.rope.scaling.attn_factor", 1.5),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
    ] {
        let result = open(&f32(Header::model(), key, value));
        assert!(matches!(result, Err(Error::UnsupportedConfig { .. })), "{key}");
        check_error(result, &[key]);
    }
    for (key, value) in [
        ("llama.expert_count", 8),
        ("llama.rope.dimension_count", 2),
        ("llama.attention.value_length", 8),
        ("split.count", 2),
    ] {
        check_error(open(&u32(Header::model(), key, value)), &[key, &value.to_string()]);
    }
    check_error(open(&text(Header::model(), "general.type", "adapter")), &["adapter"]);
    check_error(open(&text(Header::model(), "general.architecture", "gemma")), &["gemma", "qwen3"]);
    let bidirectional = Header::model().pair("llama.attention.causal", BOOL, &[0]);
    check_error(open(&bidirectional), &["llama.attention.causal"]);
    let neutral = f32(u32(Header::model(), "llama.expert_count", 0), "llama.logit_scale", 1.0);
    open(&neutral).unwrap();
    let wrong_type = text(Header::model(), "llama.logit_scale", "1");
    check_error(open(&wrong_type), &["llama.logit_scale", "float"]);
}

#[test]
fn numbers_per_layer_must_be_equal() {
    let key = "llama.attention.head_count_kv";
    assert_eq!(config(&Header::model().pair(key, ARRAY, &u32_array(&[1]))).num_kv_heads, 1);
    check_error(open(&Header::model().pair(key, ARRAY, &u32_array(&[1, 2]))), &[key]);
    check_error(open(&Header::model().pair(key, ARRAY, &u32_array(&[]))), &[key]);
}

#[test]
fn sliding_windows_bound_the_context() {
    let header = u32(Header::model(), "llama.attention.sliding_window", 16);
    let config = config(&header);
    assert_eq!(config.max_context_tokens, 16);
    assert_eq!(config.context_limit, ContextLimit::SlidingWindow { trained_tokens: 64 });
}

#[test]
fn rope() {
    let factor = "llama.rope.scaling.factor";
    let ty = "llama.rope.scaling.type";
    let linear = RopeScaling::Linear { factor: 4.0 };
    let header = f32(Header::model(), factor, 4.0);
    assert_eq!(config(&header).rope.scaling, linear, "a factor without a type is linear");
    assert_eq!(config(&text(header.clone(), ty, "linear")).rope.scaling, linear);
    assert_eq!(config(&text(header.clone(), ty, "none")).rope.scaling, RopeScaling::None);
    let old = f32(Header::model(), "llama.rope.scale_linear", 4.0);
    assert_eq!(config(&old).rope.scaling, linear);

    let yarn = text(header.clone(), ty, "yarn");
    let yarn = u32(yarn, "llama.rope.scaling.original_context_length", 16);
    let scaling = config(&yarn).rope.scaling;
    let RopeScaling::Yarn { factor: 4.0, original_context_tokens: 16, attention_factor, .. } =
        scaling
    else {
        panic!("{scaling:?}")
    };
    assert!((attention_factor - (0.1 * 4_f64.ln() + 1.0)).abs() < 1e-12);
    let ext = f32(yarn, "llama.rope.scaling.yarn_ext_factor", 0.5);
    check_error(open(&ext), &["yarn_ext_factor", "0.5"]);
    check_error(open(&text(Header::model(), ty, "yarn")), &[factor]);
    check_error(open(&text(header.clone(), ty, "longrope")), &["longrope", "yarn"]);

    let theta = config(&f32(Header::model(), "llama.rope.freq_base", 5e5)).rope.theta;
    assert_eq!(theta, 5e5);
    check_error(open(&f32(Header::model(), "llama.rope.freq_base", f32::NAN)), &["theta", "NaN"]);
    check_error(open(&f32(header.clone(), factor, f32::INFINITY)), &["factor", "inf"]);

    check_error(open(&Header::model().zeros("rope_freqs.weight", &[2])), &["rope_freqs.weight"]);
    check_error(open(&Header::model().zeros("rope_freqs.weight", &[3])), &["factors", "3", "2"]);
    check_error(open(&header.zeros("rope_freqs.weight", &[2])), &["rope_freqs.weight", ty]);
    let halves = Header::model().tensor("rope_freqs.weight", &[2], 1, 0);
    check_error(open(&halves), &["rope_freqs.weight", "F16", "F32"]);
}

#[test]
fn tensors_are_held_against_the_configuration() {
    let more = u32(Header::model(), "llama.block_count", 2);
    check_error(open(&more), &["blk.1.attn_norm.weight"]);
    let absurd = u32(Header::model(), "llama.block_count", u32::MAX);
    check_error(open(&absurd), &["layers", "4294967295"]);
    let vocab = u32(Header::model(), "llama.vocab_size", 6);
    check_error(open(&vocab), &["token_embd.weight", "[6, 8]", "[5, 8]"]);
    for name in ["blk.0.attn_q_norm.weight", "blk.1.attn_norm.weight", "blk.0.ffn_norm.bias"] {
        let result = open(&Header::model().zeros(name, &[8]));
        assert!(matches!(result, Err(Error::UnexpectedTensor { .. })), "{name}");
        check_error(result, &[name]);
    }
    let one_bias = Header::model().zeros("blk.0.attn_q.bias", &[8]);
    check_error(open(&one_bias), &["blk.0.attn_k.bias"]);
    let qwen3 = text(Header::model(), "general.architecture", "qwen3");
    check_error(open(&qwen3), &["qwen3."]);
}
