//! How far many caches are from the full one on one text, in one number each.

use heterokv_cache::{CacheConfig, KvCache};
use heterokv_model::{Model, Progress};

use crate::divergence::{Distribution, kl_divergence};
use crate::{Error, Result};

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
    let new =
        |config: &CacheConfig| KvCache::new(model.kv_shape(), config.clone(), model.level(), None);
    let configs = std::iter::once(&CacheConfig::Full).chain(configs);
    let mut caches = configs.map(new).collect::<Result<Vec<_>, _>>()?;
    let num_tokens = context.len() + continuation.len();
    let mut show = |done| {
        if let Some(progress) = &mut progress {
            progress(done, num_tokens);
        }
    };
    // Parts of the model's work, as tokens.
    let mut read = |done, total: usize| show(done * context.len() / total.max(1));
    model.prefill(context, &mut caches, Some(&mut read))?;
    let says = |cache: &mut KvCache, token: u32| -> Result<Distribution> {
        let hidden = model.extend(&[token], cache)?;
        Ok(Distribution::of_logits(&model.logits(&hidden)?))
    };
    let mut full = caches.remove(0);
    let mut sums = vec![0.0; caches.len()];
    for (step, &token) in continuation.iter().enumerate() {
        let expected = says(&mut full, token)?;
        for (cache, sum) in caches.iter_mut().zip(&mut sums) {
            let divergence = kl_divergence(&expected, &says(cache, token)?);
            if !divergence.is_finite() {
                return Err(Error::NotFinite { what: "the divergence", step });
            }
            *sum += divergence;
        }
        show(context.len() + step + 1);
    }
    Ok(sums.iter().map(|sum| sum / continuation.len() as f64).collect())
}
