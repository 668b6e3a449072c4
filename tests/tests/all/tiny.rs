//! Small random checkpoints of every family: ours, made and computed by `fixtures/make_checkpoints.py`
//! in float64, and the shared ones, computed by transformers in float32.

use std::path::Path;

use heterokv_cache::Level;
use heterokv_eval::logits_report;
use heterokv_model::{Checkpoint, ComputeType, Model};
use serde::Deserialize;

use crate::distance::{Bars, max_distance};
use crate::files::{fixture, json, shared};
use crate::smollm::{cache, feed};

/// Our checkpoints, each with the folder that holds its reference. The matrices of the second file are
/// Q8_0, and its reference is computed on what these blocks mean.
const OURS: [(&str, &str); 5] = [
    ("llama3-rope-scaling", "llama3-rope-scaling"),
    ("llama3-rope-scaling.gguf", "llama3-rope-scaling"),
    ("llama3-q8_0/model.gguf", "llama3-q8_0"),
    ("qwen2-bias", "qwen2-bias"),
    ("qwen3-qknorm", "qwen3-qknorm"),
];

/// How far a logit of a prompt may be from the float64 one: five times what f32 arithmetic was seen to do.
const PROMPT_BAR: f64 = 2e-4;

#[derive(Deserialize)]
struct Reference {
    ids: Vec<u32>,
    mean_nll: f64,
    logits: Vec<Vec<f32>>,
    f16_cache: Vec<Vec<f32>>,
}

