//! Bytes: what is planned is what is allocated, and presets keep their promise while they grow.

use heterokv_cache::{CachePlan, MIN_TOKENS, MIN_TOKENS_BELOW_TEN_PERCENT, full_bytes};
use heterokv_testkit::Inputs;
use proptest::prelude::*;

use super::*;

const SPECS: [&str; 17] = [
    "full",
    "keys=f16",
    "keys=int8-token,values=int8@host,rescore=f16@host",
    "keys=int6-token,sinks=0,recent=1",
    "keys=int4-token,sinks=300,recent=40",
    "keys=int2-channel/32,sinks=5,recent=33",
    "keys=int4-channel/64",
    "keys=int3-channel/128,recent=130",
    "keys=lm1,sinks=1",
    "keys=lm3,rescore=int8@host",
    "keys=pq/2x256",
    "keys=pq/4x32,values=int8@host",
    "keys=alloc/1.25,values=int8@host",
    "keys=fp8,values=int4@host",
    "keys=rot-int3-token,values=int4/64@host",
    "keys=rot-int2-channel/32,values=int4/128@host,rescore=int8@host",
    "hca-rescore:50%",
];

/// Device and host bytes of a cache, checked against its own counts.
fn held(cache: &KvCache) -> (usize, usize) {
    let device = cache.device_in_use_bytes();
    assert_eq!(device, cache.device_bytes().total());
    let full = full_bytes(&cache.shape(), cache.num_tokens());
    if full > 0 {
        assert_eq!(cache.ratio(), device as f64 / full as f64);
    }
    (device, cache.host_in_use_bytes())
}

#[test]
fn a_prompt_takes_what_the_plan_says() {
    for head_dim in [16, 80] {
        let tokens = Tokens::new(1, shape(2, 2, 2, head_dim), 900);
        for spec in SPECS {
            let config = config(spec, tokens.shape);
            for len in [
                0, 1, 3, 4, 5, 32, 33, 63, 64, 67, 68, 69, 99, 100, 101, 128, 196, 197, 255, 256,
                257, 323, 324, 325, 340, 341, 452, 453, 579, 580, 581, 640, 700, 841, 900,
            ] {
                let cache = tokens.cache(spec, len, len);
                let plan = CachePlan::new(&config, &tokens.shape, len).expect("a plan");
                let found = (cache.device_bytes(), held(&cache).1);
                assert_eq!(found, (plan.device, plan.host_bytes), "{spec} {head_dim} {len}");
                assert_eq!(plan.full_bytes, full_bytes(&tokens.shape, len));
                assert_eq!(plan.num_tokens, len);
                if len > 0 {
                    assert_eq!(plan.ratio(), cache.ratio(), "{spec} {len}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn counts_agree_at_every_step(
        spec in prop::sample::select(&SPECS[..]),
        prompt in 0usize..500,
        appends in 0usize..300,
    ) {
        let tokens = Tokens::new(7, shape(1, 1, 1, 16), prompt + appends);
        let mut cache = tokens.cache(spec, prompt, prompt);
        let mut largest_host = held(&cache).1;
        for token in prompt..prompt + appends {
            tokens.append(&mut cache, token);
            let (_, host) = held(&cache);
            prop_assert!(host >= largest_host, "the host store never shrinks");
            largest_host = host;
        }
        let fork = cache.fork().unwrap();
        prop_assert_eq!(held(&fork), held(&cache));
    }
}

/// Appends synthetic keys from `cache`'s length to `end`, checking the ratio from `min_tokens` on.
fn grow(cache: &mut KvCache, end: usize, min_tokens: usize, percent: f64) -> f64 {
    let shape = cache.shape();
    let mut inputs = Inputs::new(5);
    // A pool of tokens, over and over: bytes do not depend on values.
    let len = shape.heads.kv_row_len();
    let pool = inputs.gaussian_rows(512, len, 1.0);
    let mut worst = 0.0f64;
    for token in cache.num_tokens()..end {
        let row = &pool[token % 512 * len..][..len];
        for layer in 0..shape.num_layers {
            cache.append(layer, row, row).expect("finite");
        }
        if token + 1 >= min_tokens {
            let ratio = 100.0 * cache.ratio();
            assert!(ratio <= percent, "{} tokens take {ratio} % of {percent} %", token + 1);
            worst = worst.max(ratio);
        }
    }
    worst
}

#[test]
fn presets_keep_their_ratio_at_every_length_from_4096_on() {
    for (preset, percent) in [
        ("hca", 25.0),
        ("hca", 12.5),
        ("hca-rescore", 25.0),
        ("hca-rescore", 12.5),
        ("hca-rescore", 6.25),
    ] {
        let spec = format!("{preset}:{percent}%");
        // Two layers of SmolLM2-135M, a head of 128 channels, one of 80.
        for shape in [shape(2, 9, 3, 64), shape(1, 1, 1, 128), shape(1, 1, 1, 80)] {
            let end = MIN_TOKENS + 700;
            let worst = grow(&mut cache(&spec, shape), end, MIN_TOKENS, percent);
            assert!(worst > 0.85 * percent, "{spec} leaves room: {worst} %");
            println!("{spec}, head_dim {}: at most {worst:.3} %", shape.heads.head_dim);
        }
        // From a prompt of that length, whose window begins at the start of a page.
        let one_head = shape(1, 1, 1, 64);
        let tokens = Tokens::new(9, one_head, MIN_TOKENS);
        let mut cache = tokens.cache(&spec, MIN_TOKENS, MIN_TOKENS);
        assert!(100.0 * cache.ratio() <= percent, "{spec} after a prompt");
        grow(&mut cache, MIN_TOKENS + 300, MIN_TOKENS, percent);
    }
}

#[test]
fn the_allocator_keeps_hca_at_a_sixteenth_over_32768_synthetic_keys() {
    let percent = 6.25;
    for head_dim in [64, 128] {
        let shape = shape(1, 1, 1, head_dim);
        let end = MIN_TOKENS_BELOW_TEN_PERCENT + 600;
        let mut cache = cache("hca:6.25%", shape);
        let worst = grow(&mut cache, end, MIN_TOKENS_BELOW_TEN_PERCENT, percent);
        println!("hca:6.25%, head_dim {head_dim}: at most {worst:.3} %");
        assert!(worst > 0.85 * percent, "{worst} %");
    }
}

#[test]
fn a_ratio_that_cannot_be_kept_is_refused_with_the_least() {
    let spec: CacheSpec = "hca:0.5%".parse().unwrap();
    let error = spec.resolve(&shape(1, 1, 1, 64), None).unwrap_err().to_string();
    assert!(error.contains("0.50 %") && error.contains("the least it can keep"), "{error}");
}
