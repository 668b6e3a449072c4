//! What is asked for is what is held, at every step, and what a plan says.

use proptest::prelude::*;

use super::*;

/// What the device bytes of a cache may be at a length.
struct Bound {
    config: CacheConfig,
    shape: KvShape,
    way: Way,
    amount: usize,
}

impl Bound {
    #[track_caller]
    fn check(&self, cache: &KvCache) {
        let Self { config, shape, way, amount } = self;
        let num_tokens = cache.num_tokens();
        let held = held(cache);
        check_positions(&held, way, num_tokens);
        let bytes = cache.device_in_use_bytes();
        assert_eq!(bytes, cache.device_bytes().total(), "{way:?}");
        let plan = CachePlan::new(config, shape, num_tokens).expect("a config of a test");
        assert!(
            bytes <= plan.most_device_bytes,
            "{way:?}: {bytes} of {} bytes with {num_tokens} tokens",
            plan.most_device_bytes
        );
        let goes_on = !way.every.starts_with("once");
        let num_held: usize = held.iter().map(Vec::len).sum();
        match way.amount {
            _ if *amount == usize::MAX || !goes_on => {}
            Amount::Tokens(_) => {
                assert!(num_held <= amount * held.len(), "{way:?}: {num_held} with {num_tokens}");
            }
            Amount::Bytes(_) => assert!(bytes <= *amount, "{way:?}: {bytes} of {amount}"),
            Amount::Ratio(_) => {}
        }
    }
}

/// Follows a cache of a way through a prompt and the tokens behind it, and gives it back.
fn follow(way: &Way, tokens: &Tokens, prompt: usize) -> KvCache {
    let shape = tokens.shape;
    let (way, _folder) = way.clone().with_heads(&shape);
    let way = &way;
    let (amount, spec) = way.spec(&shape);
    let config = config(&spec, shape);
    let bound = Bound { config: config.clone(), shape, way: way.clone(), amount };
    let mut cache = KvCache::new(shape, config, Level::detect(), None).expect("a cache of a test");
    prefill(tokens, std::slice::from_mut(&mut cache), prompt);
    check_prompt(&bound, &cache, prompt);
    let mut history: Vec<usize> = (0..prompt).collect();
    for token in prompt..tokens.len {
        tokens.append(&mut cache, token);
        history.push(token);
        bound.check(&cache);
        let expected = masked(tokens, &held(&cache), &history, token);
        let out = tokens.attend(&mut cache, token);
        assert!(out.iter().all(|x| x.is_finite()), "{way:?}");
        if way.layout == EXACT {
            let distance = distance(&out, &expected);
            assert!(distance < NEAR, "{way:?}: {distance} with {token}");
        }
    }
    cache
}

/// What a prompt leaves: the budget, met exactly, and the bytes of the plan where all heads have the same.
fn check_prompt(bound: &Bound, cache: &KvCache, prompt: usize) {
    bound.check(cache);
    let Bound { config, shape, way, amount } = bound;
    let lens: Vec<usize> = held(cache).iter().map(Vec::len).collect();
    if let (Amount::Tokens(_), true) = (way.amount, *amount != usize::MAX) {
        // Coded tokens go by whole groups where heads were cut once all layers were there.
        let group = if way.layout.contains("channel/32") { 32 } else { 1 };
        let slack = if way.budget == "global" { lens.len() * (group - 1) } else { 0 };
        let (sum, wanted) = (lens.iter().sum::<usize>(), lens.len() * prompt.min(*amount));
        assert!(sum <= wanted && sum + slack >= wanted, "{way:?}: {sum} of {wanted}");
    }
    if way.budget == "uniform" {
        let plan = CachePlan::new(config, shape, prompt).expect("a config of a test");
        assert_eq!(plan.device, cache.device_bytes(), "{way:?}");
        if way.scorer != "expected" {
            assert_eq!(plan.host_bytes, cache.host_in_use_bytes(), "{way:?}");
        }
    }
}

fn every_way() -> impl Iterator<Item = (usize, &'static str, &'static str)> {
    let pairs = SCORERS.into_iter().flat_map(|scorer| BUDGETS.map(|budget| (scorer, budget)));
    let pairs = pairs.chain([("votes", "votes")]);
    pairs.enumerate().map(|(i, (scorer, budget))| (i, scorer, budget))
}

