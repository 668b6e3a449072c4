//! The model on a device that the CPU plays, held to the model on the CPU: the same tokens, nearly the same logits, the
//! memory that was planned, and what is left when the device is lost.

use std::sync::Arc;

use heterokv_attn::device::Device;
use heterokv_cache::{DeviceCache, DeviceCachePlan, Level, Reservation};
use heterokv_eval::{Distribution, kl_divergence};
use heterokv_gpu::{DeviceChoice, Gpu, OpenOptions};
use heterokv_model::text::SpecialTokens;
use heterokv_model::{
    Checkpoint, ComputeType, Decoder, DeviceDecoder, DeviceModel, DeviceModelPlan, HostDecoder,
    Model, Sampler, SamplerSettings,
};
use serde::Deserialize;

use crate::distance::{Bars, argmax};
use crate::files::{fixture, is_long, json, shared};
use crate::smollm::{Smollm, cache, config};

/// A device that the CPU plays; none, and a line that says so, where there is none and none is asked for.
pub(crate) fn software_or_skip() -> Option<Arc<Device>> {
    let wanted = std::env::var("HETEROKV_GPU").unwrap_or_else(|_| "auto".to_owned());
    if wanted == "none" {
        println!("SKIPPED: no device is wanted (HETEROKV_GPU)");
        return None;
    }
    match Gpu::open(OpenOptions::new(DeviceChoice::Software)) {
        Ok(gpu) => Some(Arc::new(Device::new(Arc::new(gpu)))),
        Err(error) => {
            assert_ne!(wanted, "required", "{error}");
            println!("SKIPPED: {error}");
            None
        }
    }
}

/// A checkpoint on the CPU and on a device, in the same form.
struct Pair {
    host: Model,
    on_device: DeviceModel,
}

impl Pair {
    fn load(checkpoint: &Checkpoint, device: &Arc<Device>, compute: ComputeType) -> Self {
        let level = Level::detect();
        let on_device =
            DeviceModel::load(Arc::clone(device), checkpoint, compute, level, None).unwrap();
        Self { host: Model::load(checkpoint, compute, level).unwrap(), on_device }
    }

    fn decoders(
        &self,
        spec: &str,
        reservation: Reservation,
    ) -> (HostDecoder<'_>, DeviceDecoder<'_>) {
        let device = Arc::clone(self.on_device.device());
        let (shape, config) = (self.host.kv_shape(), config(&self.host, spec));
        let on_device =
            DeviceCache::new(device, shape, config, Level::detect(), None, reservation).unwrap();
        (
            HostDecoder::new(&self.host, cache(&self.host, spec)),
            DeviceDecoder::new(&self.on_device, on_device),
        )
    }
}

/// KL of the second from the first.
fn kl(a: &[f32], b: &[f32]) -> f64 {
    kl_divergence(&Distribution::of_logits(a), &Distribution::of_logits(b))
}

/// Greedy tokens behind a prompt by both, each fed its own, up to the first of the host's whose two highest logits are
/// within `gap`; gives how many were compared, and the largest KL on the way.
fn follow(
    host: &mut dyn Decoder,
    device: &mut dyn Decoder,
    prompt: &[u32],
    num_tokens: usize,
    gap: f32,
) -> (usize, f64) {
    host.feed(prompt, None).unwrap();
    device.feed(prompt, None).unwrap();
    let mut worst = 0.0;
    for step in 0..num_tokens {
        let (expected, actual) = (host.logits().unwrap(), device.logits().unwrap());
        worst = f64::max(worst, kl(&expected, &actual));
        let next = argmax(&expected);
        let top = expected[next as usize];
        let others = expected.iter().enumerate().filter(|(id, _)| *id as u32 != next);
        let second = others.fold(f32::NEG_INFINITY, |most, (_, x)| most.max(*x));
        if top - second < gap {
            return (step, worst);
        }
        assert_eq!(argmax(&actual), next, "token {step}, whose lead is {}", top - second);
        host.feed(&[next], None).unwrap();
        device.feed(&[next], None).unwrap();
    }
    (num_tokens, worst)
}

