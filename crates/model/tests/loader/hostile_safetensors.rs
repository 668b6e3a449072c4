//! Damaged and hostile Hugging Face folders.

use std::{fs, path::Path};

use heterokv_model::{Checkpoint, Result};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{check_error, fixture};

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A copy of a fixture folder.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn weights() -> Vec<u8> {
    fs::read(fixture("llama-hf").join(FILE)).unwrap()
}

fn header_of(bytes: &[u8]) -> (Value, &[u8]) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), &bytes[8 + len..])
}

fn join(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

fn open_with(folder: &Path, bytes: &[u8]) -> Result<Checkpoint> {
    fs::write(folder.join(FILE), bytes).unwrap();
    Checkpoint::open(folder)
}

/// Opens the fixture with its header changed.
fn open_changed(change: impl FnOnce(&mut Value)) -> Result<Checkpoint> {
    let bytes = weights();
    let (mut header, data) = header_of(&bytes);
    change(&mut header);
    open_with(copy("llama-hf").path(), &join(&header.to_string(), data))
}

#[test]
fn the_unharmed_folder_opens() {
    open_changed(|_| {}).unwrap();
    Checkpoint::open(copy("llama-sharded").path()).unwrap();
}

#[test]
fn truncated_or_longer() {
    let (folder, bytes) = (copy("llama-hf"), weights());
    let steps = (0..16).chain((16..bytes.len()).step_by(97)).chain([bytes.len() - 1]);
    for len in steps {
        let result = open_with(folder.path(), &bytes[..len]);
        assert!(result.is_err(), "accepted after {len} of {} bytes", bytes.len());
    }
    let longer = [&bytes[..], b"x"].concat();
    check_error(open_with(folder.path(), &longer), &[FILE]);
}

#[test]
fn header_lengths() {
    let (folder, bytes) = (copy("llama-hf"), weights());
    for claimed in [0, 1, 100_000_001, 1 << 40, u64::MAX - 7, u64::MAX] {
        let mut changed = bytes.clone();
        changed[..8].copy_from_slice(&claimed.to_le_bytes());
        check_error(open_with(folder.path(), &changed), &[FILE]);
    }
    check_error(open_with(folder.path(), &join("{", b"")), &[FILE]);
    check_error(open_with(folder.path(), &join(&"[".repeat(50_000), b"")), &[FILE]);
    let deep = format!("{{\"a\":{{\"x\":{}", "[".repeat(100_000));
    check_error(open_with(folder.path(), &join(&deep, b"")), &[FILE]);
    check_error(open_with(folder.path(), &join("{}", b"")), &["model.embed_tokens.weight"]);
    check_error(open_with(folder.path(), b""), &[FILE]);
}

#[test]
fn offsets_and_shapes() {
    let norm = "model.norm.weight";
    for (offsets, shape) in [
        (json!([0, u64::MAX]), json!([u64::MAX])),
        (json!([u64::MAX - 8, u64::MAX]), json!([2])),
        (json!([0, 1_u64 << 40]), json!([1_u64 << 38])),
        (json!([64, 0]), json!([16])),
        (json!([0, 64]), json!([16])),
        (json!([0, 64]), json!([1_u64 << 63, 4])),
        (json!([0]), json!([16])),
        (json!([-4, 64]), json!([16])),
    ] {
        let result = open_changed(|header| {
            header[norm]["data_offsets"] = offsets.clone();
            header[norm]["shape"] = shape.clone();
        });
        check_error(result, &[FILE]);
    }
    let result = open_changed(|header| header[norm]["shape"] = json!([32, 1]));
    check_error(result, &[norm, "[32, 1]", "[32]"]);
    let result = open_changed(|header| header[norm]["shape"] = json!([16, 2]));
    check_error(result, &[norm, "[16, 2]"]);
}

#[test]
fn types_and_names() {
    let norm = "model.norm.weight";
    let is_16_bit = |header: &Value| header[norm]["dtype"] != "F32";
    let result = open_changed(|header| {
        header[norm]["dtype"] = json!(if is_16_bit(header) { "I16" } else { "I32" });
    });
    check_error(result, &[norm, "I", "BF16"]);
    check_error(open_changed(|header| header[norm]["dtype"] = json!("Q9")), &[FILE]);
    let rename = |to: &'static str| {
        open_changed(move |header| {
            let tensor = header.as_object_mut().unwrap().remove(norm).unwrap();
            header[to] = tensor;
        })
    };
    check_error(rename("model.norm.wait"), &["no tensor model.norm.weight"]);
    let folder = copy("llama-hf");
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let fewer = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert_ne!(config, fewer);
    fs::write(folder.path().join("config.json"), fewer).unwrap();
    check_error(Checkpoint::open(folder.path()), &["model.layers.1."]);
    let no_bias = config.replace("\"attention_bias\": true", "\"attention_bias\": false");
    fs::write(folder.path().join("config.json"), no_bias).unwrap();
    check_error(Checkpoint::open(folder.path()), &["self_attn.k_proj.bias"]);
}

