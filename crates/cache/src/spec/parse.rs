//! From the words of a spec to its settings.

use std::str::FromStr;

use heterokv_attn::PrefillPattern;
use heterokv_evict::{Rule, Union};
use heterokv_quant::RowFormat;

use super::{Base, CacheSpec, Forget, Place, Setting};
use crate::eviction::{Keep, Refresh};
use crate::presets::{self, Preset};
use crate::{Error, Result};

const OPTIONS: &str = "keys, values, rescore, select, min, max, union, renorm, sinks, recent, prefill, evict, observe, pool, \
     gqa, budget, keep, every, heads, tau, refresh (see `--help`)";

/// Stands before the path of a mix of formats.
const MIX: &str = "mix:";

/// The option that names one.
const MIX_OPTION: &str = "keys=mix:";

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
        check_paths(&words)?;
        let overrides: Vec<Setting> =
            words.iter().map(|word| parse_option(word)).collect::<Result<_>>()?;
        check_once(&words)?;
        if base == Base::Full && !overrides.is_empty() {
            return Err(Error::Conflict {
                conflict: "full takes no options, prefill= included; name another preset",
            });
        }
        let names_keys = |setting: &Setting| matches!(setting, Setting::Keys(_) | Setting::Mix(_));
        let keys_named = overrides.iter().any(names_keys);
        if base == Base::Options && !keys_named {
            return Err(Error::Conflict { conflict: "options without a preset need keys=FORMAT" });
        }
        if let Base::Preset(preset, amount) = base {
            preset.check_words(amount, keys_named)?;
        }
        Ok(Self { text: text.to_owned(), base, overrides })
    }
}

fn parse_base(word: &str) -> Result<Base> {
    let (name, amount) = match word.split_once(':') {
        None => (word, None),
        Some((name, amount)) => (name, Some(amount)),
    };
    if name == "full" && amount.is_none() {
        return Ok(Base::Full);
    }
    let preset = Preset::named(name).ok_or_else(|| unknown("preset", word, presets::NAMES))?;
    Ok(Base::Preset(preset, amount.map(|amount| preset.parse_amount(amount)).transpose()?))
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

/// Refuses the rest of a file's path that had a comma in it, which ends an option.
fn check_paths(words: &[&str]) -> Result<()> {
    let names_file = |word: &str| word.starts_with(MIX_OPTION) || word.starts_with("heads=");
    let is_cut = |pair: &[&str]| names_file(pair[0]) && !pair[1].contains('=');
    if words.windows(2).any(is_cut) {
        return Err(Error::Conflict {
            conflict: "a comma ends an option, so that the path of a file cannot hold one; rename the file \
                       or name it by another path",
        });
    }
    Ok(())
}

fn parse_option(word: &str) -> Result<Setting> {
    let (name, value) = word.split_once('=').ok_or_else(|| unknown("option", word, OPTIONS))?;
    let count = || value.parse::<usize>().map_err(|_| unknown("count", word, "whole numbers"));
    Ok(match name {
        "keys" => match value.strip_prefix(MIX) {
            Some("") => {
                return Err(unknown("mix", word, "the path of a file, as in keys=mix:FILE"));
            }
            Some(file) => Setting::Mix(file.into()),
            None => Setting::Keys(value.parse()?),
        },
        "values" => {
            let (format, place) = values(value)?;
            Setting::Values(format, place)
        }
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
        "prefill" => Setting::Prefill(parse_prefill(value)?),
        "evict" => Setting::Evict(value.parse()?),
        "observe" if value == "all" => Setting::Forget(Forget::Observe(usize::MAX)),
        "observe" => Setting::Forget(Forget::Observe(count()?)),
        "pool" => Setting::Forget(Forget::Pool(value.parse()?)),
        "gqa" => Setting::Forget(Forget::Gqa(value.parse()?)),
        "budget" => Setting::Forget(Forget::Budget(value.parse()?)),
        "keep" => Setting::Forget(Forget::Keep(value.parse::<Keep>()?)),
        "every" => Setting::Forget(Forget::Every(value.parse()?)),
        "heads" => Setting::Forget(Forget::Heads(value.into())),
        "tau" => {
            let tau = value.parse().ok().filter(|tau: &f64| *tau > 0.0 && *tau <= 1.0);
            let tau =
                tau.ok_or_else(|| unknown("overlap", word, "a number above 0 and up to 1"))?;
            Setting::Forget(Forget::Tau(tau))
        }
        "refresh" => Setting::Forget(Forget::Refresh(match value {
            "async" => Refresh::Async,
            "sync" => Refresh::Sync,
            _ => return Err(unknown("refresh", value, "async, sync")),
        })),
        _ => return Err(unknown("option", name, OPTIONS)),
    })
}

fn parse_rule(value: &str) -> Result<Rule> {
    let known = "none, top-p:T with T in (0, 1], top-k:N, threshold:W with W in (0, 1]";
    let bad = || unknown("selection", value, known);
    match value.split_once(':') {
        None if value == "none" => Ok(Rule::All),
        Some(("top-p", top_p)) => Ok(Rule::TopP(top_p.parse().map_err(|_| bad())?)),
        Some(("top-k", k)) => Ok(Rule::TopK(k.parse().map_err(|_| bad())?)),
        Some(("threshold", w)) => Ok(Rule::Threshold(w.parse().map_err(|_| bad())?)),
        _ => Err(bad()),
    }
}

fn parse_prefill(value: &str) -> Result<PrefillPattern> {
    let known = "exact, anchor:BLOCK and anchor:BLOCK:RECENT, in tokens, BLOCK at least 1";
    let bad = || unknown("prefill", value, known);
    if value == "exact" {
        return Ok(PrefillPattern::Exact);
    }
    let tokens = value.strip_prefix("anchor:").ok_or_else(bad)?;
    let (block, recent) = tokens.split_once(':').unwrap_or((tokens, "0"));
    let block = block.parse().map_err(|_| bad())?;
    Ok(PrefillPattern::Anchor { block, recent: recent.parse().map_err(|_| bad())? })
}

fn values(value: &str) -> Result<(RowFormat, Place)> {
    let on_device = value.strip_suffix("@device").and_then(|format| format.parse().ok());
    let on_device = on_device.map(|format| (format, Place::Device));
    let known = "f16@host, int8@host, int4@host, int4/{32,64,128}@host, the same with @device";
    let place = on_device.or_else(|| Some((host_format(value)?, Place::Host)));
    place.ok_or_else(|| unknown("format of values", value, known))
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
