//! Cache specs: the one line in which a user says how a cache is made.
//!
//! ```text
//! SPEC   = PRESET[:R%][,OPTION]… | OPTION[,OPTION]…
//! PRESET = full | hca | hca-rescore | snapkv | pyramidkv | adakv | h2o | tova | streamingllm | knorm | keydiff
//!        | expected | kvcompress | dbudget | baklava | corm | heterocache
//! OPTION = keys=FORMAT | keys=mix:FILE | values=f16|int8|int4|int4/G@host|@device | rescore=none|f16@host|int8@host
//!        | select=none|top-p:T|top-k:N|threshold:W | min=N | max=N|none | union=group|head | renorm=on|off
//!        | sinks=N | recent=N | prefill=exact|anchor:BLOCK[:RECENT]
//!        | evict=SCORER | observe=N|all | pool=… | gqa=… | budget=… | keep=R%|N|SIZE|own | every=…
//!        | heads=FILE | tau=T | refresh=async|sync
//! ```
//!
//! A preset is a set of options; what follows it overrides. A ratio, in percent of a full f16 cache's
//! device bytes, picks the key format of `hca` and `hca-rescore` once the shape of the model is known
//! ([`CacheSpec::resolve`]); the other presets forget tokens, and theirs says how much is kept.

mod parse;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use heterokv_attn::PrefillPattern;
use heterokv_evict::{Budget, Gqa, Pool, Rule, Schedule, Scorer, Selector, Union};
use heterokv_quant::{KeyFormat, Precision, RowFormat};

use crate::allotment::Allotment;
use crate::eviction::{Eviction, Heads, Keep, Refresh};
use crate::exact::EXACT_PAGE_TOKENS;
use crate::plan::{DevicePlan, KEPT_PAGE_TOKENS};
use crate::presets::{self, Preset};
use crate::{Error, KeyMix, Keys, KvShape, Result};

/// What [`CacheSpec::from_str`](std::str::FromStr::from_str) accepts, for help texts and errors.
pub const SPEC_GRAMMAR: &str = "\
SPEC   = PRESET[:R%][,OPTION]... | OPTION[,OPTION]...
PRESET = full                                 every token exact on the device
       | hca | hca-rescore                    all tokens, keys as codes on the device; with a ratio or with keys=...
       | snapkv | pyramidkv | adakv | h2o | tova | streamingllm | knorm | keydiff | expected | kvcompress
                                              some tokens, the others forgotten: keep R% of the bytes, N tokens of
                                              each head, or SIZE bytes, as in snapkv:25%, snapkv:1024, snapkv:64MiB
       | dbudget | corm                       the same, how many is found on the text
       | baklava | heterocache                the same, with heads=FILE
OPTION = keys=FORMAT                          codes on the device: f16, bf16, fp8, int{8,6,4,3,2}-token[/{32,64,128}],
                                              int{8,6,4,3,2}-channel/{32,64,128}, these rotated: rot-int...,
                                              lm1..lm4 and lm1-plain..lm4-plain, alloc/BITS, pq/{2,4,8}xC and
                                              opq/{2,4,8}xC, C from 16 to 4096, both also with +xN behind them
       | keys=mix:FILE                        a format for each head, chosen by `heterokv mix`; no comma in the path
       | values=f16@host|int8@host|int4@host  values in host memory; int4 is int4/32, groups of 32 channels,
                                              beside int4/64 and int4/128; @device leaves them on the device
       | rescore=none|f16@host|int8@host      exact keys on the host, which re-score what the codes select
       | select=none|top-p:T|top-k:N|threshold:W  coded tokens that a step reads
       | min=N | max=N|none                   bounds of their number per query head
       | union=group|head                     whose selected tokens a query head attends to
       | renorm=on|off                        softmax over the tokens taken, or over all
       | sinks=N | recent=N                   first and last tokens kept exact on the device
       | prefill=exact|anchor:BLOCK[:RECENT]  what tokens of a prompt attend to: all before them, or the first BLOCK
                                              tokens, their own BLOCK and RECENT before it (the last BLOCK: all)
       | evict=SCORER                         forget tokens by: window, accumulated, last-query, squared, votes,
                                              votes-seen, key-norm, key-diff, expected, position
       | observe=N|all | pool=none|mean:K|max:K | gqa=mean|max|sum|sum-squares
                                              queries of the prompt that are looked at; smoothing over neighbours;
                                              query heads of a group together
       | budget=uniform|pyramid:B|pyramid-within:B|adaptive:F|global|norm-drop:T|norm-drop-tail:T|votes|stability|profile
                                              how what is kept is shared out among layers and heads
       | keep=R%|N|SIZE|own                   how much is kept: device bytes, tokens of each head, bytes
       | every=once|step|N|drift:W            when tokens are forgotten: behind the prompt only, in steps of N
                                              tokens, or brought back where what heads look at has drifted
       | heads=FILE | tau=T | refresh=async|sync
                                              roles and weights of heads (`heterokv profile --heads`); below which
                                              overlap a pivot has drifted; whether a step waits for what comes back
