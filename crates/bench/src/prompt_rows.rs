//! Queries, keys and values of a prompt as they pass through a model's attention, and longer prompts made of them.
//!
//! A context beyond the prompt holds its tokens over and over. Scores and sums cost the same as those of other rows;
//! what a selection takes, and how far a compressed cache is from the full one, is not that of a text so long.

use anyhow::{Result, ensure};
use half::f16;
use heterokv_attn::HeadShape;
use heterokv_cache::{CacheConfig, KvCache, KvShape, PromptLayer};
use heterokv_model::Model;
use heterokv_quant::Level;

use crate::synthetic;

/// Tokens at the beginning of a prompt whose queries tell coders which channels matter.
const FIRST_QUERIES: usize = 256;

/// Tokens at the end of a prompt whose queries tell caches that forget which tokens matter.
const WINDOW_QUERIES: usize = 64;

/// Those of them whose queries are asked.
const LAST_QUERIES: usize = 8;

/// A prompt in every layer.
pub(crate) struct PromptRows {
    pub(crate) shape: KvShape,
    pub(crate) num_tokens: usize,
    /// Hidden states of the last layer `[num_tokens, hidden_size]`; empty where no model made the rows.
    pub(crate) hidden: Vec<f32>,
    layers: Vec<LayerRows>,
}

/// A prompt in one layer, post-RoPE. Keys and values are rounded to f16, as a full cache holds them.
#[derive(Clone, Default)]
struct LayerRows {
    /// `[num_tokens, num_kv_heads, head_dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Of the first tokens `[n, num_qo_heads, head_dim]`.
    first_queries: Vec<f32>,
    /// Of the last tokens `[n, num_qo_heads, head_dim]`.
    last_queries: Vec<f32>,
}

/// Where the tiles of a repeated prompt stand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tiles<'a> {
    /// All at the positions of the prompt: behind a long context every one of them is far away.
    Plain,
    /// The last one where it stands, and each one before it a token before the next.
    Near {
        /// The angle per position of each pair of channels, in the half-split pairing, `[head_dim / 2]`.
        frequencies: &'a [f32],
    },
}

/// One layer of a context: keys and values `[num_tokens, num_kv_heads, head_dim]`, f32.
pub(crate) struct Context<'a> {
    heads: HeadShape,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    first_queries: &'a [f32],
    last_queries: &'a [f32],
}

impl PromptRows {
    /// The rows of `tokens` in all layers of `model`.
    ///
    /// # Errors
    /// As [`Model::prefill_observed`].
    pub(crate) fn of_model(model: &Model, tokens: &[u32]) -> Result<Self> {
        let shape = model.kv_shape();
        let row_len = shape.heads.qo_row_len();
        let mut layers = vec![LayerRows::default(); shape.num_layers];
        let last = tokens.len().saturating_sub(WINDOW_QUERIES);
        let hidden = model.prefill_observed(tokens, &mut [], &mut |block| {
            let layer = &mut layers[block.layer];
            if block.first == 0 {
                layer.keys = rounded(block.k);
                layer.values = rounded(block.v);
                let num_queries = block.q.len().min(FIRST_QUERIES * row_len);
                layer.first_queries.extend_from_slice(&block.q[..num_queries]);
            }
            let skipped = last.saturating_sub(block.first).saturating_mul(row_len);
            layer.last_queries.extend_from_slice(&block.q[skipped.min(block.q.len())..]);
        })?;
        Ok(Self { shape, num_tokens: tokens.len(), hidden, layers })
    }

    /// One layer that no model made, of three KV heads with three query heads each.
    ///
    /// # Errors
    /// None that this call is known to make.
    pub(crate) fn synthetic(num_tokens: usize) -> Result<Self> {
        let heads = HeadShape::new(9, 3, 64)?;
        let (group, dim) = (heads.group_size(), heads.head_dim);
        let rows: Vec<_> = (0..heads.num_kv_heads as u64)
            .map(|head| synthetic::head(head, dim, group, num_tokens))
            .collect();
        let join = |row_len: usize, of: fn(&heterokv_eval::HeadRows) -> &[f32]| -> Vec<f32> {
            let tokens = 0..num_tokens;
            let rows = tokens.flat_map(|t| rows.iter().map(move |rows| &of(rows)[t * row_len..]));
            rows.flat_map(|row| &row[..row_len]).copied().collect()
        };
        let queries = join(group * dim, |rows| &rows.queries);
        let last = num_tokens.saturating_sub(WINDOW_QUERIES) * heads.qo_row_len();
        let first = num_tokens.min(FIRST_QUERIES) * heads.qo_row_len();
        let layer = LayerRows {
            keys: rounded(&join(dim, |rows| &rows.keys)),
            values: rounded(&join(dim, |rows| &rows.values)),
            first_queries: queries[..first].to_vec(),
            last_queries: queries[last..].to_vec(),
        };
        let shape = KvShape { num_layers: 1, heads };
        Ok(Self { shape, num_tokens, hidden: Vec::new(), layers: vec![layer] })
    }

