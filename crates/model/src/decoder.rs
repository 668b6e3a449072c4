//! A model with the cache of one sequence, wherever the two are.

use std::fmt;

use heterokv_cache::{CacheConfig, DeviceBytes, HostStats, KvCache, KvShape, ReadStats};

use crate::{Error, Model, ModelConfig, Progress, Result, Resumed, Sampler, Scratch, Session};

/// Tokens of a later turn that pass through the model together, which bounds their scratch memory.
const EXTEND_TOKENS: usize = 256;

/// What reads tokens into a cache and says what may come next. A [`HostDecoder`] computes on the CPU, a
/// [`DeviceDecoder`](crate::DeviceDecoder) on a GPU.
pub trait Decoder: fmt::Debug {
    /// The model's.
    fn config(&self) -> &ModelConfig;

    /// Tokens that the cache holds.
    fn num_tokens(&self) -> usize;

    /// Takes further tokens: a prompt with exact attention where the cache is empty, others one after the other over the
    /// cache as it then is. After an error the decoder is of no further use.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TokenId`], and what the cache or the device refuses.
    fn feed(&mut self, tokens: &[u32], progress: Option<Progress<'_>>) -> Result<()>;

    /// Logits `[vocab_size]` of what follows the last token.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] before there was one, and where a session was cut at it; and what the device refuses.
    fn logits(&mut self) -> Result<Vec<f32>>;

    /// Picks what follows the last token, none of the ids `excluded`, of which those beyond the vocabulary exclude
    /// nothing; `history` are the tokens that a penalty of repetitions is for.
    ///
    /// # Errors
    /// As [`Decoder::logits`]; logits that cannot be sampled from.
    fn pick(&mut self, sampler: &mut Sampler, history: &[u32], excluded: &[u32]) -> Result<u32> {
        pick_of(&mut self.logits()?, sampler, history, excluded)
    }

    /// Saves the cache, which holds `tokens` and was resumed from the session, in its folder.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] where nothing is known of what follows the last token, [`Error::OtherSession`], and
    /// [`Error::Session`].
    fn save(&mut self, session: &mut Session, tokens: &[u32]) -> Result<()>;

    /// What the cache holds and what its steps have read.
    fn figures(&self) -> CacheFigures;

    /// Starts to count anew what steps read.
    fn reset_stats(&mut self);
}

/// Samples from logits without the ids `excluded`.
pub(crate) fn pick_of(
    logits: &mut [f32],
    sampler: &mut Sampler,
    history: &[u32],
    excluded: &[u32],
) -> Result<u32> {
    for &id in excluded {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    Ok(sampler.sample(logits, history)?)
}

/// Where the bytes of a cache are, and what its decode steps have moved.
#[derive(Clone, Debug)]
pub struct CacheFigures {
    /// What the cache was made for.
    pub shape: KvShape,
    /// How.
    pub config: CacheConfig,
    /// Tokens held.
    pub num_tokens: usize,
    /// Bytes on the device, by component.
    pub device: DeviceBytes,
    /// Bytes on the host.
    pub host_bytes: usize,
    /// What steps have read.
    pub stats: ReadStats,
    /// What the host store holds and has done, where there is one.
    pub host: Option<HostStats>,
    /// What has crossed between the two, and all that the device holds; none where it is an arena in RAM.
    pub link: Option<LinkFigures>,
}

impl CacheFigures {
    /// Device bytes over the bytes of the same tokens in a full f16 cache; 0 for an empty cache.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let full = heterokv_cache::full_bytes(&self.shape, self.num_tokens);
        if full == 0 { 0.0 } else { self.device.total() as f64 / full as f64 }
    }
}

/// What crosses between a device and its host, and what the device holds.
#[derive(Clone, Copy, Debug)]
pub struct LinkFigures {
    /// Bytes of decode steps from the device to the host.
    pub to_host_bytes: u64,
    /// And the other way.
    pub to_device_bytes: u64,
    /// Bytes of all buffers on the device, weights and scratch included.
    pub in_use_bytes: u64,
    /// The most that they were.
    pub peak_bytes: u64,
}

/// A [`Model`] and a [`KvCache`] on the CPU.
#[derive(Debug)]
pub struct HostDecoder<'m> {
    model: &'m Model,
    cache: KvCache,
    /// The last token's hidden state `[hidden_size]`; empty where it is not known.
    hidden: Vec<f32>,
    scratch: Scratch,
}

impl<'m> HostDecoder<'m> {
    /// Over `cache`, which is empty and of this model.
    #[must_use]
    pub fn new(model: &'m Model, cache: KvCache) -> Self {
        Self { model, cache, hidden: Vec::new(), scratch: Scratch::default() }
    }

    /// Over the cache of a session, of this model.
    #[must_use]
    pub fn resume(model: &'m Model, resumed: Resumed<KvCache>) -> Self {
        Self { hidden: resumed.hidden, ..Self::new(model, resumed.cache) }
    }

    /// Tokens of a prompt that are processed at once where the cache holds `num_found` of its `num_tokens`: all of it, or
    /// as many of the rest as pass through the model together.
    #[must_use]
    pub fn tokens_at_once(num_tokens: usize, num_found: usize) -> usize {
        let unread = num_tokens.saturating_sub(num_found);
        if num_found == 0 { unread } else { unread.min(EXTEND_TOKENS) }
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }
}

impl Decoder for HostDecoder<'_> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn num_tokens(&self) -> usize {
        self.cache.num_tokens()
    }

    fn feed(&mut self, tokens: &[u32], mut progress: Option<Progress<'_>>) -> Result<()> {
        let hidden_size = self.model.config().hidden_size;
        if self.cache.num_tokens() == 0 {
            let caches = std::slice::from_mut(&mut self.cache);
            let hidden = self.model.prefill(tokens, caches, progress)?;
            self.hidden = hidden[hidden.len() - hidden_size..].to_vec();
            return Ok(());
        }
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut done = 0;
        for block in tokens.chunks(EXTEND_TOKENS) {
            let hidden = self.model.extend_in(&mut self.scratch, block, &mut self.cache)?;
            self.hidden.clear();
            self.hidden.extend_from_slice(&hidden[hidden.len() - hidden_size..]);
            done += block.len();
            if let Some(progress) = &mut progress {
                progress(done, tokens.len());
            }
        }
        Ok(())
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        if self.hidden.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.model.logits(&self.hidden)
    }

    fn pick(&mut self, sampler: &mut Sampler, history: &[u32], excluded: &[u32]) -> Result<u32> {
        if self.hidden.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let logits = self.model.logits_in(&mut self.scratch, &self.hidden)?;
        pick_of(logits, sampler, history, excluded)
    }

    fn save(&mut self, session: &mut Session, tokens: &[u32]) -> Result<()> {
        if self.hidden.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        session.save(&mut self.cache, tokens, &self.hidden)
    }

    fn figures(&self) -> CacheFigures {
        CacheFigures {
            shape: self.cache.shape(),
            config: self.cache.config().clone(),
            num_tokens: self.cache.num_tokens(),
            device: self.cache.device_bytes(),
            host_bytes: self.cache.host_in_use_bytes(),
            stats: self.cache.stats(),
            host: self.cache.host_stats(),
            link: None,
        }
    }

    fn reset_stats(&mut self) {
        self.cache.reset_stats();
    }
}
