//! Cache specs: the one line in which a user says how a cache is made.
//!
//! ```text
//! SPEC   = PRESET[:R%][,OPTION]… | OPTION[,OPTION]…
//! PRESET = full | hca | hca-rescore
//! OPTION = keys=FORMAT | values=f16|int8|int4|int4/G@host | rescore=none|f16@host|int8@host
//!        | select=none|top-p:T|top-k:N | min=N | max=N|none | union=group|head | renorm=on|off
//!        | sinks=N | recent=N
//! ```
//!
//! A preset is a set of options; what follows it overrides. A ratio, in percent of a full f16 cache's
//! device bytes, picks the key format once the shape of the model is known ([`CacheSpec::resolve`]).

use std::fmt;
use std::str::FromStr;

use heterokv_evict::{Rule, Selector, Union};
use heterokv_quant::{KeyFormat, Precision, RowFormat};

use crate::plan::DevicePlan;
use crate::presets::{self, Preset};
use crate::{Error, KvShape, Result};

/// What [`CacheSpec::from_str`] accepts, for help texts and errors.
pub const SPEC_GRAMMAR: &str = "\
SPEC   = PRESET[:R%][,OPTION]... | OPTION[,OPTION]...
PRESET = full | hca | hca-rescore            hca and hca-rescore with a ratio or with keys=FORMAT
OPTION = keys=FORMAT                          codes on the device: f16, bf16, fp8, int{8,6,4,3,2}-token[/{32,64,128}],
                                              int{8,6,4,3,2}-channel/{32,64,128}, these rotated: rot-int...,
                                              lm1..lm4 and lm1-plain..lm4-plain, pq/2xC, pq/4xC, alloc/BITS
       | values=f16@host|int8@host|int4@host  values in host memory; int4 is int4/32, groups of 32 channels,
                                              beside int4/64 and int4/128
       | rescore=none|f16@host|int8@host      exact keys on the host, which re-score what the codes select
       | select=none|top-p:T|top-k:N          coded tokens that a step reads
       | min=N | max=N|none                   bounds of their number per query head
       | union=group|head                     whose selected tokens a query head attends to
       | renorm=on|off                        softmax over the tokens taken, or over all
       | sinks=N | recent=N                   first and last tokens kept exact on the device
Examples: full   hca:12.5%   hca-rescore:6.25%   hca:25%,recent=128
          keys=lm2,values=int8@host,rescore=int8@host,select=top-p:0.95,min=256,union=group,sinks=4,recent=64";

const OPTIONS: &str =
    "keys, values, rescore, select, min, max, union, renorm, sinks, recent (see `--help`)";

/// A parsed spec, not yet fitted to a model.
///
/// ```
/// use heterokv_cache::{CacheConfig, CacheSpec, HeadShape, KvShape};
///
/// let shape = KvShape { num_layers: 30, heads: HeadShape::new(9, 3, 64)? };
/// let spec: CacheSpec = "hca:25%,recent=128".parse()?;
/// let CacheConfig::Hca(config) = spec.resolve(&shape)? else { unreachable!("not `full`") };
/// assert_eq!(config.recent, 128);
///
/// // Written out, a config is a spec again.
/// let again: CacheSpec = config.to_string().parse()?;
/// assert_eq!(again.resolve(&shape)?, CacheConfig::Hca(config));
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
#[derive(Clone, Copy, Debug, PartialEq)]
enum Setting {
    Keys(KeyFormat),
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheConfig {
    /// Keys and values of every token exact, f16, on the device.
    Full,
    /// Coded keys on the device, values on the host.
    Hca(HcaConfig),
}

/// The parts of an `hca` cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HcaConfig {
    /// Codes of the keys on the device.
    pub keys: KeyFormat,
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

    /// Fits the spec to a model's shape.
    ///
    /// # Errors
    /// [`Error::Ratio`] when a preset cannot keep its ratio for this shape, [`Error::Conflict`] for
    /// options that do not go together, and a key format's refusal of the `head_dim`.
    pub fn resolve(&self, shape: &KvShape) -> Result<CacheConfig> {
        let mut config = match self.base {
            Base::Full => return Ok(CacheConfig::Full),
            Base::Options => HcaConfig::PLAIN,
            Base::Preset(preset, ratio) => preset.config(ratio),
        };
        for &setting in &self.overrides {
            config.set(setting);
        }
        if let Base::Preset(preset, Some(ratio)) = self.base {
            config.keys = presets::keys_for_ratio(preset, &config, ratio, shape)?;
        }
        config.check(shape)?;
        Ok(CacheConfig::Hca(config))
    }
}

impl HcaConfig {
    /// What options start from where no preset is named.
    pub(crate) const PLAIN: Self = Self {
        keys: KeyFormat::F16,
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

    fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Keys(keys) => self.keys = keys,
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
    }

