//! The same input gives the same bits, however often, on however many threads and beside whatever other
//! caches; and feeding tokens at once gives what feeding them one by one gives.
//!
//! Each law is held on a small checkpoint of ours and, where it is there, on the default model.

use heterokv_cache::{KvCache, PrefillInput, prefill_layer};
use heterokv_eval::{Candidate, Distribution, Outcome, Row, Steps, kl_divergence};
use heterokv_model::{ComputeType, Model, PromptBlock};

use crate::distance::{bits, max_distance};
use crate::files::fixture;
use crate::harness::{candidate, measure};
use crate::smollm::{Smollm, cache, feed, greedy, last_logits};
use crate::tiny::load;

/// One of each kind: uncompressed, as published, re-scored, and with a selection of its own.
const SPECS: [&str; 4] =
    ["full", "hca:25%", "hca-rescore:12.5%", "hca:25%,select=top-k:40,union=head"];

/// Specs that a head of 8 channels can hold too, where no preset keeps its ratio.
const TINY_SPECS: [&str; 4] = [
    "full",
    "keys=int8-token,values=int8@host,select=top-p:0.9,min=8,recent=16",
    "keys=lm4,values=int8@host,rescore=int8@host,select=top-p:0.9,min=8,recent=16",
    "keys=f16,values=f16@host,select=top-k:40,union=head,recent=16",
];

/// Tokens of the prompts: enough that tables are fitted and tokens are coded.
const PROMPT_TOKENS: usize = 400;
/// Tokens fed behind them.
const STEPS: usize = 12;

pub(crate) fn tiny_model() -> Model {
    load(&fixture("llama3-rope-scaling"), ComputeType::F32)
}

pub(crate) fn tokens(model: &Model, num_tokens: usize) -> Vec<u32> {
    let vocab_size = model.config().vocab_size as u64;
    // Knuth's multiplier scatters the ids; the text does not have to mean anything.
    (1..=num_tokens as u64).map(|i| ((i * 2_654_435_761) >> 7) as u32 % vocab_size as u32).collect()
}

fn prefilled(model: &Model, specs: &[&str], prompt: &[u32]) -> (Vec<f32>, Vec<KvCache>) {
    let mut caches: Vec<KvCache> = specs.iter().map(|spec| cache(model, spec)).collect();
    let hidden = model.prefill(prompt, &mut caches, None).unwrap();
    (last_logits(model, &hidden), caches)
}

/// The prompt and what is fed behind it.
fn split(model: &Model) -> (Vec<u32>, Vec<u32>) {
    let mut prompt = tokens(model, PROMPT_TOKENS + STEPS);
    let fed = prompt.split_off(PROMPT_TOKENS);
    (prompt, fed)
}

pub(crate) fn check_twice(model: &Model, specs: &[&str]) {
    let (prompt, _) = split(model);
    for spec in specs {
        let run = || {
            let (logits, mut caches) = prefilled(model, &[spec], &prompt);
            (bits(&logits), greedy(model, logits, &mut caches[0], STEPS))
        };
        assert_eq!(run(), run(), "{spec}");
    }
}

#[test]
fn a_prompt_twice_gives_the_same_ids() {
    check_twice(&tiny_model(), &TINY_SPECS);
}

#[test]
fn a_prompt_twice_gives_the_same_ids_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    check_twice(&smollm.load(ComputeType::Q8), &SPECS);
}

fn check_forks(model: &Model) {
    let (prompt, fed) = split(model);
    let (_, caches) = prefilled(model, &["full"], &prompt);
    let (mut one, mut other) = (caches[0].fork().unwrap(), caches[0].fork().unwrap());
    let (one, other) = (feed(model, &fed, &mut one), feed(model, &fed, &mut other));
    let vocab_size = model.config().vocab_size;
    for (p, q) in one.chunks(vocab_size).zip(other.chunks(vocab_size)) {
        assert_eq!(kl_divergence(&Distribution::of_logits(p), &Distribution::of_logits(q)), 0.0);
    }
    let row = measure(model, &[candidate(model, "full")], &prompt, &fed).remove(0);
    let Outcome::Divergence { summary, .. } = row.outcome else { panic!("tokens were fed") };
    assert_eq!((summary.kl_mean, summary.kl_max, summary.top1, summary.top5), (0.0, 0.0, 1.0, 1.0));
    assert_eq!((summary.ppl_change, summary.probability_change), (0.0, 0.0));
}

