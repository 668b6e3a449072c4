//! What the host looks at while a prompt passes on a device, for a cache that forgets.

use heterokv_evict::{RotaryTurns, Scorer};

use super::{DeviceCache, PromptOnDevice};
use crate::cache::{check_finite, check_len};
use crate::prompt::rows_of_heads;
use crate::watch::Watch;
use crate::{Error, Result};

/// One layer of a prompt as a cache that forgets looks at it: its keys, which have come to the
/// host, and what its queries attend to.
#[derive(Debug)]
pub struct PromptWatch {
    watch: Watch,
    /// Post-RoPE keys `[num_tokens, num_kv_heads, head_dim]`.
    keys: Vec<f32>,
    first_query: usize,
    row_len: usize,
}

impl DeviceCache {
    /// Begins to look at a layer of a prompt whose keys and values are there; none where the cache
    /// forgets nothing. What is expected of queries to come needs `turns`, the model's rotary
    /// embedding.
    ///
    /// # Errors
    /// As [`DeviceCache::store_prompt`], and [`Error::NoRotary`].
    pub fn watch_prompt(
        &self,
        layer: usize,
        prompt: &PromptOnDevice<'_>,
        turns: Option<RotaryTurns<'_>>,
    ) -> Result<Option<PromptWatch>> {
        let Some((hca, eviction)) = self.config.forgetting() else { return Ok(None) };
        self.check_prompt(layer, prompt)?;
        let keys = self.rows_of(prompt, 0)?;
        check_finite("k", &keys)?;
        let of_cache = std::iter::once((eviction, hca.sinks));
        let watch = Watch::new(self.level, self.shape.heads, &keys, of_cache, turns)?;
        let first_query = watch.first_query();
        Ok(Some(PromptWatch { watch, keys, first_query, row_len: self.shape.heads.qo_row_len() }))
    }

    /// The tokens of a prompt that each KV head of a layer is to hold, ascending; none where all
    /// are.
    pub(super) fn kept_of_prompt(
        &mut self,
        layer: usize,
        prompt: &PromptOnDevice<'_>,
        watch: Option<PromptWatch>,
    ) -> Result<Option<Vec<Vec<u32>>>> {
        let Some((hca, eviction)) = self.config.forgetting() else { return Ok(None) };
        let PromptWatch { watch, keys, .. } = watch.ok_or(Error::NotWatched { layer })?;
        check_len("k", keys.len(), prompt.num_tokens * self.shape.heads.kv_row_len())?;
        let heads = self.shape.heads;
        let values = match eviction.scoring.scorer {
            Scorer::Expected => {
                let values = self.rows_of(prompt, 1)?;
                check_finite("v", &values)?;
                rows_of_heads(&heads, &values)
            }
            // Nobody looks at them.
            _ => vec![Vec::new(); heads.num_kv_heads],
        };
        let keys = rows_of_heads(&heads, &keys);
        let evidence = watch.evidence(eviction, hca.sinks, &keys, &values)?;
        let evidence = evidence.ok_or(Error::NotWatched { layer })?;
        let policy = self.policy.as_mut().ok_or(Error::NotWatched { layer })?;
        let kept = policy.keep_of_prompt(layer, prompt.num_tokens, evidence)?;
        Ok(Some(kept.into_iter().map(|kept| kept.positions).collect()))
    }
}

impl PromptWatch {
    /// The first token of the prompt whose queries are looked at; `usize::MAX` where none are.
    #[must_use]
    pub fn first_query(&self) -> usize {
        self.first_query
    }

    /// Looks at post-RoPE queries `q [n, num_qo_heads, head_dim]` of the tokens from `first` on.
    /// All from [the first](PromptWatch::first_query) on are to be shown, in their order.
    ///
    /// # Errors
    /// [`Error::Length`], and queries that are not finite.
    pub fn look(&mut self, first: usize, q: &[f32]) -> Result<()> {
        check_len("q", q.len(), q.len() / self.row_len * self.row_len)?;
        check_finite("q", q)?;
        self.watch.look(first, q)
    }
}
