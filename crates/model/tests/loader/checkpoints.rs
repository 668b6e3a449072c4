//! Good checkpoints: every tensor, the order of rows, configurations, fingerprints.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use heterokv_model::{
    Checkpoint,
    checkpoint::{Fingerprint, LayerTensor, RowOrder, Tensor, TensorRole},
    config::{Architecture, Biases, ContextLimit},
    rope_config::RopeScaling,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::fixture;

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[derive(Debug, PartialEq, Deserialize)]
struct Written {
    #[serde(rename = "type")]
    ty: String,
    shape: Vec<usize>,
    sha256: String,
}

#[test]
fn every_tensor_is_what_was_written() {
    let json = std::fs::read_to_string(fixture("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Written>> =
        serde_json::from_str(&json).unwrap();
    assert_eq!(expected.len(), 5);
    let mut types = std::collections::BTreeSet::new();
    for (file, written) in &expected {
        let checkpoint = open(file);
        let found: BTreeMap<String, Written> = checkpoint
            .tensors()
            .map(|tensor| {
                types.insert(tensor.ty.name());
                let one_axis = written.get(tensor.name).is_some_and(|w| w.shape.len() == 1);
                let shape =
                    if one_axis { vec![tensor.cols] } else { vec![tensor.rows, tensor.cols] };
                assert!(!one_axis || tensor.rows == 1);
                let digest: [u8; 32] = Sha256::digest(tensor.bytes).into();
                let sha256 = Fingerprint(digest).to_string();
                (tensor.name.to_owned(), Written { ty: tensor.ty.to_string(), shape, sha256 })
            })
            .collect();
        assert_eq!(&found, written, "{file}");
    }
    assert_eq!(types.len(), 11, "the fixtures hold every supported type: {types:?}");
}

/// Output features in the order of use: rows of a matrix, elements of a bias.
fn features(tensor: &Tensor<'_>, order: RowOrder) -> Vec<u8> {
    let num_features = if tensor.rows == 1 { tensor.cols } else { tensor.rows };
    let width = tensor.bytes.len() / num_features;
    (0..num_features)
        .flat_map(|row| tensor.bytes.chunks_exact(width).nth(order.stored_row(row)).unwrap())
        .copied()
        .collect()
}

#[test]
fn gguf_rows_in_their_order_are_the_folders_rows() {
    let (folder, gguf) = (open("llama-hf"), open("llama.gguf"));
    let mut num_interleaved = 0;
    for role in TensorRole::all(folder.config()) {
        let (expected, tensor) = (folder.tensor(role).unwrap(), gguf.tensor(role).unwrap());
        assert_eq!(expected.row_order, RowOrder::AsStored);
        assert_eq!(features(&tensor, tensor.row_order), expected.bytes, "{role:?}");
        if tensor.row_order != RowOrder::AsStored {
            num_interleaved += 1;
            assert_ne!(tensor.bytes, expected.bytes, "{role:?} was not permuted by the fixture");
        }
    }
    assert_eq!(num_interleaved, 2 * 4, "wq, wk and their biases of two layers");
}

#[test]
fn only_llama_gguf_files_are_interleaved() {
    for name in ["qwen2.gguf", "qwen3.gguf"] {
        let wq = TensorRole::Layer(0, LayerTensor::Wq);
        assert_eq!(open(name).tensor(wq).unwrap().row_order, RowOrder::AsStored, "{name}");
    }
}

#[test]
fn row_orders_are_permutations() {
    for head_dim in [2, 4, 6, 128] {
        let order = RowOrder::InterleavedHalves { head_dim };
        let mut rows: Vec<usize> = (0..3 * head_dim).map(|row| order.stored_row(row)).collect();
        assert_eq!(rows[1], if head_dim == 2 { 1 } else { 2 });
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..3 * head_dim));
    }
}

#[test]
fn configurations_of_both_formats_agree() {
    let (folder, gguf) = (open("llama-hf"), open("llama.gguf"));
    let config = folder.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.num_layers, config.hidden_size, config.intermediate_size), (2, 32, 32));
    assert_eq!((config.num_qo_heads, config.num_kv_heads, config.head_dim), (4, 2, 8));
    assert_eq!((config.vocab_size, config.max_context_tokens), (24, 512));
    assert_eq!(config.context_limit, ContextLimit::Trained);
    assert_eq!(config.biases, Biases { qkv: true, attn_output: true, mlp: false });
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(1), &[2, 3][..]));
    assert!(!config.tie_word_embeddings && !config.qk_norm);
    // All but the form in which the RoPE scaling is stated.
    let mut same = gguf.config().clone();
    assert_eq!(same.rope.scaling, RopeScaling::Factors(vec![1.0, 1.5, 4.0, 8.0]));
    same.rope = config.rope.clone();
    assert_eq!(&same, config);
}

#[test]
fn tied_output_is_the_embedding() {
    let checkpoint = open("qwen2.gguf");
    assert!(checkpoint.config().tie_word_embeddings);
    assert_eq!(checkpoint.tensor(TensorRole::Output).unwrap().name, "token_embd.weight");
    assert_eq!(open("llama.gguf").tensor(TensorRole::Output).unwrap().name, "output.weight");
    assert_eq!(open("llama-hf").tensor(TensorRole::Output).unwrap().name, "lm_head.weight");
}

