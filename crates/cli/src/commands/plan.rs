//! `heterokv plan`: what a context takes, by component, and whether it fits, before anything is loaded.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, Error as CacheError, Reservation};
use heterokv_gpu::Limits;
use heterokv_model::{
    Checkpoint, ComputeType, DeviceModelPlan, ModelConfig, PrefillBytes, f16_weight_bytes,
    held_weight_bytes, prefill_bytes,
};
use serde::{Serialize, Serializer};

use crate::args::PlanArgs;
use crate::load::{model_name, open_checkpoint, read_text};
use crate::machine::DevicePlan;
use crate::output::{bytes, count, print_line, ratio, table, tokens};
use crate::requirement::{kv_shape, plan, say_uncoded};

/// Weights in one form.
#[derive(Clone, Serialize)]
struct Weights {
    #[serde(rename = "form", serialize_with = "by_name")]
    compute: ComputeType,
    bytes: u64,
}

/// How a plan relates to the memory of a GPU, for one form of the weights.
#[derive(Serialize)]
struct Fit {
    #[serde(rename = "form", serialize_with = "by_name")]
    compute: ComputeType,
    /// What stays while tokens are generated; none for what has no kernels.
    device_bytes: Option<u64>,
    fits: bool,
    /// The same with what the prompt takes while it is processed.
    peak_bytes: Option<u64>,
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
    /// On a GPU, in the form that `--compute` names; none for what has no kernels there: weights in f32, some key
    /// formats, and contexts and heads beyond what they are made for.
    gpu: Option<DevicePlan>,
    weights: Vec<Weights>,
    device_memory_bytes: Option<u64>,
    fit: Vec<Fit>,
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
    compute: ComputeType,
}

pub(super) fn run(args: &PlanArgs) -> Result<()> {
    let shape = Shape::of(args)?;
    let num_tokens = args.context.unwrap_or(shape.config.max_context_tokens);
    ensure!(num_tokens > 0, "--context must be at least 1");
    let planned: Result<Vec<Planned>> =
        args.cache.iter().map(|spec| shape.plan(spec, num_tokens, args.device_memory)).collect();
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
            return Ok(Self { name, config, checkpoint, weights, compute });
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
        let (name, compute) = (args.model.clone(), args.compute);
        Ok(Self { name, config, checkpoint: None, weights, compute })
    }

    fn plan(&self, spec: &CacheSpec, num_tokens: usize, memory: Option<u64>) -> Result<Planned> {
        let fingerprint = self.checkpoint.as_ref().map(|open| open.fingerprint().to_string());
        let cache = spec.resolve(&kv_shape(&self.config)?, fingerprint.as_deref())?;
        let plan = plan(&self.config, &cache, num_tokens)?;
        let prefill = prefill_bytes(&self.config, num_tokens);
        let fits = self.weights.iter().filter_map(|weights| Some((weights.compute, memory?)));
        let fits = fits.map(|(compute, memory)| self.fit(&cache, compute, num_tokens, memory));
        Ok(Planned {
            model: self.name.clone(),
            cache: spec.to_string(),
            spec: cache.to_string(),
            device_total_bytes: plan.device.total(),
            ratio: plan.ratio(),
            plan,
            prefill,
            gpu: self.on_gpu(&cache, self.compute, num_tokens)?,
            weights: self.weights.clone(),
            device_memory_bytes: memory,
            fit: fits.collect::<Result<_>>()?,
        })
    }

    /// What `generate --device gpu` takes of a device with the smallest limits; none for what has no kernels.
    fn on_gpu(
        &self,
        cache: &CacheConfig,
        compute: ComputeType,
        num_tokens: usize,
    ) -> Result<Option<DevicePlan>> {
        if compute == ComputeType::F32 {
            return Ok(None);
        }
        let of_model = match &self.checkpoint {
            Some(checkpoint) => DeviceModelPlan::of_checkpoint(checkpoint, compute, num_tokens)?,
            None => DeviceModelPlan::new(&self.config, compute, num_tokens)?,
        };
        let reservation = Reservation { prompt_tokens: num_tokens, total_tokens: num_tokens };
        let limits = Limits::WEBGPU_MINIMUM;
        let planned = DevicePlan::new(of_model, &self.config, cache, limits, reservation);
        match planned {
            Ok(planned) => Ok(Some(planned)),
            Err(error) => match error.downcast_ref() {
                Some(CacheError::NotOnDevice { .. } | CacheError::DeviceShape { .. }) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn fit(
        &self,
        cache: &CacheConfig,
        compute: ComputeType,
        num_tokens: usize,
        memory: u64,
    ) -> Result<Fit> {
        let planned = self.on_gpu(cache, compute, num_tokens)?;
        let device_bytes = planned.map(|planned| planned.held_bytes());
        let peak_bytes = planned.map(|planned| planned.peak_bytes());
        let fits = |bytes: Option<u64>| bytes.is_some_and(|bytes| bytes <= memory);
        let largest = |of: fn(&DevicePlan) -> u64| {
            largest_context(|num_tokens| {
                let planned = self.on_gpu(cache, compute, num_tokens);
                planned.is_ok_and(|planned| planned.is_some_and(|planned| of(&planned) <= memory))
            })
        };
        Ok(Fit {
            compute,
            device_bytes,
            fits: fits(device_bytes),
            peak_bytes,
            peak_fits: fits(peak_bytes),
            largest_context_tokens: largest(DevicePlan::held_bytes),
            largest_prompt_tokens: largest(DevicePlan::peak_bytes),
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
        row("while reading the prompt", &|_| String::new()),
        row("  one layer's exact keys and values", &|p| bytes(p.prefill.keys_and_values)),
        row("  hidden states", &|p| bytes(p.prefill.hidden_states)),
    ]);
    let or_none = |size: Option<u64>| size.map_or_else(|| "not there".to_owned(), bytes);
    if let Some(gpu) = planned.iter().find_map(|planned| planned.gpu) {
        rows.push(row("with --device gpu", &|_| String::new()));
        for (i, (name, _)) in gpu.parts().iter().enumerate() {
            rows.push(row(&format!("  {name}"), &|p| or_none(p.gpu.map(|gpu| gpu.parts()[i].1))));
        }
        let sum = |of: fn(&DevicePlan) -> u64| move |p: &Planned| or_none(p.gpu.as_ref().map(of));
        rows.push(row("  all, while generating", &sum(DevicePlan::held_bytes)));
        rows.push(row("  all, while reading the prompt", &sum(DevicePlan::peak_bytes)));
    }
    let memory = planned.first().and_then(|planned| planned.device_memory_bytes);
    if let Some(memory) = memory {
        let answer = |fits: bool, needed: Option<u64>| match needed {
            Some(needed) => {
                format!("{}: {}", if fits { "fits" } else { "does not fit" }, bytes(needed))
            }
            None => or_none(None),
        };
        for (i, fit) in planned.first().map_or(&[][..], |p| &p.fit).iter().enumerate() {
            let compute = fit.compute;
            rows.extend([
                row(&format!("on a GPU of {}, weights as {compute}", bytes(memory)), &|_| {
                    String::new()
                }),
                row("  while generating", &|p| answer(p.fit[i].fits, p.fit[i].device_bytes)),
                row("  while reading the prompt there", &|p| {
                    answer(p.fit[i].peak_fits, p.fit[i].peak_bytes)
                }),
                row("  largest context while generating", &|p| {
                    tokens(p.fit[i].largest_context_tokens)
                }),
                row("  largest context read there", &|p| tokens(p.fit[i].largest_prompt_tokens)),
            ]);
        }
    }
    table(&header, &rows)
}
