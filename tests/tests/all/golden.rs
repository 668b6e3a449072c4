//! SmolLM2-135M against references that independent implementations computed on the same weights.

use std::path::Path;

use heterokv_eval::{Distribution, kl_divergence, logits_report};
use heterokv_model::ComputeType;
use serde::Deserialize;

use crate::distance::{Bars, argmax, max_distance};
use crate::files::{is_long, json, shared};
use crate::smollm::{Smollm, cache, feed, last_logits};

/// Windows up to this length are compared with f32 and f16 weights where time is short.
const SHORT_WINDOW_TOKENS: usize = 1024;

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn token_ids_are_the_references() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(path) = shared("golden/smollm2_tokens.json") else { return };
    let texts: Vec<Tokens> = json(&path);
    assert!(!texts.is_empty());
    for Tokens { text, ids } in texts {
        assert_eq!(smollm.encode(&text), ids, "{text:?}");
    }
}

#[derive(Deserialize)]
struct Windows {
    windows: Vec<Window>,
}

#[derive(Deserialize)]
struct Window {
    offset: usize,
    num_tokens: usize,
    first_ids: Vec<u32>,
    mean_nll: Option<f64>,
    last_logsumexp: f64,
    last_top32_ids: Vec<u32>,
    last_top32_logits: Vec<f32>,
}

/// The project's promise for the default compact weights: of mean NLL, and of logits.
const COMPACT_BARS: (f64, f64) = (0.012, 0.45);
/// The same for f32 and f16 weights.
const WIDE_BARS: (f64, f64) = (0.002, 0.05);

/// Mean NLL and the reference's 32 highest logits in windows of the corpus.
fn check_windows(compute: ComputeType, (nll_bar, logit_bar): (f64, f64), max_tokens: usize) {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(path) = shared("golden/smollm2_logits.json") else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let model = smollm.load(compute);
    let windows: Windows = json(&path);
    let mut bars = Bars::default();
    for window in windows.windows.iter().filter(|window| window.num_tokens <= max_tokens) {
        let at = format!("{compute}, {} tokens at {}", window.num_tokens, window.offset);
        let tokens = &corpus[window.offset..][..window.num_tokens];
        let num_known = window.first_ids.len().min(tokens.len());
        assert_eq!(tokens[..num_known], window.first_ids[..num_known], "{at}");
        let report = logits_report(&model, tokens, &[-1]).unwrap();
        let row = &report.rows[0];
        assert_eq!(report.mean_nll.is_some(), window.mean_nll.is_some(), "{at}");
        if let (Some(own), Some(reference)) = (report.mean_nll, window.mean_nll) {
            bars.at_most(&format!("{at}: mean NLL"), (own - reference).abs(), nll_bar);
        }
        let own = window.last_top32_ids.iter().map(|&id| row.logits[id as usize]);
        let own: Vec<f32> = own.collect();
        assert_eq!(own.len(), 32, "{at}");
        let worst = max_distance(&own, &window.last_top32_logits);
        bars.at_most(&format!("{at}: top-32 logits"), worst, logit_bar);
        let lse = (row.logsumexp - window.last_logsumexp).abs();
        bars.at_most(&format!("{at}: log-sum-exp"), lse, logit_bar);
    }
    bars.finish();
}

/// All windows, or the short ones where time is short.
fn wide_limit() -> usize {
    if is_long() { usize::MAX } else { SHORT_WINDOW_TOKENS }
}

#[test]
fn windows_with_f32_weights() {
    check_windows(ComputeType::F32, WIDE_BARS, wide_limit());
}

#[test]
fn windows_with_f16_weights() {
    check_windows(ComputeType::F16, WIDE_BARS, wide_limit());
}

#[test]
fn windows_with_compact_weights() {
    check_windows(ComputeType::Q8, COMPACT_BARS, usize::MAX);
}

#[test]
fn windows_with_compact_weights_and_activations() {
    check_windows(ComputeType::Q8A8, COMPACT_BARS, wide_limit());
}

/// Tokens of a prompt whose distributions are compared.
const PROMPT_TOKENS: usize = 512;

/// What rounding the activations of a prompt costs: the checkpoint's weights of 4 bits are the same in both forms.
#[test]
fn a_prompt_in_8_bits_is_near_one_in_f32() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("gate/moby-dick.txt");
    let text = std::fs::read_to_string(corpus).unwrap();
    let tokens = &smollm.encode(&text)[..PROMPT_TOKENS];
    let [exact, rounded] = [ComputeType::F32, ComputeType::Q8A8].map(|compute| {
        let model = smollm.load(compute);
        let hidden = model.extend(tokens, &mut cache(&model, "full")).unwrap();
        let logits = model.logits_of_rows(&hidden).unwrap();
        let rows = logits.chunks_exact(model.config().vocab_size);
        rows.map(Distribution::of_logits).collect::<Vec<_>>()
    });
    let mean = |a: &[Distribution], b: &[Distribution]| {
        a.iter().zip(b).map(|(a, b)| kl_divergence(a, b)).sum::<f64>() / a.len() as f64
    };
    let mut bars = Bars::default();
    bars.at_most("KL(f32 || q8a8) of a prompt, nats", mean(&exact, &rounded), 0.0015);
    bars.finish();
    // A prompt that is one token behind is far away.
    assert!(mean(&exact[1..], &rounded[..PROMPT_TOKENS - 1]) > 1.0);
}

#[derive(Deserialize)]
struct Continuation {
    prompt: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    top1_top2_logit_gap: Vec<f64>,
}

/// Along the reference's greedy continuations: the same token is the most probable one wherever the
/// reference's two best are at least `min_gap` apart.
fn check_greedy(compute: ComputeType, min_gap: f64) {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(path) = shared("golden/smollm2_greedy.json") else { return };
    let model = smollm.load(compute);
    let continuations: Vec<Continuation> = json(&path);
    let (mut num_steps, mut num_checked, mut num_equal, mut widest_miss) = (0, 0, 0, 0.0_f64);
    for Continuation { prompt, prompt_ids, greedy_ids, top1_top2_logit_gap } in continuations {
        assert_eq!(smollm.encode(&prompt), prompt_ids, "{prompt:?}");
        assert_eq!(greedy_ids.len(), top1_top2_logit_gap.len());
        let mut caches = [cache(&model, "full")];
        let hidden = model.prefill(&prompt_ids, &mut caches, None).unwrap();
        let mut logits = last_logits(&model, &hidden);
        for (step, (&id, &gap)) in greedy_ids.iter().zip(&top1_top2_logit_gap).enumerate() {
            let own = argmax(&logits);
            num_steps += 1;
            num_equal += usize::from(own == id);
            if own != id {
                widest_miss = widest_miss.max(gap);
            }
            if gap >= min_gap {
                num_checked += 1;
                assert_eq!(own, id, "{compute}: {prompt:?}, step {step}, gap {gap}");
            }
            logits = feed(&model, &[id], &mut caches[0]);
        }
    }
    println!(
        "{compute}: {num_equal} of {num_steps} steps equal, {num_checked} held to it (gap >= {min_gap}), \
         widest gap of another choice {widest_miss:.3}"
    );
    assert!(num_checked > 0, "no step has such a gap");
}

#[test]
fn greedy_with_f32_weights() {
    check_greedy(ComputeType::F32, 0.05);
}

#[test]
fn greedy_with_compact_weights() {
    check_greedy(ComputeType::Q8, 0.9);
}
