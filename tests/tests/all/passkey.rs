//! A number hidden in 7,841 tokens: where the full cache answers, the compressed ones answer too.

use heterokv_cache::KvCache;
use heterokv_model::text::SpecialTokens;
use heterokv_model::{ComputeType, Model};
use serde::Deserialize;

use crate::distance::Bars;
use crate::files::{is_long, json, shared};
use crate::smollm::{Smollm, cache, greedy, last_logits, timed};

#[derive(Deserialize)]
struct Passkey {
    depth: f64,
    prompt: String,
    ids: Vec<u32>,
    answer: String,
}

/// The first of these is the reference.
const SPECS: [&str; 5] = ["full", "hca:25%", "hca:12.5%", "hca-rescore:12.5%", "hca-rescore:6.25%"];

/// The only depth that is run where time is short; `full` answers it.
const SHORT_DEPTH: f64 = 0.5;

/// Prompt tokens per second, in a pool of two threads, encoding into all of [`SPECS`] included.
const PREFILL_TOKENS_PER_SECOND: f64 = 60.0;

/// Which of [`SPECS`] answer, and the speed at which the prompt was taken in.
fn answers(smollm: &Smollm, model: &Model, passkey: &Passkey) -> (Vec<bool>, f64) {
    let answer = smollm.encode(&passkey.answer);
    let mut caches: Vec<KvCache> = SPECS.iter().map(|spec| cache(model, spec)).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let (hidden, seconds) =
        timed(|| pool.install(|| model.prefill(&passkey.ids, &mut caches, None).unwrap()));
    let rate = passkey.ids.len() as f64 / seconds;
    let logits = last_logits(model, &hidden);
    println!("depth {:.0} %: {rate:.1} tok/s into {} caches", 100.0 * passkey.depth, caches.len());
    let mut answered = Vec::new();
    for (spec, cache) in SPECS.iter().zip(&mut caches) {
        let ids = greedy(model, logits.clone(), cache, answer.len());
        let text = smollm.text.tokenizer.decode(&ids, SpecialTokens::Show).unwrap();
        let verdict = if ids == answer { "answers" } else { "misses" };
        println!(
            "  {spec:<18} {verdict:<8} {text:?}, ratio {:.2} %, rows read {:.3}",
            100.0 * cache.ratio(),
            cache.stats().rows_read()
        );
        answered.push(ids == answer);
    }
    (answered, rate)
}

#[test]
fn compressed_caches_find_what_full_finds() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(path) = shared("golden/passkey_7900.json") else { return };
    let passkeys: Vec<Passkey> = json(&path);
    let model = smollm.load(ComputeType::Q8);
    let (mut num_found, mut missed, mut fastest) = (0, Vec::new(), 0.0_f64);
    for passkey in &passkeys {
        assert_eq!(smollm.encode(&passkey.prompt), passkey.ids, "depth {}", passkey.depth);
        if !is_long() && passkey.depth != SHORT_DEPTH {
            continue;
        }
        let (answered, rate) = answers(&smollm, &model, passkey);
        fastest = fastest.max(rate);
        if answered[0] {
            num_found += 1;
            let silent = SPECS.iter().zip(&answered).filter(|(_, answered)| !**answered);
            missed.extend(silent.map(|(spec, _)| format!("{spec} at depth {}", passkey.depth)));
        }
    }
    let (depths, needed) = if is_long() { (passkeys.len(), 2) } else { (1, 1) };
    println!("full answers at {num_found} of {depths} depths");
    assert!(num_found >= needed, "full answers too seldom to compare with: {num_found}");
    assert!(missed.is_empty(), "full answers, these do not: {missed:?}");
    if is_long() {
        let mut bars = Bars::default();
        bars.at_least("prefill at 7,841 tokens, tok/s", fastest, PREFILL_TOKENS_PER_SECOND);
        bars.finish();
    }
}