Examples: full   hca:12.5%   hca-rescore:6.25%   hca:25%,recent=128   snapkv:25%   h2o:12.5%,keys=int4-token
          keys=lm2,values=int8@host,rescore=int8@host,select=top-p:0.95,min=256,union=group,sinks=4,recent=64";

/// A parsed spec, not yet fitted to a model.
///
/// ```
/// use heterokv_cache::{CacheConfig, CacheSpec, HeadShape, KvShape};
///
/// let shape = KvShape { num_layers: 30, heads: HeadShape::new(9, 3, 64)? };
/// let spec: CacheSpec = "hca:25%,recent=128".parse()?;
/// let CacheConfig::Hca(config) = spec.resolve(&shape, None)? else { unreachable!("not `full`") };
/// assert_eq!(config.recent, 128);
///
/// // Written out, a config is a spec again.
/// let again: CacheSpec = config.to_string().parse()?;
/// assert_eq!(again.resolve(&shape, None)?, CacheConfig::Hca(config));
///
/// // What is not known is refused with what is.
/// let error = "hca:25%,union=all".parse::<CacheSpec>().unwrap_err();
/// assert!(error.to_string().contains("group, head"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CacheSpec {
    text: String,
    base: Base,
    overrides: Vec<Setting>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Base {
    Full,
    Options,
    Preset(Preset, Option<Keep>),
}

/// One option.
#[derive(Clone, Debug, PartialEq)]
enum Setting {
    Keys(KeyFormat),
    /// The file of a mix, not read yet.
    Mix(PathBuf),
    Values(RowFormat, Place),
    Rescore(Option<RowFormat>),
    Select(Rule),
    Min(usize),
    Max(usize),
    Union(Union),
    Renormalise(bool),
    Sinks(usize),
    Recent(usize),
    Prefill(PrefillPattern),
    Evict(Scorer),
    Forget(Forget),
}

/// An option of a cache that forgets tokens.
#[derive(Clone, Debug, PartialEq)]
enum Forget {
    Observe(usize),
    Pool(Pool),
    Gqa(Gqa),
    Budget(Budget),
    Keep(Keep),
    Every(Schedule),
    /// The file of a profile of heads, not read yet.
    Heads(PathBuf),
    /// A profile of heads.
    Profile(Heads),
    Refresh(Refresh),
    Tau(f64),
}

/// Where the values of coded tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In host memory, or on a disk below it.
    Host,
    /// On the device.
    Device,
}

/// What a preset with a ratio keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RatioPromise {
    /// Device bytes of the cache are at most this share of a full f16 cache's, in percent...
    pub percent: f64,
    /// ...at any length from this many tokens on.
    pub min_tokens: usize,
}

/// How a cache is made, with nothing left open.
#[expect(clippy::large_enum_variant, reason = "there is one of a cache, and mostly the large one")]
#[derive(Clone, Debug, PartialEq)]
pub enum CacheConfig {
    /// Keys and values of every token exact, f16, on the device.
    Full,
    /// Parts put together: coded keys of all tokens with values on the host, as in HCAttention, or tokens that stay
    /// while others are forgotten.
    Hca(HcaConfig),
}