/// Every family of small checkpoints, prompts, later turns and single tokens, in caches that keep all on the device and
/// that do not.
#[test]
fn small_checkpoints_on_a_device() {
    let Some(device) = software_or_skip() else { return };
    let mut bars = Bars::default();
    for name in ["llama3-rope-scaling.gguf", "llama3-q8_0/model.gguf", "qwen2-bias", "qwen3-qknorm"]
    {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        for (compute, spec) in [
            (ComputeType::F16, "full"),
            (ComputeType::Q8, "full"),
            (ComputeType::F16, "keys=int4-token,values=f16@host,select=none,sinks=2,recent=4"),
        ] {
            let pair = Pair::load(&checkpoint, &device, compute);
            let vocab = pair.host.config().vocab_size as u32;
            let ids = |seed: u32, n: u32| -> Vec<u32> {
                (0..n).map(|i| (i * 7919 + seed * 104_729) % vocab).collect()
            };
            let (prompt, turn) = (ids(1, 70), ids(2, 9));
            let reservation = Reservation { prompt_tokens: 70, total_tokens: 90 };
            let (mut host, mut on_device) = pair.decoders(spec, reservation);
            let mut worst = 0.0;
            for tokens in [&prompt[..], &turn, &[3], &[1]] {
                host.feed(tokens, None).unwrap();
                on_device.feed(tokens, None).unwrap();
                let logits = [host.logits().unwrap(), on_device.logits().unwrap()];
                worst = f64::max(worst, kl(&logits[0], &logits[1]));
            }
            assert_eq!(host.num_tokens(), on_device.num_tokens());
            bars.at_most(&format!("{name}, {compute}, {spec:.16}: KL"), worst, 1e-4);
            // Another prompt's logits are further away, or the bar says nothing.
            let (mut other, _) = pair.decoders(spec, reservation);
            other.feed(&ids(3, 70), None).unwrap();
            let away = kl(&host.logits().unwrap(), &other.logits().unwrap());
            bars.at_least(&format!("{name}, {compute}: KL of another prompt"), away, 1e-3);
        }
    }
    bars.finish();
}

/// What a device picks is what the host picks from the device's own logits: the highest, and what is drawn.
#[test]
fn tokens_picked_on_a_device() {
    const DRAWS: usize = 200;
    let Some(device) = software_or_skip() else { return };
    let checkpoint = Checkpoint::open(&fixture("llama3-rope-scaling.gguf")).unwrap();
    let pair = Pair::load(&checkpoint, &device, ComputeType::Q8);
    let reservation = Reservation { prompt_tokens: 30, total_tokens: 60 };
    let (_, mut decoder) = pair.decoders("full", reservation);
    decoder.feed(&(0..30).collect::<Vec<u32>>(), None).unwrap();
    let logits = decoder.logits().unwrap();
    let greedy = SamplerSettings::default();
    let warm = SamplerSettings { temperature: 1.3, seed: 5, ..greedy };
    let mut by_rank: Vec<u32> = (0..logits.len() as u32).collect();
    by_rank.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    // Single ids and a run of them are left out, the best among them.
    let best = by_rank[0];
    let mut excluded = vec![best, best + 1, best + 2, by_rank[3]];
    excluded.retain(|id| (*id as usize) < logits.len());
    excluded.sort_unstable();
    excluded.dedup();
    let host = |sampler: &mut Sampler, excluded: &[u32]| {
        let mut logits = logits.clone();
        excluded.iter().for_each(|&id| logits[id as usize] = f32::NEG_INFINITY);
        sampler.sample(&logits, &[]).unwrap()
    };
    for (settings, may_differ) in [
        (greedy, 0),
        (warm, 2),
        (SamplerSettings { top_k: Some(7), ..warm }, 2),
        (SamplerSettings { top_p: 0.8, min_p: 0.01, ..warm }, 2),
        // Repetitions are penalised on the host.
        (SamplerSettings { repetition_penalty: 1.5, ..warm }, 0),
    ] {
        let mut samplers = [(); 2].map(|()| Sampler::new(settings).unwrap());
        let [own, other] = &mut samplers;
        let (mut differ, mut picked) = (0, Vec::new());
        for draw in 0..DRAWS {
            let excluded = if draw % 2 == 0 { &excluded[..] } else { &[] };
            let actual = decoder.pick(own, &[], excluded).unwrap();
            assert!(!excluded.contains(&actual), "{settings:?}");
            differ += usize::from(actual != host(other, excluded));
            picked.push(actual);
        }
        assert!(differ <= may_differ, "{settings:?}: {differ} of {DRAWS} differ");
        picked.sort_unstable();
        picked.dedup();
        let is_greedy = settings.temperature == 0.0;
        assert_eq!(picked.len() == 2, is_greedy, "{settings:?}: {} tokens", picked.len());
    }
    // The comparison can fail: the numbers of another seed draw others.
    let mut own = Sampler::new(warm).unwrap();
    let mut other = Sampler::new(SamplerSettings { seed: 6, ..warm }).unwrap();
    let differ = |_: &usize| decoder.pick(&mut own, &[], &[]).unwrap() != host(&mut other, &[]);
    let differ = (0..DRAWS).filter(differ).count();
    assert!(differ > DRAWS / 4, "{differ}");
    // Logits without a token are refused as the host refuses them.
    let all: Vec<u32> = (0..logits.len() as u32).collect();
    let error = decoder.pick(&mut own, &[], &all).unwrap_err();
    assert!(error.to_string().contains("no token is possible"), "{error}");
}

