//! The cache on devices, held to the cache in RAM: the same tokens in, the same attention out.

use std::sync::Arc;

use heterokv_attn::device::Device;
use heterokv_cache::{
    AttentionCache, CacheSpec, DeviceCache, HeadShape, KeyMix, KvCache, KvShape, Level,
    PromptOnDevice, Reservation, TokenOnDevice, prefill_layer,
};
use heterokv_gpu::{Bound, Commands, DeviceChoice, Gpu, LimitsChoice, OpenOptions, adapters};
use heterokv_testkit::Inputs;

use crate::devices::places_or_skip;
use crate::sites::upload;

/// Steps behind the prompt.
pub(crate) const STEPS: usize = 12;

/// What the outputs may differ by, relative to the largest: rounding of queries to 16 bits and of rows to f16 on one
/// side; and where tokens are chosen by their mass, some at the threshold, which scores rounded to 7 bits choose by
/// themselves (`Precision::Select`, where rows are re-scored).
pub(crate) const EXACT: f32 = 2e-4;
const CHOSEN: f32 = 2e-2;

/// Layers, of which the first takes tokens from the host and the second those that are on the device.
pub(crate) const LAYERS: usize = 2;

/// Of each kind of frame, and two heads of one format.
const MIX: [&str; 6] = ["alloc/3", "int8-token", "pq/4x256", "lm2", "int4-channel/32", "lm2"];

pub(crate) struct Case {
    /// Without its keys where these are a mix.
    pub(crate) spec: String,
    /// Formats by layer and KV head, or none.
    pub(crate) mix: &'static [&'static str],
    pub(crate) heads: (usize, usize, usize),
    pub(crate) prompt_tokens: usize,
    pub(crate) bar: f32,
}

fn cases() -> Vec<Case> {
    let case = |spec: &str, heads, prompt_tokens, bar| Case {
        spec: spec.to_owned(),
        mix: &[],
        heads,
        prompt_tokens,
        bar,
    };
    vec![
        // Heads of several formats in a layer: sets of keys that are scored one after the other in the same memory.
        Case {
            mix: &MIX,
            ..case("values=f16@host,select=none,sinks=4,recent=16", (9, 3, 64), 716, EXACT)
        },
        Case {
            mix: &MIX,
            ..case(
                "values=int8@host,select=top-p:0.8,union=head,renorm=off",
                (9, 3, 64),
                900,
                CHOSEN,
            )
        },
        Case {
            mix: &MIX,
            ..case("values=int8@host,rescore=int8@host,select=top-p:0.9", (9, 3, 64), 900, CHOSEN)
        },
        case("full", (9, 3, 64), 100, EXACT),
        case("full", (4, 1, 128), 0, EXACT),
        // All coded tokens are taken: nothing hangs on a threshold.
        case(
            "keys=int4-token,values=f16@host,select=none,sinks=4,recent=32",
            (9, 3, 64),
            700,
            EXACT,
        ),
        case("keys=lm2,values=int8@host,select=none,sinks=0,recent=8", (4, 2, 64), 333, EXACT),
        case(
            "keys=alloc/2.5,values=int8@host,select=none,sinks=4,recent=16",
            (6, 2, 80),
            600,
            EXACT,
        ),
        case(
            "keys=rot-int4-token,values=f16@host,rescore=f16@host,select=none",
            (8, 2, 128),
            500,
            EXACT,
        ),
        // A token is coded in the step behind the one that brings it.
        case("keys=int6-token,values=f16@host,select=none,sinks=2,recent=1", (4, 2, 64), 90, EXACT),
        // Shorter than what tables are fitted on, until the steps make it longer.
        case("keys=alloc/4,values=int8@host,select=none,sinks=4,recent=16", (4, 2, 64), 272, EXACT),
        // Codes channel by channel: rows of f16, bytes, and blocks of tokens, one of which leaves the window in the steps
        // and some of which lie across segments of the prompt and pages of the window.
        case("keys=f16,values=f16@host,select=none,sinks=4,recent=16", (9, 3, 64), 400, EXACT),
        case(
            "keys=int8-token,values=f16@host,select=none,sinks=1,recent=7",
            (4, 2, 64),
            400,
            EXACT,
        ),
        case(
            "keys=rot-int8-token,values=f16@host,rescore=f16@host,select=none,sinks=4,recent=16",
            (8, 2, 128),
            400,
            EXACT,
        ),
        case("keys=alloc/8,values=f16@host,select=none,sinks=4,recent=16", (6, 2, 80), 600, EXACT),
        case(
            "keys=int4-channel/32,values=f16@host,select=none,sinks=4,recent=16",
            (9, 3, 64),
            716,
            EXACT,
        ),
        case(
            "keys=int2-channel/128,values=int8@host,select=none,sinks=4,recent=16",
            (4, 2, 64),
            780,
            EXACT,
        ),
        case(
            "keys=rot-int4-channel/64,values=f16@host,select=none,sinks=4,recent=16",
            (4, 1, 64),
            716,
            EXACT,
        ),
        // Product quantization: nibbles, rows of whole words and rows of others, under rotary planes and a rotation.
        case("keys=pq/4x16,values=f16@host,select=none,sinks=4,recent=16", (9, 3, 64), 700, EXACT),
        case("keys=pq/4x256,values=f16@host,select=none,sinks=4,recent=16", (9, 3, 64), 700, EXACT),
        case("keys=pq/8x32,values=f16@host,select=none,sinks=4,recent=16", (4, 2, 80), 700, EXACT),
        case("keys=opq/8x64,values=f16@host,select=none,sinks=4,recent=16", (8, 2, 64), 700, EXACT),
        case("hca:12.5%", (9, 3, 64), 1500, CHOSEN),
        case("hca-rescore:12.5%", (9, 3, 64), 1500, CHOSEN),
        case(
            "keys=alloc/3,values=int8@host,select=top-p:0.9,union=head,min=8",
            (8, 2, 64),
            900,
            CHOSEN,
        ),
        case("keys=lm4,values=f16@host,select=top-k:40,union=head", (8, 2, 64), 900, CHOSEN),
        case("keys=alloc/4,values=f16@host,select=top-p:0.8,renorm=off", (6, 3, 64), 800, CHOSEN),
        case(
            "keys=int6-token,values=f16@host,rescore=f16@host,select=top-p:0.97,union=head",
            (8, 2, 64),
            900,
            CHOSEN,
        ),
    ]
}