#[test]
fn qwen_biases_and_norms_are_found() {
    let (qwen2, qwen3) = (open("qwen2.gguf"), open("qwen3.gguf"));
    let bias = TensorRole::Layer(0, LayerTensor::BiasK);
    let norm = TensorRole::Layer(0, LayerTensor::NormK);
    assert_eq!(qwen2.optional_tensor(bias).unwrap().unwrap().cols, 16);
    assert!(qwen2.optional_tensor(norm).unwrap().is_none());
    assert!(qwen3.optional_tensor(bias).unwrap().is_none());
    assert_eq!(qwen3.optional_tensor(norm).unwrap().unwrap().cols, 16);
    assert_eq!(qwen3.config().head_dim, 16);
    crate::check_error(qwen3.tensor(bias), &["blk.0.attn_k.bias"]);
    crate::check_error(
        qwen3.tensor(TensorRole::Layer(1, LayerTensor::Wq)),
        &["blk.1.attn_q.weight"],
    );
}

#[test]
fn metadata_is_typed() {
    let checkpoint = open("llama.gguf");
    let metadata = checkpoint.gguf_metadata().unwrap();
    let tokens = metadata.str_array("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!((tokens.len(), tokens[0], tokens[23]), (24, "t0", "t23"));
    let types = metadata.u32_array("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types, vec![1; 24]);
    let scores = metadata.f32_array("tokenizer.ggml.scores").unwrap().unwrap();
    assert_eq!((scores.len(), scores[23]), (24, -23.0));
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(metadata.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(metadata.u64("llama.block_count").unwrap(), Some(2));
    assert_eq!(metadata.u32("no such key").unwrap(), None);
    assert_eq!(metadata.get("tokenizer.ggml.tokens").unwrap().to_string(), "[string; 24]");
    assert!(metadata.iter().any(|(key, _)| key == "llama.rope.freq_base"));
    let tokens = "tokenizer.ggml.tokens";
    crate::check_error(metadata.str(tokens), &[tokens, "string"]);
    crate::check_error(metadata.u32_array(tokens), &[tokens]);
    crate::check_error(metadata.f32_array("tokenizer.ggml.token_type"), &["int32"]);
    crate::check_error(metadata.bool("llama.block_count"), &["bool"]);
    crate::check_error(metadata.f64("llama.block_count"), &["float"]);
    crate::check_error(metadata.u32("general.architecture"), &["llama"]);
    assert!(open("llama-hf").gguf_metadata().is_none());
    assert_eq!(open("llama-hf").folder(), Some(fixture("llama-hf").as_path()));
}

#[test]
fn shards_are_one_checkpoint() {
    let (single, sharded) = (open("llama-hf"), open("llama-sharded"));
    for role in TensorRole::all(single.config()) {
        let (a, b) = (single.tensor(role).unwrap(), sharded.tensor(role).unwrap());
        assert_eq!((a.name, a.ty, a.bytes), (b.name, b.ty, b.bytes));
    }
    assert_eq!(single.fingerprint(), sharded.fingerprint());
}

#[test]
fn fingerprints_tell_models_apart() {
    let bytes = std::fs::read(fixture("llama.gguf")).unwrap();
    let original = open("llama.gguf");
    let fingerprint = original.fingerprint();
    assert_eq!(Checkpoint::from_gguf_bytes(bytes.clone()).unwrap().fingerprint(), fingerprint);
    assert_ne!(open("llama-hf").fingerprint(), fingerprint);

    // The last tensor's last byte, and the epsilon of the configuration.
    let mut other = bytes.clone();
    let (name, last) =
        original.tensors().map(|t| (t.name, *t.bytes.last().unwrap())).last().unwrap();
    let tensor = original.tensors().last().unwrap().bytes;
    let at = bytes.windows(tensor.len()).position(|window| window == tensor).unwrap();
    other[at + tensor.len() - 1] = !last;
    let changed = Checkpoint::from_gguf_bytes(other).unwrap();
    assert_ne!(changed.fingerprint(), fingerprint, "{name}");

    let mut other = bytes.clone();
    let eps = 1e-5_f32.to_le_bytes();
    let at = bytes.windows(4).position(|window| window == eps).unwrap();
    other[at..at + 4].copy_from_slice(&2e-5_f32.to_le_bytes());
    assert_ne!(Checkpoint::from_gguf_bytes(other).unwrap().fingerprint(), fingerprint);

    let hex = fingerprint.to_string();
    assert_eq!((hex.len(), Fingerprint::from_hex(&hex)), (64, Some(fingerprint)));
    assert_eq!(Fingerprint::from_hex(&hex[1..]), None);
    assert_eq!(Fingerprint::from_hex(&hex.replace(&hex[..1], "+")), None);
}

/// `<workspace>/../shared`, or where the environment says.
fn shared(path: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("HETEROKV_SHARED") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
    };
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no {}", path.display());
    None
}

#[test]
fn golden_folders_open() {
    let Some(folder) = shared("golden/tiny") else { return };
    for (name, architecture, head_dim, num_kv_heads, tied) in [
        ("llama2-mha", Architecture::Llama, 8, 8, false),
        ("llama3-rope-scaling", Architecture::Llama, 8, 2, true),
        ("mistral", Architecture::Mistral, 16, 2, false),
        ("qwen2-bias", Architecture::Qwen2, 8, 2, true),
        ("qwen3-qknorm", Architecture::Qwen3, 16, 2, false),
    ] {
        let checkpoint = Checkpoint::open(&folder.join(name)).unwrap();
        let config = checkpoint.config();
        assert_eq!(config.architecture, architecture, "{name}");
        assert_eq!((config.head_dim, config.num_kv_heads), (head_dim, num_kv_heads), "{name}");
        assert_eq!(config.tie_word_embeddings, tied, "{name}");
        assert_eq!(config.max_context_tokens, 4096, "{name}");
    }
}
