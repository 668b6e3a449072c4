//! The process that one (cache, context) runs in.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use heterokv_cache::KvCache;
use heterokv_model::{Checkpoint, ComputeType, Model, Scratch};
use heterokv_quant::Level;
use serde::{Deserialize, Serialize};

use crate::caches::Planned;
use crate::machine::threads;
use crate::memory;
use crate::samples::Samples;

/// The word that starts it.
pub(super) const COMMAND: &str = "end-to-end-process";

/// What it is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    #[arg(long)]
    cache: String,
    /// A JSON list of the prompt's tokens: a tokenizer would leave its memory behind.
    #[arg(long)]
    tokens: PathBuf,
    #[arg(long)]
    steps: usize,
    #[arg(long)]
    pub(crate) threads: usize,
    #[arg(long)]
    model: PathBuf,
}

/// What it tells, on one line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) prefill_ns: f64,
    /// From the beginning of the prefill to the first token.
    pub(crate) first_token_ns: f64,
    /// The median step.
    pub(crate) decode_ns_per_token: f64,
    /// Resident bytes with the model loaded and no prompt.
    pub(crate) loaded_rss: u64,
    /// The most while the prompt was processed.
    pub(crate) prefill_peak_rss: u64,
    /// When it had been.
    pub(crate) prefill_rss: u64,
    /// The most while tokens were decoded.
    pub(crate) decode_peak_rss: u64,
    /// When they had been.
    pub(crate) decode_rss: u64,
    /// Counted by the arenas behind the prompt.
    pub(crate) device_bytes: usize,
    pub(crate) host_bytes: usize,
    /// Generated greedily.
    pub(crate) tokens: Vec<u32>,
    /// What is wrong with the memory's figures.
    pub(crate) note: Option<String>,
}

/// Does it and prints the report.
///
/// # Errors
/// A model or text that cannot be had, and what the cache refuses.
pub(crate) fn run_child(arguments: &ChildArgs) -> Result<()> {
    let report = threads(arguments.threads)?.install(|| report(arguments))?;
    println!("{}", serde_json::to_string(&report).context("the report cannot be written")?);
    Ok(())
}

fn report(arguments: &ChildArgs) -> Result<Report> {
    let level = Level::detect();
    let text = fs::read(&arguments.tokens).context("cannot read the tokens")?;
    let tokens: Vec<u32> = serde_json::from_slice(&text).context("cannot read the tokens")?;
    let model = &Model::load(&Checkpoint::open(&arguments.model)?, ComputeType::Q8, level)?;
    let planned = Planned::new(&arguments.cache, &model.kv_shape(), tokens.len())?;
    let cache = KvCache::new(model.kv_shape(), planned.config, level, None)?;
    let loaded = memory::resident()?;
    let note =
        memory::reset_peak().err().map(|error| format!("{error:#}; peaks are the process's"));
    let mut caches = [cache];
    let start = Instant::now();
    let hidden = model.prefill(&tokens, &mut caches, None)?;
    let prefill_ns = 1e9 * start.elapsed().as_secs_f64();
    let last = &hidden[hidden.len() - model.config().hidden_size..];
    let first = most_probable(&model.logits(last)?)?;
    let first_token_ns = 1e9 * start.elapsed().as_secs_f64();
    let prefill = memory::resident()?;
    drop(hidden);
    let [mut cache] = caches;
    let (device_bytes, host_bytes) = (cache.device_in_use_bytes(), cache.host_in_use_bytes());
    let before_decode = memory::resident()?;
    if note.is_none() {
        memory::reset_peak()?;
    }
    let (mut greedy, mut generated) = (Greedy::default(), vec![first]);
    let mut steps = Samples::default();
    for step in 0..=arguments.steps {
        let start = Instant::now();
        generated.push(greedy.step(model, generated[generated.len() - 1], &mut cache)?);
        // The first step behind a prefill finds everything cold; peers leave theirs out, too.
        if step > 0 {
            steps.push(1e9 * start.elapsed().as_secs_f64());
        }
    }
    let decode = memory::resident()?;
    Ok(Report {
        prefill_ns,
        first_token_ns,
        decode_ns_per_token: steps.median(),
        loaded_rss: loaded.now,
        prefill_peak_rss: prefill.peak,
        prefill_rss: before_decode.now,
        decode_peak_rss: decode.peak,
        decode_rss: decode.now,
        device_bytes,
        host_bytes,
        tokens: generated,
        note,
    })
}

/// Decode steps, with working memory that stays from one to the next as where `heterokv generate` takes them.
#[derive(Debug, Default)]
pub(crate) struct Greedy {
    scratch: Scratch,
    hidden: Vec<f32>,
}

impl Greedy {
    /// Feeds a token, and gives the most probable one behind it.
    ///
    /// # Errors
    /// What the cache refuses, and logits that are not finite.
    pub(crate) fn step(&mut self, model: &Model, token: u32, cache: &mut KvCache) -> Result<u32> {
        let Self { scratch, hidden } = self;
        hidden.clear();
        hidden.extend_from_slice(model.extend_in(scratch, &[token], cache)?);
        most_probable(model.logits_in(scratch, hidden)?)
    }
}

/// The token of the largest logit.
///
/// # Errors
/// Logits that are not finite, and none.
fn most_probable(logits: &[f32]) -> Result<u32> {
    ensure!(logits.iter().all(|x| x.is_finite()), "a logit is not finite");
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    let (token, _) = best.context("the model has no tokens")?;
    Ok(token as u32)
}