/// One layer of a prompt and what follows it, with keys that differ in their channels and a few that stand out.
pub(crate) struct Tokens {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Tokens {
    pub(crate) fn new(seed: u64, shape: HeadShape, num_tokens: usize) -> Self {
        let mut inputs = Inputs::new(seed);
        let kv_len = shape.kv_row_len();
        let mut k = inputs.gaussian_rows(num_tokens, kv_len, 1.0);
        for row in k.chunks_exact_mut(kv_len) {
            for (c, x) in row.iter_mut().enumerate() {
                let channel = c % shape.head_dim;
                *x = *x * (0.3 + 2.0 / (1.0 + channel as f32 / 8.0)) + (channel as f32).sin();
            }
        }
        let v = inputs.gaussian_rows(num_tokens, kv_len, 1.0);
        let q = inputs.gaussian_rows(num_tokens, shape.qo_row_len(), 1.2);
        Self { q, k, v }
    }

    fn row<'a>(&self, rows: &'a [f32], len: usize, token: usize) -> &'a [f32] {
        &rows[token * len..][..len]
    }
}

/// Sums of squares of queries `[num_kv_heads, head_dim]`.
fn energy_of(q: &[f32], heads: HeadShape) -> Vec<f64> {
    let dim = heads.head_dim;
    let mut energy = vec![0.0; heads.kv_row_len()];
    for token in q.chunks_exact(heads.qo_row_len()) {
        for (head, query) in token.chunks_exact(dim).enumerate() {
            let of_head = &mut energy[head / heads.group_size() * dim..][..dim];
            of_head.iter_mut().zip(query).for_each(|(e, q)| *e += f64::from(*q) * f64::from(*q));
        }
    }
    energy
}