/// Caches of which one reads a prompt by blocks go through the layers apart from others, and beside them come to what
/// each comes to alone.
#[test]
fn caches_that_read_a_prompt_by_blocks_are_measured_beside_others() {
    let model = tiny_model();
    let (prompt, fed) = split(&model);
    let rows = "keys=f16,values=f16@device";
    let specs =
        [rows, &format!("{rows},prefill=anchor:64:16"), &format!("{rows},prefill=anchor:400")];
    let candidates = specs.map(|spec| candidate(&model, spec));
    let kl = |row: &Row| match &row.outcome {
        Outcome::Divergence { summary, .. } => summary.kl_mean,
        _ => panic!("tokens were fed"),
    };
    let together: Vec<f64> = measure(&model, &candidates, &prompt, &fed).iter().map(kl).collect();
    for (candidate, together) in candidates.iter().zip(&together) {
        let alone = measure(&model, std::slice::from_ref(candidate), &prompt, &fed);
        assert_eq!(kl(&alone[0]), *together, "{}", candidate.name);
    }
    let [exact, by_blocks, by_one_block] = together[..] else { panic!("three rows") };
    assert_eq!((exact, by_one_block), (0.0, 0.0));
    assert!(by_blocks > 1e-9, "{by_blocks}");
}

#[test]
fn forks_of_full_do_not_differ() {
    check_forks(&tiny_model());
}

#[test]
fn forks_of_full_do_not_differ_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    check_forks(&smollm.load(ComputeType::Q8));
}

/// What a layer takes in is what came out of the embedding: the same for the same token, wherever it stands.
/// From the first layer on, every token has its own.
#[test]
fn an_observer_sees_what_enters_a_layer() {
    let model = tiny_model();
    let hidden_size = model.config().hidden_size;
    let prompt = tokens(&model, 700);
    let mut layers = vec![Vec::new(); model.config().num_layers];
    let last = model.prefill_observed(&prompt, &mut [], &mut |block: &PromptBlock<'_>| {
        layers[block.layer].extend_from_slice(block.hidden);
    });
    assert_eq!(layers[0].len(), last.unwrap().len());
    let row =
        |layer: usize, token: usize| bits(&layers[layer][token * hidden_size..][..hidden_size]);
    let again = (1..700).find(|&token| prompt[token] == prompt[0]).expect("a small vocabulary");
    assert_eq!(row(0, 0), row(0, again));
    assert_ne!(row(1, 0), row(1, again));
    let other = (1..700).find(|&token| prompt[token] != prompt[0]).expect("more than one token");
    assert_ne!(row(0, 0), row(0, other));
}

fn check_threads(model: &Model, specs: &[&str]) {
    let (prompt, fed) = split(model);
    let run = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| {
            let (mut logits, mut caches) = prefilled(model, specs, &prompt);
            logits.extend(caches.iter_mut().flat_map(|cache| feed(model, &fed, cache)));
            bits(&logits)
        })
    };
    let one = run(1);
    for num_threads in [2, 3] {
        assert!(one == run(num_threads), "{num_threads} threads give other bits than one");
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    check_threads(&tiny_model(), &TINY_SPECS);
}

#[test]
fn the_number_of_threads_does_not_show_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    check_threads(&smollm.load(ComputeType::Q8), &SPECS);
}

/// A cache that was prefilled alone, as generation does it, and one beside others, as comparisons do:
/// the same bytes in use, and the same bits out of every later step.
pub(crate) fn check_alone(model: &Model, specs: &[&str]) {
    let (prompt, fed) = split(model);
    let (together_logits, together) = prefilled(model, specs, &prompt);
    let candidates: Vec<Candidate<'_>> = specs.iter().map(|spec| candidate(model, spec)).collect();
    let rows = measure(model, &candidates, &prompt, &fed);
    let (&last, fed) = fed.split_last().unwrap();
    let mut full = Vec::new();
    for ((spec, together), row) in specs.iter().zip(together).zip(&rows) {
        let (alone_logits, mut alone) = prefilled(model, &[spec], &prompt);
        assert_eq!(bits(&alone_logits), bits(&together_logits), "{spec}");
        let mut alone = alone.remove(0);
        assert_eq!(alone.device_bytes(), together.device_bytes(), "{spec}");
        assert_eq!(alone.host_in_use_bytes(), together.host_in_use_bytes(), "{spec}");
        let mut fork = together.fork().unwrap();
        drop(together);
        let logits = feed(model, fed, &mut alone);
        assert_eq!(bits(&logits), bits(&feed(model, fed, &mut fork)), "{spec}");
        let memory = row.memory.last().unwrap();
        assert_eq!(alone.device_bytes(), memory.device, "{spec}");
        assert_eq!(alone.host_in_use_bytes(), memory.host_bytes, "{spec}");
        assert_eq!(fork.device_bytes(), alone.device_bytes(), "{spec}");
        assert_eq!(alone.ratio(), memory.ratio(), "{spec}");
        assert_eq!(Some(alone.stats().rows_read()), row.rows_read, "{spec}");
        let rows = logits.chunks(model.config().vocab_size).map(Distribution::of_logits);
        let rows: Vec<Distribution> = rows.collect();
        if full.is_empty() {
            full.clone_from(&rows);
        }
        let mut steps = Steps::default();
        for (step, (full, own)) in full.iter().zip(&rows).enumerate() {
            steps.push(full, own, *fed.get(step + 1).unwrap_or(&last)).unwrap();
        }
        let Outcome::Divergence { steps: measured, summary } = &row.outcome else {
            panic!("tokens were fed")
        };
        assert_eq!(&steps, measured, "{spec}");
        println!("{spec}: KL {:.6} alone and beside others", summary.kl_mean);
    }
}

