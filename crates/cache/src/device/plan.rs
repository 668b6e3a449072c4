//! What a cache on a device will take of it, by the sizes that its buffers are made with.

use heterokv_attn::device::{Device, KeySpan, RowPart, RowSlot, ScoreRow, SelectScratch};
use heterokv_attn::{HeadShape, PrefillPattern};
use heterokv_evict::{Budget, Schedule};
use heterokv_gpu::Limits;
use heterokv_quant::KeyFormat;

use super::coded::{ALIGNED_SPANS, table_bytes, table_words};
use super::lists::GrowingList;
use super::prompt::STORED_ROWS;
use super::rows::{PART_TOKENS, RowPool};
use super::scratch::ScratchShape;
use crate::allotment::Allotment;
use crate::coded::CODE_PAGE_TOKENS;
use crate::exact::EXACT_PAGE_TOKENS;
use crate::plan::{DevicePlan, WINDOW_PAGE_TOKENS};
use crate::spec::{CacheConfig, Place};
use crate::{Error, KvShape, Result};

/// How much room a cache has from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Tokens of the prompt, which is stored at once.
    pub prompt_tokens: usize,
    /// Tokens in all.
    pub total_tokens: usize,
}

/// What a cache on a device takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCachePlan {
    /// Bytes of exact rows.
    pub row_bytes: u64,
    /// Bytes of key codes.
    pub code_bytes: u64,
    /// Bytes of what queries are prepared and keys coded with.
    pub frame_bytes: u64,
    /// Bytes that all layers work in.
    pub scratch_bytes: u64,
    /// Bytes of lists of pages and rows, of all layers, at most.
    pub list_bytes: u64,
    /// Bytes of lists that a prompt takes beside that while it is stored.
    pub prompt_bytes: u64,
    pub(super) page_tokens: usize,
    pub(super) row_pages: u64,
    pub(super) states: usize,
    pub(super) scratch: Option<ScratchShape>,
    /// KV heads of a set at most: as many as have their scores in one buffer.
    set_heads: usize,
    total_tokens: usize,
}

/// Bytes of the scores of a set of KV heads at most, where the device's bindings hold more: what a context takes does not
/// depend on the device.
const SCORE_BYTES: u64 = 128 << 20;

/// What the tables of a set take beside those of its KV heads, at most: levels, and words where there is nothing.
const SET_BYTES: usize = 144;

/// Beyond any context: no product of it with the axes of a model overflows.
const MAX_TOKENS: usize = 1 << 32;

/// Refuses what no kernel takes, before anything is made. `tokens` are all that there is to be room for.
fn check_shape(config: &CacheConfig, shape: &KvShape, tokens: usize) -> Result<()> {
    let HeadShape { head_dim, .. } = shape.heads;
    let group_size = shape.heads.group_size();
    let is_coded = config.coded().is_some();
    let refused = |what, value, remedy| Err(Error::DeviceShape { what, value, remedy });
    match config.prefill() {
        PrefillPattern::Exact => {}
        pattern => return Err(Error::PrefillNotOnDevice { pattern }),
    }
    if !head_dim.is_multiple_of(4) || head_dim > Device::MAX_HEAD_DIM {
        return refused("a head_dim", head_dim, "whole fours up to 256; use the CPU");
    }
    if is_coded && group_size > SelectScratch::MAX_GROUP_SIZE {
        return refused("a group", group_size, "up to 32 query heads share a KV head; use `full`");
    }
    if tokens > MAX_TOKENS {
        return refused("a context", tokens, "up to 4,294,967,296 tokens");
    }
    if is_coded && tokens > SelectScratch::MAX_TOKENS {
        return refused("a context", tokens, "up to 4,194,304 tokens are selected from");
    }
    Ok(())
}

/// Refuses rows that no kernel reads or moves.
fn check_rows(config: &CacheConfig) -> Result<()> {
    let refused = |cannot| Err(Error::Forgetful { cannot });
    if matches!(config.coded(), Some(hca) if hca.evict.is_some() || hca.values_on == Place::Device)
    {
        return refused(
            "and codes keys, is not on a GPU here; leave --device out, or use exact rows, \
             keys=f16,values=f16@device",
        );
    }
    match config.forgetting() {
        Some((_, eviction)) if eviction.schedule != Schedule::Once => refused(
            "can do so behind the prompt only on a GPU; add every=once, or leave --device out",
        ),
        Some((_, eviction)) if eviction.budget == Budget::Global => refused(
            "cannot share its rows out over all layers on a GPU; use another budget than global, or leave \
             --device out",
        ),
        _ => Ok(()),
    }
}

