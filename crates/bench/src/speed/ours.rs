//! The process that ours are timed in at one context: prompts one cache at a time, then decode steps of all caches in turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{KvCache, PrefillPattern};
use heterokv_model::{Checkpoint, ComputeType, Model, ModelConfig};
use heterokv_quant::Level;
use serde::{Deserialize, Serialize};

use crate::caches::Planned;
use crate::end_to_end::Greedy;
use crate::machine::threads;
use crate::samples::Samples;

/// The word that starts it.
const COMMAND: &str = "speed-process";

/// Steps of a cache in a row, beside one before them that is not timed: it finds the processor's caches full of another
/// cache's rows.
const BATCH: usize = 8;

/// What the process is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    #[arg(long)]
    pub(super) model: PathBuf,
    /// A JSON list of tokens: the context and what is fed behind it.
    #[arg(long)]
    pub(super) tokens: PathBuf,
    #[arg(long)]
    pub(super) context: usize,
    /// Timed decode steps of each cache.
    #[arg(long)]
    pub(super) steps: usize,
    #[arg(long)]
    pub(crate) threads: usize,
    /// The form of the weights.
    #[arg(long)]
    pub(super) compute: ComputeType,
    /// Caches whose prefill is timed, each by itself.
    #[arg(long = "prefill", value_name = "SPEC")]
    pub(super) prefills: Vec<String>,
    /// Caches whose steps are timed.
    #[arg(long = "decode", value_name = "SPEC")]
    pub(super) decodes: Vec<String>,
}

/// What it tells, on one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) prefills: Vec<Prefill>,
    pub(super) decodes: Vec<Decode>,
}

/// A prompt in one cache.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Prefill {
    pub(super) cache: String,
    pub(super) nanoseconds: f64,
    /// Multiplications and additions that it needs.
    pub(super) operations: f64,
}

/// Decode steps of one cache.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Decode {
    pub(super) cache: String,
    /// Tokens in the cache before the first step.
    pub(super) context: usize,
    /// Of a step, logits and the choice of a token included: the median.
    pub(super) nanoseconds: f64,
    /// Weights, codes and exact rows that a step reads.
    pub(super) device_bytes: f64,
    /// Rows of the host store that a step reads.
    pub(super) host_bytes: f64,
    /// Those rows over the tokens of the cache.
    pub(super) rows_read: f64,
    /// The most probable tokens behind what was fed: another run has to find the same.
    pub(super) tokens: Vec<u32>,
}

