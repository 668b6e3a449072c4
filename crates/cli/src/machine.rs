//! A model and a cache, on the CPU or on a GPU, after a look at whether they fit.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use heterokv_attn::device::Device;
use heterokv_cache::{CacheConfig, CachePlan, DeviceCache, DeviceCachePlan, KvCache, Reservation};
use heterokv_gpu::{DeviceChoice, DeviceKind, Gpu, Limits, OpenOptions};
use heterokv_model::{
    Decoder, DeviceDecoder, DeviceModel, DeviceModelPlan, HostDecoder, Model, ModelConfig, Resumed,
    Session, prefill_bytes,
};

use crate::args::{CacheArgs, Place};
use crate::host::{Budget, HostPlace};
use crate::load::{Opened, check_ratio};
use crate::output::{bytes, ratio, say, tokens};
use crate::requirement::{check_memory, check_parts, kv_shape, plan};

/// A prompt to be read, and a reply to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    pub(crate) prompt: &'a [u32],
    /// The most tokens of the reply.
    pub(crate) max_tokens: usize,
    /// The folder of the session that keeps what is read.
    pub(crate) session: Option<&'a Path>,
}

/// A model and a cache that are ready.
#[derive(Debug)]
pub(crate) struct Ready<'a> {
    pub(crate) decoder: Box<dyn Decoder + 'a>,
    /// Where what is read is to be saved, and how many tokens of the prompt the cache holds from there.
    pub(crate) session: Option<(&'a mut Session, usize)>,
}

/// Holds what is asked for against the machine, says what will run, loads the model, and runs it over a cache with room
/// for a prompt and a reply, which is empty or holds what a session has of the prompt.
///
/// # Errors
/// A cache that does not fit the model, a session of something else, a run that needs more memory than there is, a device
/// that is not to be had, whatever is wrong with the checkpoint, and what the run fails with.
pub(crate) fn run_on(
    opened: &Opened,
    args: &CacheArgs,
    task: Task<'_>,
    run: impl FnOnce(Ready<'_>) -> Result<()>,
) -> Result<()> {
    let resolved = opened.resolve(&args.cache)?;
    let prompt_tokens = task.prompt.len();
    let reservation =
        Reservation { prompt_tokens, total_tokens: prompt_tokens.saturating_add(task.max_tokens) };
    // Lengths are bounded here.
    let at_end = plan(opened.checkpoint.config(), &resolved, reservation.total_tokens)?;
    let budget = Budget::new(&args.host, task.session.is_some(), &resolved, &at_end)?;
    let mut host = HostPlace::open(opened, &args.host, task.session, &resolved, &budget)?;
    let at_end = CachePlan { host_bytes: budget.ram_bytes, ..at_end };
    let plans = Plans { config: resolved, reservation, at_end };
    match args.place.device {
        Place::Cpu => {
            ensure!(
                args.place.device_memory.is_none(),
                "--device-memory is of a GPU; add --device gpu"
            );
            let (model, resumed) = on_host(opened, args, plans, task.prompt, &host)?;
            let found = resumed.num_tokens;
            let decoder = Box::new(HostDecoder::resume(&model, resumed));
            run(Ready { decoder, session: host.session_mut().map(|session| (session, found)) })
        }
        Place::Gpu(choice) => {
            let (model, resumed) = on_device(opened, args, plans, task.prompt, &host, choice)?;
            let found = resumed.num_tokens;
            let decoder = Box::new(DeviceDecoder::resume(&model, resumed)?);
            run(Ready { decoder, session: host.session_mut().map(|session| (session, found)) })
        }
    }
}

/// What a run will hold.
struct Plans {
    config: CacheConfig,
    reservation: Reservation,
    /// Of the longest context; of the host's bytes those in RAM.
    at_end: CachePlan,
}

fn on_host(
    opened: &Opened,
    args: &CacheArgs,
    plans: Plans,
    prompt: &[u32],
    host: &HostPlace,
) -> Result<(Model, Resumed<KvCache>)> {
    let Plans { config: resolved, reservation, at_end } = plans;
    let config = opened.checkpoint.config();
    let at_prompt = plan(config, &resolved, reservation.prompt_tokens)?;
    let at_once = host.tokens_at_once(prompt)?;
    check_memory(config, opened.weight_bytes()?, &[at_end], at_once)?;
    let resumed = host.cache(opened, args, resolved, prompt)?;
    say_what_runs(&opened.first_line(), args, reservation, at_prompt.ratio())?;
    Ok((opened.load()?, resumed))
}

fn on_device(
    opened: &Opened,
    args: &CacheArgs,
    plans: Plans,
    prompt: &[u32],
    host: &HostPlace,
    choice: DeviceChoice,
) -> Result<(DeviceModel, Resumed<DeviceCache>)> {
    let Plans { config: resolved, reservation, at_end } = plans;
    let config = opened.checkpoint.config();
    let shape = kv_shape(config)?;
    let forgets = matches!(&resolved, CacheConfig::Hca(hca) if hca.evict.is_some());
    ensure!(
        !(forgets && matches!(host, HostPlace::Session(_))),
        "a cache that forgets tokens does not come back from a GPU into a session; leave --session or --device out"
    );
    let budget_bytes = args.place.device_memory;
    let gpu = Gpu::open(OpenOptions { budget_bytes, ..OpenOptions::new(choice) })?;
    let is_software = gpu.summary().kind == DeviceKind::Software;
    ensure!(
        !is_software || choice == DeviceChoice::Software,
        "{choice} is {}, which the CPU plays; ask for it by --device gpu:software",
        gpu.summary()
    );
    let limits = gpu.limits();
    let of_model = DeviceModelPlan::of_checkpoint(
        &opened.checkpoint,
        opened.compute(),
        reservation.prompt_tokens,
    )?;
    let planned = RunPlan::new(of_model, config, &resolved, limits, reservation)?;
    if let Some(budget) = budget_bytes {
        planned.check(budget)?;
    }
    // What is in RAM: the host's rows, one layer's keys and values on their way to them, and the device where the CPU
    // plays it or shares its memory.
    let is_in_ram = matches!(gpu.summary().kind, DeviceKind::Software | DeviceKind::Integrated);
    let on_device = if is_in_ram { planned.peak_bytes() } else { 0 };
    // A cache that forgets has the keys of a layer there, and those of each head.
    let on_host = match resolved {
        CacheConfig::Full => 0,
        CacheConfig::Hca(_) => prefill_bytes(config, reservation.prompt_tokens).keys_and_values,
    };
    check_parts(&[
        ("what a device in RAM holds", on_device),
        ("rows on the host", at_end.host_bytes as u64),
        ("one layer's on their way there", on_host),
    ])?;
    let first_line = format!(
        "{}: {} weights on {}, {}",
        opened.name,
        opened.compute(),
        gpu.summary(),
        bytes(planned.held_bytes())
    );
    let device = Arc::new(Device::new(Arc::new(gpu)));
    let resumed = host
        .cache(opened, args, resolved, prompt)?
        .try_map(|cache| DeviceCache::upload(Arc::clone(&device), cache, reservation))?;
    // There is room for the reply from the start.
    let full = heterokv_cache::full_bytes(&shape, reservation.total_tokens.max(1));
    let reached = planned.cache as f64 / full as f64;
    say_what_runs(&first_line, args, reservation, reached)?;
    Ok((opened.load_on(device)?, resumed))
}

fn say_what_runs(
    first_line: &str,
    args: &CacheArgs,
    reservation: Reservation,
    reached: f64,
) -> Result<()> {
    let (spec, num_tokens) = (&args.cache, reservation.prompt_tokens);
    if args.terms.strict_ratio {
        check_ratio(spec, reached, num_tokens)?;
    }
    say(&format!(
        "{first_line}; {} of prompt, cache {spec}: {}",
        tokens(num_tokens),
        ratio(reached, spec)
    ));
    Ok(())
}

/// What a run takes of a device.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct RunPlan {
    /// Bytes of the model's weights, with norms and biases.
    weights: u64,
    /// What a block of tokens is worked out in.
    work: u64,
    /// Exact rows, key codes, what queries are prepared and keys coded with, and lists of all of these.
    cache: u64,
    /// What the layers of the cache work in.
    cache_scratch: u64,
    /// What a prompt takes beside all that while it is processed; the model's part is in it.
    prompt: u64,
}

