//! Caches that take a context in, each read as it asks for.

use std::time::Instant;

use heterokv_cache::{KvCache, PrefillPattern};
use heterokv_model::{Model, Progress};

use crate::Result;

/// Caches behind a context.
pub(crate) struct Reading {
    /// As many as there were, in order.
    pub(crate) caches: Vec<ReadCache>,
    /// The last hidden state `[hidden_size]` of the reading that the first cache took part in.
    pub(crate) last: Vec<f32>,
}

/// A cache behind a context.
pub(crate) struct ReadCache {
    pub(crate) cache: KvCache,
    /// How long the reading took in which it took the context in.
    pub(crate) seconds: f64,
    /// Caches that did so with it.
    pub(crate) num_together: usize,
}

/// Prefills empty caches, of which there is one at least, in as few passes as may be: one for each way in which the tokens of
/// a prompt attend, since what a layer gives the next one depends on it.
pub(crate) fn read(
    model: &Model,
    context: &[u32],
    caches: Vec<KvCache>,
    mut progress: Option<Progress<'_>>,
) -> Result<Reading> {
    let mut patterns: Vec<PrefillPattern> = Vec::new();
    for cache in &caches {
        let pattern = cache.config().prefill();
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    let mut waiting: Vec<(usize, KvCache)> = caches.into_iter().enumerate().collect();
    let mut read = Vec::with_capacity(waiting.len());
    let mut last = Vec::new();
    for (pass, &pattern) in patterns.iter().enumerate() {
        let asks = |(_, cache): &(usize, KvCache)| cache.config().prefill() == pattern;
        let (together, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(asks);
        waiting = others;
        let (places, mut caches): (Vec<usize>, Vec<KvCache>) = together.into_iter().unzip();
        let mut of_all = |done, total| {
            if let Some(progress) = &mut progress {
                progress(pass * total + done, patterns.len() * total);
            }
        };
        let start = Instant::now();
        let hidden = model.prefill(context, &mut caches, Some(&mut of_all))?;
        let seconds = start.elapsed().as_secs_f64();
        if pass == 0 {
            last = hidden[hidden.len() - model.config().hidden_size..].to_vec();
        }
        let num_together = caches.len();
        let caches = caches.into_iter().map(|cache| ReadCache { cache, seconds, num_together });
        read.extend(places.into_iter().zip(caches));
    }
    read.sort_by_key(|(place, _)| *place);
    Ok(Reading { caches: read.into_iter().map(|(_, cache)| cache).collect(), last })
}
