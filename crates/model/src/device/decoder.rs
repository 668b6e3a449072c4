//! A model and the cache of one sequence on a device.

use heterokv_attn::device::Picked;
use heterokv_cache::{AttentionCache, DeviceCache};
use heterokv_gpu::Crossed;

use super::DeviceModel;
use super::forward::Draw;
use crate::decoder::{CacheFigures, Decoder, LinkFigures, pick_of};
use crate::{Error, ModelConfig, Progress, Result, Resumed, Sampler, Session};

/// Numbers from 0 to below 1 that f32 holds at even distances.
const UNIFORM_STEPS: f64 = (1 << 24) as f64;

/// A [`DeviceModel`] and a [`DeviceCache`].
#[derive(Debug)]
pub struct DeviceDecoder<'m> {
    model: &'m DeviceModel,
    cache: DeviceCache,
    /// Whether the last hidden state on the device is that of the cache's last token.
    knows_last: bool,
    /// When counting began.
    crossed_before: Crossed,
}

impl<'m> DeviceDecoder<'m> {
    /// Over `cache`, which is empty, of this model and on its device.
    #[must_use]
    pub fn new(model: &'m DeviceModel, cache: DeviceCache) -> Self {
        let crossed_before = model.device().gpu().crossed();
        Self { model, cache, knows_last: false, crossed_before }
    }

    /// Over the cache of a session, of this model and on its device.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn resume(model: &'m DeviceModel, resumed: Resumed<DeviceCache>) -> Result<Self> {
        let Resumed { cache, hidden, .. } = resumed;
        model.set_last_hidden(&hidden)?;
        Ok(Self { knows_last: !hidden.is_empty(), ..Self::new(model, cache) })
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &DeviceCache {
        &self.cache
    }
}

impl Decoder for DeviceDecoder<'_> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn num_tokens(&self) -> usize {
        AttentionCache::num_tokens(&self.cache)
    }

    fn feed(&mut self, tokens: &[u32], progress: Option<Progress<'_>>) -> Result<()> {
        match self.num_tokens() {
            0 => self.model.prefill(tokens, &mut self.cache, progress)?,
            _ => self.model.extend(tokens, &mut self.cache, progress)?,
        }
        self.knows_last = true;
        Ok(())
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        if !self.knows_last {
            return Err(Error::EmptyPrompt);
        }
        self.model.logits()
    }

    /// On the device, but where repetitions are penalised.
    fn pick(&mut self, sampler: &mut Sampler, history: &[u32], excluded: &[u32]) -> Result<u32> {
        let settings = *sampler.settings();
        if self.knows_last && settings.repetition_penalty == 1.0 {
            // The sampler advances only where a token was drawn.
            let mut after = sampler.clone();
            let draw = (settings.temperature > 0.0).then(|| {
                let uniform = (after.uniform() * UNIFORM_STEPS).floor() / UNIFORM_STEPS;
                Draw { settings, uniform: uniform as f32 }
            });
            if let Picked::Token(id) = self.model.pick(draw, excluded)? {
                *sampler = after;
                return Ok(id);
            }
        }
        // The host says of logits without a token what is wrong with them.
        pick_of(&mut self.logits()?, sampler, history, excluded)
    }

    fn save(&mut self, session: &mut Session, tokens: &[u32]) -> Result<()> {
        if !self.knows_last {
            return Err(Error::EmptyPrompt);
        }
        session.save(&mut self.cache.download()?, tokens, &self.model.last_hidden()?)
    }

    fn figures(&self) -> CacheFigures {
        let gpu = self.model.device().gpu();
        let crossed = gpu.crossed().since(self.crossed_before);
        CacheFigures {
            shape: self.cache.shape(),
            config: self.cache.config().clone(),
            num_tokens: self.num_tokens(),
            device: self.cache.device_bytes(),
            host_bytes: self.cache.host_in_use_bytes(),
            stats: self.cache.stats(),
            host: self.cache.host_stats(),
            link: Some(LinkFigures {
                to_host_bytes: crossed.to_host,
                to_device_bytes: crossed.to_device,
                in_use_bytes: gpu.in_use_bytes(),
                peak_bytes: gpu.peak_bytes(),
            }),
        }
    }

    fn reset_stats(&mut self) {
        self.cache.reset_stats();
        self.crossed_before = self.model.device().gpu().crossed();
    }
}
