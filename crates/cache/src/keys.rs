//! Which key format each (layer, KV head) has: one for all, or a mix.

use std::fmt;
use std::sync::Arc;

use heterokv_quant::KeyFormat;

use crate::{KeyMix, KvShape, Result};

/// The key formats of a cache.
#[derive(Clone, Debug, PartialEq)]
pub enum Keys {
    /// One format in every head.
    Uniform(KeyFormat),
    /// A format for each (layer, KV head).
    Mix(Arc<KeyMix>),
}

impl Keys {
    /// The format of each head of a model of `shape`, `[num_layers, num_kv_heads]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a mix of another shape.
    pub fn formats(&self, shape: &KvShape) -> Result<Vec<KeyFormat>> {
        self.check(shape)?;
        let KvShape { num_layers, heads } = *shape;
        let places = (0..num_layers).flat_map(|l| (0..heads.num_kv_heads).map(move |h| (l, h)));
        Ok(places.map(|place| self.format(place)).collect())
    }

    /// The format of a (layer, KV head) that the shape has.
    pub(crate) fn format(&self, (layer, kv_head): (usize, usize)) -> KeyFormat {
        match self {
            Self::Uniform(format) => *format,
            Self::Mix(mix) => mix.format(layer, kv_head),
        }
    }

    /// Every format and the number of heads of a model of `shape` that have it.
    pub(crate) fn counts(&self, shape: &KvShape) -> Vec<(KeyFormat, usize)> {
        match self {
            Self::Uniform(format) => vec![(*format, shape.num_layers * shape.heads.num_kv_heads)],
            Self::Mix(mix) => mix.counts(),
        }
    }

    /// Refuses a mix for another shape.
    pub(crate) fn check(&self, shape: &KvShape) -> Result<()> {
        match self {
            Self::Uniform(_) => Ok(()),
            Self::Mix(mix) => mix.check_shape(shape),
        }
    }
}

impl From<KeyFormat> for Keys {
    fn from(format: KeyFormat) -> Self {
        Self::Uniform(format)
    }
}

impl fmt::Display for Keys {
    /// As a cache spec names them: a format, or `mix:FILE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(format) => format.fmt(f),
            Self::Mix(mix) => write!(f, "mix:{}", mix.file()),
        }
    }
}