/// Starts the process and waits for its report.
///
/// # Errors
/// A process that cannot be started, or fails.
pub(super) fn run_process(arguments: &ChildArgs) -> Result<Report> {
    let ChildArgs { model, tokens, context, steps, threads, compute, prefills, decodes } =
        arguments;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg(COMMAND).arg("--model").arg(model).arg("--tokens").arg(tokens);
    let numbers = [("--context", context), ("--steps", steps), ("--threads", threads)];
    for (option, number) in numbers {
        command.args([option, &number.to_string()]);
    }
    command.args(["--compute", &compute.to_string()]);
    for (option, specs) in [("--prefill", prefills), ("--decode", decodes)] {
        for spec in specs {
            command.args([option, spec]);
        }
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start a process of this program")?;
    ensure!(output.status.success(), "the process at {context} tokens failed: {}", output.status);
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the process at {context} tokens did not report"))
}

/// Does what the process is told and prints the report.
///
/// # Errors
/// A model or text that cannot be had, and what a cache refuses.
pub(crate) fn run_child(arguments: &ChildArgs) -> Result<()> {
    let report = threads(arguments.threads)?.install(|| report(arguments))?;
    println!("{}", serde_json::to_string(&report).context("the report cannot be written")?);
    Ok(())
}

pub(super) fn report(arguments: &ChildArgs) -> Result<Report> {
    let tokens = read_tokens(&arguments.tokens)?;
    let needed = arguments.context.saturating_add(fed_tokens(arguments.steps));
    ensure!(
        arguments.context > 0 && tokens.len() >= needed,
        "{} tokens are given, {needed} are needed behind a context that has one at least",
        tokens.len()
    );
    let (context, fed) = tokens.split_at(arguments.context);
    let level = Level::detect();
    let model = &Model::load(&Checkpoint::open(&arguments.model)?, arguments.compute, level)?;
    let new = |spec: &String| -> Result<(Planned, KvCache)> {
        let planned = Planned::new(spec, &model.kv_shape(), context.len())?;
        let cache = KvCache::new(model.kv_shape(), planned.config.clone(), level, None)?;
        Ok((planned, cache))
    };
    let mut filled = Vec::new();
    let mut prefills = Vec::new();
    // A prompt that nobody times, by which the weights come in: peers have one, too.
    if let Some(spec) = arguments.prefills.first() {
        let (_, cache) = new(spec)?;
        model.prefill(&context[..context.len().min(WARM_UP_TOKENS)], &mut [cache], None)?;
    }
    for spec in &arguments.prefills {
        let (planned, cache) = new(spec)?;
        let mut caches = [cache];
        let start = Instant::now();
        model.prefill(context, &mut caches, None)?;
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        let operations =
            prefill_operations(model.config(), planned.config.prefill(), context.len());
        prefills.push(Prefill { cache: spec.clone(), nanoseconds, operations });
        let [cache] = caches;
        if arguments.decodes.contains(spec) {
            filled.push((planned, cache));
        }
    }
    // The others by one prompt for all.
    let rest = arguments.decodes.iter().filter(|spec| !arguments.prefills.contains(spec));
    let (planned, mut caches): (Vec<Planned>, Vec<KvCache>) =
        rest.map(new).collect::<Result<Vec<_>>>()?.into_iter().unzip();
    if !caches.is_empty() {
        model.prefill(context, &mut caches, None)?;
    }
    filled.extend(planned.into_iter().zip(caches));
    let place = |planned: &Planned| arguments.decodes.iter().position(|spec| *spec == planned.spec);
    filled.sort_by_key(|(planned, _)| place(planned));
    let decodes = decode(model, filled, fed, arguments.steps)?;
    Ok(Report { prefills, decodes })
}

/// As many as peers warm up with.
const WARM_UP_TOKENS: usize = 256;

/// Tokens that are fed behind a context for so many timed steps.
pub(super) fn fed_tokens(num_steps: usize) -> usize {
    num_steps + num_steps.div_ceil(BATCH)
}

pub(super) fn read_tokens(path: &Path) -> Result<Vec<u32>> {
    let text = fs::read(path).context("cannot read the tokens")?;
    serde_json::from_slice(&text).context("cannot read the tokens")
}

/// A filled cache, and what was measured of it.
struct Candidate {
    planned: Planned,
    cache: KvCache,
    greedy: Greedy,
    samples: Samples,
    tokens: Vec<u32>,
}

impl Candidate {
    /// Feeds a token; nanoseconds.
    fn step(&mut self, model: &Model, token: u32) -> Result<f64> {
        let start = Instant::now();
        let next = self.greedy.step(model, token, &mut self.cache);
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        self.tokens.push(next.with_context(|| self.planned.spec.clone())?);
        Ok(nanoseconds)
    }
}

/// Steps of all caches: batches in turns, the first step of each not timed. `fed` are [`fed_tokens`] at least.
///
/// # Errors
/// What a cache refuses, and logits that are not finite.
pub(super) fn decode(
    model: &Model,
    filled: Vec<(Planned, KvCache)>,
    fed: &[u32],
    num_steps: usize,
) -> Result<Vec<Decode>> {
    let candidate = |(planned, mut cache): (Planned, KvCache)| {
        cache.reset_stats();
        let greedy = Greedy::default();
        Candidate { planned, cache, greedy, samples: Samples::default(), tokens: Vec::new() }
    };
    let mut candidates: Vec<Candidate> = filled.into_iter().map(candidate).collect();
    let num_candidates = candidates.len();
    for (round, batch) in fed[..fed_tokens(num_steps)].chunks(BATCH + 1).enumerate() {
        for turn in 0..num_candidates {
            let candidate = &mut candidates[(round + turn) % num_candidates];
            for (place, &token) in batch.iter().enumerate() {
                let nanoseconds = candidate.step(model, token)?;
                if place > 0 {
                    candidate.samples.push(nanoseconds);
                }
            }
        }
    }
    let shape = model.kv_shape();
    let measured = |candidate: Candidate| -> Result<Decode> {
        let Candidate { planned, cache, samples, tokens, .. } = candidate;
        let stats = cache.stats();
        let steps = stats.steps as f64 / shape.num_layers as f64;
        let device =
            planned.device_bytes_read(&shape, planned.plan.num_tokens)? + weight_bytes_read(model);
        Ok(Decode {
            cache: planned.spec,
            context: planned.plan.num_tokens,
            nanoseconds: samples.median(),
            device_bytes: device as f64,
            host_bytes: stats.host_bytes as f64 / steps,
            rows_read: stats.rows_read(),
            tokens,
        })
    };
    candidates.into_iter().map(measured).collect()
}

/// Bytes of the weights that a step with logits reads.
pub(super) fn weight_bytes_read(model: &Model) -> usize {
    model.layer_weight_bytes() + model.output_weight_bytes()
}

/// Multiplications and additions of a prompt in all layers: two for each weight and token, and `4 head_dim` for each query
/// head, token, and token that this attends to. Logits are not among them.
fn prefill_operations(config: &ModelConfig, pattern: PrefillPattern, num_tokens: usize) -> f64 {
    let ModelConfig { hidden_size, intermediate_size, head_dim, .. } = *config;
    let projected = 2 * (config.num_qo_heads + config.num_kv_heads) * head_dim;
    let num_weights = hidden_size * (projected + 3 * intermediate_size);
    let attended = |position: usize| position + 1 - pattern.left_out(position, num_tokens).len();
    let num_attended: usize = (0..num_tokens).map(attended).sum();
    let of_attention = 4 * config.num_qo_heads * head_dim;
    config.num_layers as f64
        * (2.0 * num_weights as f64 * num_tokens as f64 + of_attention as f64 * num_attended as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caches::{FULL, TINY};
    use crate::subject::Place;

    fn arguments(folder: &Path, num_tokens: usize) -> ChildArgs {
        let place = Place::tiny();
        let checkpoint = Checkpoint::open(&place.model).expect("every checkout has it");
        let tokens = folder.join("tokens.json");
        let ids = place.tokens(&checkpoint, num_tokens).expect("they are drawn");
        fs::write(&tokens, serde_json::to_vec(&ids).expect("it can be")).expect("it is written");
        ChildArgs {
            model: place.model,
            tokens,
            context: 96,
            steps: 10,
            threads: 2,
            compute: ComputeType::Q8,
            prefills: vec![TINY[1].to_owned()],
            decodes: TINY.map(str::to_owned).to_vec(),
        }
    }

    #[test]
    fn every_cache_is_timed_and_all_tokens_are_those_of_another_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = arguments(folder.path(), 96 + fed_tokens(10));
        let [first, again] = [(); 2].map(|()| report(&arguments).expect("it runs"));
        assert_eq!(first.prefills.len(), 1);
        assert!(first.prefills[0].nanoseconds > 0.0);
        let names: Vec<&str> = first.decodes.iter().map(|d| d.cache.as_str()).collect();
        assert_eq!(names, TINY, "in the order asked for");
        for (first, again) in first.decodes.iter().zip(&again.decodes) {
            assert_eq!(first.tokens.len(), 12, "ten timed and two that are not");
            assert_eq!(first.tokens, again.tokens);
            assert!(first.nanoseconds > 0.0 && first.device_bytes > 0.0);
            assert_eq!(first.rows_read > 0.0, first.cache != FULL, "{}", first.cache);
        }
    }

    #[test]
    fn operations_are_two_for_each_weight_and_grow_with_what_is_attended_to() {
        let checkpoint = Checkpoint::open(&Place::tiny().model).expect("every checkout has it");
        let config = &ModelConfig {
            num_layers: 2,
            hidden_size: 10,
            intermediate_size: 20,
            num_qo_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            ..checkpoint.config().clone()
        };
        // q, k, v and o; gate, up and down.
        let weights = 10 * (32 + 16 + 16 + 32) + 3 * 10 * 20;
        let operations =
            |pattern, num_tokens| prefill_operations(config, pattern, num_tokens) as usize;
        assert_eq!(operations(PrefillPattern::Exact, 0), 0);
        // Three tokens attend to 1, 2 and 3.
        let expected = 2 * (2 * weights * 3 + 4 * 4 * 8 * 6);
        assert_eq!(operations(PrefillPattern::Exact, 3), expected);
        let block = std::num::NonZeroUsize::new(4).expect("it is not 0");
        let anchor = PrefillPattern::Anchor { block, recent: 2 };
        assert!(operations(anchor, 100) < operations(PrefillPattern::Exact, 100) / 2);
    }

    #[test]
    fn too_few_tokens_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = arguments(folder.path(), 96 + fed_tokens(10) - 1);
        let told = report(&arguments).expect_err("one is missing").to_string();
        assert!(told.contains("107 tokens are given, 108 are needed"), "{told}");
    }
}
