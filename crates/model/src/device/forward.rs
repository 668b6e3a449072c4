//! Tokens through the model on a device behind what a cache holds, and the logits of the last one.

use heterokv_attn::device::{Argmax, Picked, Sample};
use heterokv_cache::{DeviceCache, TokenOnDevice};
use heterokv_gpu::{Bound, Buffer, Commands};

use super::{BLOCK_TOKENS, DeviceModel, Layer, Work};
use crate::{Progress, Result, SamplerSettings};

/// How a token is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    /// Whose penalty of repetitions is not looked at.
    pub(super) settings: SamplerSettings,
    /// From 0 to below 1.
    pub(super) uniform: f32,
}

impl DeviceModel {
    /// Runs further tokens through the model behind what `cache` holds, each attending over the cache as it then is; the
    /// last one's hidden state stays on the device for [`DeviceModel::logits`].
    ///
    /// # Errors
    /// As [`DeviceModel::prefill`].
    pub fn extend(
        &self,
        tokens: &[u32],
        cache: &mut DeviceCache,
        mut progress: Option<Progress<'_>>,
    ) -> Result<()> {
        self.check_ids(tokens)?;
        self.check_cache(cache)?;
        let mut done = 0;
        for block in tokens.chunks(BLOCK_TOKENS) {
            self.extend_block(block, cache)?;
            done += block.len();
            if let Some(progress) = &mut progress {
                progress(done, tokens.len());
            }
        }
        Ok(())
    }

    fn extend_block(&self, tokens: &[u32], cache: &mut DeviceCache) -> Result<()> {
        let gpu = self.device.gpu();
        let work = &self.work;
        let turns = self.turns(heterokv_cache::AttentionCache::num_tokens(cache), tokens.len());
        gpu.write(&work.turns, 0, bytemuck::cast_slice(&turns))?;
        self.embed(tokens, Bound::all(&work.hidden))?;
        let mut commands = Commands::new(gpu);
        for (index, layer) in self.layers.iter().enumerate() {
            self.project_block(&mut commands, layer, tokens.len())?;
            commands = match tokens {
                [_] => cache.step_on_device(
                    index,
                    commands,
                    TokenOnDevice {
                        q: Bound::part(&work.q, 0, work.token[0].num_bytes()),
                        k: Bound::part(&work.k, 0, work.token[1].num_bytes()),
                        v: Bound::part(&work.v, 0, work.token[1].num_bytes()),
                        out: Bound::part(&work.attended, 0, work.token[0].num_bytes()),
                    },
                )?,
                _ => self.attend_in_turn(index, commands, tokens.len(), cache)?,
            };
            self.finish_layer(&mut commands, layer, tokens.len(), Bound::all(&work.hidden))?;
        }
        commands.submit()?;
        self.keep_last(&work.hidden, tokens.len())
    }

    fn project_block(
        &self,
        commands: &mut Commands<'_>,
        layer: &Layer,
        tokens: usize,
    ) -> Result<()> {
        let Work { hidden, normed, q, k, v, turns, .. } = &self.work;
        let [hidden, normed, q, k, v, turns] = [hidden, normed, q, k, v, turns].map(Bound::all);
        self.norm(commands, tokens, &layer.attn_norm, [hidden, normed])?;
        let (work, config) = (&self.work, &self.config);
        self.project(commands, tokens, &layer.projection_q(work, config), q, turns)?;
        self.project(commands, tokens, &layer.projection_k(work, config), k, turns)?;
        self.multiply(commands, &layer.v, tokens, [normed, v], false)
    }

