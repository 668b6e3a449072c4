//! Caches of exact rows that forget tokens behind the prompt, on a device and in RAM.

use std::path::Path;
use std::sync::Arc;

use heterokv_cache::{
    AttentionCache, CacheSpec, DeviceCache, DeviceCachePlan, Error, HeadMeasure, HeadProfile,
    HeadRole, HeadShape, KvShape, Level, PromptOnDevice, Reservation, SimilarityAt,
};

use crate::cache::{Case, EXACT, LAYERS, STEPS, Tokens, distance, distinct_places, goes_on, run};

/// Tokens of the prompt: in two segments.
const PROMPT_TOKENS: usize = 300;

/// Presets that find on the text how much they keep.
const IS_FOUND_ON_TEXT: [&str; 2] = ["dbudget", "corm"];

const HEADS: (usize, usize, usize) = (9, 3, 64);

fn shape() -> KvShape {
    let (qo, kv, dim) = HEADS;
    KvShape { num_layers: LAYERS, heads: HeadShape::new(qo, kv, dim).unwrap() }
}

/// Roles of which some hold all tokens, and budgets of three heads of each layer.
fn heads_in(folder: &Path) -> String {
    let measure = HeadMeasure {
        prompt_tokens: 100,
        steps: 10,
        top_k: 20,
        tau_stable: 0.5,
        tau_sim: 0.5,
        similarity: SimilarityAt::Prompt,
    };
    let roles = [HeadRole::Pivot, HeadRole::Satellite { pivot: 0 }, HeadRole::Anchor];
    let profile =
        HeadProfile::new("parity", &shape(), measure, vec![0.5; 6], roles.repeat(LAYERS)).unwrap();
    let path = folder.join("parity.heads");
    profile.with_budget_weights([0.5, 1.0, 1.5].repeat(LAYERS)).unwrap().save(&path).unwrap();
    path.display().to_string()
}

/// Each with another way to choose or to share out.
fn cases(folder: &Path) -> Vec<Case> {
    let heads = heads_in(folder);
    let specs = [
        "snapkv:40%,recent=16".to_owned(),
        "streamingllm:40%,recent=16".to_owned(),
        "h2o:40%,recent=16".to_owned(),
        "tova:40%,recent=16".to_owned(),
        "knorm:40%,recent=16".to_owned(),
        "keydiff:40%,recent=16".to_owned(),
        "pyramidkv:40%,recent=16".to_owned(),
        "adakv:90,recent=16".to_owned(),
        "dbudget".to_owned(),
        "corm,observe=1,recent=16".to_owned(),
        format!("baklava:40%,recent=16,heads={heads}"),
        format!("heterocache:70%,recent=16,heads={heads}"),
    ];
    let case = |spec: &str| Case {
        spec: spec.to_owned(),
        mix: &[],
        heads: HEADS,
        prompt_tokens: PROMPT_TOKENS,
        bar: EXACT,
    };
    let mut cases: Vec<Case> =
        specs.iter().map(|spec| case(&format!("{spec},every=once"))).collect();
    cases.push(case("keys=f16,values=f16@device"));
    cases
}

#[test]
fn forgetting_on_device() {
    let folder = tempfile::tempdir().unwrap();
    for place in distinct_places() {
        // What the case before gives in RAM, where other tokens are held.
        let mut of_other: Vec<f32> = Vec::new();
        for case in &cases(folder.path()) {
            let (expected, actual, host, cache) = run(&place, case, 5000);
            let label = format!("{} on {}", case.spec, place.gpu().summary());
            let reached = distance(&actual, &expected);
            let ratio = cache.ratio();
            println!("{label}: {reached:.1e} of {:.0e}, {:.1} %", case.bar, 100.0 * ratio);
            assert!(reached <= case.bar, "{label}: {reached} of {}", case.bar);
            assert_eq!(AttentionCache::num_tokens(&cache), host.num_tokens(), "{label}");
            assert_eq!((cache.host_in_use_bytes(), host.host_in_use_bytes()), (0, 0), "{label}");
            // Pages for what is held, and for no more than a page a head beside it.
            let held: usize = (0..LAYERS)
                .flat_map(|layer| (0..HEADS.1).map(move |head| (layer, head)))
                .map(|(layer, head)| host.held_positions(layer, head).len())
                .sum();
            let is_forgetting = case.spec.ends_with("every=once");
            assert_eq!(is_forgetting, held > 0, "{label}");
            if is_forgetting {
                let mut rows = (held + 16 * LAYERS * HEADS.1) * 4 * HEADS.2;
                if IS_FOUND_ON_TEXT.iter().any(|own| case.spec.starts_with(own)) {
                    // Room for what comes behind the prompt is made an eighth at a time.
                    rows += rows / 8;
                }
                let bytes = cache.device_bytes().resident;
                assert!(bytes <= rows, "{label}: {bytes} of {rows}");
                assert!(host.held_positions(0, 1).len() < PROMPT_TOKENS, "{label} forgets");
            }
            // The comparison can fail: one head's output in another's place, a step too late, and other tokens held.
            let mut swapped = actual.clone();
            swapped.rotate_left(HEADS.2);
            assert!(distance(&swapped, &expected) > case.bar, "{label}: heads");
            let mut late = actual.clone();
            late.rotate_left(LAYERS * HEADS.0 * HEADS.2);
            assert!(distance(&late, &expected) > case.bar, "{label}: steps");
            if !of_other.is_empty() {
                assert!(distance(&actual, &of_other) > case.bar, "{label}: tokens");
            }
            of_other = expected;
        }
    }
}

