//! `heterokv plan`: what a context takes, by component, and whether it fits, before anything is loaded.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, DryRun, Error as CacheError, Reservation};
use heterokv_gpu::Limits;
use heterokv_model::{
    Checkpoint, ComputeType, DeviceModelPlan, ModelConfig, PrefillBytes, f16_weight_bytes,
    held_weight_bytes, prefill_bytes,
};
use serde::{Serialize, Serializer};

use crate::args::PlanArgs;
use crate::load::{model_name, open_checkpoint, read_text};
use crate::machine::RunPlan;
use crate::output::{bytes, count, print_line, ratio, table, tokens};
use crate::requirement::{kv_shape, plan, say_uncoded};

/// Weights in one form.
#[derive(Clone, Serialize)]
struct Weights {
    #[serde(rename = "form", serialize_with = "by_name")]
    compute: ComputeType,
    bytes: u64,
}

/// What a run takes of a GPU, for one form of the weights.
#[derive(Serialize)]
struct OnGpu {
    #[serde(rename = "form", serialize_with = "by_name")]
    compute: ComputeType,
    /// None for what has no kernels: weights in f32, some key formats, and contexts and heads beyond what they are made
    /// for.
    #[serde(flatten)]
    plan: Option<RunPlan>,
    /// What stays while tokens are generated.
    device_bytes: Option<u64>,
    /// The same with what the prompt takes while it is processed.
    peak_bytes: Option<u64>,
    /// How that relates to the memory that is given.
    fit: Option<Fit>,
}

/// How a run relates to the memory of a GPU.
#[derive(Serialize)]
struct Fit {
    fits: bool,
    peak_fits: bool,
    /// The longest context that fits while tokens are generated, and while it is read.
    largest_context_tokens: usize,
    largest_prompt_tokens: usize,
}

/// All about one cache.
#[derive(Serialize)]
struct Planned {
    model: String,
    cache: String,
    spec: String,
    #[serde(flatten)]
    plan: CachePlan,
    device_total_bytes: usize,
    ratio: f64,
    prefill: PrefillBytes,
    /// By form of the weights.
    gpu: Vec<OnGpu>,
    weights: Vec<Weights>,
    device_memory_bytes: Option<u64>,
    /// Of the host's rows, under the budget that is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostSplit>,
}

/// Where the rows of the host would be.
#[derive(Serialize)]
struct HostSplit {
    memory_bytes: u64,
    ram_bytes: usize,
    disk_bytes: usize,
    /// Whether the pages that take rows have room in RAM.
    is_enough: bool,
}

impl HostSplit {
    fn new(plan: &CachePlan, memory_bytes: u64) -> Self {
        let run = plan.host_dry_run(usize::try_from(memory_bytes).unwrap_or(usize::MAX));
        let DryRun { ram_bytes, disk_bytes, is_enough, .. } = run;
        Self { memory_bytes, ram_bytes, disk_bytes, is_enough }
    }
}

fn by_name<S: Serializer>(
    compute: &ComputeType,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(compute)
}

/// A model as far as planning goes.
struct Shape {
    name: String,
    config: ModelConfig,
    /// The weights, where they are there.
    checkpoint: Option<Checkpoint>,
    weights: Vec<Weights>,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let shape = Shape::of(args)?;
    let num_tokens = args.context.unwrap_or(shape.config.max_context_tokens);
    ensure!(num_tokens > 0, "--context must be at least 1");
    let planned: Result<Vec<Planned>> =
        args.cache.iter().map(|spec| shape.plan(spec, num_tokens, args)).collect();
    let planned = planned?;
    for (planned, spec) in planned.iter().zip(&args.cache) {
        say_uncoded(spec, &planned.plan);
    }
    if args.json {
        for planned in &planned {
            print_line(&serde_json::to_string(planned)?)?;
        }
        return Ok(());
    }
    let ModelConfig { num_layers, num_qo_heads, num_kv_heads, head_dim, .. } = shape.config;
    print_line(&format!(
        "{}: {num_layers} layers of {num_qo_heads} query and {num_kv_heads} key-value heads of {head_dim}; {} \
         (trained for {})\n",
        shape.name,
        tokens(num_tokens),
        count(shape.config.max_context_tokens)
    ))?;
    for planned in &planned {
        if planned.spec != planned.cache {
            print_line(&format!("{} is {}", planned.cache, planned.spec))?;
        }
    }
    print_line(&format!("\n{}", show(&planned, &args.cache)))?;
    Ok(())
}

