//! Caches fed the same tokens side by side, each held against one that is full.

use std::time::{Duration, Instant};

use heterokv_cache::{CacheConfig, KvCache};
use heterokv_model::{Model, Progress};

use crate::Result;
use crate::divergence::Distribution;
use crate::reading::read;

/// Caches and one that is full, behind the same tokens.
#[derive(Debug)]
pub struct SideBySide<'a> {
    model: &'a Model,
    full: KvCache,
    caches: Vec<KvCache>,
}

/// What a cache says of the token that comes next.
#[derive(Debug)]
pub struct Said<'a> {
    /// Place of the cache in the list.
    pub index: usize,
    /// The cache.
    pub cache: &'a KvCache,
    /// What it says.
    pub own: Distribution,
    /// What the full one says.
    pub full: &'a Distribution,
    /// How long the step has taken.
    pub time: Duration,
}

impl<'a> SideBySide<'a> {
    /// A cache of each of `configs` and a full one, which take the context in together.
    ///
    /// # Errors
    /// What the model or a cache refuses.
    pub fn behind(
        model: &'a Model,
        context: &[u32],
        configs: &[CacheConfig],
        progress: Option<Progress<'_>>,
    ) -> Result<Self> {
        let new = |config: &CacheConfig| {
            KvCache::new(model.kv_shape(), config.clone(), model.level(), None)
        };
        let configs = std::iter::once(&CacheConfig::Full).chain(configs);
        let caches = configs.map(new).collect::<Result<Vec<_>, _>>()?;
        let read = read(model, context, caches, progress)?;
        let mut caches = read.caches.into_iter().map(|read| read.cache);
        let full = caches.next().expect("the full one");
        Ok(Self { model, full, caches: caches.collect() })
    }

    /// Feeds a token to all, and shows `each` what every cache says then, one after the other.
    ///
    /// # Errors
    /// What the model refuses, and the error of `each`; the caches are of no further use then.
    pub fn feed(&mut self, token: u32, each: &mut dyn FnMut(Said<'_>) -> Result<()>) -> Result<()> {
        let says = |cache: &mut KvCache| -> Result<Distribution> {
            let hidden = self.model.extend(&[token], cache)?;
            Ok(Distribution::of_logits(&self.model.logits(&hidden)?))
        };
        let full = &says(&mut self.full)?;
        for (index, cache) in self.caches.iter_mut().enumerate() {
            let start = Instant::now();
            let own = says(cache)?;
            each(Said { index, cache, own, full, time: start.elapsed() })?;
        }
        Ok(())
    }
}
