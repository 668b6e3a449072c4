//! Rows of what peers do on the samples of tasks.

use std::path::Path;

use super::{
    InstalledPeers, Peer, PeerEngine, PeerInfo, PeerLine, PeerQuality, PeerRequest, PeerWindow,
};
use crate::divergence::median;
use crate::evaluate::{Job, Watcher};
use crate::hash::hex_digest;
use crate::row::{Memory, Outcome, ROW_VERSION, Row, Run, Time};
use crate::task::Probe;
use crate::{Error, Result};
use heterokv_cache::DeviceBytes;

/// How many more bytes than its share of tokens a cache of a peer may have: numbers of tokens are rounded.
const SLACK: f64 = 1.02;

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
    let InstalledPeers { build, .. } = InstalledPeers::at(setting.venv)?;
    let run = &Run { build, ..setting.run.clone() };
    let mut pending: Vec<(&Job, Vec<u32>)> = Vec::new();
    let mut is_wanted = vec![false; caches.len()];
    for job in jobs {
        let Probe::Tokens(tokens) = &job.sample.probe else { continue };
        let mut is_pending = false;
        for (cache, is_wanted) in caches.iter().zip(&mut is_wanted) {
            let inputs = peer_inputs_digest(engine, cache, job, run);
            if !watcher.is_done(&job.task, &job.sample, cache, &inputs) {
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
                let inputs = peer_inputs_digest(engine, &quality.cache, job, run);
                if !watcher.is_done(&job.task, &job.sample, &quality.cache, &inputs) {
                    watcher.row(row(info, quality, job, run, inputs)?)?;
                }
            }
            PeerLine::Speed(_) => {}
        }
    }
    Ok(())
}

/// What [`Row::inputs`] is for a cache of a peer.
fn peer_inputs_digest(engine: PeerEngine, cache: &str, job: &Job, run: &Run) -> String {
    let of_peer = [engine.to_string(), cache.to_owned(), run.threads.to_string()];
    let sample = job.sample.digest();
    let parts = [&sample, &run.fingerprint, &run.build].into_iter().chain(&of_peer);
    hex_digest(parts.map(|part| part.as_bytes()))
}

/// A cache that names the share of tokens that it keeps holds hardly more: those, and what was fed behind.
fn check_share(cache: &str, job: &Job, memory: &Memory) -> Result<()> {
    let share = cache.split_once(':').and_then(|(_, share)| share.strip_suffix('%'));
    let Some(percent) = share.and_then(|percent| percent.parse::<f64>().ok()) else {
        return Ok(());
    };
    let num_context = job.sample.context.len();
    let kept = percent / 100.0 * num_context as f64 + (memory.num_tokens - num_context) as f64;
    let most = SLACK * kept / memory.num_tokens as f64 * memory.full_bytes as f64;
    if memory.device.total() as f64 > most {
        return Err(Error::NotCompressed {
            cache: cache.to_owned(),
            num_tokens: memory.num_tokens,
            device_bytes: memory.device.total(),
            expected_bytes: most as usize,
            full_bytes: memory.full_bytes,
        });
    }
    Ok(())
}

fn row(info: &PeerInfo, quality: PeerQuality, job: &Job, run: &Run, inputs: String) -> Result<Row> {
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
    check_share(&cache, job, &memory)?;
    let spec = cache.clone();
    Ok(Row {
        version: ROW_VERSION,
        task: job.task.clone(),
        sample: sample.name.clone(),
        context: sample.length,
        num_tokens: sample.context.len(),
        depth: sample.depth,
        cache,
        spec: spec.clone(),
        cache_digest: hex_digest([spec.as_bytes()]),
        sample_digest: sample.digest(),
        inputs,
        outcome: Outcome::Divergence { summary, steps },
        rows_read: None,
        memory: vec![memory],
        time: Time {
            prefill_seconds,
            prefill_caches: 1,
            step_seconds: median(&step_seconds),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Sample;

    #[test]
    fn a_press_that_keeps_everything_is_noticed() {
        let sample = Sample {
            part: None,
            name: "w".to_owned(),
            length: 100,
            depth: None,
            context: vec![1; 100],
            probe: Probe::Tokens(vec![1; 11]),
        };
        let job = Job::new("kl", sample);
        let memory = |resident| Memory {
            num_tokens: 110,
            device: DeviceBytes { resident, ..DeviceBytes::default() },
            host_bytes: 0,
            predicted_device_bytes: None,
            full_bytes: 1100,
        };
        assert!(check_share("snapkv:25%", &job, &memory(350)).is_ok());
        assert!(check_share("full", &job, &memory(1100)).is_ok());
        let error = check_share("snapkv:25%", &job, &memory(1100)).unwrap_err();
        assert!(matches!(error, Error::NotCompressed { expected_bytes: 357, .. }), "{error}");
    }
}
