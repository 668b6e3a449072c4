//! Bad input on the way from a file to logits: an error each time, never a panic.

use std::fs;
use std::path::Path;

use heterokv_cache::{KvCache, Level};
use heterokv_model::{Checkpoint, ComputeType, Error, Model};

use crate::files::fixture;
use crate::smollm::{cache, last_logits};
use crate::tiny::load;

/// The whole way, as a program goes it.
fn run(path: &Path) -> Result<Vec<f32>, Error> {
    let model = Model::load(&Checkpoint::open(path)?, ComputeType::Q8, Level::detect())?;
    let hidden = model.prefill(&[1, 2, 3], &mut [cache(&model, "full")], None)?;
    model.logits(&hidden[2 * model.config().hidden_size..])
}

/// Lengths at which a file of `len` bytes is cut off: every one near the start, where the header is
/// read, then some of all residues, and the last bytes.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..256).chain((256..len).step_by(997)).chain(len - 9..len)
}

/// Cuts `whole` off at every one of [`cuts`], and runs what `place` of it makes a checkpoint.
fn check_cuts(whole: &Path, cut_off: &Path, checkpoint: &Path) {
    let bytes = fs::read(whole).unwrap();
    fs::write(cut_off, &bytes).unwrap();
    assert!(run(checkpoint).is_ok(), "the whole file is good");
    for len in cuts(bytes.len()) {
        fs::write(cut_off, &bytes[..len]).unwrap();
        let error = match run(checkpoint) {
            Ok(_) => panic!("{len} of {} bytes are accepted", bytes.len()),
            Err(error) => error.to_string(),
        };
        assert!(!error.is_empty() && !error.ends_with('.'), "{len} bytes: {error:?}");
    }
}

#[test]
fn truncated_gguf_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cut_off = folder.path().join("model.gguf");
    check_cuts(&fixture("llama3-rope-scaling.gguf"), &cut_off, &cut_off);
}

#[test]
fn truncated_safetensors_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("qwen2-bias").join(file), folder.path().join(file)).unwrap();
    }
    let cut_off = folder.path().join("model.safetensors");
    check_cuts(&fixture("qwen2-bias").join("model.safetensors"), &cut_off, folder.path());
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(run(&folder.path().join("absent.gguf")).is_err());
    assert!(run(folder.path()).is_err(), "an empty folder");
    assert!(run(&fixture("make_checkpoints.py")).is_err(), "a text");
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.gguf");
    let mut bytes = fs::read(fixture("llama3-rope-scaling.gguf")).unwrap();
    // All of the second half is weights.
    let half = bytes.len() / 2;
    bytes[half..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    for compute in [ComputeType::F32, ComputeType::F16, ComputeType::Q8] {
        let model = |c: Checkpoint| Model::load(&c, compute, Level::detect());
        let result = Checkpoint::open(&path).and_then(model).and_then(|model| {
            let mut caches = [cache(&model, "full")];
            model.prefill(&[1, 2, 3], &mut caches, None)
        });
        match result {
            Err(error) => println!("{compute}: {error}"),
            Ok(hidden) => assert!(hidden.iter().any(|x| x.is_nan()), "{compute}: NaN got lost"),
        }
    }
}

fn prefill(model: &Model, tokens: &[u32], caches: &mut [KvCache]) -> Result<Vec<f32>, Error> {
    model.prefill(tokens, caches, None)
}

#[test]
fn an_empty_prompt_is_refused() {
    let model = load(&fixture("qwen3-qknorm"), ComputeType::F32);
    let mut caches = [cache(&model, "full")];
    assert!(matches!(prefill(&model, &[], &mut caches), Err(Error::EmptyPrompt)));
    assert!(matches!(model.extend(&[], &mut caches[0]), Err(Error::EmptyPrompt)));
    assert_eq!(caches[0].num_tokens(), 0);
}

#[test]
fn an_id_outside_the_vocabulary_is_refused_and_leaves_no_trace() {
    let model = load(&fixture("qwen3-qknorm"), ComputeType::F32);
    let mut caches = [cache(&model, "full")];
    for token in [64, u32::MAX] {
        let is_told = |result: Result<Vec<f32>, Error>| match result {
            Err(Error::TokenId { token: told, vocab_size: 64 }) => told == token,
            _ => false,
        };
        assert!(is_told(prefill(&model, &[1, token, 2], &mut caches)));
        assert!(is_told(model.extend(&[1, token], &mut caches[0])));
        assert_eq!(caches[0].num_tokens(), 0);
    }
    let hidden = prefill(&model, &[1, 63, 2], &mut caches).unwrap();
    assert!(last_logits(&model, &hidden).iter().all(|logit| logit.is_finite()));
}

#[test]
fn a_prompt_into_a_cache_that_holds_one_is_refused() {
    let model = load(&fixture("qwen3-qknorm"), ComputeType::F32);
    let mut caches = [cache(&model, "full")];
    prefill(&model, &[1, 2], &mut caches).unwrap();
    assert!(prefill(&model, &[3], &mut caches).is_err());
    assert_eq!(caches[0].num_tokens(), 2);
}

#[test]
fn hidden_states_of_another_width_are_refused() {
    let model = load(&fixture("qwen3-qknorm"), ComputeType::F32);
    for len in [0, 1, 31, 33, 64] {
        assert!(model.logits(&vec![1.0; len]).is_err(), "{len}");
    }
    for len in [1, 31, 33] {
        assert!(model.logits_of_rows(&vec![1.0; len]).is_err(), "{len}");
    }
}

/// A cache that was made for another model.
#[test]
fn a_cache_of_another_shape_is_refused() {
    let model = load(&fixture("qwen3-qknorm"), ComputeType::F32);
    let other = load(&fixture("llama3-rope-scaling"), ComputeType::F32);
    let mut caches = [cache(&other, "full")];
    assert!(prefill(&model, &[1, 2, 3], &mut caches).is_err());
    assert!(model.extend(&[1], &mut caches[0]).is_err());
}
