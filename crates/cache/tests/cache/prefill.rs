//! What the tokens of a prompt attend to: as the caches that take it ask for, and never as another one does.

use heterokv_attn::{PrefillOutput, PromptAttention};
use heterokv_cache::{DeviceCachePlan, Error, PrefillPattern, PromptLayer, Reservation};

use super::*;

const EXACT: &str = "keys=int4-token,recent=20";
const ANCHOR: &str = "keys=int4-token,recent=20,prefill=anchor:64:32";

#[test]
fn a_prompt_attends_as_its_caches_ask_for() {
    let tokens = Tokens::new(1, shape(2, 4, 2, 16), 400);
    let patterns = [EXACT, ANCHOR, "snapkv:100,observe=32,prefill=anchor:64"];
    let mut outs = Vec::new();
    for spec in patterns {
        let config = config(spec, tokens.shape);
        let mut caches = [cache(spec, tokens.shape), cache(spec, tokens.shape)];
        let out = tokens.prefill(&mut caches, 400);
        for (layer, out) in out.iter().enumerate() {
            let (k, v) = (&tokens.k[layer], &tokens.v[layer]);
            let heads = tokens.shape.heads;
            let prompt = PromptAttention::new(Level::detect(), heads, k, v, config.prefill());
            let mut expected = vec![0.0; out.len()];
            let output = PrefillOutput { out: &mut expected, lse: None };
            prompt.expect("a prompt").attend(0, &tokens.q[layer], output).expect("queries");
            assert_eq!(bits(out), bits(&expected), "{spec}");
        }
        outs.push(out);
    }
    assert!(outs[0] != outs[1] && outs[1] != outs[2]);
}

#[test]
fn caches_of_different_prefills_do_not_take_one_prompt() {
    let tokens = Tokens::new(2, shape(1, 4, 2, 16), 100);
    let heads = tokens.shape.heads;
    let prompt =
        || PromptLayer::new(heads, Level::detect(), &tokens.k[0], &tokens.v[0]).expect("a prompt");
    let is_of_second = |error: &Error| matches!(error, Error::DifferentPrefills { index: 1, .. });
    for specs in [[EXACT, ANCHOR], [ANCHOR, EXACT]] {
        let mut caches = specs.map(|spec| cache(spec, tokens.shape));
        let error = prompt().watch(&caches, None).expect_err("two prefills");
        assert!(is_of_second(&error), "{error}");
        let error = prompt().store(&mut caches[1..], 0);
        // Nobody showed the caches, so that the prompt is read exactly.
        assert_eq!(error.is_err(), specs[1] == ANCHOR);
    }
    let mut caches = [ANCHOR, ANCHOR].map(|spec| cache(spec, tokens.shape));
    let error = prompt().store(&mut caches, 0).expect_err("not shown before");
    assert!(error.to_string().contains("prefill=anchor:64:32"), "{error}");
    assert!(caches.iter().all(|cache| cache.num_tokens() == 0), "nothing may be stored");
    prompt()
        .watch(&caches, None)
        .expect("equal prefills")
        .store(&mut caches, 0)
        .expect("equal prefills");
}

#[test]
fn a_prefill_is_one_of_those_known() {
    let anchor = |block: usize, recent| PrefillPattern::Anchor {
        block: block.try_into().expect("a block"),
        recent,
    };
    let shape = shape(2, 4, 2, 16);
    for (word, pattern) in [
        ("exact", PrefillPattern::Exact),
        ("anchor:512", anchor(512, 0)),
        ("anchor:512:0", anchor(512, 0)),
        ("anchor:1:9", anchor(1, 9)),
    ] {
        let config = config(&format!("keys=int4-token,prefill={word}"), shape);
        assert_eq!(config.prefill(), pattern, "{word}");
        assert_eq!(super::config(&config.to_string(), shape), config, "{config}");
    }
    assert_eq!(config("full", shape).prefill(), PrefillPattern::Exact);
    for word in [
        "",
        "anchor",
        "anchor:",
        "anchor:0",
        "anchor:x",
        "anchor:5:",
        "anchor:5:-1",
        "anchor:5:5:5",
    ] {
        let error = format!("keys=f16,prefill={word}").parse::<CacheSpec>().expect_err(word);
        assert!(error.to_string().contains("anchor:BLOCK:RECENT"), "{word}: {error}");
    }
}

#[test]
fn what_looks_at_queries_that_do_not_see_everything_is_refused() {
    let shape = shape(2, 4, 2, 16);
    let resolve = |spec: &str| spec.parse::<CacheSpec>().expect(spec).resolve(&shape, None);
    for spec in ["h2o:50%,prefill=anchor:512", "snapkv:50%,observe=65,prefill=anchor:64:64"] {
        let error = resolve(spec).expect_err(spec);
        assert!(matches!(error, Error::Conflict { .. }), "{spec}: {error}");
    }
    for spec in [
        "snapkv:50%,observe=64,prefill=anchor:64",
        "tova:50%,prefill=anchor:1",
        "knorm:50%,prefill=anchor:1",
        "streamingllm:50%,prefill=anchor:1",
    ] {
        assert!(resolve(spec).is_ok(), "{spec}");
    }
}

#[test]
fn a_gpu_refuses_what_has_no_kernel() {
    let shape = shape(2, 4, 2, 16);
    let reservation = Reservation { prompt_tokens: 300, total_tokens: 400 };
    let limits = heterokv_gpu::Limits::WEBGPU_MINIMUM;
    let plan = |spec: &str| DeviceCachePlan::new(&config(spec, shape), &shape, limits, reservation);
    let error = plan(ANCHOR).expect_err("no kernel");
    assert!(matches!(error, Error::PrefillNotOnDevice { .. }), "{error}");
    assert!(plan(EXACT).is_ok());
}