/// The most tokens of a prompt that each head of a cache of exact rows holds, `[num_layers, num_kv_heads]`.
fn kept_of_prompt(
    config: &CacheConfig,
    shape: &KvShape,
    prompt_tokens: usize,
) -> Result<Vec<usize>> {
    let limits = match config.forgetting() {
        None => vec![prompt_tokens; shape.places().count()],
        Some((hca, eviction)) => Allotment::new(hca, eviction, shape)?.limits(prompt_tokens)?,
    };
    Ok(limits.into_iter().map(|limit| limit.min(prompt_tokens)).collect())
}

impl DeviceCachePlan {
    /// Of a cache of `config` on a device with these limits.
    ///
    /// # Errors
    /// When a key format or a mix of them refuses the shape, [`Error::NotOnDevice`] and [`Error::DeviceShape`];
    /// [`heterokv_evict::Error::NoMass`] for a selection by threshold, which no kernel makes.
    pub fn new(
        config: &CacheConfig,
        shape: &KvShape,
        limits: Limits,
        reservation: Reservation,
    ) -> Result<Self> {
        let heads = shape.heads;
        let page_tokens = match (config, config.coded()) {
            (_, Some(_)) => WINDOW_PAGE_TOKENS,
            (CacheConfig::Hca(hca), None) => hca.exact_page_tokens(),
            (CacheConfig::Full, None) => EXACT_PAGE_TOKENS,
        };
        let total_tokens = reservation.total_tokens.max(reservation.prompt_tokens);
        check_shape(config, shape, total_tokens)?;
        check_rows(config)?;
        let mut plan = Self {
            row_bytes: 0,
            code_bytes: 0,
            frame_bytes: 0,
            scratch_bytes: 0,
            list_bytes: 0,
            prompt_bytes: 0,
            page_tokens,
            row_pages: 0,
            states: 0,
            scratch: None,
            set_heads: heads.num_kv_heads,
            total_tokens,
        };
        // Of the head that has most.
        let mut most_rows = 0;
        match config.coded() {
            None => {
                let behind = total_tokens - reservation.prompt_tokens;
                let kept = kept_of_prompt(config, shape, reservation.prompt_tokens)?;
                most_rows = kept.iter().max().map_or(0, |most| most + behind);
                let pages = kept.iter().map(|kept| (kept + behind).div_ceil(page_tokens) as u64);
                plan.row_pages = pages.sum();
                let rows = (reservation.prompt_tokens * heads.num_kv_heads).min(STORED_ROWS);
                plan.prompt_bytes = GrowingList::<RowSlot>::bytes(rows) as u64;
            }
            Some(hca) => {
                hca.keys.check(shape)?;
                hca.selector()?.enough()?;
                let (mut most_coded, mut most_words, mut most_spans) = (0, 0, 0);
                let counts = hca.keys.counts(shape);
                for &(format, count) in &counts {
                    let of_head = DevicePlan::new(format, hca, shape)?;
                    let sinks = of_head.sinks.min(total_tokens);
                    let window = of_head.most_window(reservation.prompt_tokens, total_tokens);
                    // The window can begin at the end of a page.
                    let pages = sinks.div_ceil(page_tokens)
                        + (window + page_tokens - 1).div_ceil(page_tokens);
                    plan.row_pages += (count * pages) as u64;
                    most_rows = most_rows.max(sinks + window + page_tokens);
                    let coded = of_head.coded_after_prompt(total_tokens);
                    let layout = format.layout(heads.head_dim)?;
                    let page = layout.bytes(CODE_PAGE_TOKENS) + 16;
                    plan.code_bytes += (count * coded.div_ceil(CODE_PAGE_TOKENS) * page) as u64;
                    let tables = table_bytes(format, heads.head_dim)?;
                    if coded > 0 {
                        plan.frame_bytes += (count * tables) as u64;
                    }
                    most_coded = most_coded.max(coded);
                    let at_once = of_head.coded_after_prompt(reservation.prompt_tokens);
                    let unit = match layout.group_tokens {
                        1 => CODE_PAGE_TOKENS,
                        group_tokens => group_tokens,
                    };
                    most_spans = most_spans.max(at_once.div_ceil(unit));
                    most_words = most_words.max(table_words(format, heads.head_dim));
                }
                let of_head = 4 * heads.group_size() * most_coded.max(1);
                let score_bytes = limits.binding_bytes.min(SCORE_BYTES) as usize;
                plan.set_heads = (score_bytes / of_head).clamp(1, heads.num_kv_heads);
                plan.prompt_bytes = (plan.set_heads * most_spans * size_of::<KeySpan>()) as u64;
                if most_coded > 0 {
                    plan.scratch = Some(ScratchShape {
                        heads: plan.set_heads,
                        table_words: most_words,
                        max_tokens: most_coded,
                    });
                }
            }
        }
        plan.row_bytes = plan.row_pages * RowPool::page_bytes(heads.head_dim, page_tokens);
        // A state of the host, and one of every stretch of rows.
        let stretches = most_rows.div_ceil(PART_TOKENS) + 2;
        plan.states = heads.num_kv_heads * (1 + stretches);
        plan.list_bytes = plan.lists_of(config, shape, limits, stretches);
        let state_bytes = 4 * plan.states * heads.group_size() * (heads.head_dim + 1);
        let step_bytes = 4 * (heads.qo_row_len() + 2 * heads.num_qo_heads);
        plan.scratch_bytes =
            (state_bytes + step_bytes) as u64 + plan.scratch.map_or(0, |size| size.bytes(heads));
        Ok(plan)
    }