pub(crate) fn load(path: &Path, compute: ComputeType) -> Model {
    let open = || Model::load(&Checkpoint::open(path)?, compute, Level::detect());
    open().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn reference(folder: &str) -> Reference {
    let reference: Reference = json(&fixture(folder).join("reference.json"));
    assert_eq!(reference.ids.len(), reference.logits.len());
    reference
}

/// The worst distance of any logit in the rows of a whole prompt, and of the mean NLL.
fn prompt_distances(model: &Model, reference: &Reference) -> (f64, f64) {
    let rows: Vec<i64> = (0..reference.ids.len() as i64).collect();
    let report = logits_report(model, &reference.ids, &rows).unwrap();
    let logits: Vec<f32> = report.rows.into_iter().flat_map(|row| row.logits).collect();
    let nll = (report.mean_nll.unwrap() - reference.mean_nll).abs();
    (max_distance(&logits, &reference.logits.concat()), nll)
}

#[test]
fn our_checkpoints_give_their_logits() {
    let mut bars = Bars::default();
    for (file, folder) in OURS {
        let (logits, nll) =
            prompt_distances(&load(&fixture(file), ComputeType::F32), &reference(folder));
        bars.at_most(&format!("{file}, f32: logits"), logits, PROMPT_BAR);
        bars.at_most(&format!("{file}, f32: mean NLL"), nll, PROMPT_BAR / 10.0);
    }
    bars.finish();
}

/// The reference rounds keys and values as the cache does, so that what is left is f32 arithmetic and
/// the few numbers that it rounds to the neighbouring f16.
#[test]
fn our_checkpoints_decode_as_an_f16_cache_does() {
    let mut bars = Bars::default();
    for (file, folder) in OURS {
        let (model, reference) = (load(&fixture(file), ComputeType::F32), reference(folder));
        let expected = reference.f16_cache.concat();
        let one_by_one = feed(&model, &reference.ids, &mut cache(&model, "full"));
        let hidden = model.extend(&reference.ids, &mut cache(&model, "full")).unwrap();
        let at_once = model.logits_of_rows(&hidden).unwrap();
        let by_one = max_distance(&one_by_one, &expected);
        bars.at_most(&format!("{file}: decoded one by one"), by_one, 2e-3);
        bars.at_most(&format!("{file}: at once"), max_distance(&at_once, &expected), 2e-3);
        let exact = max_distance(&one_by_one, &reference.logits.concat());
        println!("{file}: rounding the cache to f16 moves logits by {exact:.6}");
    }
    bars.finish();
}

/// Weights in narrower forms: exact where the stored type fits the form, so that what is left is
/// arithmetic; else twice what rounding the weights was seen to do to the logits. The second bar is for
/// decoding, where compact weights meet activations of 16 bits, and keys and values a little off round
/// to the neighbouring f16.
const NARROWER: [(&str, &str, ComputeType, f64, f64); 6] = [
    ("qwen2-bias", "qwen2-bias", ComputeType::F16, PROMPT_BAR, 2e-3),
    ("qwen3-qknorm", "qwen3-qknorm", ComputeType::F16, PROMPT_BAR, 2e-3),
    ("llama3-q8_0/model.gguf", "llama3-q8_0", ComputeType::Q8, PROMPT_BAR, 0.03),
    ("llama3-rope-scaling", "llama3-rope-scaling", ComputeType::F16, 0.11, 0.12),
    ("llama3-rope-scaling", "llama3-rope-scaling", ComputeType::Q8, 2.8, 2.8),
    ("qwen3-qknorm", "qwen3-qknorm", ComputeType::Q8, 0.6, 0.6),
];

#[test]
fn our_checkpoints_in_narrower_weights() {
    let mut bars = Bars::default();
    for (file, folder, compute, bar, decode_bar) in NARROWER {
        let (model, reference) = (load(&fixture(file), compute), reference(folder));
        let (logits, nll) = prompt_distances(&model, &reference);
        bars.at_most(&format!("{file}, {compute}: logits"), logits, bar);
        bars.at_most(&format!("{file}, {compute}: mean NLL"), nll, bar / 10.0);
        // Products with one vector take another path than those with a matrix.
        let decoded = feed(&model, &reference.ids, &mut cache(&model, "full"));
        let decoded = max_distance(&decoded, &reference.f16_cache.concat());
        bars.at_most(&format!("{file}, {compute}: decoded one by one"), decoded, decode_bar);
    }
    bars.finish();
}

/// The negative control: each constant of a config matters, and a wrong one is seen.
#[test]
fn a_changed_constant_misses_the_bar() {
    for (name, constant, changed) in [
        ("llama3-rope-scaling", "\"rope_theta\": 10000.0", "\"rope_theta\": 10100.0"),
        ("llama3-rope-scaling", "\"factor\": 8.0", "\"factor\": 7.9"),
        ("llama3-rope-scaling", "\"low_freq_factor\": 1.0", "\"low_freq_factor\": 1.1"),
        ("llama3-rope-scaling", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-04"),
        ("qwen2-bias", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-04"),
        ("qwen3-qknorm", "\"rope_theta\": 10000.0", "\"rope_theta\": 10100.0"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
        assert!(config.contains(constant), "{name} has {constant}");
        let weights = "model.safetensors";
        std::fs::copy(fixture(name).join(weights), folder.path().join(weights)).unwrap();
        std::fs::write(folder.path().join("config.json"), config.replace(constant, changed))
            .unwrap();
        let model = load(folder.path(), ComputeType::F32);
        let (logits, _) = prompt_distances(&model, &reference(name));
        println!("{name} with {changed}: logits move by {logits:.6}");
        assert!(logits > PROMPT_BAR, "{name} with {changed}: {logits} went unseen");
    }
}

#[derive(Deserialize)]
struct SharedReference {
    ids: Vec<u32>,
    rows: Vec<i64>,
    logits: Vec<Vec<f32>>,
    mean_nll: f64,
}

/// The shared checkpoints, and by how much rounding the cache to f16 moves their logits at most: the
/// float64 forward pass of `make_checkpoints.py --check` says so.
const SHARED: [(&str, f64); 5] = [
    ("llama2-mha", 6.6e-2),
    ("llama3-rope-scaling", 3.8e-2),
    ("mistral", 4.4e-2),
    ("qwen2-bias", 5.8e-2),
    ("qwen3-qknorm", 9.7e-3),
];

#[test]
fn shared_checkpoints_of_five_families() {
    let mut bars = Bars::default();
    for (name, f16_cache_bar) in SHARED {
        let Some(folder) = shared(&format!("golden/tiny/{name}")) else { return };
        let reference: SharedReference = json(&folder.join("reference.json"));
        let model = load(&folder, ComputeType::F32);
        let expected = reference.logits.concat();
        let report = logits_report(&model, &reference.ids, &reference.rows).unwrap();
        let rows = report.rows.iter().flat_map(|row| row.logits.iter().copied());
        let rows: Vec<f32> = rows.collect();
        let nll = (report.mean_nll.unwrap() - reference.mean_nll).abs();
        bars.at_most(&format!("{name}: logits"), max_distance(&rows, &expected), 1e-3);
        bars.at_most(&format!("{name}: mean NLL"), nll, 1e-3);
        let decoded = feed(&model, &reference.ids, &mut cache(&model, "full"));
        let vocab_size = model.config().vocab_size;
        let wanted = reference.rows.iter().map(|&row| &decoded[row as usize * vocab_size..]);
        let decoded: Vec<f32> = wanted.flat_map(|row| &row[..vocab_size]).copied().collect();
        let decoded = max_distance(&decoded, &expected);
        bars.at_most(&format!("{name}: decoded one by one"), decoded, f16_cache_bar);
    }
    bars.finish();
}