/// The parts of a cache: how tokens are kept, which of them a step reads, and which are forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct HcaConfig {
    /// Codes of the keys on the device.
    pub keys: Keys,
    /// Format of the values.
    pub values: RowFormat,
    /// Where they are.
    pub values_on: Place,
    /// Format of exact keys on the host, by which selected tokens are re-scored.
    pub rescore: Option<RowFormat>,
    /// Which coded tokens a query head takes.
    pub rule: Rule,
    /// At least this many of them.
    pub min: usize,
    /// At most this many of them; `usize::MAX` is no cap.
    pub max: usize,
    /// Whose selected tokens a query head attends to.
    pub union: Union,
    /// Softmax over the tokens taken (on), or over all of them (off).
    pub renormalise: bool,
    /// First tokens, exact on the device.
    pub sinks: usize,
    /// Last tokens, exact on the device.
    pub recent: usize,
    /// What the tokens of a prompt attend to while it is read.
    pub prefill: PrefillPattern,
    /// How tokens are forgotten; none: they are not.
    pub evict: Option<Eviction>,
}

impl CacheSpec {
    /// The reference that all quality is relative to.
    #[must_use]
    pub fn full() -> Self {
        Self { text: "full".to_owned(), base: Base::Full, overrides: vec![] }
    }

    /// The ratio that this spec promises; none where it names no ratio.
    #[must_use]
    pub fn promise(&self) -> Option<RatioPromise> {
        let named = self.overrides.iter().find_map(|setting| match setting {
            Setting::Forget(Forget::Keep(keep)) => Some(*keep),
            _ => None,
        });
        let grows = Setting::Forget(Forget::Every(Schedule::Once));
        if self.overrides.contains(&grows) {
            return None;
        }
        let (percent, min_tokens) = match (named, self.base) {
            (Some(Keep::Ratio(percent)), _) => (percent, presets::min_tokens_of_kept(percent)),
            (None, Base::Preset(preset, Some(Keep::Ratio(percent)))) => {
                (percent, preset.min_tokens(percent))
            }
            _ => return None,
        };
        Some(RatioPromise { percent, min_tokens })
    }

    /// The same by a profile of heads that is at hand, whatever file the spec names.
    #[must_use]
    pub fn with_heads(mut self, heads: Heads) -> Self {
        self.overrides.push(Setting::Forget(Forget::Profile(heads)));
        self
    }

    /// Fits the spec to a model. The files of a mix and of a profile of heads are read here, and held against the
    /// model's `fingerprint` where one is given; without one, as for plans of models of which only the shape is
    /// known, those of any model of that shape will do.
    ///
    /// # Errors
    /// [`Error::Ratio`] when a preset cannot keep its ratio for this shape, [`Error::Conflict`] for
    /// options that do not go together, a key format's refusal of the `head_dim`, and for a mix what
    /// [`KeyMix::load`] and for a profile of heads what [`HeadProfile::load`](crate::HeadProfile::load) refuses, and
    /// [`Error::Mismatch`] where one is for another model or shape.
    pub fn resolve(&self, shape: &KvShape, fingerprint: Option<&str>) -> Result<CacheConfig> {
        let mut config = match self.base {
            Base::Full => return Ok(CacheConfig::Full),
            Base::Options => HcaConfig::PLAIN,
            Base::Preset(preset, keep) => preset.config(keep),
        };
        for setting in &self.overrides {
            config.set(setting)?;
        }
        if let Base::Preset(preset @ (Preset::Hca | Preset::HcaRescore), Some(Keep::Ratio(ratio))) =
            self.base
        {
            if config.evict.is_some() || config.values_on == Place::Device {
                return Err(Error::Conflict {
                    conflict: "the ratio of hca and hca-rescore is kept by codes of all keys alone; with evict=... or \
                               values=...@device give keys=FORMAT in its place",
                });
            }
            config.keys = presets::keys_for_ratio(preset, &config, ratio, shape)?.into();
        }
        let names_rule = self.overrides.iter().any(|setting| matches!(setting, Setting::Select(_)));
        match self.base {
            Base::Preset(Preset::Hca | Preset::HcaRescore, _) if config.is_exact() => {
                return Err(Error::Conflict {
                    conflict: "hca and hca-rescore select among coded keys or rows of the host, and here all rows are exact \
                               ones on the device; use full, or leave the preset out",
                });
            }
            Base::Options if config.is_exact() && !names_rule => config.rule = Rule::All,
            _ => {}
        }
        config.check(shape)?;
        if let Some(eviction) = &config.evict {
            Allotment::check(&config, eviction, shape)?;
        }
        if let (Keys::Mix(mix), Some(fingerprint)) = (&config.keys, fingerprint) {
            mix.check_fingerprint(fingerprint)?;
        }
        let heads = config.evict.as_ref().and_then(|eviction| eviction.heads.as_ref());
        if let (Some(heads), Some(fingerprint)) = (heads, fingerprint) {
            heads.profile.check_fingerprint(fingerprint)?;
        }
        Ok(CacheConfig::Hca(config))
    }
}