#[test]
fn every_scorer_and_budget_of_exact_rows() {
    for (i, scorer, budget) in every_way() {
        let tokens = Tokens::new(i as u64, shape(1 + i % 3, 4, 1 + i % 2, 8), 130);
        let every = ["4", "step", "once", "9"][i % 4].to_owned();
        let amount = if i % 3 == 0 { Amount::Bytes(700) } else { Amount::Tokens(11 + i % 20) };
        let way = Way { amount, every, ..Way::new(EXACT, scorer, budget) };
        follow(&way, &tokens, 70);
    }
}

#[test]
fn every_scorer_and_budget_of_coded_keys() {
    for (i, scorer, budget) in every_way() {
        let layout = CODED[i % CODED.len()];
        let has_tables = layout.contains("lm2") || layout.contains("alloc");
        let prompt = if has_tables { 320 } else { 150 };
        let tokens = Tokens::new(i as u64, shape(1 + i % 2, 4, 2, 16), prompt + 60);
        let every = ["4", "once", "step", "9"][i % 4].to_owned();
        let amount = if i % 2 == 0 { Amount::Bytes(900) } else { Amount::Tokens(7 + i % 20) };
        let way = Way { amount, every, ..Way::new(layout, scorer, budget) };
        follow(&way, &tokens, prompt);
    }
}

/// Before there are tables, what will be coded is exact, and takes the most.
#[test]
fn bytes_hold_from_the_first_token_on() {
    for (i, layout) in CODED.into_iter().chain([EXACT]).enumerate() {
        let tokens = Tokens::new(i as u64, shape(2, 4, 2, 16), 500);
        let way = Way { amount: Amount::Bytes(0), ..Way::new(layout, "last-query", "uniform") };
        let cache = follow(&way, &tokens, 0);
        // What tables are fitted on takes as much as many coded tokens.
        let has_tables = layout.contains("lm2") || layout.contains("alloc");
        assert!(has_tables || held(&cache)[0].len() < 500, "{way:?}: something is forgotten");
    }
}

/// From the promised length on, and for good.
#[test]
fn ratios_hold_from_the_promised_length_on() {
    let shape = shape(2, 2, 2, 16);
    let tokens = Tokens::new(1, shape, 4_160);
    let folder = tempfile::tempdir().expect("a folder");
    let heads = head_profile(folder.path(), &shape);
    for (spec, prompt) in [
        ("snapkv:25%", 4_096),
        ("adakv:20%", 4_096),
        ("kvcompress:15%", 4_096),
        ("pyramidkv:12.5%,keys=int8-token,values=int8@device", 4_096),
        ("h2o:12.5%,keys=int4-channel/32,values=int8@host", 4_096),
        ("tova:12.5%", 2_000),
        ("knorm:6.25%,keys=lm2,values=int8@host", 2_000),
        ("streamingllm:12.5%", 2_000),
        ("keydiff:25%", 4_096),
        ("expected:12.5%", 4_096),
        (&format!("baklava:25%,heads={heads}"), 4_096),
        (&format!("heterocache:75%,heads={heads}"), 4_096),
        (&format!("heterocache:80%,heads={heads},refresh=sync,tau=0.9"), 2_000),
    ] {
        let parsed: CacheSpec = spec.parse().expect("a preset");
        let promise = parsed.promise().expect("a ratio");
        assert_eq!(promise.min_tokens, 4_096, "{spec}");
        let mut cache = cache(spec, shape);
        prefill(&tokens, std::slice::from_mut(&mut cache), prompt);
        let mut smallest = f64::INFINITY;
        for token in prompt..tokens.len {
            tokens.append(&mut cache, token);
            // Every few steps is enough to be looked at for those that come one at a time.
            if token % 8 == 0 || token + 100 > tokens.len {
                tokens.attend(&mut cache, token);
            }
            if token + 1 >= promise.min_tokens {
                // Of two layers, two heads of 16 channels, keys and values, in two bytes each.
                let full = (2 * 2 * 16 * 2 * 2 * (token + 1)) as f64;
                let percent = 100.0 * cache.device_in_use_bytes() as f64 / full;
                assert!(percent <= promise.percent, "{spec}: {percent} % with {token}");
                smallest = smallest.min(percent);
            }
        }
        // A page of a head and a batch are what may be left over.
        assert!(smallest > 0.8 * promise.percent, "{spec}: only {smallest} %");
    }
}