/// What has forgotten tokens in RAM goes on the same on a device.
#[test]
fn what_is_left_goes_to_a_device() {
    let folder = tempfile::tempdir().unwrap();
    for place in distinct_places() {
        for case in &cases(folder.path())[..1] {
            let (.., mut host, cache) = run(&place, case, 6000);
            let n = PROMPT_TOKENS + STEPS;
            let reservation = Reservation { prompt_tokens: n, total_tokens: n + 8 };
            let mut there =
                DeviceCache::upload(Arc::clone(&place), host.fork().unwrap(), reservation).unwrap();
            assert_eq!(AttentionCache::num_tokens(&there), n);
            let heads = host.shape().heads;
            let layers: Vec<_> = (0..LAYERS as u64).map(|l| Tokens::new(l + 7, heads, 3)).collect();
            let expected = goes_on(&mut host, &layers, heads);
            let found = goes_on(&mut there, &layers, heads);
            let reached = distance(&found, &expected);
            assert!(reached <= EXACT, "{}: {reached}", case.spec);
            assert!(matches!(cache.download(), Err(Error::Forgetful { .. })), "{}", case.spec);
            // A prompt at which nobody looked says nothing of what is to be held.
            let config = host.config().clone();
            let mut unseen = DeviceCache::new(
                Arc::clone(&place),
                host.shape(),
                config,
                Level::detect(),
                None,
                reservation,
            )
            .unwrap();
            let prompt = PromptOnDevice {
                num_tokens: 0,
                segment_tokens: 256,
                segments: &[],
                query_energy: &vec![0.0; heads.kv_row_len()],
            };
            let error = unseen.store_prompt(0, &prompt, None).unwrap_err();
            assert!(matches!(error, Error::NotWatched { layer: 0 }), "{error}");
        }
    }
}

/// What is planned is what is taken, or the most of it where that is found on the text.
#[test]
fn what_is_forgotten_is_not_planned_for() {
    let folder = tempfile::tempdir().unwrap();
    for device in distinct_places() {
        for case in &cases(folder.path()) {
            let before = device.gpu().in_use_bytes();
            let (.., host, cache) = run(&device, case, 1);
            let n = PROMPT_TOKENS;
            let reservation = Reservation { prompt_tokens: n, total_tokens: n + STEPS };
            let limits = device.gpu().limits();
            let plan =
                DeviceCachePlan::new(host.config(), &host.shape(), limits, reservation).unwrap();
            let taken = device.gpu().in_use_bytes() - before;
            let planned = plan.total_bytes();
            println!("{}: {taken} of {planned}", case.spec);
            let mut least = planned - plan.list_bytes - planned / 50;
            if IS_FOUND_ON_TEXT.iter().any(|own| case.spec.starts_with(own)) {
                least -= plan.row_bytes;
            }
            assert!((least..=planned).contains(&taken), "{}: {taken} of {planned}", case.spec);
            drop(cache);
        }
    }
}

#[test]
fn what_does_not_run_on_a_device_is_refused() {
    let reservation = Reservation { prompt_tokens: 300, total_tokens: 400 };
    let limits = heterokv_gpu::Limits::WEBGPU_MINIMUM;
    let plan = |spec: &str| {
        let config = spec.parse::<CacheSpec>().unwrap().resolve(&shape(), None).unwrap();
        DeviceCachePlan::new(&config, &shape(), limits, reservation)
    };
    assert!(plan("snapkv:40%,every=once").is_ok());
    for (spec, part) in [
        ("snapkv:40%", "add every=once"),
        ("h2o:40%,every=step", "add every=once"),
        ("kvcompress:40%,every=once", "another budget than global"),
        ("snapkv:40%,every=once,keys=int4-token", "use exact rows"),
        ("keys=int4-token,values=f16@device,select=none", "use exact rows"),
    ] {
        let error = plan(spec).unwrap_err();
        assert!(matches!(error, Error::Forgetful { .. }), "{spec}: {error}");
        assert!(error.to_string().contains(part), "{spec}: {error}");
    }
}