impl CacheConfig {
    /// What the tokens of a prompt attend to while it is read.
    #[must_use]
    pub fn prefill(&self) -> PrefillPattern {
        match self {
            Self::Full => PrefillPattern::Exact,
            Self::Hca(hca) => hca.prefill,
        }
    }

    /// The options of a cache that codes keys; none where all rows are exact ones on the device.
    pub(crate) fn coded(&self) -> Option<&HcaConfig> {
        match self {
            Self::Hca(hca) if !hca.is_exact() => Some(hca),
            _ => None,
        }
    }

    /// The options of a cache that forgets tokens, and how.
    pub(crate) fn forgetting(&self) -> Option<(&HcaConfig, &Eviction)> {
        match self {
            Self::Full => None,
            Self::Hca(hca) => hca.evict.as_ref().map(|eviction| (hca, eviction)),
        }
    }

    /// Whether rows of values are on the device.
    pub(crate) fn keeps_rows_on_device(&self) -> bool {
        matches!(self, Self::Hca(hca) if !hca.is_exact() && hca.values_on == Place::Device)
    }
}

impl HcaConfig {
    /// What options start from where no preset is named.
    pub(crate) const PLAIN: Self = Self {
        keys: Keys::Uniform(KeyFormat::F16),
        values: RowFormat::F16,
        values_on: Place::Host,
        rescore: None,
        rule: Rule::TopP(0.95),
        min: 0,
        max: usize::MAX,
        union: Union::Group,
        renormalise: true,
        sinks: 4,
        recent: 64,
        prefill: PrefillPattern::Exact,
        evict: None,
    };

    /// Whether all tokens are exact rows on the device.
    pub(crate) fn is_exact(&self) -> bool {
        self.keys == Keys::Uniform(KeyFormat::F16)
            && (self.values, self.values_on, self.rescore) == (RowFormat::F16, Place::Device, None)
    }

    /// Whether every query head takes every token, and nothing else is said of what it takes.
    fn reads_all(&self) -> bool {
        let Self { rule, min, max, union, renormalise, .. } = *self;
        (rule, min, max, union, renormalise) == (Rule::All, 0, usize::MAX, Union::Group, true)
    }

    /// Whether heads have rows of values, wherever they are, or rows that come back.
    pub(crate) fn has_rows(&self) -> bool {
        !self.is_exact() || self.comes_back()
    }

    /// Whether rows come back from the host when what heads look at has drifted.
    pub(crate) fn comes_back(&self) -> bool {
        self.evict.as_ref().is_some_and(Eviction::is_on_drift)
    }

    /// Tokens of a page of exact rows, where all are exact.
    pub(crate) fn exact_page_tokens(&self) -> usize {
        if self.evict.is_some() { KEPT_PAGE_TOKENS } else { EXACT_PAGE_TOKENS }
    }

    /// What the scores of the coded keys are for: with re-scoring they only select.
    pub(crate) fn precision(&self) -> Precision {
        if self.rescore.is_some() { Precision::Select } else { Precision::Exact }
    }

    /// The selector of these options.
    ///
    /// # Errors
    /// As [`Selector::new`].
    pub fn selector(&self) -> Result<Selector> {
        Ok(Selector::new(self.rule, self.min, self.max)?)
    }

    fn set(&mut self, setting: &Setting) -> Result<()> {
        match *setting {
            Setting::Keys(format) => self.keys = format.into(),
            Setting::Mix(ref file) => self.keys = Keys::Mix(Arc::new(KeyMix::load(file)?)),
            Setting::Values(values, place) => (self.values, self.values_on) = (values, place),
            Setting::Rescore(rescore) => self.rescore = rescore,
            Setting::Select(rule) => self.rule = rule,
            Setting::Min(min) => self.min = min,
            Setting::Max(max) => self.max = max,
            Setting::Union(union) => self.union = union,
            Setting::Renormalise(renormalise) => self.renormalise = renormalise,
            Setting::Sinks(sinks) => self.sinks = sinks,
            Setting::Recent(recent) => self.recent = recent,
            Setting::Prefill(pattern) => self.prefill = pattern,
            Setting::Evict(scorer) => {
                let eviction = self.evict.get_or_insert_with(|| presets::plain_eviction(scorer));
                eviction.scoring.scorer = scorer;
            }
            Setting::Forget(ref option) => {
                let eviction = self.evict.as_mut().ok_or(Error::Conflict {
                    conflict: "observe, pool, gqa, budget, keep, every, heads and refresh are options of a cache that \
                               forgets tokens; name evict=SCORER before them, or a preset that does",
                })?;
                eviction.set(option)?;
            }
        }
        Ok(())
    }

