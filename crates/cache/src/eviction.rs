//! How a cache forgets tokens for good: by what they are scored, how many of each head stay, and when.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use heterokv_attn::PrefillPattern;
use heterokv_evict::{Budget, HeadRole, Schedule, Scorer, Scoring};

use crate::plan::MAX_EXACT_TOKENS;
use crate::{Error, HeadProfile, KvShape, Result};

/// How a cache forgets tokens. What is forgotten is gone, except where the schedule is to bring it back on drift: then the
/// rows of satellite heads are all on the host too.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    /// What a token's score is made of.
    pub scoring: Scoring,
    /// How what stays is shared out among layers and heads.
    pub budget: Budget,
    /// How much stays.
    pub keep: Keep,
    /// When tokens are forgotten behind the prompt.
    pub schedule: Schedule,
    /// Roles and weights of heads, where budget or schedule ask for them.
    pub heads: Option<Heads>,
    /// Whether a step waits for what drift brings back.
    pub refresh: Refresh,
    /// The overlap of positions below which a pivot has drifted, in (0, 1]; none: 0.8.
    pub tau: Option<f64>,
}

/// A profile of heads and the file that it is in.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    file: String,
    /// Roles and weights.
    pub profile: Arc<HeadProfile>,
}

/// How much of a cache stays on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// Device bytes, in percent of those of a full f16 cache of the tokens that were taken in.
    Ratio(f64),
    /// Tokens of each (layer, KV head), on average.
    Tokens(usize),
    /// Device bytes of the whole cache.
    Bytes(usize),
    /// As much as the budget says by itself.
    Own,
}

/// What a decode step does where rows are to come back from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refresh {
    /// It goes on; the rows take their place between two steps once they are there.
    #[default]
    Async,
    /// It waits, so that results do not depend on when rows come.
    Sync,
}

/// Tokens that are forgotten together while tokens come one at a time and the schedule says nothing else: a page of rows.
pub(crate) const BATCH_TOKENS: usize = 16;

impl Heads {
    /// A profile that `file` has, or will have.
    #[must_use]
    pub fn new(file: &Path, profile: HeadProfile) -> Self {
        Self { file: file.display().to_string(), profile: Arc::new(profile) }
    }

    /// Reads a profile of heads.
    ///
    /// # Errors
    /// As [`HeadProfile::load`].
    pub fn load(file: &Path) -> Result<Self> {
        Ok(Self::new(file, HeadProfile::load(file)?))
    }
}

impl Eviction {
    /// Tokens by which a head is cut below its limit, so that as many come before it is cut again; none where nothing is
    /// forgotten behind the prompt.
    pub(crate) fn batch_tokens(&self) -> Option<usize> {
        match self.schedule {
            Schedule::Every(steps) => Some(steps),
            Schedule::OnDrift { .. } => Some(BATCH_TOKENS),
            _ => None,
        }
    }

    /// Whether tokens are scored by the attention of decode steps.
    pub(crate) fn watches_steps(&self) -> bool {
        self.batch_tokens().is_some() && self.scoring.scorer.sees_attention()
    }

    /// Whether the attention of decode steps over what a (layer, KV head) holds is looked at.
    pub(crate) fn may_watch(&self, place: (usize, usize)) -> bool {
        let is_pivot = |heads: &Heads| heads.profile.role(place.0, place.1) == HeadRole::Pivot;
        self.is_on_drift() && self.heads.as_ref().is_some_and(is_pivot)
            || self.watches_steps() && self.has_evidence(place)
    }

    /// Last tokens that stay in any case, of a config that names so many.
    pub(crate) fn recent(&self, recent: usize) -> usize {
        recent.max(self.scoring.own_recent())
    }

    /// Whether a number is kept for every token that a (layer, KV head) holds.
    pub(crate) fn has_evidence(&self, place: (usize, usize)) -> bool {
        !matches!(self.scoring.scorer, Scorer::Position | Scorer::KeyDiff) && !self.is_whole(place)
    }

    /// Whether a (layer, KV head) holds all tokens, whatever is kept.
    pub(crate) fn is_whole(&self, (layer, kv_head): (usize, usize)) -> bool {
        let by_role = self.budget == Budget::Stability || self.is_on_drift();
        let role = |heads: &Heads| heads.profile.role(layer, kv_head);
        by_role && self.heads.as_ref().is_some_and(|heads| !role(heads).is_compressed())
    }

    /// Whether the attention of a prompt's last query is looked at beside the scores.
    pub(crate) fn wants_last(&self) -> bool {
        self.is_on_drift() || matches!(self.budget, Budget::NormDrop(_) | Budget::NormDropTail(_))
    }

    /// Steps from one look at pivots to the next, where rows come back when what heads look at drifts.
    pub(crate) fn drift_steps(&self) -> Option<usize> {
        match self.schedule {
            Schedule::OnDrift { steps } => Some(steps),
            _ => None,
        }
    }

    /// Whether rows come back.
    pub(crate) fn is_on_drift(&self) -> bool {
        self.drift_steps().is_some()
    }

    /// Whether all rows of a (layer, KV head) are on the host too, from where they come back.
    pub(crate) fn has_satellite(&self, (layer, kv_head): (usize, usize)) -> bool {
        let role = |heads: &Heads| heads.profile.role(layer, kv_head);
        self.is_on_drift()
            && matches!(self.heads.as_ref().map(role), Some(HeadRole::Satellite { .. }))
    }

