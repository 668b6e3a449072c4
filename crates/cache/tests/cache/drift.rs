//! Rows that come back when what a pivot looks at has drifted.
//!
//! One layer of three KV heads: a pivot, its satellite, which attends as it does, and an anchor. Keys of two topics point
//! two ways, and a query looks at the one or the other.

mod late;

use heterokv_attn::reference::head_attention;
use heterokv_cache::{
    CacheSpec, DiskOptions, HeadMeasure, HeadProfile, HeadRole, HeadShape, KvCache, KvShape, Level,
    PrefillInput, SimilarityAt, Store, StoreOptions, prefill_layer,
};
use heterokv_testkit::Inputs;

use crate::wide;

const HEAD_DIM: usize = 8;
const PROMPT: usize = 4096;
const RECENT: usize = 16;

/// A text whose tokens are of two topics in turns of 64, and the file of the heads' roles.
struct Text {
    shape: KvShape,
    /// `[PROMPT, 3, HEAD_DIM]`.
    k: Vec<f32>,
    v: Vec<f32>,
    roles: tempfile::NamedTempFile,
}

fn topic_of(token: usize) -> usize {
    token / 64 % 2
}

impl Text {
    fn new() -> Self {
        let heads = HeadShape::new(3, 3, HEAD_DIM).expect("a shape");
        let shape = KvShape { num_layers: 1, heads };
        let mut inputs = Inputs::new(11);
        let mut k = inputs.gaussian_rows(PROMPT, 3 * HEAD_DIM, 0.2);
        for (token, row) in k.chunks_exact_mut(3 * HEAD_DIM).enumerate() {
            row.chunks_exact_mut(HEAD_DIM).for_each(|key| key[topic_of(token)] += 3.0);
        }
        let v = inputs.gaussian_rows(PROMPT, 3 * HEAD_DIM, 1.0);
        let measure = HeadMeasure {
            prompt_tokens: PROMPT,
            steps: 10,
            top_k: 256,
            tau_stable: 0.5,
            tau_sim: 0.5,
            similarity: SimilarityAt::Prompt,
        };
        let roles = vec![HeadRole::Pivot, HeadRole::Satellite { pivot: 0 }, HeadRole::Anchor];
        let profile = HeadProfile::new("text", &shape, measure, vec![0.8, 0.8, 0.8], roles);
        let roles = tempfile::NamedTempFile::new().expect("a temporary file");
        profile.expect("sound").save(roles.path()).expect("it can be written");
        Self { shape, k, v, roles }
    }

    /// Queries `[3, HEAD_DIM]` that look at a topic.
    fn query(&self, topic: usize, step: usize) -> Vec<f32> {
        let mut q = Inputs::new(1000 + step as u64).gaussian_rows(3, HEAD_DIM, 0.1);
        q.chunks_exact_mut(HEAD_DIM).for_each(|query| query[topic] += 4.0);
        q
    }

    /// A cache that has read the prompt, whose last query looks at topic 0.
    fn cache(&self, options: &str) -> KvCache {
        self.cache_in(options, usize::MAX, None).0
    }

    /// The same with a store of so many bytes in RAM, and the store.
    fn cache_in(
        &self,
        options: &str,
        ram_budget_bytes: usize,
        disk: Option<DiskOptions>,
    ) -> (KvCache, Store) {
        let roles = self.roles.path().display();
        let spec: CacheSpec =
            format!("heterocache:70%,sinks=2,recent={RECENT},heads={roles}{options}")
                .parse()
                .expect("a spec");
        let config = spec.resolve(&self.shape, Some("text")).expect("it fits the shape");
        let shape = config.store_shape(&self.shape);
        let options = StoreOptions { shape, ram_budget_bytes, disk };
        let store = Store::open(options).expect("a store of a test");
        let cache = KvCache::in_store(self.shape, config, Level::detect(), None, &store);
        let mut caches = [cache.expect("it is sound")];
        let q: Vec<f32> = (0..PROMPT).flat_map(|token| self.query(0, token)).collect();
        let mut out = vec![0.0; q.len()];
        let input = PrefillInput { q: &q, k: &self.k, v: &self.v };
        prefill_layer(&mut caches, 0, input, &mut out).expect("a sound prompt");
        let [cache] = caches;
        (cache, store)
    }

    /// One more token, of topic 0, whose query looks at `topic`; gives its keys, values and what comes out.
    fn step(&self, cache: &mut KvCache, topic: usize) -> [Vec<f32>; 3] {
        let step = cache.num_tokens();
        let mut inputs = Inputs::new(step as u64);
        let mut k = inputs.gaussian_rows(3, HEAD_DIM, 0.2);
        k.chunks_exact_mut(HEAD_DIM).for_each(|key| key[topic] += 3.0);
        let v = inputs.gaussian_rows(3, HEAD_DIM, 1.0);
        cache.append(0, &k, &v).expect("a sound token");
        let mut out = vec![0.0; 3 * HEAD_DIM];
        cache.attend(0, &self.query(topic, step), &mut out).expect("a sound query");
        [k, v, out]
    }
}

/// Of the tokens of the prompt that a head holds, those of topic 1.
fn of_other_topic(cache: &KvCache, kv_head: usize) -> usize {
    let of_prompt = |&&position: &&u32| (position as usize) < PROMPT;
    let held = cache.held_positions(0, kv_head).iter().filter(of_prompt);
    held.filter(|&&position| topic_of(position as usize) == 1).count()
}

