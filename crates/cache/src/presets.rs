//! The named configurations, and the choice of a key format for a ratio.
//!
//! A ratio is a promise: from [`MIN_TOKENS`] tokens on (where the windows must be amortised first, from
//! [`MIN_TOKENS_BELOW_TEN_PERCENT`]) the device bytes of the cache, everything included, never exceed
//! that share of a full f16 cache. The format chosen is `alloc`, whose row takes any whole number of
//! bytes, with the longest row that keeps the promise; `docs/methods/hca.md` has the measurements that
//! the choice rests on.

use heterokv_evict::Rule;
use heterokv_quant::{KeyFormat, RowFormat};

use crate::plan::DevicePlan;
use crate::spec::HcaConfig;
use crate::{Error, KvShape, Result};

/// Length from which a preset keeps its ratio.
pub const MIN_TOKENS: usize = 4096;

/// Length from which `hca` keeps a ratio below 10 %: its windows must be amortised.
pub const MIN_TOKENS_BELOW_TEN_PERCENT: usize = 32_768;

/// A named configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preset {
    /// HCAttention as published (arXiv 2507.19823): the host sums values under the coded weights.
    Hca,
    /// The host re-scores what the coded keys select.
    HcaRescore,
}

impl Preset {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "hca" => Some(Self::Hca),
            "hca-rescore" => Some(Self::HcaRescore),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hca => "hca",
            Self::HcaRescore => "hca-rescore",
        }
    }

    /// Length from which the ratio is kept.
    pub(crate) fn min_tokens(self, ratio: f64) -> usize {
        match self {
            Self::Hca if ratio < 10.0 => MIN_TOKENS_BELOW_TEN_PERCENT,
            _ => MIN_TOKENS,
        }
    }

    /// The options, with a key format that a ratio replaces.
    pub(crate) fn config(self, ratio: Option<f64>) -> HcaConfig {
        // Where the window is a large part of the bytes, a shorter one leaves more to the codes.
        let tight = ratio.is_some_and(|ratio| ratio < 20.0 && self.min_tokens(ratio) == MIN_TOKENS);
        let recent = if tight { 32 } else { 64 };
        match self {
            Self::Hca => HcaConfig {
                values: RowFormat::Int8,
                rule: Rule::TopP(0.97),
                recent,
                ..HcaConfig::PLAIN
            },
            Self::HcaRescore => HcaConfig {
                values: RowFormat::Int8,
                rescore: Some(RowFormat::Int8),
                rule: Rule::TopP(0.96),
                min: 128,
                recent,
                ..HcaConfig::PLAIN
            },
        }
    }
}

/// The `alloc` format of the longest row with which `config` keeps `ratio` percent from the preset's
/// minimum length on.
pub(crate) fn keys_for_ratio(
    preset: Preset,
    config: &HcaConfig,
    ratio: f64,
    shape: &KvShape,
) -> Result<KeyFormat> {
    let head_dim = shape.heads.head_dim;
    let min_tokens = preset.min_tokens(ratio);
    let mut least = f64::INFINITY;
    for row_bytes in (1..=head_dim).rev() {
        let Some(keys) = KeyFormat::alloc_of_row_bytes(row_bytes, head_dim) else { continue };
        let plan = DevicePlan::new(keys, config, shape)?;
        let percent = 100.0 * plan.worst_ratio(min_tokens);
        if percent <= ratio {
            return Ok(keys);
        }
        least = least.min(percent);
    }
    Err(Error::Ratio { preset: preset.name(), asked: ratio, min_tokens, least })
}
