//! One layer of a prompt: attention over itself, then storage in any number of caches.

use heterokv_attn::{HeadShape, PrefillInput, PrefillOutput, PrefillPattern, PromptAttention};
use heterokv_quant::Level;
use rayon::prelude::*;

use heterokv_evict::RotaryTurns;

use crate::cache::{KvCache, check_len};
use crate::head::PromptTokens;
use crate::policy::{Kept, Policy};
use crate::watch::Watch;
use crate::{Error, Result};

/// The exact keys and values of a prompt in one layer.
///
/// The queries come in blocks, so that those of the whole prompt never exist at once; then the
/// layer is stored, and its exact keys and values can be freed. Storing in several caches at once
/// is how these are compared, since the attention is computed once; so they must agree in what the tokens
/// of a prompt attend to ([`CacheConfig::prefill`](crate::CacheConfig::prefill)).
#[derive(Debug)]
pub struct PromptLayer<'a> {
    shape: HeadShape,
    level: Level,
    k: &'a [f32],
    v: &'a [f32],
    attention: PromptAttention,
    /// Sum of q² over the queries seen, by channel of each KV head `[num_kv_heads, head_dim]`.
    query_energy: Vec<f64>,
    /// What caches that forget look at; none where nobody does.
    watch: Option<Watch>,
}

impl<'a> PromptLayer<'a> {
    /// The post-RoPE keys and values `[num_tokens, num_kv_heads, head_dim]` of a prompt, f32.
    ///
    /// # Errors
    /// A shape that is impossible, [`Error::Length`] when the two differ or are not whole tokens,
    /// and values that are not finite.
    pub fn new(shape: HeadShape, level: Level, k: &'a [f32], v: &'a [f32]) -> Result<Self> {
        shape.check()?;
        let row_len = shape.kv_row_len();
        check_len("k", k.len(), k.len() / row_len * row_len)?;
        check_len("v", v.len(), k.len())?;
        let attention = PromptAttention::new(level, shape, k, v, PrefillPattern::Exact)?;
        let query_energy = vec![0.0; shape.num_kv_heads * shape.head_dim];
        Ok(Self { shape, level, k, v, attention, query_energy, watch: None })
    }

    /// Before the first block: attends as `caches` ask for, without them exactly, and looks at queries as
    /// those need it that forget tokens. What is expected of queries to come needs `turns`, the model's
    /// rotary embedding.
    ///
    /// # Errors
    /// [`Error::DifferentPrefills`], [`Error::NoRotary`], and ways of scoring that are impossible.
    pub fn watch(mut self, caches: &[KvCache], turns: Option<RotaryTurns<'_>>) -> Result<Self> {
        let pattern = caches.first().map(|cache| cache.config().prefill()).unwrap_or_default();
        self.attention = self.attention.with_pattern(pattern);
        self.check_prefills(caches)?;
        let mut evictions = caches.iter().filter_map(KvCache::eviction).peekable();
        if evictions.peek().is_some() {
            self.watch = Some(Watch::new(self.level, self.shape, self.k, evictions, turns)?);
        }
        Ok(self)
    }

    /// Refuses caches of another prefill than that of the attention.
    fn check_prefills(&self, caches: &[KvCache]) -> Result<()> {
        let given = self.attention.pattern();
        for (index, cache) in caches.iter().enumerate() {
            let asked = cache.config().prefill();
            if asked != given {
                return Err(Error::DifferentPrefills { index, asked, given });
            }
        }
        Ok(())
    }

    /// Causal attention of the post-RoPE queries `q [n, num_qo_heads, head_dim]` of tokens
    /// `first..first + n` over the prompt up to each of them, into `out`, of the same shape.
    ///
    /// # Errors
    /// [`Error::Length`] when the prompt has fewer tokens, and what attention refuses.
    pub fn attend(&mut self, first: usize, q: &[f32], out: &mut [f32]) -> Result<()> {
        let Self { shape, .. } = *self;
        let kv_len = first.saturating_add(q.len() / shape.qo_row_len());
        let actual = self.attention.num_tokens();
        if kv_len > actual {
            return Err(Error::Length { tensor: "k", actual, expected: kv_len });
        }
        self.attention.attend(first, q, PrefillOutput { out, lse: None })?;
        if let Some(watch) = &mut self.watch {
            watch.look(first, q)?;
        }
        let group_len = shape.group_size() * shape.head_dim;
        let energies = self.query_energy.par_chunks_exact_mut(shape.head_dim);
        energies.enumerate().for_each(|(kv_head, energy)| {
            for token in q.chunks_exact(shape.qo_row_len()) {
                let queries = &token[kv_head * group_len..][..group_len];
                for query in queries.chunks_exact(shape.head_dim) {
                    for (energy, &q) in energy.iter_mut().zip(query) {
                        *energy += f64::from(q) * f64::from(q);
                    }
                }
            }
        });
        Ok(())
    }