/// Far beyond what was reserved, and in turns: pages, scores and states grow on the way, in the middle of a token's
/// layers too.
#[test]
fn a_cache_grows_beyond_its_reservation() {
    let Some(device) = software_or_skip() else { return };
    let checkpoint = Checkpoint::open(&fixture("llama3-rope-scaling.gguf")).unwrap();
    let pair = Pair::load(&checkpoint, &device, ComputeType::Q8);
    let mut bars = Bars::default();
    let vocab = pair.host.config().vocab_size as u32;
    let ids: Vec<u32> = (0..600).map(|i| i * 7919 % vocab).collect();
    let (prompt, rest) = ids.split_at(60);
    let parts: Vec<&[u32]> =
        [prompt].into_iter().chain(rest[..300].chunks(1)).chain([&rest[300..]]).collect();
    let mut exact = Vec::new();
    for spec in ["full", "keys=int4-token,values=f16@host,select=none,sinks=2,recent=4"] {
        let reservation = Reservation { prompt_tokens: 60, total_tokens: 60 };
        let (mut host, mut on_device) = pair.decoders(spec, reservation);
        let (mut worst, mut of_codes) = (0.0, 0.0);
        for (index, tokens) in parts.iter().enumerate() {
            host.feed(tokens, None).unwrap();
            on_device.feed(tokens, None).unwrap();
            let [expected, actual] = [host.logits().unwrap(), on_device.logits().unwrap()];
            worst = f64::max(worst, kl(&expected, &actual));
            match spec {
                "full" => exact.push(expected),
                _ => of_codes = f64::max(of_codes, kl(&exact[index], &expected)),
            }
        }
        assert_eq!(on_device.num_tokens(), ids.len());
        // The last bit of a key may decide its code, which then is off by a step: far less than what codes cost.
        let bar = if spec == "full" { 1e-4 } else { 0.1 * of_codes };
        bars.at_most(&format!("{spec:.16}, ten times the reservation: KL"), worst, bar);
    }
    bars.finish();
}

#[derive(Deserialize)]
struct Continuation {
    prompt_ids: Vec<u32>,
}

/// Tokens that are compared behind each golden prompt.
const GREEDY_TOKENS: usize = 16;

/// The lead of a token below which it is a near-tie.
const NEAR_TIE: f32 = 0.1;

#[test]
fn greedy_on_a_device_is_greedy_on_the_cpu() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(path) = shared("golden/smollm2_greedy.json") else { return };
    let Some(device) = software_or_skip() else { return };
    let pair = Pair::load(&smollm.checkpoint, &device, ComputeType::Q8);
    let continuations: Vec<Continuation> = json(&path);
    let prompts = if is_long() { continuations.len() } else { 2 };
    let mut compared = 0;
    for Continuation { prompt_ids } in &continuations[..prompts.min(continuations.len())] {
        let n = prompt_ids.len();
        let reservation = Reservation { prompt_tokens: n, total_tokens: n + GREEDY_TOKENS };
        let (mut host, mut on_device) = pair.decoders("full", reservation);
        let (steps, worst) = follow(&mut host, &mut on_device, prompt_ids, GREEDY_TOKENS, NEAR_TIE);
        println!("{n} tokens of prompt: {steps} tokens are the same, KL up to {worst:.1e}");
        compared += steps;
    }
    assert!(compared >= prompts * GREEDY_TOKENS / 4, "only {compared} tokens were compared");
}