    pub(crate) fn check(&self, shape: &KvShape) -> Result<()> {
        self.selector()?;
        self.keys.check(shape)?;
        for (format, _) in self.keys.counts(shape) {
            DevicePlan::new(format, self, shape)?;
        }
        if self.rescore.is_some() && !self.renormalise {
            return Err(Error::Conflict {
                conflict: "renorm=off keeps the coded normaliser, which rescore replaces; use one of them",
            });
        }
        // Where all rows are exact, a token that has just come is looked at before it can be forgotten.
        if self.recent == 0 && !self.is_exact() {
            return Err(Error::Conflict {
                conflict: "recent must be at least 1 where keys are coded",
            });
        }
        if self.is_exact() && !self.reads_all() {
            return Err(Error::Conflict {
                conflict: "all rows are exact ones on the device, and a step reads every one of them; leave select, min, \
                           max, union and renorm out",
            });
        }
        if self.rescore.is_some() && self.values_on == Place::Device {
            return Err(Error::Conflict {
                conflict: "rescore looks at exact keys on the host, where the values must be too; use values=...@host",
            });
        }
        match &self.evict {
            None => Ok(()),
            Some(eviction) if eviction.is_on_drift() && !self.is_exact() => Err(Error::Conflict {
                conflict: "rows that come back on drift are exact ones: leave keys=f16,values=f16@device",
            }),
            Some(eviction) => {
                eviction.check_watched(self.prefill)?;
                eviction.check(shape)
            }
        }
    }
}

impl Eviction {
    fn set(&mut self, option: &Forget) -> Result<()> {
        match option {
            Forget::Observe(window) => self.scoring.window = *window,
            Forget::Pool(pool) => self.scoring.pool = *pool,
            Forget::Gqa(gqa) => self.scoring.gqa = *gqa,
            Forget::Budget(budget) => self.budget = *budget,
            Forget::Keep(keep) => self.keep = *keep,
            Forget::Every(schedule) => self.schedule = *schedule,
            Forget::Heads(file) => self.heads = Some(Heads::load(file)?),
            Forget::Profile(heads) => self.heads = Some(heads.clone()),
            Forget::Refresh(refresh) => self.refresh = *refresh,
            Forget::Tau(tau) => self.tau = Some(*tau),
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Device => "device",
        })
    }
}

impl fmt::Display for CacheSpec {
    /// The spec as it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for CacheConfig {
    /// The spec with every option written out; parsing it gives this config.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Hca(config) => config.fmt(f),
        }
    }
}

impl fmt::Display for HcaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keys={},values={}@{},rescore=", self.keys, self.values, self.values_on)?;
        match self.rescore {
            None => f.write_str("none")?,
            Some(format) => write!(f, "{format}@host")?,
        }
        match self.rule {
            Rule::TopP(top_p) => write!(f, ",select=top-p:{top_p}")?,
            Rule::TopK(k) => write!(f, ",select=top-k:{k}")?,
            Rule::Threshold(weight) => write!(f, ",select=threshold:{weight}")?,
            _ => f.write_str(",select=none")?,
        }
        write!(f, ",min={},max=", self.min)?;
        match self.max {
            usize::MAX => f.write_str("none")?,
            max => write!(f, "{max}")?,
        }
        let renorm = if self.renormalise { "on" } else { "off" };
        write!(f, ",union={},renorm={renorm}", self.union)?;
        write!(f, ",sinks={},recent={}", self.sinks, self.recent)?;
        if self.prefill != PrefillPattern::Exact {
            write!(f, ",prefill={}", self.prefill)?;
        }
        self.evict.as_ref().map_or(Ok(()), |eviction| eviction.fmt(f))
    }
}