    /// The tokens of a block through the attention of a layer, one after the other.
    fn attend_in_turn<'g>(
        &self,
        layer: usize,
        mut commands: Commands<'g>,
        num_tokens: usize,
        cache: &mut DeviceCache,
    ) -> Result<Commands<'g>> {
        let Work { q, k, v, attended, token, .. } = &self.work;
        let [one_q, one_k, one_v, one_out] = token;
        for index in 0..num_tokens as u64 {
            // A binding could not begin at any token.
            for (rows, one) in [(q, one_q), (k, one_k), (v, one_v)] {
                commands.copy((rows, index * one.num_bytes()), (one, 0), one.num_bytes())?;
            }
            let [q, k, v, out] = [one_q, one_k, one_v, one_out].map(Bound::all);
            commands = cache.step_on_device(layer, commands, TokenOnDevice { q, k, v, out })?;
            let row_bytes = one_out.num_bytes();
            commands.copy((one_out, 0), (attended, index * row_bytes), row_bytes)?;
            let gpu = commands.gpu();
            commands.submit()?;
            commands = Commands::new(gpu);
        }
        Ok(commands)
    }

    /// Keeps the last of some tokens' hidden states.
    pub(super) fn keep_last(&self, hidden: &Buffer, tokens: usize) -> Result<()> {
        let row_bytes = self.work.last.num_bytes();
        let mut commands = Commands::new(self.device.gpu());
        let from = (tokens as u64 - 1) * row_bytes;
        commands.copy((hidden, from), (&self.work.last, 0), row_bytes)?;
        Ok(commands.submit()?)
    }

    /// The last token's hidden state `[hidden_size]`.
    pub(super) fn last_hidden(&self) -> Result<Vec<f32>> {
        let last = &self.work.last;
        let bytes = self.device.gpu().read(last, 0, last.num_bytes())?;
        let words = bytes.as_chunks::<4>().0.iter();
        Ok(words.take(self.config.hidden_size).map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// Puts a hidden state in its place; where it is empty, what is there stays.
    pub(super) fn set_last_hidden(&self, hidden: &[f32]) -> Result<()> {
        Ok(self.device.gpu().write(&self.work.last, 0, bytemuck::cast_slice(hidden))?)
    }

    /// Logits `[vocab_size]` of the last token that was taken.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn logits(&self) -> Result<Vec<f32>> {
        let gpu = self.device.gpu();
        let mut commands = Commands::new(gpu);
        self.project_logits(&mut commands)?;
        commands.submit()?;
        let logits = &self.work.logits;
        let bytes = gpu.read(logits, 0, logits.num_bytes())?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// What follows the last token that was taken, none of the ids `excluded`: the highest logit, or what `draw` draws.
    ///
    /// # Errors
    /// What the device refuses.
    pub(super) fn pick(&self, draw: Option<Draw>, excluded: &[u32]) -> Result<Picked> {
        let gpu = self.device.gpu();
        let Work { logits, excluded: nothing, uniform, picked, .. } = &self.work;
        let mut commands = Commands::new(gpu);
        self.project_logits(&mut commands)?;
        let vocab_size = self.config.vocab_size;
        let named: Vec<u32> =
            excluded.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
        for run in named.chunk_by(|a, b| b.wrapping_sub(*a) == 1) {
            let (first, num_bytes) = (4 * u64::from(run[0]), size_of_val(run) as u64);
            commands.copy((nothing, 0), (logits, first), num_bytes)?;
        }
        let rows = 1;
        let [logits, uniforms, ids] = [logits, uniform, picked].map(Bound::all);
        match draw {
            None => {
                self.device.argmax(&mut commands, &Argmax { rows, vocab_size, logits, ids })?;
            }
            Some(Draw { settings, uniform: number }) => {
                let SamplerSettings { temperature, top_k, top_p, min_p, .. } = settings;
                gpu.write(uniform, 0, bytemuck::bytes_of(&number))?;
                let sample = Sample {
                    rows,
                    vocab_size,
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    logits,
                    uniforms,
                    ids,
                };
                self.device.sample(&mut commands, &sample)?;
            }
        }
        commands.submit()?;
        let bytes = gpu.read(picked, 0, picked.num_bytes())?;
        Ok(Picked::of(bytemuck::pod_read_unaligned(&bytes)))
    }

    fn project_logits(&self, commands: &mut Commands<'_>) -> Result<()> {
        let Work { last, last_normed, logits, .. } = &self.work;
        let normed = [Bound::all(last), Bound::all(last_normed)];
        self.norm(commands, 1, &self.output_norm, normed)?;
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let product = [Bound::all(last_normed), Bound::all(logits)];
        self.multiply(commands, output, 1, product, false)
    }
}