/// Tokens of context at which logits are compared. In few there are coded tokens, and no choice among them.
fn kl_tokens() -> usize {
    if is_long() { 512 } else { 128 }
}

/// Tokens fed one by one behind them.
const KL_STEPS: usize = 4;

#[test]
fn logits_of_a_device_are_those_of_the_cpu() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let Some(device) = software_or_skip() else { return };
    let pair = Pair::load(&smollm.checkpoint, &device, ComputeType::Q8);
    let mut bars = Bars::default();
    let num_tokens = kl_tokens();
    let window = smollm.window("kl", &corpus, 45_000, num_tokens, KL_STEPS);
    let reservation =
        Reservation { prompt_tokens: num_tokens, total_tokens: num_tokens + KL_STEPS + 1 };
    let specs = ["full", "keys=int4-token,values=int8@host,select=none", "hca-rescore:12.5%"];
    for spec in if is_long() { &specs[..] } else { &specs[..2] } {
        let (mut host, mut on_device) = pair.decoders(spec, reservation);
        host.feed(&window.context, None).unwrap();
        on_device.feed(&window.context, None).unwrap();
        let at_prompt = kl(&host.logits().unwrap(), &on_device.logits().unwrap());
        bars.at_most(&format!("{spec:.24}: KL at {num_tokens} tokens"), at_prompt, 1e-4);
        let mut sum = 0.0;
        for &token in &window.fed {
            host.feed(&[token], None).unwrap();
            on_device.feed(&[token], None).unwrap();
            sum += kl(&host.logits().unwrap(), &on_device.logits().unwrap());
        }
        let mean = sum / window.fed.len() as f64;
        // A selection may differ by a token at its threshold.
        bars.at_most(&format!("{spec:.24}: mean KL of {KL_STEPS} steps"), mean, 1e-4);
    }
    bars.finish();
}

#[derive(Deserialize)]
struct Passkey {
    depth: f64,
    prompt: String,
    answer: String,
}

/// The passkey of the shared references in a text with so many characters on either side of it, what stands before and
/// behind it cut.
fn short_passkey(passkey: &Passkey, num_chars: usize) -> String {
    let at = passkey.prompt.find(&passkey.answer).unwrap();
    let before = passkey.prompt[..at].char_indices().rev().nth(num_chars).map_or(0, |(i, _)| i);
    let behind = &passkey.prompt[at..];
    let question = behind.char_indices().rev().nth(700).map_or(0, |(i, _)| i);
    let middle = behind.char_indices().nth(num_chars).map_or(behind.len(), |(i, _)| i);
    let head: String = passkey.prompt.chars().take(200).collect();
    format!("{head}{}{}{}", &passkey.prompt[before..at], &behind[..middle], &behind[question..])
}

#[test]
fn passkey_on_a_device() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(path) = shared("golden/passkey_7900.json") else { return };
    let Some(device) = software_or_skip() else { return };
    let passkeys: Vec<Passkey> = json(&path);
    let passkey = passkeys.iter().find(|passkey| passkey.depth == 0.5).unwrap();
    let pair = Pair::load(&smollm.checkpoint, &device, ComputeType::Q8);
    let (num_chars, specs) = if is_long() {
        (1600, &["hca:12.5%", "hca-rescore:12.5%"][..])
    } else {
        (400, &["hca-rescore:12.5%"][..])
    };
    let prompt = smollm.encode(&short_passkey(passkey, num_chars));
    let answer = smollm.encode(&passkey.answer);
    println!("{} tokens of prompt", prompt.len());
    // Far more than the first and the recent tokens, which are exact.
    assert!(prompt.len() >= 400);
    for &spec in specs {
        let n = prompt.len();
        let reservation = Reservation { prompt_tokens: n, total_tokens: n + answer.len() };
        let (_, mut on_device) = pair.decoders(spec, reservation);
        on_device.feed(&prompt, None).unwrap();
        let mut ids = Vec::new();
        for _ in 0..answer.len() {
            let next = argmax(&on_device.logits().unwrap());
            ids.push(next);
            on_device.feed(&[next], None).unwrap();
        }
        let text = smollm.text.tokenizer.decode(&ids, SpecialTokens::Show).unwrap();
        let figures = on_device.figures();
        println!("{spec}: {text:?}, ratio {:.1} %", 100.0 * figures.ratio());
        assert_eq!(ids, answer, "{spec}");
    }
}