    /// The layer in the middle, as good as any to measure one on.
    pub(crate) fn middle(&self) -> usize {
        self.shape.num_layers / 2
    }

    /// Queries of the last tokens in `layer`, each `[num_qo_heads, head_dim]`.
    pub(crate) fn queries(&self, layer: usize) -> impl Iterator<Item = &[f32]> {
        let queries = self.layers[layer].last_queries.chunks_exact(self.shape.heads.qo_row_len());
        let skipped = queries.len().saturating_sub(LAST_QUERIES);
        queries.skip(skipped)
    }

    /// `num_tokens` tokens of `layer`: the prompt, or its beginning, or the prompt over and over.
    pub(crate) fn context(&self, layer: usize, num_tokens: usize) -> Context<'_> {
        self.tiled(layer, num_tokens, Tiles::Plain)
    }

    /// As [`PromptRows::context`], the repeated prompts standing where `tiles` says.
    pub(crate) fn tiled(&self, layer: usize, num_tokens: usize, tiles: Tiles<'_>) -> Context<'_> {
        let layer = &self.layers[layer];
        let len = num_tokens * self.shape.heads.kv_row_len();
        let tiled = |rows: &[f32]| -> Vec<f32> { rows.iter().copied().cycle().take(len).collect() };
        let mut keys = tiled(&layer.keys);
        if let Tiles::Near { frequencies } = tiles {
            self.turn_near(&mut keys, frequencies);
        }
        Context {
            heads: self.shape.heads,
            keys,
            values: tiled(&layer.values),
            first_queries: &layer.first_queries,
            last_queries: &layer.last_queries,
        }
    }

    /// Turns the keys of tiled prompts `[num_tokens, num_kv_heads, head_dim]`: the last tile to where it stands, each one
    /// before it to a token before the next one.
    fn turn_near(&self, keys: &mut [f32], frequencies: &[f32]) {
        let (row_len, head_dim) = (self.shape.heads.kv_row_len(), self.shape.heads.head_dim);
        let num_tokens = keys.len() / row_len;
        let num_tiles = num_tokens.div_ceil(self.num_tokens);
        for (tile, keys) in keys.chunks_mut(self.num_tokens * row_len).enumerate() {
            let num_behind = num_tiles - 1 - tile;
            let turn = match num_behind {
                0 => tile * self.num_tokens,
                _ => (num_tokens - self.num_tokens).saturating_sub(num_behind),
            };
            let turns: Vec<(f32, f32)> = frequencies
                .iter()
                .map(|&frequency| {
                    let (sin, cos) = (turn as f64 * f64::from(frequency)).sin_cos();
                    (sin as f32, cos as f32)
                })
                .collect();
            for key in keys.chunks_exact_mut(head_dim) {
                let (first, second) = key.split_at_mut(head_dim / 2);
                for ((a, b), &(sin, cos)) in first.iter_mut().zip(second).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// Whether a context of `num_tokens` is one of a text that was read.
    pub(crate) fn is_real(&self, num_tokens: usize) -> bool {
        num_tokens <= self.num_tokens
    }
}

impl Context<'_> {
    /// Stores the context in `layer` of `caches`, as a prompt.
    ///
    /// # Errors
    /// What a cache refuses, and contexts without tokens.
    pub(crate) fn store(&self, caches: &mut [KvCache], layer: usize, level: Level) -> Result<()> {
        ensure!(!self.keys.is_empty(), "a context has a token at least");
        let num_tokens = self.keys.len() / self.heads.kv_row_len();
        let prompt = PromptLayer::new(self.heads, level, &self.keys, &self.values)?;
        let mut prompt = prompt.watch(caches, None)?;
        // Only to show the queries: the first ones, whose attention over so few tokens costs nothing, and the last ones to
        // caches that choose by them what they keep.
        let row_len = self.heads.qo_row_len();
        let first = &self.first_queries[..self.first_queries.len().min(num_tokens * row_len)];
        prompt.attend(0, first, &mut vec![0.0; first.len()])?;
        let forgets = |cache: &KvCache| matches!(cache.config(), CacheConfig::Hca(hca) if hca.evict.is_some());
        if caches.iter().any(forgets) {
            let num_left = num_tokens - first.len() / row_len;
            let num_last = num_left.min(self.last_queries.len() / row_len);
            let last = &self.last_queries[self.last_queries.len() - num_last * row_len..];
            prompt.attend(num_tokens - num_last, last, &mut vec![0.0; last.len()])?;
        }
        Ok(prompt.store(caches, layer)?)
    }
}

fn rounded(rows: &[f32]) -> Vec<f32> {
    rows.iter().map(|&x| f16::from_f32(x).to_f32()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::Place;

    #[test]
    fn a_model_gives_the_rows_that_its_cache_holds() {
        let level = Level::detect();
        let subject = Place::tiny().load(40, level).expect("every checkout has it");
        let rows = PromptRows::of_model(&subject.model, &subject.tokens).expect("it computes");
        let shape = rows.shape;
        let new = || KvCache::new(shape, CacheConfig::Full, level, None).expect("it is valid");
        let mut expected = [new()];
        subject.model.prefill(&subject.tokens, &mut expected, None).expect("it computes");
        let mut stored = [new()];
        for layer in 0..shape.num_layers {
            rows.context(layer, 40).store(&mut stored, layer, level).expect("it fits");
        }
        let query: Vec<f32> = rows.queries(1).next().expect("some of them").to_vec();
        assert_eq!(rows.queries(1).count(), LAST_QUERIES);
        let attend = |caches: &mut [KvCache; 1]| {
            let mut out = vec![0.0; query.len()];
            caches[0].attend(1, &query, &mut out).expect("it computes");
            out
        };
        assert_eq!(attend(&mut stored), attend(&mut expected));
        assert_eq!(rows.hidden.len(), 40 * subject.model.config().hidden_size);
    }

    #[test]
    fn longer_contexts_repeat_the_prompt_and_shorter_ones_cut_it() {
        let rows = PromptRows::synthetic(20).expect("it is made");
        let row_len = rows.shape.heads.kv_row_len();
        let long = rows.context(0, 50);
        assert_eq!(long.keys.len(), 50 * row_len);
        assert_eq!(long.keys[40 * row_len..], long.keys[..10 * row_len]);
        assert_eq!(long.values[20 * row_len..40 * row_len], long.values[..20 * row_len]);
        assert_eq!(rows.context(0, 7).keys, long.keys[..7 * row_len]);
        assert!(rows.is_real(20) && !rows.is_real(21));
    }

    #[test]
    fn near_tiles_have_the_scores_of_the_prompt_and_plain_ones_do_not() {
        let rows = PromptRows::synthetic(20).expect("it is made");
        let (row_len, head_dim) = (rows.shape.heads.kv_row_len(), rows.shape.heads.head_dim);
        let frequencies: Vec<f32> =
            (0..head_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let plain = rows.tiled(0, 60, Tiles::Plain);
        let near = rows.tiled(0, 60, Tiles::Near { frequencies: &frequencies });
        assert_eq!(near.values, plain.values);
        // A query at the end of the prompt, and the same turned to the end of the context.
        let score = |query: &[f32], keys: &[f32], token: usize| -> f64 {
            let key = &keys[token * row_len..][..head_dim];
            query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let query: Vec<f32> = rows.queries(0).last().expect("one")[..head_dim].to_vec();
        let mut turned = query.clone();
        let (first, second) = turned.split_at_mut(head_dim / 2);
        for ((a, b), &frequency) in first.iter_mut().zip(second).zip(&frequencies) {
            let (sin, cos) = (40.0 * frequency).sin_cos();
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
        for token in 0..20 {
            let expected = score(&query, &plain.keys, token);
            let last = score(&turned, &near.keys, 40 + token);
            assert!((last - expected).abs() < 1e-3, "{token}: {last} {expected}");
        }
        let off = |keys: &[f32]| -> f64 {
            let apart =
                |token| score(&turned, keys, 40 + token) - score(&query, &plain.keys, token);
            (0..20).map(|token| apart(token).abs()).sum()
        };
        assert!(off(&plain.keys) > 1.0, "the query is 40 tokens further away");
        // The tile before the last is one token further back.
        let mut moved = near.keys[20 * row_len..40 * row_len].to_vec();
        let (sin, cos) = frequencies[0].sin_cos();
        let key = &mut moved[..head_dim];
        (key[0], key[head_dim / 2]) =
            (key[0] * cos - key[head_dim / 2] * sin, key[head_dim / 2] * cos + key[0] * sin);
        assert!((key[0] - near.keys[40 * row_len]).abs() < 1e-4);
    }
}
