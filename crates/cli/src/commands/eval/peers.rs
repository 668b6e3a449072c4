//! Caches of other programs on the same samples.

use anyhow::{Context, Result, ensure};
use heterokv_eval::{InstalledPeers, Job, PeerEngine, PeerSetting, Probe, Run, evaluate_peer};

use super::watch::Watch;
use crate::args::EvalArgs;

/// At 12.5 % of fewer, kvpress's PyramidKV has less than two windows of 64 queries, and refuses.
const MIN_TOKENS: usize = 1024;

/// Refuses what peers cannot do before anything is measured.
pub(super) fn check(args: &EvalArgs, jobs: &[Job]) -> Result<()> {
    ensure!(
        args.model.model.is_file(),
        "--peers needs a GGUF file, which all engines read; {} is none",
        args.model.model.display()
    );
    InstalledPeers::at(&args.peers_folder)?;
    let asks_questions = |job: &&Job| !matches!(job.sample.probe, Probe::Tokens(_));
    if let Some(job) = jobs.iter().find(asks_questions) {
        anyhow::bail!("--peers measures kl and recall only; leave out --task {}", job.task);
    }
    let shortest = jobs.iter().map(|job| job.sample.context.len()).min().unwrap_or(0);
    ensure!(
        shortest >= MIN_TOKENS,
        "--peers needs contexts of {MIN_TOKENS} tokens at least, of which kvpress keeps its windows; this one has \
         {shortest}"
    );
    Ok(())
}

/// Every cache of every peer on samples of one context.
pub(super) fn measure(args: &EvalArgs, jobs: &[Job], run: &Run, watch: &mut Watch) -> Result<()> {
    let model = std::path::absolute(&args.model.model)?;
    let setting = PeerSetting { venv: &args.peers_folder, model: &model, run };
    for engine in PeerEngine::ALL {
        evaluate_peer(engine, engine.caches(), setting, jobs, watch)
            .with_context(|| format!("{engine} on {}", args.model.model.display()))?;
    }
    Ok(())
}