/// What is held after many tokens is what was planned; nothing is left of what was dropped.
#[test]
fn memory_is_what_was_planned() {
    let Some(device) = software_or_skip() else { return };
    let (tokens, cycles) = if is_long() { (1000, 100) } else { (100, 10) };
    let checkpoint = Checkpoint::open(&fixture("llama3-rope-scaling.gguf")).unwrap();
    let gpu = device.gpu();
    let before = gpu.in_use_bytes();
    for (cycle, spec) in
        (0..cycles).zip(["full", "keys=alloc/4,values=int8@host,select=top-p:0.9"].iter().cycle())
    {
        let model = DeviceModel::load(
            Arc::clone(&device),
            &checkpoint,
            ComputeType::Q8,
            Level::detect(),
            None,
        );
        let model = model.unwrap();
        let num_tokens = if cycle < 2 { tokens } else { 3 };
        let prompt_tokens = 330;
        let reservation = Reservation { prompt_tokens, total_tokens: prompt_tokens + num_tokens };
        let shape = model.kv_shape();
        let parsed: heterokv_cache::CacheSpec = spec.parse().unwrap();
        let resolved = parsed.resolve(&shape, None).unwrap();
        let of_model =
            DeviceModelPlan::of_checkpoint(&checkpoint, ComputeType::Q8, prompt_tokens).unwrap();
        let of_cache = DeviceCachePlan::new(&resolved, &shape, gpu.limits(), reservation).unwrap();
        let cache = DeviceCache::new(
            Arc::clone(&device),
            shape,
            resolved,
            Level::detect(),
            None,
            reservation,
        );
        let peak =
            of_model.held() + of_model.prompt + of_cache.total_bytes() + of_cache.prompt_bytes;
        let mut decoder = DeviceDecoder::new(&model, cache.unwrap());
        let vocab = model.config().vocab_size as u32;
        let prompt: Vec<u32> = (0..prompt_tokens as u32).map(|i| i * 31 % vocab).collect();
        decoder.feed(&prompt, None).unwrap();
        if cycle == 0 {
            // What the first of them has held is the most that any has.
            let most = gpu.peak_bytes() - before;
            println!("{spec}: at most {most} bytes, {peak} planned");
            assert!(most <= peak && most as f64 >= 0.98 * peak as f64, "{most} of {peak}");
        }
        for token in 0..num_tokens as u32 {
            decoder.feed(&[token % vocab], None).unwrap();
        }
        let held = gpu.in_use_bytes() - before;
        let planned = of_model.held() + of_cache.total_bytes();
        if cycle < 2 {
            println!("{spec}: {held} bytes held after {num_tokens} tokens, {planned} planned");
        }
        assert!(held <= planned && held as f64 >= 0.98 * planned as f64, "{held} of {planned}");
        drop(decoder);
        drop(model);
        assert_eq!(gpu.in_use_bytes(), before, "cycle {cycle} leaves nothing");
    }
}

/// A budget of just what is planned is enough; a little less is refused.
#[test]
fn a_budget_of_what_is_planned() {
    if software_or_skip().is_none() {
        return;
    }
    let checkpoint = Checkpoint::open(&fixture("llama3-rope-scaling.gguf")).unwrap();
    let (prompt_tokens, num_tokens) = (330, 20);
    let reservation = Reservation { prompt_tokens, total_tokens: prompt_tokens + num_tokens };
    let run = |spec: &str, budget_bytes: Option<u64>| -> Result<u64, heterokv_model::Error> {
        let choice = DeviceChoice::Software;
        let gpu = Gpu::open(OpenOptions { budget_bytes, ..OpenOptions::new(choice) }).unwrap();
        let device = Arc::new(Device::new(Arc::new(gpu)));
        let (level, compute) = (Level::detect(), ComputeType::Q8);
        let model = DeviceModel::load(Arc::clone(&device), &checkpoint, compute, level, None)?;
        let shape = model.kv_shape();
        let parsed: heterokv_cache::CacheSpec = spec.parse().unwrap();
        let resolved = parsed.resolve(&shape, None).unwrap();
        let limits = device.gpu().limits();
        let of_model = DeviceModelPlan::of_checkpoint(&checkpoint, compute, prompt_tokens)?;
        let of_cache = DeviceCachePlan::new(&resolved, &shape, limits, reservation)?;
        let cache = DeviceCache::new(device, shape, resolved, level, None, reservation)?;
        let mut decoder = DeviceDecoder::new(&model, cache);
        let vocab = model.config().vocab_size as u32;
        let prompt: Vec<u32> = (0..prompt_tokens as u32).map(|i| i * 31 % vocab).collect();
        decoder.feed(&prompt, None)?;
        (0..num_tokens as u32).try_for_each(|token| decoder.feed(&[token % vocab], None))?;
        decoder.pick(&mut Sampler::new(SamplerSettings::default()).unwrap(), &[], &[])?;
        Ok(of_model.held() + of_model.prompt + of_cache.total_bytes() + of_cache.prompt_bytes)
    };
    for spec in [
        "full",
        "keys=int4-token,values=int8@host,sinks=2,recent=8",
        "keys=alloc/4,values=int8@host,select=top-p:0.9",
        "keys=pq/4x16,values=int8@host,sinks=2,recent=8",
    ] {
        let planned = run(spec, None).unwrap();
        run(spec, Some(planned)).unwrap_or_else(|error| panic!("{spec}: {error}"));
        let error = run(spec, Some(planned - planned / 20)).unwrap_err();
        assert!(error.to_string().contains("of the budget"), "{spec}: {error}");
    }
}

