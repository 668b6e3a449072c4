//! A cache under test, and what it is counted by.

use heterokv_cache::{
    AttentionCache, CacheConfig, CachePlan, KvCache, Profile, RatioPromise, full_bytes,
};

use crate::hash::hex_digest;
use crate::row::Memory;
use crate::{Error, Result};

/// A cache that can be put to the test: what the model asks of it, and what is counted.
///
/// [`KvCache`] is the one that users have; tests of the harness put faulty ones in its place.
pub trait Subject: AttentionCache {
    /// The same contents again, sharing nothing.
    ///
    /// # Errors
    /// No memory.
    fn fork(&self) -> Result<Box<dyn Subject>>;

    /// Bytes as allocated.
    fn memory(&self) -> Memory;

    /// Rows fetched over tokens held, since the fork or the prompt.
    fn rows_read(&self) -> f64;
}

impl Subject for KvCache {
    fn fork(&self) -> Result<Box<dyn Subject>> {
        let mut fork = Self::fork(self)?;
        fork.reset_stats();
        Ok(Box::new(fork))
    }

    fn memory(&self) -> Memory {
        let num_tokens = self.num_tokens();
        Memory {
            num_tokens,
            device: self.device_bytes(),
            host_bytes: self.host_in_use_bytes(),
            predicted_device_bytes: None,
            full_bytes: full_bytes(&self.shape(), num_tokens),
        }
    }

    fn rows_read(&self) -> f64 {
        self.stats().rows_read()
    }
}

/// What puts another cache in the place of the one that took a prompt in: it is given the prompt and that cache.
pub type Replace<'a> = &'a dyn Fn(&[u32], KvCache) -> Result<Box<dyn Subject>>;

/// A cache to be tested, by name.
#[derive(Clone)]
pub struct Candidate<'a> {
    /// The cache as somebody named it.
    pub name: String,
    /// What its name promises.
    pub promise: Option<RatioPromise>,
    /// What it is.
    pub config: CacheConfig,
    /// Tables for it, and what tells them from others.
    pub profile: Option<(&'a Profile, String)>,
    /// What is tested instead; none tests the cache itself.
    pub replace: Option<Replace<'a>>,
}

impl Candidate<'_> {
    /// The cache that all others are held against.
    #[must_use]
    pub fn full() -> Self {
        Self {
            name: "full".to_owned(),
            promise: None,
            config: CacheConfig::Full,
            profile: None,
            replace: None,
        }
    }

    /// What tells it from every other cache, by the contents of its mix and profile and not by the names of their files:
    /// 16 hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        let profile = self.profile.as_ref().map_or("", |(_, digest)| digest);
        hex_digest([format!("{:?}", self.config).as_bytes(), profile.as_bytes()])
    }

    /// Holds the bytes counted behind a prompt, or while tokens come, against the most that a cache of this kind plans
    /// for so many tokens, and against what the name promises.
    pub(crate) fn check_bytes(&self, memory: &Memory, plan: &CachePlan) -> Result<()> {
        let is_full = self.config == CacheConfig::Full;
        if !is_full && memory.device.total() > plan.most_device_bytes {
            return Err(self.not_compressed(memory, plan.most_device_bytes));
        }
        let Some(promise) = self.promise else { return Ok(()) };
        let most = (promise.percent / 100.0 * memory.full_bytes as f64) as usize;
        if memory.num_tokens >= promise.min_tokens && memory.device.total() > most {
            return Err(self.not_compressed(memory, most));
        }
        Ok(())
    }

    fn not_compressed(&self, memory: &Memory, expected_bytes: usize) -> Error {
        Error::NotCompressed {
            cache: self.name.clone(),
            num_tokens: memory.num_tokens,
            device_bytes: memory.device.total(),
            expected_bytes,
            full_bytes: memory.full_bytes,
        }
    }
}

impl std::fmt::Debug for Candidate<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("name", &self.name).finish_non_exhaustive()
    }
}