    /// Stores the layer in every one of `caches`, all of this shape and empty in `layer`.
    ///
    /// # Errors
    /// [`Error::DifferentShapes`], [`Error::DifferentPrefills`], [`Error::NoSuchLayer`] and
    /// [`Error::NotEmpty`], before anything is stored; or no memory, after which the caches are of no further use.
    pub fn store(self, caches: &mut [KvCache], layer: usize) -> Result<()> {
        for (index, cache) in caches.iter().enumerate() {
            if cache.shape().heads != self.shape {
                return Err(Error::DifferentShapes { index });
            }
            cache.check_empty(layer)?;
        }
        self.check_prefills(caches)?;
        // What queries read is not what is stored; the two need not be in memory together.
        drop(self.attention);
        let head_dim = self.shape.head_dim;
        let num_tokens = self.k.len() / self.shape.kv_row_len();
        let [keys, values] = [self.k, self.v].map(|rows| rows_of_heads(&self.shape, rows));
        caches.par_iter_mut().try_for_each(|cache| {
            let evidence = match cache.eviction() {
                None => None,
                Some((eviction, sinks)) => {
                    let seen = self.watch.as_ref().ok_or(Error::NotWatched { layer })?;
                    let evidence = seen.evidence(eviction, sinks, &keys, &values)?;
                    Some(evidence.ok_or(Error::NotWatched { layer })?)
                }
            };
            let (policy, ..) = cache.policy_mut();
            let keep = |(policy, evidence): (&mut Policy, _)| {
                policy.keep_of_prompt(layer, num_tokens, evidence)
            };
            let kept = policy.zip(evidence).map(keep).transpose()?;
            let (heads, mut stores) = cache.layer_mut(layer);
            for (kv_head, head) in heads.iter_mut().enumerate() {
                head.add_query_energy(&self.query_energy[kv_head * head_dim..][..head_dim]);
                let (keys, values) = (&keys[kv_head], &values[kv_head]);
                match &kept {
                    None => head.store_prompt(&mut stores, keys, values)?,
                    Some(kept) => {
                        let Kept { positions: kept, evidence } = &kept[kv_head];
                        let tokens = PromptTokens { kept, evidence };
                        head.store_kept(&mut stores, keys, values, tokens)?;
                    }
                }
            }
            match cache.policy_mut() {
                (Some(policy), heads, mut stores) => policy.settle(heads, &mut stores, num_tokens),
                _ => Ok(()),
            }
        })
    }
}

/// The rows of one KV head `[num_tokens, head_dim]`, of
/// `rows [num_tokens, num_kv_heads, head_dim]`.
pub(crate) fn rows_of_head(shape: &HeadShape, rows: &[f32], kv_head: usize) -> Vec<f32> {
    let mut of_head = Vec::with_capacity(rows.len() / shape.num_kv_heads);
    for row in rows.chunks_exact(shape.kv_row_len()) {
        of_head.extend_from_slice(&row[kv_head * shape.head_dim..][..shape.head_dim]);
    }
    of_head
}

/// Those of every KV head.
pub(crate) fn rows_of_heads(shape: &HeadShape, rows: &[f32]) -> Vec<Vec<f32>> {
    let heads = (0..shape.num_kv_heads).into_par_iter();
    heads.map(|kv_head| rows_of_head(shape, rows, kv_head)).collect()
}

/// Causal attention of a whole prompt over itself in one layer, and its storage in every
/// cache: [`PromptLayer`] in one call. `out [num_tokens, num_qo_heads, head_dim]` takes the
/// attention outputs.
///
/// # Errors
/// As [`PromptLayer`]; a cache that cannot take the prompt is refused before any attention.
pub fn prefill_layer(
    caches: &mut [KvCache],
    layer: usize,
    input: PrefillInput<'_>,
    out: &mut [f32],
) -> Result<()> {
    let Some(first) = caches.first() else { return Ok(()) };
    let shape = first.shape().heads;
    shape.check()?;
    let num_tokens = input.k.len() / shape.kv_row_len();
    check_len("q", input.q.len(), num_tokens * shape.qo_row_len())?;
    let prompt = PromptLayer::new(shape, first.level(), input.k, input.v)?;
    let mut prompt = prompt.watch(caches, None)?;
    for cache in &*caches {
        cache.check_empty(layer)?;
    }
    prompt.attend(0, input.q, out)?;
    prompt.store(caches, layer)
}