#[test]
fn budgets_of_profiles_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let shape = shape(2, 6, 3, 16);
    let tokens = Tokens::new(3, shape, 320);
    let heads = head_profile(folder.path(), &shape);
    for (budget, layout, amount) in [
        ("profile", EXACT, Amount::Tokens(40)),
        ("profile", EXACT, Amount::Bytes(3_000)),
        ("profile", CODED[1], Amount::Tokens(40)),
        ("stability", EXACT, Amount::Ratio(60.0)),
        ("stability", CODED[0], Amount::Ratio(60.0)),
    ] {
        for every in ["once", "4", "drift:3,tau=0.9,refresh=sync"] {
            if every.starts_with("drift") && (layout, budget) != (EXACT, "stability") {
                continue;
            }
            let way = Way { amount, ..Way::new(layout, "window", budget) };
            let way = Way { every: format!("{every},heads={heads}"), ..way };
            let cache = follow(&way, &tokens, 250);
            let lens: Vec<usize> = held(&cache).iter().map(Vec::len).collect();
            assert!(lens[2] < 320, "an anchor has forgotten: {lens:?}");
            assert_eq!(lens[0] == 320, budget == "stability", "a pivot holds all: {lens:?}");
            assert_eq!(cache.num_refreshes() > 5, every.starts_with("drift"), "{every}");
        }
    }
}

/// Ways at random, few tokens among them.
fn ways() -> impl Strategy<Value = (Way, KvShape, [usize; 2], u64)> {
    let layout = prop_oneof![Just(EXACT), prop::sample::select(CODED.to_vec())];
    let parts =
        (layout, prop::sample::select(SCORERS.to_vec()), prop::sample::select(BUDGETS.to_vec()));
    let scoring = (
        prop::sample::select(vec!["1", "5", "20", "all"]),
        prop::sample::select(vec!["none", "mean:5", "max:3"]),
        prop::sample::select(vec!["mean", "max", "sum", "sum-squares"]),
    );
    let scoring = scoring.prop_map(|(n, pool, gqa)| format!("observe={n},pool={pool},gqa={gqa}"));
    let amount = prop_oneof![
        (0..80usize).prop_map(Amount::Tokens),
        (0..4_000usize).prop_map(Amount::Bytes),
        (1.0..80.0).prop_map(Amount::Ratio),
    ];
    let every = prop::sample::select(vec!["once", "step", "3", "16", "40"]);
    let protected = (0..6usize, 1..30usize);
    let lengths = [0..=400usize, 0..=60usize];
    let shapes = (1..=3usize, 1..=2usize, 1..=3usize, prop::sample::select(vec![8, 16]));
    (parts, scoring, amount, every, protected, lengths, shapes, any::<u64>()).prop_map(
        |(parts, scoring, amount, every, (sinks, recent), lengths, shapes, seed)| {
            let (layout, scorer, budget) = parts;
            // A prompt of which all is protected by its window asks for more than any head is to hold.
            let budget = if scorer == "votes" && seed % 3 == 0 { "votes" } else { budget };
            let every = every.to_owned();
            let scoring = match scorer {
                "window" => scoring.replace("observe=all", "observe=30"),
                _ => scoring,
            };
            let way = Way { layout, scorer, budget, scoring, amount, every, sinks, recent };
            let way = if seed / 64 % 4 == 0 { way.on_drift(seed / 256) } else { way };
            let (num_layers, group_size, num_kv_heads, head_dim) = shapes;
            let shape = shape(num_layers, group_size * num_kv_heads, num_kv_heads, head_dim);
            (way, shape, lengths, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn budgets_hold_whatever_is_asked_for((way, shape, [prompt, further], seed) in ways()) {
        let tokens = Tokens::new(seed, shape, prompt + further);
        follow(&way, &tokens, prompt);
    }
}

#[test]
fn amounts_that_cannot_be_are_refused_with_the_least() {
    let shape = shape(2, 4, 2, 16);
    for (layout, scorer, budget) in [
        (EXACT, "window", "uniform"),
        (EXACT, "key-norm", "pyramid:4"),
        (CODED[1], "squared", "global"),
        (CODED[3], "last-query", "adaptive:0.2"),
    ] {
        for amount in [Amount::Tokens(0), Amount::Bytes(0), Amount::Ratio(0.0001)] {
            let way = Way { amount, sinks: 8, recent: 40, ..Way::new(layout, scorer, budget) };
            let (_, spec) = way.spec(&shape);
            config(&spec, shape);
        }
    }
}
