//! The named configurations, and the choice of a key format for a ratio.
//!
//! A ratio is a promise: from [`MIN_TOKENS`] tokens on (where the windows must be amortised first, from
//! [`MIN_TOKENS_BELOW_TEN_PERCENT`]) the device bytes of the cache, everything included, never exceed
//! that share of a full f16 cache. `hca` and `hca-rescore` keep all tokens: the format chosen is `alloc`, whose row
//! takes any whole number of bytes, with the longest row that keeps the promise; `docs/methods/hca.md` has the
//! measurements that the choice rests on. The others forget tokens ([`FORGETTING`]).

use heterokv_evict::{Budget, Gqa, Pool, Rule, Schedule, Scorer, Scoring};
use heterokv_quant::{KeyFormat, RowFormat};

use crate::eviction::{BATCH_TOKENS, Eviction, Keep, Refresh};
use crate::plan::DevicePlan;
use crate::spec::{HcaConfig, Place};
use crate::{Error, KvShape, Result};

/// Length from which a preset keeps its ratio.
pub const MIN_TOKENS: usize = 4096;

/// Length from which `hca` keeps a ratio below 10 %, and a preset that forgets tokens one below 5 %: its windows must be
/// amortised.
pub const MIN_TOKENS_BELOW_TEN_PERCENT: usize = 32_768;

/// The words that name a preset, for errors.
pub(crate) const NAMES: &str = "full, hca, hca-rescore, snapkv, pyramidkv, adakv, h2o, tova, streamingllm, knorm, keydiff, \
     expected, kvcompress, dbudget, baklava, corm, heterocache; with an amount: hca:12.5%, snapkv:25%";

/// A named configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Preset {
    /// HCAttention as published (arXiv 2507.19823): the host sums values under the coded weights.
    Hca,
    /// The host re-scores what the coded keys select.
    HcaRescore,
    /// Some tokens stay, the others are forgotten.
    Forgetting(&'static Forgetting),
}

/// A published way to forget tokens, as a line of parts.
#[derive(Debug, PartialEq)]
pub(crate) struct Forgetting {
    name: &'static str,
    scoring: Scoring,
    budget: Budget,
    sinks: usize,
    recent: usize,
    schedule: Schedule,
}

const fn scoring(scorer: Scorer, window: usize, pool: Pool, gqa: Gqa) -> Scoring {
    Scoring { scorer, window, pool, gqa }
}

/// Between two evictions so many tokens come.
const BATCHES: Schedule = Schedule::Every(BATCH_TOKENS);

/// Attention of the last 64 queries, smoothed: what SnapKV and the budgets on top of it look at (arXiv 2404.14469).
const SNAPKV: Scoring = scoring(Scorer::Window, 64, Pool::Mean(5), Gqa::Mean);

