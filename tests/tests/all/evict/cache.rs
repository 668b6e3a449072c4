//! What caches hold behind a prompt, by the spec that is a method of kvpress, against what kvpress kept.

use heterokv_cache::{CacheSpec, KvCache, Level};

use super::{EXPECTED_SINKS, Run, check_kept, each_golden};

/// Methods of which a cache decides by another definition, on purpose.
const DIFFERENT: [(&str, &str); 2] = [
    ("TOVAPress", "all query heads of a layer decide together, here those of a KV head"),
    ("ObservedAttentionPress", "the mean per query that saw a token, here the sum, as H2O has it"),
];

/// Scorer, queries looked at, pooling, budget, first and last tokens that stay beside those of the scorer.
fn spec(run: &Run<'_>, num_tokens: usize) -> String {
    let params = run.params;
    let window = params.window_size.to_string();
    let pool = format!("mean:{}", params.kernel_size);
    let pyramid = format!("pyramid-within:{}", params.beta);
    let (scorer, observe, pool, budget, sinks) = match run.method {
        "SnapKVPress" => ("window", &*window, &*pool, "uniform", 0),
        "PyramidKVPress" => ("window", &*window, &*pool, &*pyramid, 0),
        "TOVAPress" => ("last-query", "1", "none", "uniform", 0),
        "ObservedAttentionPress" => ("accumulated", "all", "none", "uniform", 0),
        "KnormPress" => ("key-norm", "1", "none", "uniform", 0),
        "KeyDiffPress" => ("key-diff", "1", "none", "uniform", 0),
        "ExpectedAttentionPress" => ("expected", "all", "none", "uniform", EXPECTED_SINKS),
        "StreamingLLMPress" => ("position", "1", "none", "uniform", params.n_sink),
        method => panic!("no spec for {method}"),
    };
    let keep = (num_tokens as f64 * (1.0 - params.compression_ratio)) as usize;
    format!(
        "keys=f16,values=f16@device,evict={scorer},observe={observe},pool={pool},gqa=mean,budget={budget},\
         keep={keep},every=once,sinks={sinks},recent=0"
    )
}

/// What a cache of the spec holds of the prompt, `[num_layers][num_kv_heads]`.
fn held(run: &Run<'_>, ids: &[u32], spec: &str) -> Vec<Vec<Vec<u32>>> {
    let shape = run.model.kv_shape();
    let spec: CacheSpec = spec.parse().unwrap();
    let config = spec.resolve(&shape, None).unwrap();
    let mut cache = KvCache::new(shape, config, Level::detect(), None).unwrap();
    run.model.prefill(ids, std::slice::from_mut(&mut cache), None).unwrap();
    let positions = |layer: usize, head: usize| cache.held_positions(layer, head).to_vec();
    let heads = shape.heads.num_kv_heads;
    let layer = |layer: usize| (0..heads).map(|head| positions(layer, head)).collect();
    (0..shape.num_layers).map(layer).collect()
}

/// Whether a head holds what the reference keeps.
fn check(run: &Run<'_>, held: &[u32], scores: &[f64], kept: &[u32]) -> Result<(), String> {
    let sinks = match run.method {
        "ExpectedAttentionPress" => EXPECTED_SINKS,
        _ => run.params.n_sink,
    };
    let middle = sinks..scores.len() - run.scoring().own_recent();
    check_kept(held, middle, scores, kept)
}

#[test]
fn caches_hold_what_kvpress_keeps() {
    each_golden(|run, golden, _| {
        let held = held(run, &golden.ids, &spec(run, golden.ids.len()));
        let mut num_different = 0;
        for layer in &golden.layers {
            for (kv_head, (scores, kept)) in layer.scores.iter().zip(&layer.kept).enumerate() {
                let held = &held[layer.layer][kv_head];
                assert_eq!(held.len(), kept.len(), "{}", run.method);
                let Err(reason) = check(run, held, scores, kept) else { continue };
                num_different += 1;
                let is_known = DIFFERENT.iter().any(|(method, _)| *method == run.method);
                let place = format!("layer {}, KV head {kv_head}", layer.layer);
                assert!(is_known, "{}, {place}: {reason}", run.method);
            }
        }
        if let Some((method, why)) = DIFFERENT.iter().find(|(method, _)| *method == run.method) {
            println!("{method}: {num_different} heads hold other tokens: {why}");
            assert!(num_different > 0, "{method} is as ours; it need not be listed");
        }
    });
}

/// The negative control: what another head or layer keeps, another text, and a token fewer are seen.
#[test]
fn caches_that_hold_something_else_are_seen() {
    each_golden(|run, golden, _| {
        if DIFFERENT.iter().any(|(method, _)| *method == run.method) {
            return;
        }
        let spec = spec(run, golden.ids.len());
        let layer = &golden.layers[1];
        let (scores, kept) = (&layer.scores[0], &layer.kept[0]);
        let check = |held: &[u32]| check(run, held, scores, kept);
        let own = held(run, &golden.ids, &spec);
        assert!(check(&own[1][0][1..]).is_err(), "{}: one too few", run.method);
        if run.method == "StreamingLLMPress" {
            return;
        }
        assert!(check(&own[1][1]).is_err(), "{}: another head", run.method);
        assert!(check(&own[2][0]).is_err(), "{}: another layer", run.method);
        let other: Vec<u32> = golden.ids.iter().rev().copied().collect();
        let other = held(run, &other, &spec);
        assert!(check(&other[1][0]).is_err(), "{}: another text", run.method);
    });
}