impl Shape {
    /// Reads the shape of what `--model` names.
    fn of(args: &PlanArgs) -> Result<Self> {
        let path = Path::new(&args.model);
        let config_file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let has_weights = path.is_file() && path.extension().is_none_or(|end| end != "json")
            || path.is_dir() && holds_weights(path)?;
        if has_weights {
            let checkpoint = open_checkpoint(path)?;
            let config = checkpoint.config().clone();
            let mut weights = vec![Weights::f16(&config)];
            let compute = args.compute;
            if compute != ComputeType::F16 {
                let bytes = held_weight_bytes(&checkpoint, compute)?;
                weights.push(Weights { compute, bytes });
            }
            let (name, checkpoint) = (model_name(path), Some(checkpoint));
            return Ok(Self { name, config, checkpoint, weights });
        }
        let config = if path.exists() {
            let config = ModelConfig::from_hf_json(&read_text(&config_file)?);
            config.with_context(|| format!("cannot plan for {}", config_file.display()))?
        } else {
            ModelConfig::builtin(&args.model).map_err(|error| {
                anyhow::Error::new(error)
                    .context(format!("there is no file or folder {}", args.model))
            })?
        };
        let weights = vec![Weights::f16(&config)];
        Ok(Self { name: args.model.clone(), config, checkpoint: None, weights })
    }

    fn plan(&self, spec: &CacheSpec, num_tokens: usize, args: &PlanArgs) -> Result<Planned> {
        let memory = args.device_memory;
        let fingerprint = self.checkpoint.as_ref().map(|open| open.fingerprint().to_string());
        let cache = spec.resolve(&kv_shape(&self.config)?, fingerprint.as_deref())?;
        let plan = plan(&self.config, &cache, num_tokens)?;
        let prefill = prefill_bytes(&self.config, num_tokens);
        let forms = self.weights.iter().map(|weights| weights.compute);
        let gpu = forms.map(|compute| self.on_gpu(&cache, compute, num_tokens, memory));
        Ok(Planned {
            model: self.name.clone(),
            cache: spec.to_string(),
            spec: cache.to_string(),
            device_total_bytes: plan.device.total(),
            ratio: plan.ratio(),
            host: args.host_memory.map(|memory| HostSplit::new(&plan, memory)),
            plan,
            prefill,
            gpu: gpu.collect::<Result<_>>()?,
            weights: self.weights.clone(),
            device_memory_bytes: memory,
        })
    }