/// Each with the defaults of its paper or of its authors' code, where `docs/evict.md` says nothing else.
const FORGETTING: [Forgetting; 14] = [
    Forgetting {
        name: "snapkv",
        scoring: SNAPKV,
        budget: Budget::Uniform,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "pyramidkv",
        scoring: SNAPKV,
        budget: Budget::Pyramid(20.0),
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "adakv",
        scoring: SNAPKV,
        budget: Budget::Adaptive(0.2),
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "h2o",
        scoring: scoring(Scorer::Accumulated, usize::MAX, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "tova",
        scoring: scoring(Scorer::LastQuery, 1, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        sinks: 0,
        recent: 1,
        schedule: Schedule::Every(1),
    },
    Forgetting {
        name: "streamingllm",
        scoring: scoring(Scorer::Position, 1, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "knorm",
        scoring: scoring(Scorer::KeyNorm, 1, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "keydiff",
        scoring: scoring(Scorer::KeyDiff, 1, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "expected",
        scoring: scoring(Scorer::Expected, usize::MAX, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "kvcompress",
        scoring: scoring(Scorer::Squared, 32, Pool::Max(7), Gqa::Sum),
        budget: Budget::Global,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "dbudget",
        scoring: SNAPKV,
        budget: Budget::NormDrop(0.05),
        sinks: 4,
        recent: 64,
        schedule: Schedule::Once,
    },
    Forgetting {
        name: "baklava",
        scoring: SNAPKV,
        budget: Budget::Profile,
        sinks: 4,
        recent: 64,
        schedule: BATCHES,
    },
    Forgetting {
        name: "corm",
        scoring: scoring(Scorer::Votes, 256, Pool::None, Gqa::Mean),
        budget: Budget::Votes,
        sinks: 4,
        recent: 256,
        schedule: BATCHES,
    },
    Forgetting {
        name: "heterocache",
        scoring: SNAPKV,
        budget: Budget::Stability,
        sinks: 4,
        recent: 64,
        schedule: Schedule::OnDrift { steps: 5 },
    },
];

/// What a spec starts from that names a scorer and no preset.
pub(crate) fn plain_eviction(scorer: Scorer) -> Eviction {
    Eviction {
        scoring: scoring(scorer, 64, Pool::None, Gqa::Mean),
        budget: Budget::Uniform,
        keep: Keep::Own,
        schedule: BATCHES,
        heads: None,
        refresh: Refresh::Async,
        tau: None,
    }
}

/// Length from which a cache that forgets tokens keeps a ratio, in percent.
pub(crate) fn min_tokens_of_kept(percent: f64) -> usize {
    if percent < 5.0 { MIN_TOKENS_BELOW_TEN_PERCENT } else { MIN_TOKENS }
}

impl Preset {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "hca" => Some(Self::Hca),
            "hca-rescore" => Some(Self::HcaRescore),
            _ => FORGETTING.iter().find(|preset| preset.name == name).map(Self::Forgetting),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hca => "hca",
            Self::HcaRescore => "hca-rescore",
            Self::Forgetting(preset) => preset.name,
        }
    }

    /// Whether how much it keeps is found on the text.
    fn has_own_ratio(self) -> bool {
        matches!(self, Self::Forgetting(preset) if preset.budget.sets_its_own())
    }

    /// Reads what stands behind a preset's name and a colon.
    pub(crate) fn parse_amount(self, word: &str) -> Result<Keep> {
        let is_known = |keep: &Keep| match keep {
            Keep::Own => false,
            Keep::Ratio(_) => true,
            Keep::Tokens(_) | Keep::Bytes(_) => matches!(self, Self::Forgetting(_)),
        };
        let known = match self {
            Self::Forgetting(_) => "25%, 1024 (tokens of each head), 64MiB",
            Self::Hca | Self::HcaRescore => "a percentage above 0 and up to 100, as in hca:12.5%",
        };
        let unknown = || Error::UnknownWord { what: "amount", word: word.to_owned(), known };
        word.parse::<Keep>().ok().filter(is_known).ok_or_else(unknown)
    }

    /// Refuses an amount or a key format that the preset has no use for, and asks for what it lacks.
    pub(crate) fn check_words(self, amount: Option<Keep>, keys_named: bool) -> Result<()> {
        let conflict = match (self, amount) {
            (Self::Hca | Self::HcaRescore, Some(_)) if keys_named => {
                "a ratio chooses the key format; give a preset one or keys=FORMAT, not both"
            }
            (Self::Hca | Self::HcaRescore, None) if !keys_named => {
                "a preset needs a ratio, as in hca:12.5%, or keys=FORMAT"
            }
            (Self::Forgetting(_), Some(_)) if self.has_own_ratio() => {
                "dbudget and corm find on the text how much they keep; give them no amount"
            }
            (Self::Forgetting(_), None) if !self.has_own_ratio() => {
                "a preset that forgets tokens needs to know how much it keeps, as in snapkv:25% or snapkv:1024"
            }
            _ => return Ok(()),
        };
        Err(Error::Conflict { conflict })
    }

    /// Length from which the ratio is kept.
    pub(crate) fn min_tokens(self, ratio: f64) -> usize {
        match self {
            Self::Hca if ratio < 10.0 => MIN_TOKENS_BELOW_TEN_PERCENT,
            Self::Forgetting(_) => min_tokens_of_kept(ratio),
            _ => MIN_TOKENS,
        }
    }

    /// The options; of `hca` and `hca-rescore` with a key format that a ratio replaces.
    pub(crate) fn config(self, keep: Option<Keep>) -> HcaConfig {
        // Where the window is a large part of the bytes, a shorter one leaves more to the codes.
        let is_tight = |ratio: f64| ratio < 20.0 && self.min_tokens(ratio) == MIN_TOKENS;
        let tight = matches!(keep, Some(Keep::Ratio(ratio)) if is_tight(ratio));
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
            Self::Forgetting(preset) => {
                let &Forgetting { scoring, budget, sinks, recent, schedule, .. } = preset;
                let evict = Eviction {
                    scoring,
                    budget,
                    keep: keep.unwrap_or(Keep::Own),
                    schedule,
                    heads: None,
                    refresh: Refresh::Async,
                    tau: None,
                };
                HcaConfig {
                    values_on: Place::Device,
                    rule: Rule::All,
                    sinks,
                    recent,
                    evict: Some(evict),
                    ..HcaConfig::PLAIN
                }
            }
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