/// A device that is lost, and one that has no memory left, are told in a line; the host's rows are still there.
#[test]
fn what_is_lost_with_a_device() {
    if software_or_skip().is_none() {
        return;
    }
    let checkpoint = Checkpoint::open(&fixture("llama3-rope-scaling.gguf")).unwrap();
    for is_lost in [true, false] {
        const BUDGET: u64 = 128 << 20;
        let options =
            OpenOptions { budget_bytes: Some(BUDGET), ..OpenOptions::new(DeviceChoice::Software) };
        let gpu = Arc::new(Gpu::open(options).unwrap());
        let device = Arc::new(Device::new(Arc::clone(&gpu)));
        let model = DeviceModel::load(
            Arc::clone(&device),
            &checkpoint,
            ComputeType::Q8,
            Level::detect(),
            None,
        )
        .unwrap();
        let shape = model.kv_shape();
        let spec: heterokv_cache::CacheSpec =
            "keys=int4-token,values=f16@host,select=none,sinks=2,recent=8".parse().unwrap();
        let resolved = spec.resolve(&shape, None).unwrap();
        let reservation = Reservation { prompt_tokens: 100, total_tokens: 110 };
        let cache = DeviceCache::new(device, shape, resolved, Level::detect(), None, reservation);
        let mut decoder = DeviceDecoder::new(&model, cache.unwrap());
        let prompt: Vec<u32> = (0..100).map(|token| token % 50).collect();
        decoder.feed(&prompt, None).unwrap();
        let rows = decoder.cache().host().unwrap().rows(0, 0).num_rows();
        assert_eq!(rows, 90);
        let mut taken = Vec::new();
        if is_lost {
            gpu.lose();
        } else {
            while gpu.in_use_bytes() < BUDGET {
                let left = (BUDGET - gpu.in_use_bytes()).min(16 << 20);
                taken.push(gpu.buffer("what others hold", left).unwrap());
            }
        }
        // The window and its pages have room for a few tokens; then one fails.
        let mut fed = 100;
        let mut feed_one = |token: u32| {
            let error = decoder.feed(&[token % 50], None).err();
            fed += usize::from(error.is_none());
            error
        };
        let error = (0..200).find_map(&mut feed_one).unwrap();
        let again = feed_one(0).unwrap().to_string();
        assert!(
            again.contains("make a new one") || again.contains("the device is lost"),
            "{again}"
        );
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line}");
        let expected = if is_lost { "the device is lost" } else { "of the budget of" };
        assert!(line.contains(expected), "{line}");
        // All that was fed but the first two and the last eight is on the host, in every layer and head.
        let host = decoder.cache().host().unwrap();
        let shape = model.kv_shape();
        for (layer, kv_head) in (0..shape.num_layers)
            .flat_map(|layer| (0..shape.heads.num_kv_heads).map(move |head| (layer, head)))
        {
            let rows = host.rows(layer, kv_head).num_rows();
            assert!(rows >= fed - 10, "layer {layer}, head {kv_head}: {rows} of {fed} tokens");
        }
    }
}
