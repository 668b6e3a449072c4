//! Rows of what peers do on the samples of tasks.

use std::path::Path;

use heterokv_cache::DeviceBytes;
use sha2::{Digest, Sha256};

use super::{Peer, PeerEngine, PeerInfo, PeerLine, PeerQuality, PeerRequest, PeerWindow};
use crate::evaluate::{Job, Watcher, median};
use crate::row::{Memory, Outcome, Row, Run, Time};
use crate::task::Probe;
use crate::{Error, Result};

/// Where a peer is, and what it works on.
#[derive(Clone, Copy, Debug)]
pub struct PeerSetting<'a> {
    /// The virtual environment that it is installed in.
    pub venv: &'a Path,
    /// The GGUF file.
    pub model: &'a Path,
    /// As of rows of our own; engine, version and conditions become the peer's.
    pub run: &'a Run,
}

/// Puts the samples whose probe are given tokens to caches of a peer and hands the rows to `watcher`, as
/// [`evaluate`](crate::evaluate()) does; other samples are passed over, since a peer only compares distributions.
///
/// # Errors
/// What the peer or the watcher refuses, and figures that are not finite.
pub fn evaluate_peer(
    engine: PeerEngine,
    caches: &[&str],
    setting: PeerSetting<'_>,
    jobs: &[Job],
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let mut pending: Vec<(&Job, Vec<u32>)> = Vec::new();
    let mut is_wanted = vec![false; caches.len()];
    for job in jobs {
        let Probe::Tokens(tokens) = &job.sample.probe else { continue };
        let mut is_pending = false;
        for (cache, is_wanted) in caches.iter().zip(&mut is_wanted) {
            let inputs = peer_inputs_digest(engine, cache, job, setting.run);
            if !watcher.is_done(job.task, &job.sample, &cache_name(engine, cache), &inputs) {
                (is_pending, *is_wanted) = (true, true);
            }
        }
        if is_pending {
            pending.push((job, tokens.clone()));
        }
    }
    let Some((first, _)) = pending.first() else { return Ok(()) };
    watcher.begins(0, 1, &first.sample);
    let windows = pending.iter().map(|(job, tokens)| PeerWindow {
        context: job.sample.context.clone(),
        continuation: tokens.clone(),
    });
    let wanted = caches.iter().zip(&is_wanted).filter(|(_, is_wanted)| **is_wanted);
    let request = PeerRequest {
        model: setting.model.to_owned(),
        threads: setting.run.threads,
        caches: wanted.map(|(cache, _)| (*cache).to_owned()).collect(),
        windows: windows.collect(),
        speed: None,
        seed: setting.run.seed,
    };
    let total = request.caches.len() * request.windows.len();
    let mut info = None;
    let mut done = 0;
    for line in Peer::start(setting.venv, engine, request, |_| {})? {
        match line? {
            PeerLine::Engine(engine) => info = Some(engine),
            PeerLine::Quality(quality) => {
                let (Some(info), Some((job, _))) = (&info, pending.get(quality.window)) else {
                    continue;
                };
                done += 1;
                watcher.reads(done, total);
                let inputs = peer_inputs_digest(engine, &quality.cache, job, setting.run);
                let name = cache_name(engine, &quality.cache);
                if !watcher.is_done(job.task, &job.sample, &name, &inputs) {
                    watcher.row(row(engine, info, quality, job, setting.run, inputs)?)?;
                }
            }
            PeerLine::Speed(_) => {}
        }
    }
    Ok(())
}

/// The cache's name among those of other engines.
fn cache_name(engine: PeerEngine, cache: &str) -> String {
    format!("{engine} {cache}")
}

/// What [`Row::inputs`] is for a cache of a peer.
fn peer_inputs_digest(engine: PeerEngine, cache: &str, job: &Job, run: &Run) -> String {
    let sample = &job.sample;
    let text = format!(
        "{:?} {:?} {engine} {cache} {} {}",
        sample.context, sample.probe, run.fingerprint, run.threads
    );
    Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn row(
    engine: PeerEngine,
    info: &PeerInfo,
    quality: PeerQuality,
    job: &Job,
    run: &Run,
    inputs: String,
) -> Result<Row> {
    let PeerQuality {
        cache, steps, kv_bytes, full_f16_bytes, prefill_seconds, step_seconds, ..
    } = quality;
    let summary = steps.summary().ok_or(Error::NoContinuation)?;
    let sample = &job.sample;
    let resident = usize::try_from(kv_bytes).unwrap_or(usize::MAX);
    let memory = Memory {
        num_tokens: sample.context.len() + summary.num_steps,
        device: DeviceBytes { resident, ..DeviceBytes::default() },
        host_bytes: 0,
        predicted_device_bytes: None,
        full_bytes: usize::try_from(full_f16_bytes).unwrap_or(usize::MAX),
    };
    Ok(Row {
        task: job.task.to_owned(),
        sample: sample.name.clone(),
        context: sample.length,
        num_tokens: sample.context.len(),
        depth: sample.depth,
        cache: cache_name(engine, &cache),
        spec: cache,
        inputs,
        outcome: Outcome::Divergence { summary, steps },
        rows_read: None,
        memory: vec![memory],
        time: Time {
            prefill: prefill_seconds,
            prefill_caches: 1,
            step: median(&step_seconds),
            num_steps: step_seconds.len(),
        },
        run: Run {
            engine: info.name.clone(),
            version: info.version.clone(),
            conditions: format!("{}; bytes: {}", info.attention, info.kv_bytes_from),
            ..run.clone()
        },
    })
}
