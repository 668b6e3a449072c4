//! Caches against `full` on one window of a corpus.

use std::time::Instant;

use heterokv_cache::{CacheConfig, KvCache, Profile, ReadStats};
use heterokv_model::{Model, Progress};
use serde::Serialize;

use crate::metrics::{Distribution, kl_divergence, quantile};
use crate::{Error, Result};

/// First context token of the passage that recall repeats.
const RECALL_FIRST: usize = 500;

/// What is fed behind the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What follows in the corpus.
    Plain,
    /// A passage from early in the context, word for word: what a cache has lost of it shows here, and
    /// hardly in plain text.
    Recall,
}

/// A context and the tokens fed behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Index of the context's first token in the corpus.
    pub offset: usize,
    /// What the caches hold before the first step.
    pub context: Vec<u32>,
    /// What is fed: `continuation[i]` at step i, after which `continuation[i + 1]` is to be predicted.
    /// One token longer than the number of steps.
    pub continuation: Vec<u32>,
    /// Where the continuation comes from.
    pub mode: Mode,
}

impl Window {
    /// Cuts a window of `context` tokens at `offset`, with `steps` tokens to feed, out of a corpus.
    ///
    /// # Errors
    /// [`Error::ShortCorpus`], [`Error::ShortContext`] and [`Error::NoContinuation`].
    pub fn cut(
        corpus: &[u32],
        offset: usize,
        context: usize,
        steps: usize,
        mode: Mode,
    ) -> Result<Self> {
        if steps == 0 {
            return Err(Error::NoContinuation);
        }
        let behind = if mode == Mode::Plain { steps.saturating_add(1) } else { 0 };
        let end = offset.saturating_add(context);
        let needed_tokens = end.saturating_add(behind);
        if corpus.len() < needed_tokens {
            let corpus_tokens = corpus.len();
            let continuation = steps;
            return Err(Error::ShortCorpus {
                corpus_tokens,
                needed_tokens,
                offset,
                context,
                continuation,
            });
        }
        let continuation = match mode {
            Mode::Plain => &corpus[end..needed_tokens],
            Mode::Recall => {
                let (first, end) =
                    (RECALL_FIRST, RECALL_FIRST.saturating_add(steps).saturating_add(1));
                let passage = corpus[offset..offset + context].get(first..end);
                passage.ok_or(Error::ShortContext { first, end, context })?
            }
        };
        Ok(Self {
            offset,
            context: corpus[offset..end].to_vec(),
            continuation: continuation.to_vec(),
            mode,
        })
    }

    /// Tokens fed.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.continuation.len() - 1
    }
}

/// What one cache did on one window.
#[derive(Clone, Debug, Serialize)]
pub struct CacheResult {
    /// The cache as a spec with every option written out.
    pub spec: String,
    /// Index of the context's first token in the corpus.
    pub offset: usize,
    /// Tokens of context.
    pub context: usize,
    /// Tokens fed.
    pub continuation: usize,
    /// What was fed.
    pub mode: Mode,
    /// Mean of KL(full ‖ cache) over the steps, nats.
    pub kl_mean: f64,
    /// 99th percentile of it.
    pub kl_p99: f64,
    /// Share of steps at which cache and `full` agree on the most probable token.
    pub top1: f64,
    /// Perplexity of the true next tokens.
    pub ppl: f64,
    /// Coded rows fetched per KV head over tokens held, mean over steps, layers and heads.
    pub rows_read: f64,
    /// Bytes on the device after the last step.
    pub device_bytes: usize,
    /// Bytes on the host after the last step.
    pub host_bytes: usize,
    /// Device bytes over the bytes of a full f16 cache of the same tokens.
    pub ratio: f64,
    /// Tokens fed per second.
    pub tok_s: f64,
}

/// Prefills the window's context once, into `full` and a cache of each of `configs`, and feeds each the
/// continuation. With a `profile`, its tables are used in all caches that are not `full`.
///
/// The result for `full` comes first, then those of `configs` in order; one that is `full` itself is decoded
/// again, independently.
///
/// # Errors
/// A cache or profile that does not fit the model, or a distribution that is not finite.
pub fn compare_caches(
    model: &Model,
    window: &Window,
    configs: &[CacheConfig],
    profile: Option<&Profile>,
    progress: Option<Progress<'_>>,
) -> Result<Vec<CacheResult>> {
    let mut caches = Vec::new();
    for config in std::iter::once(&CacheConfig::Full).chain(configs) {
        let profile = profile.filter(|_| *config != CacheConfig::Full);
        caches.push(KvCache::new(model.kv_shape(), config.clone(), model.level(), profile)?);
    }
    model.prefill(&window.context, &mut caches, progress)?;
    let mut results = Vec::new();
    let mut full: Vec<Distribution> = Vec::new();
    for mut cache in caches {
        let run = feed(model, window, &mut cache)?;
        if results.is_empty() {
            full.clone_from(&run.distributions);
        }
        results.push(summarise(window, &cache, &run, &full)?);
    }
    Ok(results)
}

/// What feeding the continuation gave.
struct Run {
    distributions: Vec<Distribution>,
    seconds: f64,
    stats: ReadStats,
}

fn feed(model: &Model, window: &Window, cache: &mut KvCache) -> Result<Run> {
    cache.reset_stats();
    let mut distributions = Vec::with_capacity(window.steps());
    let mut seconds = 0.0;
    for &token in &window.continuation[..window.steps()] {
        let start = Instant::now();
        let hidden = model.extend(&[token], cache)?;
        let logits = model.logits(&hidden)?;
        seconds += start.elapsed().as_secs_f64();
        distributions.push(Distribution::of_logits(&logits));
    }
    Ok(Run { distributions, seconds, stats: cache.stats() })
}

fn summarise(
    window: &Window,
    cache: &KvCache,
    run: &Run,
    full: &[Distribution],
) -> Result<CacheResult> {
    let steps = window.steps() as f64;
    let (mut kl, mut agreements, mut nll) = (Vec::new(), 0usize, 0.0);
    for (step, (own, full)) in run.distributions.iter().zip(full).enumerate() {
        let divergence = kl_divergence(full, own);
        let surprise = -own.log_probability(window.continuation[step + 1]);
        for (what, value) in [("the divergence", divergence), ("the likelihood", surprise)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { what, step });
            }
        }
        kl.push(divergence);
        nll += surprise;
        agreements += usize::from(own.top() == full.top());
    }
    Ok(CacheResult {
        spec: cache.config().to_string(),
        offset: window.offset,
        context: window.context.len(),
        continuation: window.steps(),
        mode: window.mode,
        kl_mean: kl.iter().sum::<f64>() / steps,
        kl_p99: quantile(&kl, 0.99),
        top1: agreements as f64 / steps,
        ppl: (nll / steps).exp(),
        rows_read: run.stats.rows_read(),
        device_bytes: cache.device_in_use_bytes(),
        host_bytes: cache.host_in_use_bytes(),
        ratio: cache.ratio(),
        tok_s: steps / run.seconds,
    })
}