#[test]
fn missing_files() {
    let folder = copy("llama-hf");
    fs::remove_file(folder.path().join(FILE)).unwrap();
    check_error(Checkpoint::open(folder.path()), &[FILE, INDEX]);
    fs::create_dir(folder.path().join(FILE)).unwrap();
    check_error(Checkpoint::open(folder.path()), &[FILE]);
    fs::write(folder.path().join("generation_config.json"), "{\"eos_token_id\": \"x\"}").unwrap();
    check_error(Checkpoint::open(folder.path()), &["eos_token_id"]);
    let folder = copy("llama-sharded");
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    check_error(Checkpoint::open(folder.path()), &["model-00002-of-00002.safetensors"]);
}

#[test]
fn shard_indexes() {
    let folder = copy("llama-sharded");
    let path = folder.path().join(INDEX);
    let index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let open = |change: &dyn Fn(&mut Value)| {
        let mut changed = index.clone();
        change(&mut changed["weight_map"]);
        fs::write(&path, changed.to_string()).unwrap();
        Checkpoint::open(folder.path())
    };
    open(&|_| {}).unwrap();
    let norm = "model.norm.weight";
    let outside = fixture("llama-hf").join(FILE).display().to_string();
    for name in [
        "../model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "..",
        ".",
        "",
        "/etc/passwd",
        INDEX,
        "model.bin",
        "a\0.safetensors",
        &outside,
    ] {
        check_error(open(&|map| map[norm] = json!(name)), &[norm, "not a file of its folder"]);
    }
    // Names a cycle of links.
    #[cfg(unix)]
    {
        let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
        std::os::unix::fs::symlink(&b, &a).unwrap();
        std::os::unix::fs::symlink(&a, &b).unwrap();
        check_error(open(&|map| map[norm] = json!("a.safetensors")), &["a.safetensors"]);
    }
    check_error(open(&|map| map["extra"] = map[norm].clone()), &["extra"]);
    let unlisted = |map: &mut Value| {
        map.as_object_mut().unwrap().remove(norm);
    };
    check_error(open(&unlisted), &[norm, "not there"]);
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let other = if index["weight_map"][norm] == shards[0] { shards[1] } else { shards[0] };
    check_error(open(&|map| map[norm] = json!(other)), &[norm]);
    check_error(open(&|map| *map = json!([])), &[INDEX]);
    fs::write(&path, "{}").unwrap();
    check_error(Checkpoint::open(folder.path()), &[INDEX, "weight_map"]);
}

#[test]
fn inverse_frequencies_are_left_alone() {
    let bytes = weights();
    let (mut header, data) = header_of(&bytes);
    let end = data.len();
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    header[name] = json!({ "dtype": "F32", "shape": [4], "data_offsets": [end, end + 16] });
    let data = [data, &[0; 16]].concat();
    let folder = copy("llama-hf");
    let checkpoint = open_with(folder.path(), &join(&header.to_string(), &data)).unwrap();
    assert!(checkpoint.tensors().all(|tensor| tensor.name != name));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(
        edits in prop::collection::vec((0_usize..3000, any::<u8>()), 1..6),
    ) {
        let mut bytes = weights();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        let folder = copy("llama-hf");
        if let Ok(checkpoint) = open_with(folder.path(), &bytes) {
            std::hint::black_box(checkpoint.fingerprint());
        }
    }
}
