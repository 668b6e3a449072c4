//! What other modules of this crate reach of a cache.

use heterokv_offload::{Arena, Sequence};
use heterokv_quant::{KeyCoder, Level};

use super::KvCache;
use crate::eviction::Eviction;
use crate::head::{HeadCache, Stores};
use crate::policy::Policy;

impl KvCache {
    /// The instruction set that it computes with.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// What decides which tokens are forgotten, and what it decides over.
    pub(crate) fn policy_mut(&mut self) -> (Option<&mut Policy>, &mut [HeadCache], Stores<'_>) {
        let stores = Stores { level: self.level, device: &self.device, host: self.host.as_mut() };
        (self.policy.as_mut(), &mut self.heads, stores)
    }

    /// How tokens are forgotten, and how many of the first stay; none where none are.
    pub(crate) fn eviction(&self) -> Option<(&Eviction, usize)> {
        self.config.forgetting().map(|(hca, eviction)| (eviction, hca.sinks))
    }

    /// What is saved of a cache: heads `[num_layers, num_kv_heads]` and the rows on the host.
    pub(crate) fn parts_mut(&mut self) -> (&mut [HeadCache], &Arena, &mut Option<Sequence>) {
        (&mut self.heads, &self.device, &mut self.host)
    }

    /// The layer's heads and where their tokens go.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut [HeadCache], Stores<'_>) {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        let heads = &mut self.heads[layer * num_kv_heads..][..num_kv_heads];
        (heads, Stores { level: self.level, device: &self.device, host: self.host.as_mut() })
    }

    /// The coder of a (layer, KV head), once one is fitted.
    pub(crate) fn coder(&self, layer: usize, kv_head: usize) -> Option<&KeyCoder> {
        self.heads[layer * self.shape.heads.num_kv_heads + kv_head].coder()
    }
}