    /// What `generate --device gpu` takes of a device with the smallest limits; none for what has no kernels.
    fn run_plan(
        &self,
        cache: &CacheConfig,
        compute: ComputeType,
        num_tokens: usize,
    ) -> Result<Option<RunPlan>> {
        if matches!(compute, ComputeType::F32 | ComputeType::Q8A8) {
            return Ok(None);
        }
        let of_model = match &self.checkpoint {
            Some(checkpoint) => DeviceModelPlan::of_checkpoint(checkpoint, compute, num_tokens)?,
            None => DeviceModelPlan::new(&self.config, compute, num_tokens)?,
        };
        let reservation = Reservation { prompt_tokens: num_tokens, total_tokens: num_tokens };
        let limits = Limits::WEBGPU_MINIMUM;
        let planned = RunPlan::new(of_model, &self.config, cache, limits, reservation);
        match planned {
            Ok(planned) => Ok(Some(planned)),
            Err(error) => match error.downcast_ref() {
                Some(
                    CacheError::NotOnDevice { .. }
                    | CacheError::DeviceShape { .. }
                    | CacheError::Forgetful { .. }
                    | CacheError::PrefillNotOnDevice { .. },
                ) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The same with what it adds up to, and how that relates to `memory`, in bytes, where it is given.
    fn on_gpu(
        &self,
        cache: &CacheConfig,
        compute: ComputeType,
        num_tokens: usize,
        memory: Option<u64>,
    ) -> Result<OnGpu> {
        let plan = self.run_plan(cache, compute, num_tokens)?;
        let fits = |of: fn(&RunPlan) -> u64, num_tokens, memory| {
            let plan = self.run_plan(cache, compute, num_tokens);
            plan.is_ok_and(|plan| plan.is_some_and(|plan| of(&plan) <= memory))
        };
        let fit = memory.map(|memory| {
            let largest = |of| largest_context(|num_tokens| fits(of, num_tokens, memory));
            Fit {
                fits: fits(RunPlan::held_bytes, num_tokens, memory),
                peak_fits: fits(RunPlan::peak_bytes, num_tokens, memory),
                largest_context_tokens: largest(RunPlan::held_bytes),
                largest_prompt_tokens: largest(RunPlan::peak_bytes),
            }
        });
        Ok(OnGpu {
            compute,
            plan,
            device_bytes: plan.as_ref().map(RunPlan::held_bytes),
            peak_bytes: plan.as_ref().map(RunPlan::peak_bytes),
            fit,
        })
    }
}

impl Weights {
    fn f16(config: &ModelConfig) -> Self {
        Self { compute: ComputeType::F16, bytes: f16_weight_bytes(config) }
    }
}

/// The longest context that fits, by bisection; 0 where none does.
fn largest_context(fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, 1);
    while fits(high) {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

fn holds_weights(folder: &Path) -> Result<bool> {
    let is_weights = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"))
    };
    Ok(folder.read_dir()?.any(is_weights))
}

fn show(planned: &[Planned], specs: &[CacheSpec]) -> String {
    let mut header = vec![String::new()];
    header.extend(planned.iter().map(|planned| planned.cache.clone()));
    let row = |name: &str, value: &dyn Fn(&Planned) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend(planned.iter().map(value));
        row
    };
    let size = |n: usize| bytes(n as u64);
    let mut rows = vec![
        row("device", &|_| String::new()),
        row("  exact, never coded", &|p| size(p.plan.device.resident)),
        row("  recent tokens, exact", &|p| size(p.plan.device.window)),
        row("  key codes", &|p| size(p.plan.device.codes)),
        row("  key tables", &|p| size(p.plan.device.tables)),
        row("  values", &|p| size(p.plan.device.values)),
        row("  evidence of tokens", &|p| size(p.plan.device.evidence)),
        row("  cache", &|p| size(p.device_total_bytes)),
    ];
    let mut ratios = vec!["  of a full f16 cache".to_owned()];
    ratios.extend(planned.iter().zip(specs).map(|(planned, spec)| ratio(planned.ratio, spec)));
    rows.push(ratios);
    rows.push(row("  scores of one layer", &|p| size(p.plan.score_scratch_bytes)));
    for (i, weights) in planned.first().map_or(&[][..], |p| &p.weights).iter().enumerate() {
        rows.push(row(&format!("  weights as {}", weights.compute), &|p| {
            bytes(p.weights[i].bytes)
        }));
    }
    rows.extend([
        row("host", &|_| String::new()),
        row("  values, and exact keys if kept", &|p| size(p.plan.host_bytes)),
    ]);
    if let Some(HostSplit { memory_bytes, .. }) = planned.first().and_then(|p| p.host.as_ref()) {
        let of_host = |p: &Planned, of: &dyn Fn(&HostSplit) -> String| match &p.host {
            Some(host) if host.is_enough => of(host),
            Some(_) => "too little".to_owned(),
            None => String::new(),
        };
        let title = format!("  in {} of RAM", bytes(*memory_bytes));
        rows.push(row(&title, &|p| of_host(p, &|host| size(host.ram_bytes))));
        rows.push(row("  on disk", &|p| of_host(p, &|host| size(host.disk_bytes))));
    }
    rows.extend([
        row("while reading the prompt", &|_| String::new()),
        row("  one layer's exact keys and values", &|p| bytes(p.prefill.keys_and_values)),
        row("  the same, packed for attention", &|p| bytes(p.prefill.packed)),
        row("  hidden states", &|p| bytes(p.prefill.hidden_states)),
        row("  sines and cosines of positions", &|p| bytes(p.prefill.turns)),
    ]);
    let or_none = |size: Option<u64>| size.map_or_else(|| "not there".to_owned(), bytes);
    for (i, of_form) in planned.first().map_or(&[][..], |p| &p.gpu).iter().enumerate() {
        let title = format!("with --device gpu, weights as {}", of_form.compute);
        rows.push(row(&title, &|_| String::new()));
        for (part, (name, _)) in RunPlan::default().parts().iter().enumerate() {
            let value = |p: &Planned| p.gpu[i].plan.map(|plan| plan.parts()[part].1);
            rows.push(row(&format!("  {name}"), &|p| or_none(value(p))));
        }
        rows.push(row("  all, while generating", &|p| or_none(p.gpu[i].device_bytes)));
        rows.push(row("  all, while reading the prompt", &|p| or_none(p.gpu[i].peak_bytes)));
        let Some(memory) = planned.first().and_then(|p| p.device_memory_bytes) else { continue };
        let answer = |p: &Planned, of: fn(&Fit) -> bool| match (&p.gpu[i].plan, &p.gpu[i].fit) {
            (Some(_), Some(fit)) => if of(fit) { "fits" } else { "does not fit" }.to_owned(),
            _ => or_none(None),
        };
        let largest = |p: &Planned, of: fn(&Fit) -> usize| {
            p.gpu[i].fit.as_ref().map_or_else(|| or_none(None), |fit| tokens(of(fit)))
        };
        let memory = bytes(memory);
        rows.extend([
            row(&format!("  in {memory}, while generating"), &|p| answer(p, |fit| fit.fits)),
            row(&format!("  in {memory}, while reading the prompt"), &|p| {
                answer(p, |fit| fit.peak_fits)
            }),
            row("  largest context while generating", &|p| {
                largest(p, |fit| fit.largest_context_tokens)
            }),
            row("  largest context read there", &|p| largest(p, |fit| fit.largest_prompt_tokens)),
        ]);
    }
    table(&header, &rows)
}
