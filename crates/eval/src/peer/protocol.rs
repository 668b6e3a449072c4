//! The request and the lines of the answer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::divergence::Steps;

/// What a peer is to measure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRequest {
    /// The GGUF file.
    pub model: PathBuf,
    /// Threads to compute with.
    pub threads: usize,
    /// Names of caches, as the engine has them.
    pub caches: Vec<String>,
    /// Where quality is measured.
    pub windows: Vec<PeerWindow>,
    /// What is timed, if anything.
    pub speed: Option<PeerSpeedRequest>,
    /// Seed of what an engine draws.
    pub seed: u64,
}

impl PeerRequest {
    /// Lines that the whole answer has.
    pub(super) fn num_lines(&self) -> usize {
        let contexts = self.speed.as_ref().map_or(0, |speed| speed.contexts.len());
        1 + self.caches.len() * (self.windows.len() + contexts)
    }
}

/// A context and the tokens fed behind it, as in [`Probe::Tokens`](crate::Probe::Tokens).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerWindow {
    /// What the caches hold before the first step; at least one token.
    pub context: Vec<u32>,
    /// One token longer than the number of steps.
    pub continuation: Vec<u32>,
}

impl PeerWindow {
    /// Tokens fed.
    fn steps(&self) -> usize {
        self.continuation.len().saturating_sub(1)
    }

    /// Frees what is not needed to read the answer.
    pub(super) fn forget_context(&mut self) {
        self.context = Vec::new();
    }
}

/// At which depths a peer is timed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerSpeedRequest {
    /// Tokens of context.
    pub contexts: Vec<usize>,
    /// Timed steps behind each.
    pub steps: usize,
    /// What is fed: the tokens of the longest context, of as many steps, and one more, which is not timed.
    pub tokens: Vec<u32>,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerLine {
    /// Who answers; always the first line.
    Engine(PeerInfo),
    /// One cache on one window.
    Quality(PeerQuality),
    /// One cache at one depth.
    Speed(PeerSpeed),
}

/// Who answers, and what a reader of its figures must know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PeerInfo {
    /// The program.
    pub name: String,
    /// Versions of the libraries.
    pub version: String,
    /// Threads that it computes with.
    pub threads: usize,
    /// How it computes attention.
    pub attention: String,
    /// What the bytes of its caches count.
    pub kv_bytes_from: String,
    /// What it was built for, if it says so.
    #[serde(default)]
    pub build: Option<String>,
}

/// What one cache did on one window.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PeerQuality {
    /// The cache's name.
    pub cache: String,
    /// Index of the window in the request.
    pub window: usize,
    /// Step by step, against the engine's own full cache, fed the same tokens.
    pub steps: Steps,
    /// Bytes of keys and values after the last step.
    pub kv_bytes: u64,
    /// Bytes of the same tokens in a full f16 cache.
    pub full_f16_bytes: u64,
    /// Seconds of the prefill.
    pub prefill_seconds: f64,
    /// Seconds of each step.
    pub step_seconds: Vec<f64>,
    /// Largest resident size of the process meanwhile.
    pub peak_rss_bytes: u64,
}

/// What one cache took at one depth.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct PeerSpeed {
    /// The cache's name.
    pub cache: String,
    /// Tokens of context.
    pub context: usize,
    /// Seconds of the prefill.
    pub prefill_seconds: f64,
    /// Seconds of a step, the median.
    pub step_seconds: f64,
    /// Largest resident size of the process meanwhile.
    pub peak_rss_bytes: u64,
}

/// A line as it comes: of an answer, or in place of one.
#[derive(Debug)]
pub(super) enum Answer {
    Line(PeerLine),
    Refusal(String),
}

/// A speed line as it is written.
#[derive(Deserialize)]
struct SpeedLine {
    cache: String,
    speed: SpeedFigures,
    peak_rss_bytes: u64,
}

#[derive(Deserialize)]
struct SpeedFigures {
    context: usize,
    prefill_seconds: f64,
    step_seconds: f64,
}

impl PeerLine {
    /// Reads a line of the answer to `request`; otherwise says what is wrong with it.
    pub(super) fn parse(
        text: &[u8],
        is_first: bool,
        request: &PeerRequest,
    ) -> Result<Answer, String> {
        let fields: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if let Some(message) = fields.get("error").and_then(Value::as_str) {
            return Ok(Answer::Refusal(message.to_owned()));
        }
        let engine = fields.get("engine").cloned();
        if is_first != engine.is_some() {
            return Err("the engine must be the first line, and only that".to_owned());
        }
        let line = if let Some(engine) = engine {
            Self::Engine(serde_json::from_value(engine).map_err(|e| e.to_string())?)
        } else if fields.get("speed").is_some() {
            let line = serde_json::from_value(fields).map_err(|e| e.to_string())?;
            Self::Speed(speed_of(line, request)?)
        } else {
            let quality = serde_json::from_value(fields).map_err(|e| e.to_string())?;
            check_quality(&quality, request)?;
            Self::Quality(quality)
        };
        Ok(Answer::Line(line))
    }
}

fn speed_of(line: SpeedLine, request: &PeerRequest) -> Result<PeerSpeed, String> {
    check_cache(&line.cache, request)?;
    let figures = line.speed;
    if !request.speed.as_ref().is_some_and(|speed| speed.contexts.contains(&figures.context)) {
        return Err(format!("no speed was asked for at {}", figures.context));
    }
    let seconds = [figures.prefill_seconds, figures.step_seconds];
    if !seconds.iter().all(|&seconds| seconds > 0.0 && seconds.is_finite()) {
        return Err(format!("{seconds:?} are no times"));
    }
    Ok(PeerSpeed {
        cache: line.cache,
        context: figures.context,
        prefill_seconds: figures.prefill_seconds,
        step_seconds: figures.step_seconds,
        peak_rss_bytes: line.peak_rss_bytes,
    })
}

fn check_quality(quality: &PeerQuality, request: &PeerRequest) -> Result<(), String> {
    check_cache(&quality.cache, request)?;
    let window = request.windows.get(quality.window);
    let window = window.ok_or_else(|| format!("there is no window {}", quality.window))?;
    let Steps { kl, top1, top5, nll, full_nll } = &quality.steps;
    let lens =
        [kl.len(), top1.len(), top5.len(), nll.len(), full_nll.len(), quality.step_seconds.len()];
    if lens.iter().any(|&len| len != window.steps()) {
        return Err(format!("figures of {lens:?} steps instead of {}", window.steps()));
    }
    if !quality.steps.is_sound() {
        return Err("figures that no step can have".to_owned());
    }
    Ok(())
}

fn check_cache(cache: &str, request: &PeerRequest) -> Result<(), String> {
    if request.caches.iter().any(|asked| asked == cache) {
        Ok(())
    } else {
        Err(format!("nobody asked for the cache `{cache}`"))
    }
}
