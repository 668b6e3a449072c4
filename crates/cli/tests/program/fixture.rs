//! A tiny random model with a byte-level tokenizer and a chat template, written once, and the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::{Value, json};

/// Tokens that the tiny model is trained for.
pub(crate) const TRAINED_TOKENS: usize = 1024;

/// Width of the residual stream and of the MLP.
const WIDTH: usize = 64;

/// 256 bytes and three control tokens.
const VOCAB: usize = 259;

/// The folder of the tiny model. One character of ASCII is one token of it.
pub(crate) fn model() -> &'static str {
    static MODEL: LazyLock<String> = LazyLock::new(|| write_model("tiny", 1));
    &MODEL
}

/// The same with other weights.
pub(crate) fn other_model() -> &'static str {
    static MODEL: LazyLock<String> = LazyLock::new(|| write_model("other", 2));
    &MODEL
}

/// A file beside the models with this text.
pub(crate) fn file(name: &str, text: &str) -> String {
    let path = folder().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Text of that many tokens, no two stretches of it alike.
pub(crate) fn prose(num_tokens: usize) -> String {
    let words = ["whale ", "sea ", "ship ", "harpoon ", "captain ", "white ", "leg ", "sails "];
    let mut state = 7;
    let mut text = String::new();
    while text.len() < num_tokens {
        text.push_str(words[(next(&mut state) >> 33) as usize % words.len()]);
    }
    text.truncate(num_tokens);
    text
}

/// The program with these arguments, not run yet.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heterokv"));
    command.args(args);
    command
}

/// Runs the program.
pub(crate) fn run(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

/// Runs the program, which must succeed, and returns what it printed.
pub(crate) fn stdout_of(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON objects that the program printed, one a line.
pub(crate) fn json_of(args: &[&str]) -> Vec<Value> {
    stdout_of(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where all of this is.
pub(crate) fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("program");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn write_model(name: &str, seed: u64) -> String {
    let folder = folder().join(name);
    fs::create_dir_all(&folder).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "max_position_embeddings": TRAINED_TOKENS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "vocab_size": VOCAB, "bos_token_id": 256, "eos_token_id": 258,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let template = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|start|>assistant\n{% endif %}";
    let config = json!({"chat_template": template, "eos_token": "<|end|>"});
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), weights(seed)).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// A byte-level vocabulary without merges.
fn tokenizer() -> Value {
    let mut moved = 0x100..;
    let vocab: serde_json::Map<String, Value> = (0..=255u8)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { u32::from(byte) } else { moved.next().unwrap() };
            (char::from_u32(code).unwrap().to_string(), byte.into())
        })
        .collect();
    let added = ["<|text|>", "<|start|>", "<|end|>"].iter().zip(256..).map(|(content, id)| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false,
        })
    });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": bytes, "post_processor": null,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [],
        },
    })
}

/// Random weights in safetensors form.
fn weights(seed: u64) -> Vec<u8> {
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![WIDTH]),
            ("post_attention_layernorm", vec![WIDTH]),
            ("self_attn.q_proj", vec![128, WIDTH]),
            ("self_attn.k_proj", vec![64, WIDTH]),
            ("self_attn.v_proj", vec![64, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, 128]),
            ("mlp.gate_proj", vec![WIDTH, WIDTH]),
            ("mlp.up_proj", vec![WIDTH, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, WIDTH]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut state = seed;
    for (name, shape) in shapes {
        let start = data.len();
        let is_norm = shape.len() == 1;
        for _ in 0..shape.iter().product() {
            let uniform = (next(&mut state) >> 40) as f32 / (1u64 << 24) as f32;
            let weight = if is_norm { 0.5 + uniform } else { 0.6 * (uniform - 0.5) };
            data.extend_from_slice(&weight.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// A step of Knuth's linear congruential generator.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state
}
