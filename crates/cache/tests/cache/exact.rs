//! Caches that drop nothing equal the full one, and the full one equals attention in f64.

use heterokv_attn::reference::subset_attention;
use heterokv_testkit::{Controls, Tolerance, assert_close, compare};
use proptest::prelude::*;

use super::*;

/// The same f16 numbers are summed in another order, in f32, under weights that are at most one.
const ORDER: Tolerance = Tolerance { absolute: 3e-5, relative: 1e-5 };

fn shapes() -> impl Strategy<Value = KvShape> {
    let head_dim = prop_oneof![Just(8), Just(16), Just(24)];
    (1usize..3, 1usize..3, 1usize..6, head_dim)
        .prop_map(|(layers, kv, group, dim)| shape(layers, kv * group, kv, dim))
}

#[test]
fn the_full_cache_is_attention_in_f64() {
    for (seed, (prompt, total)) in
        [(1, 1), (0, 1), (7, 7), (0, 130), (255, 256), (256, 258), (257, 300), (513, 600)]
            .into_iter()
            .enumerate()
    {
        let tokens = Tokens::new(seed as u64, shape(2, 6, 2, 16), total);
        let mut cache = tokens.cache("full", prompt, total);
        let out = tokens.attend(&mut cache, total - 1);
        for (layer, out) in out.chunks_exact(96).enumerate() {
            let seen = vec![(0..total).collect(); 2];
            let (q, heads) = (tokens.query(layer, total - 1), tokens.shape.heads);
            let expected = subset_attention(&heads, q, &tokens.k[layer], &tokens.v[layer], &seen);
            assert_close("full", seed as u64, out, &expected.out, ORDER);
            if total == 300 {
                let tried = Controls { num_heads: 6, head_dim: 16 }
                    .assert_rejects(out, |out| compare(out, &expected.out, ORDER));
                assert!(tried.len() >= 7, "{tried:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Every token is read, and what the codes lose is nothing (f16 keys) or undone (re-scored).
    #[test]
    fn a_cache_that_reads_all_equals_the_full_one(
        seed: u64,
        shape in shapes(),
        prompt in 0usize..260,
        appends in 0usize..90,
        sinks in 0usize..6,
        recent in 1usize..40,
        select_all: bool,
        by_head: bool,
        kind in 0usize..4,
    ) {
        let parts = [
            "keys=f16,rescore=none",
            "keys=f16,rescore=none,renorm=off",
            "keys=int4-token,rescore=f16@host",
            "keys=int2-channel/32,rescore=f16@host",
        ];
        let select = if select_all { "none" } else { "top-p:1" };
        let union = if by_head { "head" } else { "group" };
        let spec = format!(
            "{},values=f16@host,select={select},union={union},sinks={sinks},recent={recent}",
            parts[kind]
        );
        let total = prompt + appends;
        prop_assume!(total > 0);
        let tokens = Tokens::new(seed, shape, total);
        let mut caches = [cache("full", shape), cache(&spec, shape)];
        tokens.prefill(&mut caches, prompt);
        let [full, tested] = &mut caches;
        for token in prompt..total {
            tokens.append(full, token);
            tokens.append(tested, token);
            if token % 7 == 0 || token + 1 == total {
                let expected = wide(&tokens.attend(full, token));
                let outcome = compare(&tokens.attend(tested, token), &expected, ORDER);
                prop_assert!(outcome.is_ok(), "{spec} at {token}: {}", outcome.unwrap_err());
            }
        }
        let expected = wide(&tokens.attend(full, 0));
        let outcome = compare(&tokens.attend(tested, 0), &expected, ORDER);
        prop_assert!(outcome.is_ok(), "{spec}: {}", outcome.unwrap_err());
    }

    /// Where encoding is per token and nothing is fitted, it does not matter how the tokens came.
    #[test]
    fn prompt_and_appends_are_one(
        seed: u64,
        shape in shapes(),
        total in 1usize..250,
        splits in prop::array::uniform2(0.0..=1.0f64),
        kind in 0usize..4,
    ) {
        let keys = ["f16", "int8-token", "int6-token", "int4-token"][kind];
        let spec = format!("keys={keys},values=int8@host,select=top-k:20,sinks=3,recent=17");
        let tokens = Tokens::new(seed, shape, total);
        let caches = splits.map(|at| tokens.cache(&spec, (at * total as f64) as usize, total));
        let outs = caches.map(|mut cache| tokens.attend(&mut cache, total - 1));
        let outcome = compare(&outs[0], &wide(&outs[1]), ORDER);
        prop_assert!(outcome.is_ok(), "{spec}: {}", outcome.unwrap_err());
    }
}

#[test]
fn before_tables_can_be_fitted_everything_is_exact_and_coding_begins_later() {
    for keys in ["lm2", "pq/2x16", "pq/2x256", "alloc/2"] {
        let threshold = if keys == "pq/2x256" { 512 } else { 256 };
        let spec = format!("keys={keys},values=f16@host,select=none,sinks=4,recent=32");
        let tokens = Tokens::new(3, shape(1, 2, 1, 16), 700);
        for prompt in [0, 1, 4, 5, 36, 37, 200, 291] {
            let mut caches = [cache("full", tokens.shape), cache(&spec, tokens.shape)];
            tokens.prefill(&mut caches, prompt);
            let [full, tested] = &mut caches;
            for token in prompt..700 {
                tokens.append(full, token);
                tokens.append(tested, token);
                let coded = token + 1 >= 36 + threshold;
                assert_eq!(tested.host_in_use_bytes() > 0, coded, "{keys} {prompt} {token}");
                assert_eq!(tested.device_bytes().tables > 0, coded, "{keys} {prompt} {token}");
                if token % 61 == 0 {
                    let expected = wide(&tokens.attend(full, token));
                    let out = tokens.attend(tested, token);
                    let exact = compare(&out, &expected, ORDER).is_ok();
                    assert!(exact || coded, "{keys} {prompt} {token}");
                }
            }
            // The comparison sees what two bits do.
            let expected = wide(&tokens.attend(full, 699));
            assert!(compare(&tokens.attend(tested, 699), &expected, ORDER).is_err(), "{keys}");
        }
        // A prompt one token beyond the threshold is coded at once.
        for (prompt, coded) in [(36 + threshold - 1, false), (36 + threshold, true)] {
            let cache = tokens.cache(&spec, prompt, prompt);
            assert_eq!(cache.host_in_use_bytes() > 0, coded, "{keys} {prompt}");
        }
    }
}

#[test]
fn nothing_held_gives_zeros() {
    let tokens = Tokens::new(4, shape(2, 4, 2, 8), 1);
    for spec in
        ["full", "keys=f16", "keys=lm2,rescore=int8@host", "keys=int8-token,renorm=off,sinks=0"]
    {
        let mut cache = cache(spec, tokens.shape);
        assert_eq!(tokens.attend(&mut cache, 0), [0.0; 64], "{spec}");
        tokens.prefill(std::slice::from_mut(&mut cache), 0);
        assert_eq!(tokens.attend(&mut cache, 0), [0.0; 64], "{spec}");
        assert_eq!((cache.num_tokens(), cache.ratio()), (0, 0.0));
        assert_eq!((cache.device_in_use_bytes(), cache.host_in_use_bytes()), (0, 0), "{spec}");
        assert!(
            prefill_layer(&mut [], 0, PrefillInput { q: &[], k: &[], v: &[] }, &mut []).is_ok()
        );
    }
}
