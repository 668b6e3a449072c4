//! How far many caches are from the full one on one text, in one number each.

use heterokv_cache::CacheConfig;
use heterokv_model::{Model, Progress};

use crate::divergence::kl_divergence;
use crate::{Error, Result, SideBySide};

/// The mean of KL(full ‖ cache), in nats, over the steps that feed `continuation` behind `context`, of a cache of each of
/// `configs`. All take the context in together and exist side by side, with one that is full; reports
/// `(tokens done, tokens)`.
///
/// # Errors
/// [`Error::NoContinuation`], [`Error::NotFinite`], and what the model or a cache refuses.
pub fn mean_divergences(
    model: &Model,
    [context, continuation]: [&[u32]; 2],
    configs: &[CacheConfig],
    mut progress: Option<Progress<'_>>,
) -> Result<Vec<f64>> {
    if continuation.is_empty() {
        return Err(Error::NoContinuation);
    }
    let num_tokens = context.len() + continuation.len();
    let mut show = |done| {
        if let Some(progress) = &mut progress {
            progress(done, num_tokens);
        }
    };
    // Parts of the model's work, as tokens.
    let mut read = |done, total: usize| show(done * context.len() / total.max(1));
    let mut caches = SideBySide::behind(model, context, configs, Some(&mut read))?;
    let mut sums = vec![0.0; configs.len()];
    for (step, &token) in continuation.iter().enumerate() {
        caches.feed(token, &mut |said| {
            let divergence = kl_divergence(said.full, &said.own);
            if !divergence.is_finite() {
                return Err(Error::NotFinite { what: "the divergence", step });
            }
            sums[said.index] += divergence;
            Ok(())
        })?;
        show(context.len() + step + 1);
    }
    Ok(sums.iter().map(|sum| sum / continuation.len() as f64).collect())
}