    /// Refuses what does not go together, and heads of another model.
    pub(crate) fn check(&self, shape: &KvShape) -> Result<()> {
        let needs_heads =
            self.is_on_drift() || matches!(self.budget, Budget::Stability | Budget::Profile);
        match &self.heads {
            Some(heads) => heads.profile.check_shape(shape)?,
            None if needs_heads => {
                return Err(Error::Conflict {
                    conflict: "this budget or schedule goes by a profile of heads; make one with \
                               `heterokv profile --heads` and add heads=FILE",
                });
            }
            None => {}
        }
        match (self.keep == Keep::Own, self.budget.sets_its_own()) {
            (true, false) => {
                return Err(Error::Conflict {
                    conflict: "a cache that forgets tokens needs to know how much it keeps: add keep=R%, keep=N or \
                               keep=SIZE",
                });
            }
            (false, true) => {
                return Err(Error::Conflict {
                    conflict: "the budgets norm-drop, norm-drop-tail and votes find on the text how much they keep; \
                               leave keep out",
                });
            }
            _ => {}
        }
        if self.recent(0).max(self.batch_tokens().unwrap_or(0)) > MAX_EXACT_TOKENS {
            return Err(Error::Conflict {
                conflict: "the tokens of evict=window's observe=N, which stay, and of every=N must be at most 16,777,216",
            });
        }
        if self.scoring.window == 0 && self.scoring.scorer.sees_attention() {
            return Err(Error::Conflict {
                conflict: "observe=0 looks at no query, so that no token is worth more than another; give it at least 1",
            });
        }
        if self.budget == Budget::Votes && !self.counts_votes() {
            return Err(Error::Conflict {
                conflict: "budget=votes counts what evict=votes or evict=votes-seen gives",
            });
        }
        if self.is_on_drift() { self.check_drift() } else { self.check_unused(needs_heads) }
    }

    fn counts_votes(&self) -> bool {
        matches!(self.scoring.scorer, Scorer::Votes | Scorer::VotesSeen)
    }

    /// Refuses what does not go with rows that come back.
    fn check_drift(&self) -> Result<()> {
        if self.budget.sets_its_own() {
            return Err(Error::Conflict {
                conflict: "the budgets norm-drop, norm-drop-tail and votes cut the heads that say what has drifted, too; \
                           with every=drift:W use another",
            });
        }
        Ok(())
    }

    /// Refuses to look at attention of a prompt's queries to tokens that they do not attend to: with blocks, only
    /// the last block attends to all.
    pub(crate) fn check_watched(&self, prefill: PrefillPattern) -> Result<()> {
        let PrefillPattern::Anchor { block, .. } = prefill else { return Ok(()) };
        let num_watched = self.scoring.num_observed_queries();
        if self.scoring.scorer.sees_attention() && num_watched > block.get() {
            return Err(Error::Conflict {
                conflict: "prefill=anchor:BLOCK lets only the last BLOCK tokens of a prompt attend to all of it, and the scorer looks at more queries; lower observe, raise BLOCK, or use prefill=exact",
            });
        }
        Ok(())
    }

    /// Refuses what would say nothing where no rows come back.
    fn check_unused(&self, needs_heads: bool) -> Result<()> {
        if self.tau.is_some() || self.refresh == Refresh::Sync {
            return Err(Error::Conflict {
                conflict: "tau and refresh say how rows come back, and these never do; add every=drift:W",
            });
        }
        if self.heads.is_some() && !needs_heads {
            return Err(Error::Conflict {
                conflict: "this budget and this schedule do not go by a profile of heads; leave heads out, or name \
                           budget=stability, budget=profile or every=drift:W",
            });
        }
        Ok(())
    }
}

impl fmt::Display for Eviction {
    /// The options of a spec, each with a comma before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scoring { scorer, window, pool, gqa } = self.scoring;
        write!(f, ",evict={scorer},observe=")?;
        match window {
            usize::MAX => f.write_str("all")?,
            window => write!(f, "{window}")?,
        }
        write!(f, ",pool={pool},gqa={gqa},budget={},keep={}", self.budget, self.keep)?;
        write!(f, ",every={}", self.schedule)?;
        if let Some(heads) = &self.heads {
            write!(f, ",heads={}", heads.file)?;
        }
        if let Some(tau) = self.tau {
            write!(f, ",tau={tau}")?;
        }
        match self.refresh {
            Refresh::Async => Ok(()),
            Refresh::Sync => f.write_str(",refresh=sync"),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(percent) => write!(f, "{percent}%"),
            Self::Tokens(tokens) => write!(f, "{tokens}"),
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
            Self::Own => f.write_str("own"),
        }
    }
}

impl FromStr for Keep {
    type Err = Error;

    /// Reads `25%`, `1024` (tokens), `64MiB`, `64MB` or `own`.
    fn from_str(word: &str) -> Result<Self> {
        const UNITS: [(&str, usize); 7] = [
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("B", 1),
        ];
        let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n > 0);
        let keep = if word == "own" {
            Some(Self::Own)
        } else if let Some(percent) = word.strip_suffix('%') {
            let percent = percent.parse::<f64>().ok().filter(|&p| p > 0.0 && p <= 100.0);
            percent.map(Self::Ratio)
        } else if let Some((count, unit)) =
            UNITS.iter().find_map(|(name, unit)| word.strip_suffix(name).map(|count| (count, unit)))
        {
            number(count).and_then(|count| count.checked_mul(*unit)).map(Self::Bytes)
        } else {
            number(word).map(Self::Tokens)
        };
        keep.ok_or_else(|| Error::UnknownWord {
            what: "amount",
            word: word.to_owned(),
            known: "a share of a full cache's bytes (25%), tokens of each head (1024), bytes (64MiB), own",
        })
    }
}