#[test]
fn a_satellite_follows_its_pivot_to_another_topic_and_an_anchor_does_not() {
    let text = Text::new();
    let mut cache = text.cache(",refresh=sync");
    assert_eq!(cache.held_positions(0, 0).len(), PROMPT, "a pivot holds all");
    let before = of_other_topic(&cache, 1);
    let anchored = of_other_topic(&cache, 2);
    for _ in 0..20 {
        text.step(&mut cache, 0);
    }
    assert_eq!(cache.num_refreshes(), 0, "nothing has drifted");
    for _ in 0..10 {
        text.step(&mut cache, 1);
    }
    assert_eq!(cache.num_refreshes(), 1);
    assert!(of_other_topic(&cache, 1) > before + 100, "its rows are those of the other topic now");
    assert!(of_other_topic(&cache, 2) <= anchored, "nothing comes back to an anchor");
    assert!(cache.stats().host_bytes > 0);
    // Back again: what was let go of comes back from the host.
    for _ in 0..10 {
        text.step(&mut cache, 0);
    }
    assert_eq!(cache.num_refreshes(), 2);
    assert!(of_other_topic(&cache, 1) < before + 100);
}

#[test]
fn a_frozen_selection_brings_nothing_back_and_a_strict_threshold_does_at_any_change() {
    let text = Text::new();
    let mut frozen = text.cache(",every=16");
    let mut strict = text.cache(",every=drift:1,tau=1,refresh=sync");
    let before = of_other_topic(&frozen, 1);
    for _ in 0..20 {
        text.step(&mut frozen, 1);
        text.step(&mut strict, 0);
    }
    assert_eq!(frozen.num_refreshes(), 0);
    assert!(of_other_topic(&frozen, 1) <= before);
    assert_eq!(frozen.host_in_use_bytes(), 0, "what is gone is nowhere");
    let refreshes = strict.num_refreshes();
    assert!(refreshes > 0, "{refreshes}: queries of one topic differ a little");
}

#[test]
fn what_comes_back_is_what_was_there_generated_tokens_too_within_the_budget() {
    let text = Text::new();
    let mut cache = text.cache(",refresh=sync");
    let (mut k, mut v) = (text.k.clone(), text.v.clone());
    let mut generated_came_back = false;
    for step in 0..160 {
        // Long enough for tokens of each turn to leave the window.
        let topic = step / 40 % 2;
        let bytes = cache.device_in_use_bytes();
        let most = 0.7 * (4 * 3 * HEAD_DIM * cache.num_tokens()) as f64;
        assert!(bytes as f64 <= most, "{bytes} bytes of {most} at step {step}");
        // What a step attends over is what was held before it, and its own token.
        let [key, value, out] = text.step(&mut cache, topic);
        k.extend(key);
        v.extend(value);
        let positions = cache.held_positions(0, 1).to_vec();
        assert!(positions.is_sorted_by(|a, b| a < b));
        let first_recent = cache.num_tokens() - RECENT;
        assert!(
            positions
                .ends_with(&(first_recent as u32..cache.num_tokens() as u32).collect::<Vec<_>>())
        );
        generated_came_back |=
            step > 90 && positions.iter().any(|&p| (PROMPT..PROMPT + 40).contains(&(p as usize)));
        check_rows(&text, &cache, topic, (&k, &v));
        assert!(out.iter().all(|x| x.is_finite()));
    }
    assert!(cache.num_refreshes() >= 3);
    assert!(generated_came_back, "tokens that were generated are candidates");
}

/// Holds the attention of a satellite, in a copy of the cache, against that over the tokens at the positions that it says
/// it holds, of all tokens' keys and values.
#[track_caller]
fn check_rows(text: &Text, cache: &KvCache, topic: usize, (k, v): (&[f32], &[f32])) {
    let mut out = vec![0.0; 3 * HEAD_DIM];
    let query = text.query(topic, cache.num_tokens());
    let mut fork = cache.fork().expect("there is memory");
    let held = fork.held_positions(0, 1).to_vec();
    fork.attend(0, &query, &mut out).expect("a sound query");
    let expected = over(text, &held, &query, k, v);
    let near = |(x, e): (&f32, &f64)| (f64::from(*x) - e).abs() < 5e-3;
    let out = &out[HEAD_DIM..2 * HEAD_DIM];
    assert!(out.iter().zip(&expected).all(near), "with {} tokens", cache.num_tokens());
    let late: Vec<u32> = held.iter().map(|&position| position.saturating_sub(1)).collect();
    let late = over(text, &late, &query, k, v);
    assert!(!out.iter().zip(&late).all(near), "the comparer sees a row too late");
}

/// Attention in f64 of the satellite's query over some tokens.
fn over(text: &Text, positions: &[u32], query: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let seen: Vec<usize> = positions.iter().map(|&position| position as usize).collect();
    head_attention(&text.shape.heads, query, k, v, (0, 1), &seen).out
}

#[test]
fn what_is_cut_off_is_not_there_any_more() {
    let text = Text::new();
    let mut cache = text.cache(",refresh=sync");
    for _ in 0..10 {
        text.step(&mut cache, 1);
    }
    assert_eq!(cache.truncate(PROMPT - 100), PROMPT - 100);
    assert_eq!(cache.num_tokens(), PROMPT - 100);
    for kv_head in 0..3 {
        let held = cache.held_positions(0, kv_head);
        assert!(held.iter().all(|&position| (position as usize) < PROMPT - 100));
    }
    // It goes on, and comes back to what is left.
    for step in 0..30 {
        let [.., out] = text.step(&mut cache, step / 15 % 2);
        assert!(wide(&out).iter().all(|x| x.is_finite()));
    }
    assert_eq!(cache.num_tokens(), PROMPT - 70);
}
