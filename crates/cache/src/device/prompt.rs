//! A prompt into a cache on a device, layer by layer.

use std::ops::Range;
use std::sync::Arc;

use heterokv_attn::HeadShape;
use heterokv_attn::device::{KeyRows, RowSlot};
use heterokv_gpu::{Bound, Buffer, Commands};
use heterokv_quant::RowFormat;

use super::coded::{KeySource, KeyStretch, KeysToCode};
use super::lists::RowLists;
use super::{DeviceCache, Layer, PromptWatch};
use crate::cache::{check_finite, check_len};
use crate::prompt::rows_of_head;
use crate::{Error, Result};

/// Rows whose places are listed at a time.
pub(super) const STORED_ROWS: usize = 1 << 16;

/// Bytes that are read of the device at a time: what the host holds beside the rows.
const READ_BYTES: usize = 16 << 20;

/// The exact keys and values of a prompt in one layer, on the device.
#[derive(Clone, Copy, Debug)]
pub struct PromptOnDevice<'a> {
    /// Tokens.
    pub num_tokens: usize,
    /// Tokens of a segment; the last has what is left.
    pub segment_tokens: usize,
    /// Post-RoPE keys and values `[segment_tokens, num_kv_heads, head_dim]`, f32, segment by segment.
    pub segments: &'a [[Buffer; 2]],
    /// Sum of q² over the prompt's queries, by channel of each KV head `[num_kv_heads, head_dim]`.
    pub query_energy: &'a [f64],
}

impl PromptOnDevice<'_> {
    /// Tokens of a segment.
    fn tokens_of(&self, index: usize) -> usize {
        let before = index.saturating_mul(self.segment_tokens);
        self.num_tokens.saturating_sub(before).min(self.segment_tokens)
    }

    /// Where the keys of some tokens are, `word` words into rows of `row_words`.
    fn stretches(&self, tokens: Range<usize>, word: usize, row_words: usize) -> Vec<KeyStretch> {
        let of_segment = |buffer: usize| {
            let start = buffer * self.segment_tokens;
            let first = tokens.start.clamp(start, start + self.tokens_of(buffer)) - start;
            let end = tokens.end.clamp(start, start + self.tokens_of(buffer)) - start;
            KeyStretch { buffer, word: first * row_words + word, num_tokens: end - first }
        };
        let segments = (0..self.segments.len()).map(of_segment);
        segments.filter(|stretch| stretch.num_tokens > 0).collect()
    }
}

impl DeviceCache {
    /// Stores the prompt of a layer that holds nothing yet. The rows of an `hca` cache come to the host for that; those of
    /// exact rows do not. A cache that forgets holds of each head what it makes of what `watch` has seen.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NotEmpty`], [`Error::Length`], [`Error::NotWatched`], rows that come to the host and
    /// are not finite, and what the device lacks.
    pub fn store_prompt(
        &mut self,
        layer: usize,
        prompt: &PromptOnDevice<'_>,
        watch: Option<PromptWatch>,
    ) -> Result<()> {
        let HeadShape { num_kv_heads, head_dim, .. } = self.shape.heads;
        self.check_prompt(layer, prompt)?;
        check_len("query_energy", prompt.query_energy.len(), num_kv_heads * head_dim)?;
        let entered = self.enter()?;
        if self.config.coded().is_none() {
            let kept = self.kept_of_prompt(layer, prompt, watch)?;
            self.store_exact(layer, prompt, kept.as_deref())?;
            self.leave(entered);
            return Ok(());
        }
        let keys = self.rows_of(prompt, 0)?;
        let values = self.rows_of(prompt, 1)?;
        check_finite("k", &keys)?;
        check_finite("v", &values)?;
        let shape = self.shape.heads;
        for kv_head in 0..num_kv_heads {
            let energy = &prompt.query_energy[kv_head * head_dim..][..head_dim];
            self.layers[layer].add_query_energy(kv_head, energy.iter().copied());
            let [keys, values] = [&keys, &values].map(|rows| rows_of_head(&shape, rows, kv_head));
            self.store_head((layer, kv_head), [&keys, &values])?;
        }
        self.code_prompt(layer, prompt, &|kv_head| rows_of_head(&shape, &keys, kv_head))?;
        self.leave(entered);
        Ok(())
    }

