//! A cache as the layers of a model see it.

use super::KvCache;
use crate::Result;

/// What the layers of a model ask of a cache of one sequence, token by token. [`KvCache`] is one; what stands in
/// front of one, to count or to disturb, is another.
pub trait AttentionCache {
    /// Tokens held by the first layer: the position of the next one.
    fn num_tokens(&self) -> usize;

    /// As [`KvCache::append`].
    ///
    /// # Errors
    /// As there.
    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()>;

    /// As [`KvCache::attend`].
    ///
    /// # Errors
    /// As there.
    fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<()>;
}

impl AttentionCache for KvCache {
    fn num_tokens(&self) -> usize {
        Self::num_tokens(self)
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
        Self::append(self, layer, k, v)
    }

    fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<()> {
        Self::attend(self, layer, q, out)
    }
}