/// Outputs of all steps behind a prompt `[STEPS, LAYERS, num_qo_heads, head_dim]`, and the two caches.
pub(crate) fn run(
    device: &Arc<Device>,
    case: &Case,
    seed: u64,
) -> (Vec<f32>, Vec<f32>, KvCache, DeviceCache) {
    let (qo, kv, dim) = case.heads;
    let heads = HeadShape::new(qo, kv, dim).unwrap();
    let shape = KvShape { num_layers: LAYERS, heads };
    let folder = tempfile::tempdir().unwrap();
    let mut spec = case.spec.clone();
    if !case.mix.is_empty() {
        let path = folder.path().join("parity.mix");
        let formats = case.mix.iter().map(|name| name.parse().unwrap()).collect();
        KeyMix::create(&path, "parity", &shape, formats).unwrap();
        spec = format!("keys=mix:{},{spec}", path.display());
    }
    let config = spec.parse::<CacheSpec>().unwrap().resolve(&shape, None).unwrap();
    let level = Level::detect();
    let n = case.prompt_tokens;
    let layers: Vec<Tokens> = (0..LAYERS)
        .map(|layer| Tokens::new(seed + 1000 * layer as u64, heads, n + STEPS))
        .collect();
    let mut host = KvCache::new(shape, config.clone(), level, None).unwrap();
    let reservation = Reservation { prompt_tokens: n, total_tokens: n + STEPS };
    let mut cache =
        DeviceCache::new(Arc::clone(device), shape, config, level, None, reservation).unwrap();
    let (qo_len, kv_len) = (heads.qo_row_len(), heads.kv_row_len());
    let gpu = device.gpu();
    for (layer, tokens) in layers.iter().enumerate().filter(|_| n > 0) {
        let mut out = vec![0.0; n * qo_len];
        let (q, k, v) = (&tokens.q[..n * qo_len], &tokens.k[..n * kv_len], &tokens.v[..n * kv_len]);
        let input = heterokv_cache::PrefillInput { q, k, v };
        prefill_layer(std::slice::from_mut(&mut host), layer, input, &mut out).unwrap();
        // In segments, of which the last is not full.
        let segment_tokens = 256;
        let segments: Vec<_> = (0..n)
            .step_by(segment_tokens)
            .map(|first| {
                let rows = first * kv_len..(first + segment_tokens).min(n) * kv_len;
                [upload(gpu, &k[rows.clone()]), upload(gpu, &v[rows])]
            })
            .collect();
        let prompt = PromptOnDevice {
            num_tokens: n,
            segment_tokens,
            segments: &segments,
            query_energy: &energy_of(q, heads),
        };
        let mut watch = cache.watch_prompt(layer, &prompt, None).unwrap();
        if let Some(watch) = &mut watch {
            let first = watch.first_query().min(n);
            watch.look(first, &q[first * qo_len..]).unwrap();
        }
        cache.store_prompt(layer, &prompt, watch).unwrap();
    }
    let (mut expected, mut actual) = (Vec::new(), Vec::new());
    for token in n..n + STEPS {
        for (layer, tokens) in layers.iter().enumerate() {
            let [k, v] = [&tokens.k, &tokens.v].map(|rows| tokens.row(rows, kv_len, token));
            let q = tokens.row(&tokens.q, qo_len, token);
            let mut out = vec![f32::NAN; qo_len];
            host.append(layer, k, v).unwrap();
            host.attend(layer, q, &mut out).unwrap();
            expected.extend(&out);
            if layer == 0 {
                cache.append(layer, k, v).unwrap();
                cache.attend(layer, q, &mut out).unwrap();
                actual.extend(out);
                continue;
            }
            let [on_q, on_k, on_v, on_out] = [q, k, v, &out].map(|rows| upload(gpu, rows));
            let [q, k, v, out] = [&on_q, &on_k, &on_v, &on_out].map(Bound::all);
            let step = TokenOnDevice { q, k, v, out };
            cache.step_on_device(layer, Commands::new(gpu), step).unwrap().submit().unwrap();
            let bytes = gpu.read(&on_out, 0, on_out.num_bytes()).unwrap();
            actual.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
        }
    }
    (expected, actual, host, cache)
}

