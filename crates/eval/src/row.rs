//! One line of a results file: what one cache did on one sample.

use heterokv_cache::DeviceBytes;
use serde::{Deserialize, Serialize};

use crate::divergence::{Steps, Summary};

/// Of the form of rows; one more whenever an older program would misread them.
pub const ROW_VERSION: u32 = 1;

/// What one cache did on one sample of a task. A results file has one a line, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// [`ROW_VERSION`].
    pub version: u32,
    /// Name of the task, and behind a slash the part of it that is scored apart, where there is one.
    pub task: String,
    /// Which of the task's samples of this length it is.
    pub sample: String,
    /// Tokens of context that were asked for: rows of the same length belong together.
    pub context: usize,
    /// Tokens that the cache held before the first probe.
    pub num_tokens: usize,
    /// Where in the context the thing to be found is: 0 at the beginning, 1 at the end; none where there is no
    /// one place.
    pub depth: Option<f64>,
    /// The cache as it was named.
    pub cache: String,
    /// The cache with every option written out.
    pub spec: String,
    /// [`Candidate::digest`](crate::Candidate::digest): the contents of a mix and a profile, too.
    pub cache_digest: String,
    /// [`Sample::digest`](crate::Sample::digest): which tokens these are, and what is asked behind them.
    pub sample_digest: String,
    /// Digest of all that the outcome depends on: the sample, the cache and its profile, the model and the form of its
    /// weights, the engine and its build. Where it is the same, the same was measured.
    pub inputs: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Coded rows fetched per KV head over tokens held, mean over steps, layers and heads; none where the engine
    /// does not count.
    pub rows_read: Option<f64>,
    /// Memory behind the prompt, at some steps after it, and behind the last.
    pub memory: Vec<Memory>,
    /// How long it took.
    pub time: Time,
    /// By what, and how it can be had again.
    pub run: Run,
}

/// What is measured of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// How far its next-token distributions are from those of `full`.
    Divergence {
        /// Of all steps together.
        summary: Summary,
        /// Step by step.
        steps: Steps,
    },
    /// What it answered.
    Answers {
        /// Mean of the scores, from 0 to 1.
        score: f64,
        /// One by one.
        answers: Vec<Answer>,
    },
}

/// A question, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked, without the context.
    pub question: String,
    /// The reply.
    pub reply: String,
    /// Right answers.
    pub references: Vec<String>,
    /// Name of the metric.
    pub metric: String,
    /// What the metric gives, from 0 to 1.
    pub score: f64,
}

/// Bytes of a cache at a length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Tokens held.
    pub num_tokens: usize,
    /// Bytes on the device by component, as allocated.
    pub device: DeviceBytes,
    /// Bytes on the host, as allocated.
    pub host_bytes: usize,
    /// Device bytes that the cache's plan predicts; none where there is no plan.
    pub predicted_device_bytes: Option<usize>,
    /// Bytes of the same tokens in a full f16 cache.
    pub full_bytes: usize,
}

impl Memory {
    /// Device bytes over those of a full f16 cache; 0 of nothing.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        if self.full_bytes == 0 {
            return 0.0;
        }
        self.device.total() as f64 / self.full_bytes as f64
    }
}

/// How long a cache took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// The prompt, through the model and into all caches that took it at once.
    pub prefill_seconds: f64,
    /// How many caches these are.
    pub prefill_caches: usize,
    /// Median of the steps, each one token through the model.
    pub step_seconds: f64,
    /// How many steps that is the median of.
    pub num_steps: usize,
}

/// By what a row was made: with this it can be made again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What computed: `heterokv`, or a peer.
    pub engine: String,
    /// Its version.
    pub version: String,
    /// What tells the program from every other build of it.
    pub build: String,
    /// Commit of the sources, `unknown` where they are in no repository, with `+` behind it where they were changed.
    pub commit: String,
    /// The model as people call it.
    pub model: String,
    /// What tells it from every other model.
    pub fingerprint: String,
    /// Form of the weights, instruction set and so on, for people.
    pub conditions: String,
    /// Threads that computed.
    pub threads: usize,
    /// Seed of the samples.
    pub seed: u64,
    /// The command line.
    pub command: String,
    /// The day, in UTC, as `2026-11-28`.
    pub date: String,
}