#[test]
fn a_cache_alone_is_the_cache_beside_others() {
    check_alone(&tiny_model(), &TINY_SPECS);
}

#[test]
fn a_cache_alone_is_the_cache_beside_others_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    check_alone(&smollm.load(ComputeType::Q8), &SPECS);
}

/// A matrix product sums in another order than a vector's, and compact weights meet activations of 16
/// bits there, so the bits differ, and a step now and then selects another row. The bars are three times what was seen
/// on the default model, by machine and spec: most where few rows are taken, so that another one weighs much. They
/// cover a number that rounds to the neighbouring f16 on the small one.
fn check_at_once(model: &Model, specs: &[&str], bars: [f64; 4]) {
    let (prompt, fed) = split(model);
    let (_, caches) = prefilled(model, specs, &prompt);
    for ((spec, mut cache), bar) in specs.iter().zip(caches).zip(bars) {
        let mut fork = cache.fork().unwrap();
        let hidden = model.extend(&fed, &mut fork).unwrap();
        let at_once = model.logits_of_rows(&hidden).unwrap();
        let distance = max_distance(&at_once, &feed(model, &fed, &mut cache));
        println!("{spec}: at once and one by one differ by {distance:.6}");
        assert!(distance <= bar, "{spec}: {distance}");
        assert_eq!(fork.device_bytes(), cache.device_bytes(), "{spec}");
        assert_eq!(fork.num_tokens(), cache.num_tokens(), "{spec}");
    }
}

#[test]
fn at_once_is_one_by_one() {
    check_at_once(&tiny_model(), &TINY_SPECS, [2e-3; 4]);
}

#[test]
fn at_once_is_one_by_one_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    check_at_once(&smollm.load(ComputeType::Q8), &SPECS, [0.05, 0.05, 0.05, 0.32]);
}

/// Where every coded token is selected and nothing is rounded further than f16, the heterogeneous path
/// computes what the uncompressed cache computes, up to the order of f32 sums and a few numbers that
/// these round to the neighbouring f16.
#[test]
fn a_cache_that_loses_nothing_is_full() {
    let model = tiny_model();
    let (prompt, fed) = split(&model);
    let lossless = "keys=f16,values=f16@host,select=none,recent=16";
    let rescored = "keys=int4-token,values=f16@host,rescore=f16@host,select=none,recent=16";
    let (_, mut caches) = prefilled(&model, &["full", lossless, rescored], &prompt);
    let full = feed(&model, &fed, &mut caches[0]);
    for (cache, spec) in caches[1..].iter_mut().zip([lossless, rescored]) {
        let distance = max_distance(&full, &feed(&model, &fed, cache));
        println!("{spec}: {distance:.6} from full");
        assert!(distance <= 2e-3, "{spec}: {distance}");
        assert!(cache.host_in_use_bytes() > 0, "{spec} keeps values on the host");
    }
}

/// The blocks that an observer sees, put together, make the cache that the prompt made: a format whose
/// tables follow keys and queries shows it.
#[test]
fn an_observer_sees_what_the_caches_get() {
    let model = tiny_model();
    let spec = "keys=alloc/4,values=int8@host,select=top-p:0.9,min=8,recent=16";
    // Longer than the blocks that pass through a layer together.
    let prompt = tokens(&model, 700);
    let mut layers: Vec<[Vec<f32>; 3]> = Vec::new();
    let mut own = [cache(&model, spec)];
    let hidden = model.prefill_observed(&prompt, &mut own, &mut |block: &PromptBlock<'_>| {
        if block.first == 0 {
            assert_eq!(block.layer, layers.len(), "layer by layer");
            layers.push([Vec::new(), block.k.to_vec(), block.v.to_vec()]);
        }
        let [q, k, v] = &mut layers[block.layer];
        assert_eq!(q.len(), block.first * model.kv_shape().heads.qo_row_len());
        q.extend_from_slice(block.q);
        assert!(bits(k) == bits(block.k) && bits(v) == bits(block.v));
    });
    let logits = last_logits(&model, &hidden.unwrap());
    assert_eq!(layers.len(), model.config().num_layers);
    let mut rebuilt = [cache(&model, spec)];
    for (layer, [q, k, v]) in layers.iter().enumerate() {
        let input = PrefillInput { q, k, v };
        prefill_layer(&mut rebuilt, layer, input, &mut vec![0.0; q.len()]).unwrap();
    }
    let (unobserved, mut plain) = prefilled(&model, &[spec], &prompt);
    assert_eq!(bits(&logits), bits(&unobserved));
    let decode = |cache: &mut KvCache| greedy(&model, logits.clone(), cache, STEPS);
    let expected = decode(&mut plain[0]);
    assert_eq!(decode(&mut own[0]), expected);
    assert_eq!(decode(&mut rebuilt[0]), expected);
    let next = &expected[..1];
    let after = |cache: &mut KvCache| bits(&feed(&model, next, cache));
    assert_eq!(after(&mut rebuilt[0]), after(&mut plain[0]));
}