impl RunPlan {
    /// Of a model and a cache with room for what is reserved.
    ///
    /// # Errors
    /// A cache that does not fit the model, or has no kernels.
    pub(crate) fn new(
        model: DeviceModelPlan,
        config: &ModelConfig,
        cache: &CacheConfig,
        limits: Limits,
        reservation: Reservation,
    ) -> Result<Self> {
        let of_cache = DeviceCachePlan::new(cache, &kv_shape(config)?, limits, reservation)?;
        Ok(Self {
            weights: model.weights,
            work: model.work,
            cache: of_cache.total_bytes() - of_cache.scratch_bytes,
            cache_scratch: of_cache.scratch_bytes,
            prompt: model.prompt + of_cache.prompt_bytes,
        })
    }

    /// What stays while tokens are generated.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.weights + self.work + self.cache + self.cache_scratch
    }

    /// The same with what the prompt takes while it is processed.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.held_bytes().saturating_add(self.prompt)
    }

    /// Its parts, by name.
    pub(crate) fn parts(&self) -> [(&'static str, u64); 4] {
        [
            ("weights", self.weights),
            ("what they work in", self.work),
            ("cache", self.cache),
            ("what it works in", self.cache_scratch),
        ]
    }

    /// Refuses what a budget does not hold.
    fn check(&self, budget: u64) -> Result<()> {
        let peak = self.peak_bytes();
        ensure!(
            peak <= budget,
            "this needs {} of device memory (weights {}, what they work in {}, cache {}, its scratch {}, the prompt \
             while it is processed {}), and --device-memory allows {}; allow more, or use a shorter context or a \
             smaller cache",
            bytes(peak),
            bytes(self.weights),
            bytes(self.work),
            bytes(self.cache),
            bytes(self.cache_scratch),
            bytes(self.prompt),
            bytes(budget)
        );
        Ok(())
    }
}
