//! A prompt through the model on a device, layer by layer, with exact attention.

use std::sync::Arc;

use heterokv_attn::device::{Embed, Prefill, QueryEnergy};
use heterokv_cache::{DeviceCache, PromptOnDevice, PromptWatch};
use heterokv_gpu::{Bound, Buffer, Commands};

use super::plan::energy_bytes;
use super::{BLOCK_TOKENS, DeviceModel, Layer};
use crate::{Error, Progress, Result};

/// What a prompt takes on the device beside weights and work.
struct Prompt {
    num_tokens: usize,
    /// The residual stream `[BLOCK_TOKENS, hidden_size]`, block by block.
    hidden: Vec<Buffer>,
    /// Cosines and sines, block by block.
    turns: Vec<Buffer>,
    /// Query energies of the layer at hand, block by block.
    energy: Vec<Buffer>,
    segment_tokens: usize,
    /// Keys and values of the layer at hand `[segment_tokens, num_kv_heads, head_dim]`, segment by segment.
    segments: Vec<[Buffer; 2]>,
}

impl DeviceModel {
    /// Runs a whole prompt through the model with exact attention and stores it in an empty cache; the last token's hidden
    /// state stays on the device for [`DeviceModel::logits`].
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TokenId`], and what the cache or the device refuses.
    pub fn prefill(
        &self,
        tokens: &[u32],
        cache: &mut DeviceCache,
        mut progress: Option<Progress<'_>>,
    ) -> Result<()> {
        self.check_ids(tokens)?;
        self.check_cache(cache)?;
        let prompt = self.begin(tokens)?;
        let needs_energy = cache.needs_query_energy();
        let no_energy = vec![0.0; self.shape.heads.kv_row_len()];
        let steps = self.layers.len() * tokens.len();
        let mut done = 0;
        for (index, layer) in self.layers.iter().enumerate() {
            // Every query needs the keys and values of all tokens before it, so these come first.
            for block in 0..prompt.hidden.len() {
                self.keys_and_values(layer, &prompt, block)?;
            }
            let of_layer = PromptOnDevice {
                num_tokens: prompt.num_tokens,
                segment_tokens: prompt.segment_tokens,
                segments: &prompt.segments,
                query_energy: &no_energy,
            };
            let mut watch = cache.watch_prompt(index, &of_layer, Some(self.rope.rotary_turns()))?;
            for block in 0..prompt.hidden.len() {
                self.attend_block(layer, &prompt, block, needs_energy)?;
                if let Some(watch) = &mut watch {
                    self.show_queries(&prompt, block, watch)?;
                }
                done += prompt.tokens_of(block);
                if let Some(progress) = &mut progress {
                    self.device.gpu().wait()?;
                    progress(done, steps);
                }
            }
            let energy = match needs_energy {
                true => &self.energy_of(&prompt)?,
                false => &no_energy,
            };
            cache.store_prompt(
                index,
                &PromptOnDevice { query_energy: energy, ..of_layer },
                watch,
            )?;
        }
        if let Some(hidden) = prompt.hidden.last() {
            self.keep_last(hidden, prompt.tokens_of(prompt.hidden.len() - 1))?;
        }
        Ok(())
    }

    pub(super) fn check_ids(&self, tokens: &[u32]) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        match tokens.iter().find(|&&token| token as usize >= vocab_size) {
            None => Ok(()),
            Some(&token) => Err(Error::TokenId { token, vocab_size }),
        }
    }

    /// Refuses a cache that is not of this model, or on another device.
    pub(super) fn check_cache(&self, cache: &DeviceCache) -> Result<()> {
        if cache.shape() != self.shape {
            return Err(heterokv_cache::Error::DifferentShapes { index: 0 }.into());
        }
        if !Arc::ptr_eq(cache.device(), &self.device) {
            let conflict = "a cache is on the device of its model; make it there";
            return Err(heterokv_cache::Error::Conflict { conflict }.into());
        }
        Ok(())
    }

    /// Embeds a prompt and makes room for it.
    fn begin(&self, tokens: &[u32]) -> Result<Prompt> {
        let gpu = self.device.gpu();
        let row_len = self.shape.heads.kv_row_len();
        let most = (gpu.limits().binding_bytes as usize / (4 * row_len)).max(BLOCK_TOKENS);
        let segment_tokens =
            (most / BLOCK_TOKENS * BLOCK_TOKENS).min(tokens.len().next_multiple_of(BLOCK_TOKENS));
        let mut prompt = Prompt {
            num_tokens: tokens.len(),
            hidden: Vec::new(),
            turns: Vec::new(),
            energy: Vec::new(),
            segment_tokens,
            segments: Vec::new(),
        };
        for first in (0..tokens.len()).step_by(segment_tokens) {
            let left = (tokens.len() - first).next_multiple_of(BLOCK_TOKENS);
            let bytes = (4 * row_len * left.min(segment_tokens)) as u64;
            prompt.segments.push([
                gpu.buffer("a prompt's keys", bytes)?,
                gpu.buffer("a prompt's values", bytes)?,
            ]);
        }
        let hidden_bytes = (4 * BLOCK_TOKENS * self.config.hidden_size) as u64;
        let turn_bytes = (4 * BLOCK_TOKENS * self.config.head_dim) as u64;
        for (block, tokens) in tokens.chunks(BLOCK_TOKENS).enumerate() {
            let hidden = gpu.buffer("a prompt's residual stream", hidden_bytes)?;
            let turns = gpu.buffer("a prompt's cosines and sines", turn_bytes)?;
            let of_block = self.turns(block * BLOCK_TOKENS, tokens.len());
            gpu.write(&turns, 0, bytemuck::cast_slice(&of_block))?;
            self.embed(tokens, Bound::all(&hidden))?;
            prompt.hidden.push(hidden);
            prompt.turns.push(turns);
            prompt.energy.push(gpu.buffer("query energies", energy_bytes(&self.config))?);
        }
        Ok(prompt)
    }

    /// The embeddings of up to a block of tokens, into `y`.
    pub(super) fn embed(&self, tokens: &[u32], y: Bound<'_>) -> Result<()> {
        let gpu = self.device.gpu();
        gpu.write(&self.work.ids, 0, bytemuck::cast_slice(tokens))?;
        let mut commands = Commands::new(gpu);
        let ids = Bound::all(&self.work.ids);
        let embed = Embed { matrix: &self.embedding, ids, tokens: tokens.len(), y };
        self.device.embed(&mut commands, &embed)?;
        Ok(commands.submit()?)
    }

    fn keys_and_values(&self, layer: &Layer, prompt: &Prompt, block: usize) -> Result<()> {
        let tokens = prompt.tokens_of(block);
        let mut commands = Commands::new(self.device.gpu());
        let normed = Bound::all(&self.work.normed);
        let hidden = Bound::all(&prompt.hidden[block]);
        self.norm(&mut commands, tokens, &layer.attn_norm, [hidden, normed])?;
        let [k, v] = prompt.rows_of(block, 4 * self.shape.heads.kv_row_len());
        let projection = layer.projection_k(&self.work, &self.config);
        let turns = Bound::all(&prompt.turns[block]);
        self.project(&mut commands, tokens, &projection, k, turns)?;
        self.multiply(&mut commands, &layer.v, tokens, [normed, v], false)?;
        Ok(commands.submit()?)
    }

    fn attend_block(
        &self,
        layer: &Layer,
        prompt: &Prompt,
        block: usize,
        needs_energy: bool,
    ) -> Result<()> {
        let tokens = prompt.tokens_of(block);
        let mut commands = Commands::new(self.device.gpu());
        let work = &self.work;
        let hidden = Bound::all(&prompt.hidden[block]);
        let normed = Bound::all(&work.normed);
        self.norm(&mut commands, tokens, &layer.attn_norm, [hidden, normed])?;
        let q = Bound::all(&work.q);
        let projection = layer.projection_q(work, &self.config);
        let turns = Bound::all(&prompt.turns[block]);
        self.project(&mut commands, tokens, &projection, q, turns)?;
        let shape = self.shape.heads;
        if needs_energy {
            let energy = Bound::all(&prompt.energy[block]);
            let energy = QueryEnergy { shape, tokens, q, energy };
            self.device.query_energy(&mut commands, &energy)?;
        }
        let first = block * BLOCK_TOKENS;
        for (index, [k, v]) in prompt.segments.iter().enumerate() {
            let start = index * prompt.segment_tokens;
            if start > first {
                break;
            }
            let prefill = Prefill {
                shape,
                qo_len: tokens,
                kv_len: (first + tokens - start).min(prompt.segment_tokens),
                before: first - start,
                adds: index > 0,
                q,
                k: Bound::all(k),
                v: Bound::all(v),
                out: Bound::all(&work.attended),
                lse: Bound::all(&work.lse),
            };
            self.device.prefill(&mut commands, &prefill)?;
        }
        self.finish_layer(&mut commands, layer, tokens, hidden)?;
        Ok(commands.submit()?)
    }

    /// Shows the queries of a block, which were worked out last, to a cache that forgets, as far as it looks at them.
    fn show_queries(&self, prompt: &Prompt, block: usize, watch: &mut PromptWatch) -> Result<()> {
        let first = block * BLOCK_TOKENS;
        let tokens = prompt.tokens_of(block);
        let left_out = watch.first_query().saturating_sub(first).min(tokens);
        if left_out < tokens {
            let row_bytes = 4 * self.shape.heads.qo_row_len();
            let span = [left_out, tokens - left_out].map(|rows| (rows * row_bytes) as u64);
            let bytes = self.device.gpu().read(&self.work.q, span[0], span[1])?;
            watch.look(first + left_out, &bytemuck::pod_collect_to_vec::<u8, f32>(&bytes))?;
        }
        Ok(())
    }

    /// Query energies of the layer at hand `[num_kv_heads, head_dim]`, added up in f64.
    fn energy_of(&self, prompt: &Prompt) -> Result<Vec<f64>> {
        let gpu = self.device.gpu();
        let mut sums = vec![0.0; self.shape.heads.kv_row_len()];
        for (block, energy) in prompt.energy.iter().enumerate() {
            let stretches = prompt.tokens_of(block).div_ceil(QueryEnergy::STRETCH);
            let bytes = gpu.read(energy, 0, (4 * stretches * sums.len()) as u64)?;
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            for stretch in values.chunks_exact(sums.len()) {
                sums.iter_mut().zip(stretch).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        Ok(sums)
    }
}

impl Prompt {
    fn tokens_of(&self, block: usize) -> usize {
        (self.num_tokens - block * BLOCK_TOKENS).min(BLOCK_TOKENS)
    }

    /// Where the keys and values of a block are.
    fn rows_of(&self, block: usize, row_bytes: usize) -> [Bound<'_>; 2] {
        let first = block * BLOCK_TOKENS;
        let (segment, within) = (first / self.segment_tokens, first % self.segment_tokens);
        let (start, num_bytes) = (within * row_bytes, self.tokens_of(block) * row_bytes);
        let [k, v] = &self.segments[segment];
        [k, v].map(|rows| Bound::part(rows, start as u64, num_bytes as u64))
    }
}
