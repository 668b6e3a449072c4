//! `heterokv plan`: what a context takes, by component, and whether it fits, before anything is loaded.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, Error as CacheError, Reservation};
use heterokv_gpu::Limits;
use heterokv_model::{
    ComputeType, ModelConfig, PrefillBytes, f16_weight_bytes, held_weight_bytes, prefill_bytes,
};
use serde::Serialize;

use crate::args::PlanArgs;
use crate::load::{model_name, open_checkpoint, read_text};
use crate::machine::DevicePlan;
use crate::output::{bytes, count, print_line, ratio, table, tokens};
use crate::requirement::{kv_shape, plan, say_uncoded};

/// Weights in one form.
#[derive(Clone, Serialize)]
struct Weights {
    form: String,
    bytes: u64,
}

/// How a plan relates to a device's memory, for one form of the weights.
#[derive(Serialize)]
struct Fit {
    form: String,
    /// Weights, cache and scores: what stays while tokens are generated.
    device_bytes: u64,
    fits: bool,
    /// The same with what the prompt takes while it is processed.
    peak_bytes: u64,
    peak_fits: bool,
    /// The longest context whose `device_bytes` fit.
    largest_context_tokens: usize,
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

/// A model as far as planning goes.
struct Shape {
    name: String,
    config: ModelConfig,
    /// Of the weights, where they are there.
    fingerprint: Option<String>,
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
            let fingerprint = Some(checkpoint.fingerprint().to_string());
            let mut weights =
                vec![Weights { form: "f16".to_owned(), bytes: f16_weight_bytes(&config) }];
            let form = args.compute.to_string();
            if form != "f16" {
                weights
                    .push(Weights { form, bytes: held_weight_bytes(&checkpoint, args.compute)? });
            }
            let (name, compute) = (model_name(path), args.compute);
            return Ok(Self { name, config, fingerprint, weights, compute });
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
        let weights = vec![Weights { form: "f16".to_owned(), bytes: f16_weight_bytes(&config) }];
        let (name, compute) = (args.model.clone(), args.compute);
        Ok(Self { name, config, fingerprint: None, weights, compute })
    }

    fn plan(&self, spec: &CacheSpec, num_tokens: usize, memory: Option<u64>) -> Result<Planned> {
        let cache = spec.resolve(&kv_shape(&self.config)?, self.fingerprint.as_deref())?;
        let plan = plan(&self.config, &cache, num_tokens)?;
        let prefill = prefill_bytes(&self.config, num_tokens);
        let fits = self.weights.iter().zip(std::iter::repeat(memory));
        let fit: Vec<Fit> = fits
            .filter_map(|(weights, memory)| {
                let device_bytes = held(&plan).saturating_add(weights.bytes);
                let peak_bytes = device_bytes.saturating_add(prefill.total());
                let memory = memory?;
                Some(Fit {
                    form: weights.form.clone(),
                    device_bytes,
                    fits: device_bytes <= memory,
                    peak_bytes,
                    peak_fits: peak_bytes <= memory,
                    largest_context_tokens: self.largest_context(&cache, memory, weights.bytes),
                })
            })
            .collect();
        Ok(Planned {
            model: self.name.clone(),
            cache: spec.to_string(),
            spec: cache.to_string(),
            device_total_bytes: plan.device.total(),
            ratio: plan.ratio(),
            plan,
            prefill,
            gpu: self.on_gpu(&cache, num_tokens)?,
            weights: self.weights.clone(),
            device_memory_bytes: memory,
            fit,
        })
    }

    /// What `generate --device gpu` takes of a device with the smallest limits.
    fn on_gpu(&self, cache: &CacheConfig, num_tokens: usize) -> Result<Option<DevicePlan>> {
        if self.compute == ComputeType::F32 {
            return Ok(None);
        }
        let reservation = Reservation { prompt_tokens: num_tokens, total_tokens: num_tokens };
        let limits = Limits::WEBGPU_MINIMUM;
        let planned = DevicePlan::new(&self.config, self.compute, cache, limits, reservation);
        match planned {
            Ok(planned) => Ok(Some(planned)),
            Err(error) => match error.downcast_ref() {
                Some(CacheError::NotOnDevice { .. } | CacheError::DeviceShape { .. }) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The longest context that fits beside the weights, by bisection; 0 where none does.
    fn largest_context(&self, cache: &CacheConfig, memory: u64, weight_bytes: u64) -> usize {
        let fits = |num_tokens: usize| {
            plan(&self.config, cache, num_tokens)
                .is_ok_and(|plan| held(&plan).saturating_add(weight_bytes) <= memory)
        };
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
}

/// What stays on the device while tokens are generated, weights aside.
fn held(plan: &CachePlan) -> u64 {
    (plan.device.total() + plan.score_scratch_bytes) as u64
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
        rows.push(row(&format!("  weights as {}", weights.form), &|p| bytes(p.weights[i].bytes)));
    }
    rows.extend([
        row("host", &|_| String::new()),
        row("  values, and exact keys if kept", &|p| size(p.plan.host_bytes)),
        row("while reading the prompt", &|_| String::new()),
        row("  one layer's exact keys and values", &|p| bytes(p.prefill.keys_and_values)),
        row("  hidden states", &|p| bytes(p.prefill.hidden_states)),
    ]);
    if let Some(gpu) = planned.iter().find_map(|planned| planned.gpu) {
        rows.push(row("with --device gpu", &|_| String::new()));
        for (i, (name, _)) in gpu.parts().iter().enumerate() {
            rows.push(row(&format!("  {name}"), &|p| {
                p.gpu.map_or_else(|| "not there".to_owned(), |gpu| bytes(gpu.parts()[i].1))
            }));
        }
        let sum = |of: fn(&DevicePlan) -> u64| {
            move |p: &Planned| {
                p.gpu.as_ref().map_or_else(|| "not there".to_owned(), |gpu| bytes(of(gpu)))
            }
        };
        rows.push(row("  all, while generating", &sum(DevicePlan::held_bytes)));
        rows.push(row("  all, while reading the prompt", &sum(DevicePlan::peak_bytes)));
    }
    let memory = planned.first().and_then(|planned| planned.device_memory_bytes);
    if let Some(memory) = memory {
        let answer = |fits: bool, needed: u64| {
            format!("{}: {}", if fits { "fits" } else { "does not fit" }, bytes(needed))
        };
        for (i, fit) in planned.first().map_or(&[][..], |p| &p.fit).iter().enumerate() {
            let form = &fit.form;
            rows.extend([
                row(&format!("on {}, weights as {form}", bytes(memory)), &|_| String::new()),
                row("  while generating", &|p| answer(p.fit[i].fits, p.fit[i].device_bytes)),
                row("  while reading the prompt there", &|p| {
                    answer(p.fit[i].peak_fits, p.fit[i].peak_bytes)
                }),
                row("  largest context while generating", &|p| {
                    tokens(p.fit[i].largest_context_tokens)
                }),
            ]);
        }
    }
    table(&header, &rows)
}