    pub(crate) fn check(&self, shape: &KvShape) -> Result<()> {
        self.selector()?;
        DevicePlan::new(self, shape)?;
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

impl FromStr for CacheSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let mut words = text.split(',').map(str::trim).peekable();
        let first = words.peek().copied().unwrap_or_default();
        let base = if first.contains('=') { Base::Options } else { parse_base(first)? };
        if base != Base::Options {
            words.next();
        }
        let words: Vec<&str> = words.collect();
        let overrides: Vec<Setting> =
            words.iter().map(|word| parse_option(word)).collect::<Result<_>>()?;
        check_once(&words)?;
        if base == Base::Full && !overrides.is_empty() {
            return Err(Error::Conflict {
                conflict: "full takes no options; name another preset or none",
            });
        }
        let keys_named = overrides.iter().any(|setting| matches!(setting, Setting::Keys(_)));
        if base == Base::Options && !keys_named {
            return Err(Error::Conflict { conflict: "options without a preset need keys=FORMAT" });
        }
        if matches!(base, Base::Preset(_, Some(_))) && keys_named {
            return Err(Error::Conflict {
                conflict: "a ratio chooses the key format; give a preset one or keys=FORMAT, not both",
            });
        }
        if matches!(base, Base::Preset(_, None)) && !keys_named {
            return Err(Error::Conflict {
                conflict: "a preset needs a ratio, as in hca:12.5%, or keys=FORMAT",
            });
        }
        Ok(Self { text: text.to_owned(), base, overrides })
    }
}

fn parse_base(word: &str) -> Result<Base> {
    let (name, ratio) = match word.split_once(':') {
        None => (word, None),
        Some((name, ratio)) => (name, Some(ratio)),
    };
    if name == "full" && ratio.is_none() {
        return Ok(Base::Full);
    }
    let preset = Preset::named(name).ok_or_else(|| {
        unknown("preset", word, "full, hca, hca-rescore; with a ratio: hca:12.5%")
    })?;
    let bad_ratio =
        || unknown("ratio", word, "a percentage above 0 and up to 100, as in hca:12.5%");
    let ratio = match ratio {
        None => None,
        Some(ratio) => {
            let percent = ratio.strip_suffix('%').and_then(|r| r.parse::<f64>().ok());
            Some(percent.filter(|&r| r > 0.0 && r <= 100.0).ok_or_else(bad_ratio)?)
        }
    };
    Ok(Base::Preset(preset, ratio))
}

/// Refuses an option that is given twice: which of the two was meant cannot be known.
fn check_once(words: &[&str]) -> Result<()> {
    let name = |word: &'_ &str| word.split('=').next().unwrap_or_default().to_owned();
    let names: Vec<String> = words.iter().map(name).collect();
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((_, option)) => Err(Error::Repeated { option: option.clone() }),
        None => Ok(()),
    }
}

fn parse_option(word: &str) -> Result<Setting> {
    let (name, value) = word.split_once('=').ok_or_else(|| unknown("option", word, OPTIONS))?;
    let count = || value.parse::<usize>().map_err(|_| unknown("count", word, "whole numbers"));
    Ok(match name {
        "keys" => Setting::Keys(value.parse()?),
        "values" => Setting::Values(host_values(value)?),
        "rescore" if value == "none" => Setting::Rescore(None),
        "rescore" => Setting::Rescore(Some(host_keys(value)?)),
        "select" => Setting::Select(parse_rule(value)?),
        "min" => Setting::Min(count()?),
        "max" if value == "none" => Setting::Max(usize::MAX),
        "max" => Setting::Max(count()?),
        "union" => match value {
            "group" => Setting::Union(Union::Group),
            "head" => Setting::Union(Union::Head),
            _ => return Err(unknown("union", value, "group, head")),
        },
        "renorm" => match value {
            "on" => Setting::Renormalise(true),
            "off" => Setting::Renormalise(false),
            _ => return Err(unknown("renorm", value, "on, off")),
        },
        "sinks" => Setting::Sinks(count()?),
        "recent" => Setting::Recent(count()?),
        _ => return Err(unknown("option", name, OPTIONS)),
    })
}

fn parse_rule(value: &str) -> Result<Rule> {
    let bad = || unknown("selection", value, "none, top-p:T with T in (0, 1], top-k:N");
    match value.split_once(':') {
        None if value == "none" => Ok(Rule::All),
        Some(("top-p", top_p)) => Ok(Rule::TopP(top_p.parse().map_err(|_| bad())?)),
        Some(("top-k", k)) => Ok(Rule::TopK(k.parse().map_err(|_| bad())?)),
        _ => Err(bad()),
    }
}

fn host_values(value: &str) -> Result<RowFormat> {
    let known = "f16@host, int8@host, int4@host, int4/{32,64,128}@host";
    host_format(value).ok_or_else(|| unknown("host format", value, known))
}

/// Keys that re-score stand for the exact ones, which four bits cannot.
fn host_keys(value: &str) -> Result<RowFormat> {
    let exact = |format: &RowFormat| matches!(format, RowFormat::F16 | RowFormat::Int8);
    let format = host_format(value).filter(exact);
    format.ok_or_else(|| unknown("host format of keys", value, "f16@host, int8@host"))
}

fn host_format(value: &str) -> Option<RowFormat> {
    value.strip_suffix("@host").and_then(|format| format.parse().ok())
}

fn unknown(what: &'static str, word: &str, known: &'static str) -> Error {
    Error::UnknownWord { what, word: word.to_owned(), known }
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