    /// Refuses a prompt that a layer cannot take.
    pub(super) fn check_prompt(&self, layer: usize, prompt: &PromptOnDevice<'_>) -> Result<()> {
        self.check_layer(layer)?;
        let num_tokens = self.layers[layer].num_tokens(0);
        if num_tokens > 0 {
            return Err(Error::NotEmpty { layer, num_tokens });
        }
        let num_segments = prompt.num_tokens.div_ceil(prompt.segment_tokens.max(1));
        check_len("segments", prompt.segments.len(), num_segments)?;
        for (index, segment) in prompt.segments.iter().enumerate() {
            let expected = prompt.tokens_of(index) * self.shape.heads.kv_row_len();
            for (tensor, rows) in [("k", &segment[0]), ("v", &segment[1])] {
                let actual = rows.num_bytes() as usize / 4;
                if actual < expected {
                    return Err(Error::Length { tensor, actual, expected });
                }
            }
        }
        Ok(())
    }

    /// Codes the keys of a prompt whose rows are stored; `rows_of` gives those of a KV head, on the host.
    fn code_prompt(
        &mut self,
        layer: usize,
        prompt: &PromptOnDevice<'_>,
        rows_of: &dyn Fn(usize) -> Vec<f32>,
    ) -> Result<()> {
        let HeadShape { num_kv_heads, head_dim, .. } = self.shape.heads;
        let device = Arc::clone(&self.device);
        let source = KeySource {
            rows: KeyRows::F32,
            key_stride: num_kv_heads * head_dim,
            key_words: head_dim,
            buffers: prompt.segments.iter().map(|[k, _]| k).collect(),
            is_once: true,
        };
        let Layer { heads, sets, .. } = &mut self.layers[layer];
        let coded = |kv_head: usize| {
            let head = &heads[kv_head];
            head.resident.len()..prompt.num_tokens - head.window.len()
        };
        let on_host = |kv_head: usize| {
            let tokens = coded(kv_head);
            rows_of(kv_head)[tokens.start * head_dim..tokens.end * head_dim].to_vec()
        };
        let mut commands = Commands::new(device.gpu());
        for set in sets {
            let of = |&kv_head: &usize| {
                prompt.stretches(coded(kv_head), kv_head * head_dim, num_kv_heads * head_dim)
            };
            let stretches = set.heads().iter().map(of).collect();
            let keys = KeysToCode { source: &source, stretches, on_host: &on_host };
            set.code(&device, &mut commands, self.level, &keys)?;
        }
        Ok(commands.submit()?)
    }