pub(crate) fn distance(actual: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(actual.iter().all(|x| x.is_finite()));
    let pairs = actual.iter().zip(expected);
    pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn cache_on_device() {
    for place in distinct_places() {
        for (number, case) in cases().iter().enumerate() {
            let (expected, actual, host, cache) = run(&place, case, 2000 + number as u64);
            let label = format!("{} on {}", case.spec, place.gpu().summary());
            let reached = distance(&actual, &expected);
            println!("{label}: {reached:.1e} of {:.0e}", case.bar);
            assert!(reached <= case.bar, "{label}: {reached} of {}", case.bar);
            assert_eq!(AttentionCache::num_tokens(&cache), host.num_tokens(), "{label}");
            assert_eq!(cache.host_in_use_bytes(), host.host_in_use_bytes(), "{label}");
            let read = [cache.stats().rows_read(), host.stats().rows_read()];
            assert!((read[0] - read[1]).abs() <= 0.02 * read[1] + 1e-9, "{label}: rows {read:?}");
            // The comparison can fail: one head's output in another's place, and a step too late.
            let dim = case.heads.2;
            let mut swapped = actual.clone();
            swapped.rotate_left(dim);
            assert!(distance(&swapped, &expected) > case.bar, "{label}: heads");
            let mut late = actual.clone();
            late.rotate_left(LAYERS * case.heads.0 * dim);
            assert!(distance(&late, &expected) > case.bar, "{label}: steps");
        }
    }
}

/// What caches that hold the same give for the same further tokens.
pub(crate) fn goes_on(
    cache: &mut dyn AttentionCache,
    layers: &[Tokens],
    heads: HeadShape,
) -> Vec<f32> {
    let (qo_len, kv_len) = (heads.qo_row_len(), heads.kv_row_len());
    let mut outs = Vec::new();
    for token in 0..3 {
        for (layer, tokens) in layers.iter().enumerate() {
            let [k, v] = [&tokens.k, &tokens.v].map(|rows| tokens.row(rows, kv_len, token));
            let mut out = vec![f32::NAN; qo_len];
            cache.append(layer, k, v).unwrap();
            cache.attend(layer, tokens.row(&tokens.q, qo_len, token), &mut out).unwrap();
            outs.extend(out);
        }
    }
    outs
}

/// A cache is the same on either side of the bus, up to the order of sums over the window.
#[test]
fn a_cache_goes_to_a_device_and_back() {
    const SAME: f32 = 1e-5;
    // One of few tokens at the threshold more or less.
    const CHOSEN_OTHERWISE: f32 = 0.15;
    let places = distinct_places();
    for (turn, place) in places.iter().enumerate() {
        let cases = cases();
        let own = cases.iter().enumerate().filter(|(number, _)| number % places.len() == turn);
        for (number, case) in own {
            let (_, _, mut host, mut cache) = run(place, case, 3000 + number as u64);
            let heads = host.shape().heads;
            let n = case.prompt_tokens + STEPS;
            let reservation = Reservation { prompt_tokens: n, total_tokens: n + 8 };
            let mut there =
                DeviceCache::upload(Arc::clone(place), host.fork().unwrap(), reservation).unwrap();
            let [mut back, mut down] = [&there, &cache].map(|cache| cache.download().unwrap());
            let layers: Vec<_> = (0..LAYERS as u64).map(|l| Tokens::new(l + 7, heads, 3)).collect();
            let expected = goes_on(&mut host, &layers, heads);
            let label = format!("{} on {}", case.spec, place.gpu().summary());
            let check = |name: &str, cache: &mut dyn AttentionCache, bar: f32| {
                assert_eq!(cache.num_tokens(), n, "{label}: {name}");
                let found = goes_on(cache, &layers, heads);
                let reached = distance(&found, &expected);
                assert!(reached <= bar, "{label}, {name}: {reached} of {bar}");
                let mut swapped = found;
                swapped.rotate_left(heads.head_dim);
                assert!(distance(&swapped, &expected) > bar, "{label}, {name}: heads");
            };
            let bar = if case.bar == EXACT { EXACT } else { CHOSEN_OTHERWISE };
            check("there", &mut there, bar);
            check("there and back", &mut back, SAME);
            check("made there", &mut cache, bar);
            check("made there, here", &mut down, bar);
            assert_eq!(back.host_in_use_bytes(), host.host_in_use_bytes(), "{label}");
        }
    }
}

/// What was planned is what is taken, but for lists that are shorter than they can be.
#[test]
fn cache_takes_what_is_planned() {
    use heterokv_cache::DeviceCachePlan;
    for device in distinct_places() {
        for case in cases().iter().filter(|case| case.prompt_tokens > 0) {
            let before = device.gpu().in_use_bytes();
            let (.., host, cache) = run(&device, case, 1);
            let n = case.prompt_tokens;
            let reservation = Reservation { prompt_tokens: n, total_tokens: n + STEPS };
            let limits = device.gpu().limits();
            let plan =
                DeviceCachePlan::new(host.config(), &host.shape(), limits, reservation).unwrap();
            let taken = device.gpu().in_use_bytes() - before;
            let planned = plan.total_bytes();
            println!("{}: {taken} of {planned}", case.spec);
            // Lists are planned for the most that they can be.
            let least = planned - plan.list_bytes - planned / 50;
            assert!((least..=planned).contains(&taken), "{}: {taken} of {planned}", case.spec);
            let counted = cache.device_bytes().total() as u64;
            assert!(counted <= taken, "{}", case.spec);
            drop(cache);
            assert_eq!(
                device.gpu().in_use_bytes(),
                before,
                "{}: what is dropped is freed",
                case.spec
            );
        }
    }
}

/// Each adapter with its own limits and with the smallest: reductions do not matter here.
pub(crate) fn distinct_places() -> Vec<Arc<Device>> {
    if places_or_skip().is_empty() {
        return Vec::new();
    }
    let limits = [LimitsChoice::Adapter, LimitsChoice::WebGpuMinimum];
    let open = |(number, limits)| {
        let choice = DeviceChoice::Index(number);
        let gpu = Gpu::open(OpenOptions { limits, ..OpenOptions::new(choice) }).unwrap();
        Arc::new(Device::new(Arc::new(gpu)))
    };
    (0..adapters().len())
        .flat_map(|number| limits.map(|limits| (number, limits)))
        .map(open)
        .collect()
}