    /// All that stays.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.row_bytes + self.code_bytes + self.frame_bytes + self.scratch_bytes + self.list_bytes
    }

    /// Bytes of the lists of all layers where the rows of a head lie in so many stretches.
    fn lists_of(
        &self,
        config: &CacheConfig,
        shape: &KvShape,
        limits: Limits,
        stretches: usize,
    ) -> u64 {
        let heads = shape.heads.num_kv_heads;
        let slabs = self.row_bytes.div_ceil(limits.binding_bytes).max(1) as usize;
        let pages = self.row_pages.div_ceil(shape.num_layers.max(1) as u64) as usize;
        let of_slab =
            GrowingList::<RowPart>::bytes(heads * stretches) + GrowingList::<RowSlot>::bytes(heads);
        let of_rows = slabs * of_slab
            + GrowingList::<u32>::bytes(pages)
            + GrowingList::<u32>::bytes(heads + 1)
            + GrowingList::<u32>::bytes(heads * (1 + stretches));
        let of_set = |(_, heads): (KeyFormat, Vec<usize>)| {
            GrowingList::<ScoreRow>::bytes(heads.len() * shape.heads.group_size())
                + GrowingList::<KeySpan>::bytes(heads.len().next_multiple_of(ALIGNED_SPANS))
                + SET_BYTES
                + size_of::<u32>() * heads.len()
        };
        let of_sets = (0..shape.num_layers)
            .flat_map(|layer| self.sets(config, shape, layer))
            .map(of_set)
            .sum::<usize>();
        (shape.num_layers * of_rows + of_sets) as u64
    }

    /// The sets of coded keys of a layer: KV heads of one format each, not too many for their scores.
    pub(super) fn sets(
        &self,
        config: &CacheConfig,
        shape: &KvShape,
        layer: usize,
    ) -> Vec<(KeyFormat, Vec<usize>)> {
        let Some(hca) = config.coded() else { return Vec::new() };
        let mut sets: Vec<(KeyFormat, Vec<usize>)> = Vec::new();
        for kv_head in 0..shape.heads.num_kv_heads {
            let format = hca.keys.format((layer, kv_head));
            let open =
                sets.iter_mut().find(|(own, heads)| *own == format && heads.len() < self.set_heads);
            match open {
                Some((_, heads)) => heads.push(kv_head),
                None => sets.push((format, vec![kv_head])),
            }
        }
        sets
    }

    /// Coded tokens of a head of that format for which there is to be room.
    pub(super) fn coded_tokens(
        &self,
        config: &CacheConfig,
        shape: &KvShape,
        format: KeyFormat,
    ) -> Result<usize> {
        let Some(hca) = config.coded() else { return Ok(0) };
        Ok(DevicePlan::new(format, hca, shape)?.coded_after_prompt(self.total_tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_refused_by_name() {
        let shape = KvShape { num_layers: 1, heads: HeadShape::new(4, 2, 64).unwrap() };
        let reservation = Reservation { prompt_tokens: 1000, total_tokens: 2000 };
        let plan = |select: &str| {
            let spec: crate::CacheSpec =
                format!("keys=int4-token,select={select}").parse().unwrap();
            let config = spec.resolve(&shape, None).unwrap();
            DeviceCachePlan::new(&config, &shape, Limits::WEBGPU_MINIMUM, reservation)
        };
        assert!(plan("top-p:0.9").is_ok());
        let error = plan("threshold:0.9").unwrap_err();
        assert!(matches!(error, Error::Evict(heterokv_evict::Error::NoMass)), "{error}");
    }
}
