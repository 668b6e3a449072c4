//! Cache specs: the one line in which a user says how a cache is made.
//!
//! ```text
//! SPEC   = PRESET[:R%][,OPTION]… | OPTION[,OPTION]…
//! PRESET = full | hca | hca-rescore
//! OPTION = keys=FORMAT | keys=mix:FILE | values=f16|int8|int4|int4/G@host | rescore=none|f16@host|int8@host
//!        | select=none|top-p:T|top-k:N|threshold:T | min=N | max=N|none | union=group|head
//!        | renorm=on|off | sinks=N | recent=N
//! ```
//!
//! A preset is a set of options; what follows it overrides. A ratio, in percent of a full f16 cache's
//! device bytes, picks the key format once the shape of the model is known ([`CacheSpec::resolve`]).

mod parse;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use heterokv_evict::{Rule, Selector, Union};
use heterokv_quant::{KeyFormat, Precision, RowFormat};

use crate::plan::DevicePlan;
use crate::presets::{self, Preset};
use crate::{Error, KeyMix, Keys, KvShape, Result};

/// What [`CacheSpec::from_str`](std::str::FromStr::from_str) accepts, for help texts and errors.
pub const SPEC_GRAMMAR: &str = "\
SPEC   = PRESET[:R%][,OPTION]... | OPTION[,OPTION]...
PRESET = full | hca | hca-rescore            hca and hca-rescore with a ratio or with keys=...
OPTION = keys=FORMAT                          codes on the device: f16, bf16, fp8, int{8,6,4,3,2}-token[/{32,64,128}],
                                              int{8,6,4,3,2}-channel/{32,64,128}, these rotated: rot-int...,
                                              lm1..lm4 and lm1-plain..lm4-plain, alloc/BITS, pq/{2,4,8}xC and
                                              opq/{2,4,8}xC, C from 16 to 4096, both also with +xN behind them
       | keys=mix:FILE                        a format for each head, chosen by `heterokv mix`; no comma in the path
       | values=f16@host|int8@host|int4@host  values in host memory; int4 is int4/32, groups of 32 channels,
                                              beside int4/64 and int4/128
       | rescore=none|f16@host|int8@host      exact keys on the host, which re-score what the codes select
       | select=none|top-p:T|top-k:N          coded tokens that a step reads; threshold:T takes those of that
         |threshold:T                         weight or more, on the CPU
       | min=N | max=N|none                   bounds of their number per query head
       | union=group|head                     whose selected tokens a query head attends to
       | renorm=on|off                        softmax over the tokens taken, or over all
       | sinks=N | recent=N                   first and last tokens kept exact on the device
Examples: full   hca:12.5%   hca-rescore:6.25%   hca:25%,recent=128
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
    Preset(Preset, Option<f64>),
}

/// One option.
#[derive(Clone, Debug, PartialEq)]
enum Setting {
    Keys(KeyFormat),
    /// The file of a mix, not read yet.
    Mix(PathBuf),
    Values(RowFormat),
    Rescore(Option<RowFormat>),
    Select(Rule),
    Min(usize),
    Max(usize),
    Union(Union),
    Renormalise(bool),
    Sinks(usize),
    Recent(usize),
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
#[derive(Clone, Debug, PartialEq)]
pub enum CacheConfig {
    /// Keys and values of every token exact, f16, on the device.
    Full,
    /// Coded keys on the device, values on the host.
    Hca(HcaConfig),
}

/// The parts of an `hca` cache.
#[derive(Clone, Debug, PartialEq)]
pub struct HcaConfig {
    /// Codes of the keys on the device.
    pub keys: Keys,
    /// Format of the values on the host.
    pub values: RowFormat,
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
        match self.base {
            Base::Preset(preset, Some(percent)) => {
                Some(RatioPromise { percent, min_tokens: preset.min_tokens(percent) })
            }
            _ => None,
        }
    }

    /// Fits the spec to a model. The file of a mix is read here, and held against the model's `fingerprint` where
    /// one is given; without one, as for plans of models of which only the shape is known, a mix of any model of
    /// that shape will do.
    ///
    /// # Errors
    /// [`Error::Ratio`] when a preset cannot keep its ratio for this shape, [`Error::Conflict`] for
    /// options that do not go together, a key format's refusal of the `head_dim`, and for a mix what
    /// [`KeyMix::load`] refuses and [`Error::Mismatch`] where it is for another model or shape.
    pub fn resolve(&self, shape: &KvShape, fingerprint: Option<&str>) -> Result<CacheConfig> {
        let mut config = match self.base {
            Base::Full => return Ok(CacheConfig::Full),
            Base::Options => HcaConfig::PLAIN,
            Base::Preset(preset, ratio) => preset.config(ratio),
        };
        for setting in &self.overrides {
            config.set(setting)?;
        }
        if let Base::Preset(preset, Some(ratio)) = self.base {
            config.keys = presets::keys_for_ratio(preset, &config, ratio, shape)?.into();
        }
        config.check(shape)?;
        if let (Keys::Mix(mix), Some(fingerprint)) = (&config.keys, fingerprint) {
            mix.check_fingerprint(fingerprint)?;
        }
        Ok(CacheConfig::Hca(config))
    }
}

impl HcaConfig {
    /// What options start from where no preset is named.
    pub(crate) const PLAIN: Self = Self {
        keys: Keys::Uniform(KeyFormat::F16),
        values: RowFormat::F16,
        rescore: None,
        rule: Rule::TopP(0.95),
        min: 0,
        max: usize::MAX,
        union: Union::Group,
        renormalise: true,
        sinks: 4,
        recent: 64,
    };

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
            Setting::Values(values) => self.values = values,
            Setting::Rescore(rescore) => self.rescore = rescore,
            Setting::Select(rule) => self.rule = rule,
            Setting::Min(min) => self.min = min,
            Setting::Max(max) => self.max = max,
            Setting::Union(union) => self.union = union,
            Setting::Renormalise(renormalise) => self.renormalise = renormalise,
            Setting::Sinks(sinks) => self.sinks = sinks,
            Setting::Recent(recent) => self.recent = recent,
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
        if self.recent == 0 {
            return Err(Error::Conflict { conflict: "recent must be at least 1" });
        }
        Ok(())
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
        write!(f, "keys={},values={}@host,rescore=", self.keys, self.values)?;
        match self.rescore {
            None => f.write_str("none")?,
            Some(format) => write!(f, "{format}@host")?,
        }
        match self.rule {
            Rule::TopP(top_p) => write!(f, ",select=top-p:{top_p}")?,
            Rule::TopK(k) => write!(f, ",select=top-k:{k}")?,
            Rule::Threshold(least) => write!(f, ",select=threshold:{least}")?,
            _ => f.write_str(",select=none")?,
        }
        write!(f, ",min={},max=", self.min)?;
        match self.max {
            usize::MAX => f.write_str("none")?,
            max => write!(f, "{max}")?,
        }
        let renorm = if self.renormalise { "on" } else { "off" };
        write!(f, ",union={},renorm={renorm}", self.union)?;
        write!(f, ",sinks={},recent={}", self.sinks, self.recent)
    }
}