    /// Keys (0) or values (1) of a prompt `[num_tokens, num_kv_heads, head_dim]`, on the host.
    pub(super) fn rows_of(&self, prompt: &PromptOnDevice<'_>, which: usize) -> Result<Vec<f32>> {
        let gpu = self.device.gpu();
        let row_bytes = 4 * self.shape.heads.kv_row_len();
        let mut rows = Vec::with_capacity(prompt.num_tokens * self.shape.heads.kv_row_len());
        for (index, segment) in prompt.segments.iter().enumerate() {
            let num_bytes = prompt.tokens_of(index) * row_bytes;
            for start in (0..num_bytes).step_by(READ_BYTES) {
                let part = READ_BYTES.min(num_bytes - start);
                let bytes = gpu.read(&segment[which], start as u64, part as u64)?;
                rows.extend(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)));
            }
        }
        Ok(rows)
    }

    /// Stores the rows of a KV head; the keys of those that go to the host are to be coded then.
    pub(super) fn store_head(
        &mut self,
        (layer, kv_head): (usize, usize),
        [keys, values]: [&[f32]; 2],
    ) -> Result<()> {
        let device = Arc::clone(&self.device);
        let gpu = device.gpu();
        let head_dim = self.shape.heads.head_dim;
        let num_tokens = keys.len() / head_dim;
        let Self { rows, layers, host, level, .. } = self;
        let own: &mut Layer = &mut layers[layer];
        let (Some(plan), Some(host)) = (own.heads[kv_head].plan, host) else { return Ok(()) };
        let sinks = plan.sinks.min(num_tokens);
        let num_coded = if own.has_coder(kv_head) {
            // With tables at hand there is no need to wait for enough tokens to fit them.
            plan.whole_groups(num_tokens.saturating_sub(plan.sinks + plan.recent))
        } else {
            plan.coded_after_prompt(num_tokens)
        };
        let cut = |from: usize, to: usize| {
            [&keys[from * head_dim..to * head_dim], &values[from * head_dim..to * head_dim]]
        };
        let [k, v] = cut(0, sinks);
        rows.extend(gpu, &mut own.heads[kv_head].resident, k, v)?;
        if num_coded > 0 {
            let coded = cut(sinks, sinks + num_coded);
            own.hand_over(gpu, *level, host, (layer, kv_head), coded)?;
        }
        let [k, v] = cut(sinks + num_coded, num_tokens);
        let head = &mut own.heads[kv_head];
        rows.extend(gpu, &mut head.window, k, v)?;
        for (key, value) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)) {
            head.window_rows.push_back([as_stored(key)?, as_stored(value)?]);
        }
        Ok(())
    }

    /// Stores exact rows: of each KV head those at `kept`, ascending, or all.
    fn store_exact(
        &mut self,
        layer: usize,
        prompt: &PromptOnDevice<'_>,
        kept: Option<&[Vec<u32>]>,
    ) -> Result<()> {
        let device = Arc::clone(&self.device);
        let gpu = device.gpu();
        let shape = self.shape.heads;
        let step_tokens = (STORED_ROWS / shape.num_kv_heads).max(1);
        let Self { rows, layers, .. } = self;
        let own = &mut layers[layer];
        let of_head = |kv_head: usize| kept.map_or(prompt.num_tokens, |kept| kept[kv_head].len());
        let pages = (0..own.heads.len()).map(|head| of_head(head).div_ceil(rows.page_tokens()));
        rows.make_room(gpu, pages.sum())?;
        // Longer than those of a step, and used once.
        let mut lists = RowLists::new(gpu)?;
        for (index, [k, v]) in prompt.segments.iter().enumerate() {
            let (tokens, start) = (prompt.tokens_of(index), index * prompt.segment_tokens);
            for first in (0..tokens).step_by(step_tokens) {
                let span = first..tokens.min(first + step_tokens);
                let mut slots: Vec<(usize, RowSlot)> = Vec::new();
                for (kv_head, head) in own.heads.iter_mut().enumerate() {
                    let held: Vec<usize> = match kept {
                        None => span.clone().collect(),
                        Some(kept) => {
                            let place = |token| {
                                kept[kv_head].partition_point(|&t| (t as usize) < start + token)
                            };
                            let held = &kept[kv_head][place(span.start)..place(span.end)];
                            held.iter().map(|&token| token as usize - start).collect()
                        }
                    };
                    head.num_forgotten += span.len() - held.len();
                    for token in held {
                        let place = rows.push(gpu, &mut head.resident)?;
                        slots.push(rows.slot(place, token, kv_head));
                    }
                }
                lists.set_slots(gpu, rows, &slots)?;
                let mut commands = Commands::new(gpu);
                let from = [Bound::all(k), Bound::all(v)];
                lists.store(&device, &mut commands, rows, shape, from)?;
                commands.submit()?;
            }
        }
        Ok(())
    }
}

/// A row as f16 holds it.
pub(super) fn as_stored(row: &[f32]) -> Result<Vec<f32>> {
    let mut bytes = vec![0; 2 * row.len()];
    RowFormat::F16.encode(row, &mut bytes)?;
    let mut stored = vec![0.0; row.len()];
    RowFormat::F16.decode(&bytes, &mut stored);
    Ok(stored)
}
