//! Specs: what is written is what is read, and what is not known is named with what is.

use heterokv_cache::{CachePlan, Error, KeyMix, SPEC_GRAMMAR};
use proptest::prelude::*;

use super::*;

fn smollm2() -> KvShape {
    shape(30, 9, 3, 64)
}

#[test]
fn specs_are_shown_as_given_and_configs_written_out() {
    for spec in [
        "full",
        "hca:25%",
        "hca:12.5%",
        "hca:6.25%",
        "hca-rescore:25%",
        "hca-rescore:12.5%",
        "hca-rescore:6.25%",
        "hca:25%,recent=128",
        "hca,keys=lm2",
        "hca-rescore,keys=pq/2x64,rescore=none",
        "keys=f16",
        "keys=lm2,values=int8@host,rescore=int8@host,select=top-p:0.95,min=256,union=group,sinks=4,recent=64",
        "keys=lm2-plain,values=int4/64@host",
        "keys=rot-int4-token/32,values=int4@host,rescore=f16@host",
        "keys=int3-token/64,values=int4/128@host",
        "keys=alloc/1.25,select=top-k:77,max=none,union=head",
        "keys=alloc/1.25,select=threshold:0.001,min=8",
        "keys=int3-channel/128,select=none,min=0,max=5,renorm=off,sinks=0,recent=1",
        "hca:12.5%,prefill=anchor:512:256",
        "keys=f16,values=f16@device,prefill=anchor:512",
    ] {
        let parsed: CacheSpec = spec.parse().unwrap_or_else(|e| panic!("{spec}: {e}"));
        assert_eq!(parsed.to_string(), spec);
        assert_eq!(parsed, spec.parse().unwrap());
        let config = parsed.resolve(&smollm2(), None).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let written = config.to_string();
        let again: CacheSpec = written.parse().unwrap_or_else(|e| panic!("{written}: {e}"));
        assert_eq!(
            again.resolve(&smollm2(), None).unwrap(),
            config,
            "{spec} written out as {written}"
        );
    }
    assert_eq!(CacheSpec::full(), "full".parse().unwrap());
    assert_eq!(
        " keys=f16 , sinks=3 ".parse::<CacheSpec>().unwrap().to_string(),
        "keys=f16 , sinks=3"
    );
}

/// Presets that forget tokens and need no file.
const FORGETTING: [&str; 12] = [
    "snapkv",
    "pyramidkv",
    "adakv",
    "h2o",
    "tova",
    "streamingllm",
    "knorm",
    "keydiff",
    "expected",
    "kvcompress",
    "dbudget",
    "corm",
];

/// What a spec comes to, which written out comes to the same.
fn round_trip(spec: &str) -> CacheConfig {
    let parsed: CacheSpec = spec.parse().unwrap_or_else(|e| panic!("{spec}: {e}"));
    assert_eq!(parsed.to_string(), spec);
    let config = parsed.resolve(&smollm2(), None).unwrap_or_else(|e| panic!("{spec}: {e}"));
    assert_eq!(super::config(&config.to_string(), smollm2()), config, "{spec}: {config}");
    config
}

#[test]
fn presets_that_forget_are_written_out_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let heads = crate::forgetting::head_profile(folder.path(), &smollm2());
    for (name, rest) in FORGETTING
        .iter()
        .map(|&name| (name, String::new()))
        .chain([("baklava", format!(",heads={heads}")), ("heterocache", format!(",heads={heads}"))])
    {
        let amounts: &[&str] = match name {
            "dbudget" | "corm" => &[""],
            "heterocache" => &[":80%"],
            _ => &[":25%", ":1024", ":64MiB", ":64MB"],
        };
        for amount in amounts {
            round_trip(&format!("{name}{amount}{rest}"));
            round_trip(&format!("{name}{amount}{rest},sinks=9,recent=90"));
            if name != "heterocache" {
                round_trip(&format!("{name}{amount}{rest},keys=int4-channel/64,values=int8@host"));
                round_trip(&format!("{name}{amount}{rest},keys=lm2,values=int8@device,renorm=off"));
            }
        }
    }
}

#[test]
fn every_option_of_forgetting_reaches_the_config() {
    let CacheConfig::Hca(plain) = round_trip("snapkv:25%") else { panic!("not full") };
    for option in [
        "evict=accumulated",
        "observe=9",
        "observe=all,evict=h",
        "pool=max:7",
        "pool=none",
        "gqa=sum-squares",
        "budget=pyramid:3",
        "budget=pyramid-within:3",
        "budget=adaptive:0.5",
        "budget=global",
        "keep=12.5%",
        "keep=777",
        "keep=9000000B",
        "every=once",
        "every=step",
        "every=7",
    ] {
        let option = option.replace("evict=h", "evict=accumulated");
        let CacheConfig::Hca(changed) = round_trip(&format!("snapkv:25%,{option}")) else {
            panic!("not full")
        };
        assert_ne!(plain, changed, "{option}");
        let words = option.split(',').all(|word| changed.to_string().contains(word));
        assert!(words, "{option} in {changed}");
    }
    // Rows that are all exact need no window.
    round_trip("keys=f16,values=f16@device,evict=key-norm,keep=40,every=once,sinks=0,recent=0");
}

#[test]
fn a_ratio_is_promised_where_it_is_kept_to() {
    for (spec, promised) in [
        ("snapkv:25%", Some((25.0, 4_096))),
        ("h2o:4%", Some((4.0, 32_768))),
        ("tova:25%,keys=int8-token,values=f16@device,every=7", Some((25.0, 4_096))),
        ("snapkv:1024", None),
        ("snapkv:64MiB", None),
        ("snapkv:25%,every=once", None),
        ("snapkv:25%,keep=12.5%", Some((12.5, 4_096))),
        ("snapkv:25%,keep=100", None),
        ("dbudget", None),
        ("keys=f16,values=f16@device,evict=window,keep=25%", Some((25.0, 4_096))),
        ("keys=f16,values=f16@device,evict=window,keep=4%", Some((4.0, 32_768))),
    ] {
        let promise = spec.parse::<CacheSpec>().unwrap().promise();
        assert_eq!(promise.map(|p| (p.percent, p.min_tokens)), promised, "{spec}");
    }
}

#[test]
fn budgets_below_what_every_head_holds_are_refused_with_the_least() {
    for (spec, says) in [
        ("snapkv:83", "83 tokens of each head are fewer than the 84 that first"),
        ("tova:1", "1 tokens of each head are fewer than the 2 that first"),
        ("snapkv:1MiB", "1048576 bytes are fewer than the 2246400 that first"),
        ("snapkv:2%,recent=20000", "cannot keep 2.00 % from 32768 tokens on"),
        ("snapkv:0.1%", "the least it can keep is "),
    ] {
        let error = spec.parse::<CacheSpec>().unwrap().resolve(&smollm2(), None).unwrap_err();
        assert!(error.to_string().contains(says), "{spec}: {error}");
    }
    round_trip("snapkv:84");
    round_trip("tova:2");
}

#[test]
fn every_option_reaches_the_config() {
    let CacheConfig::Hca(plain) = config("keys=f16", smollm2()) else { panic!("not full") };
    for option in [
        "values=int8@host",
        "values=int4/32@host",
        "values=int4/64@host",
        "rescore=f16@host",
        "rescore=int8@host",
        "select=none",
        "select=top-p:0.5",
        "select=top-k:3",
        "select=threshold:0.01",
        "min=9",
        "max=900",
        "union=head",
        "renorm=off",
        "sinks=9",
        "recent=9",
        "prefill=anchor:9:3",
        "keys=lm4",
    ] {
        let keys = if option.starts_with("keys=") { "" } else { "keys=f16," };
        let CacheConfig::Hca(changed) = config(&format!("{keys}{option}"), smollm2()) else {
            panic!("not full")
        };
        assert_ne!(plain, changed, "{option}");
        assert!(changed.to_string().contains(option), "{option} in {changed}");
    }
}

#[test]
fn short_words_are_written_out() {
    let CacheConfig::Hca(config) = config("keys=f16,values=int4@host", smollm2()) else {
        panic!("not full")
    };
    assert!(config.to_string().contains("values=int4/32@host,"), "{config}");
}

#[test]
fn words_that_are_not_known_are_named_with_those_that_are() {
    for (spec, known) in [
        ("", "hca-rescore"),
        ("fool", "hca-rescore"),
        ("full:25%", "hca-rescore"),
        ("hca:25", "a percentage"),
        ("hca:%", "a percentage"),
        ("hca:0%", "a percentage"),
        ("hca:-5%", "a percentage"),
        ("hca:101%", "a percentage"),
        ("hca:nan%", "a percentage"),
        ("hca:25%,", "keys, values, rescore"),
        ("hca:25%,banana", "keys, values, rescore"),
        ("hca:25%,banana=1", "keys, values, rescore"),
        ("keys=lm9", "lm1, lm2, lm3, lm4"),
        ("keys=f16,values=f16", "f16@host, int8@host"),
        ("keys=f16,values=f16@disk", "f16@host, int8@host"),
        ("keys=f16,values=int4/16@host", "int4/{32,64,128}@host"),
        ("keys=f16,values=fp8@host", "int4/{32,64,128}@host"),
        ("keys=f16,rescore=int4@host", "f16@host, int8@host"),
        ("keys=f16,rescore=int4/64@host", "f16@host, int8@host"),
        ("keys=f16,select=top-p", "top-p:T"),
        ("keys=f16,select=top-p:x", "top-p:T"),
        ("keys=f16,select=top-k:-1", "top-k:N"),
        ("keys=f16,select=threshold:x", "threshold:W"),
        ("keys=f16,select=best", "top-k:N"),
        ("keys=f16,min=none", "whole numbers"),
        ("keys=f16,max=1.5", "whole numbers"),
        ("keys=f16,sinks=99999999999999999999", "whole numbers"),
        ("keys=f16,union=all", "group, head"),
        ("keys=f16,renorm=yes", "on, off"),
        ("hca:1024", "a percentage"),
        ("hca:64MiB", "a percentage"),
        ("snapkv:own", "25%, 1024 (tokens of each head), 64MiB"),
        ("snapkv:0", "25%, 1024 (tokens of each head), 64MiB"),
        ("snapkv:18446744073709551615GiB", "25%, 1024 (tokens of each head), 64MiB"),
        ("snapkv:25%,keep=half", "a share of a full cache's bytes"),
        ("snapkv:25%,evict=luck", "key-norm, key-diff"),
        ("snapkv:25%,pool=mean:4", "mean:N, max:N with odd N"),
        ("snapkv:25%,gqa=median", "mean, max, sum, sum-squares"),
        ("snapkv:25%,budget=pyramid", "pyramid:BETA, pyramid-within:BETA, adaptive:FLOOR"),
        ("snapkv:25%,every=0", "once, step, N, drift:W"),
        ("snapkv:25%,observe=none", "whole numbers"),
        ("snapkv:25%,refresh=never", "async, sync"),
    ] {
        let error = spec.parse::<CacheSpec>().unwrap_err();
        assert!(error.to_string().contains(known), "{spec}: {error}");
        let is_typed =
            matches!(error, Error::UnknownWord { .. } | Error::Quant(_) | Error::Evict(_));
        assert!(is_typed, "{spec}: {error:?}");
    }
}

#[test]
fn a_format_has_one_spelling() {
    for (spec, right) in [("keys=alloc/2.00", "alloc/2"), ("hca,keys=pq/02x256", "pq/2x256")] {
        let error = spec.parse::<CacheSpec>().unwrap_err().to_string();
        assert!(error.ends_with(&format!(" is written {right}; write it so")), "{spec}: {error}");
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    for spec in [
        "full,recent=3",
        "hca",
        "hca-rescore,recent=64",
        "recent=64",
        "snapkv",
        "heterocache",
        "dbudget:25%",
        "corm:1024",
    ] {
        let error = spec.parse::<CacheSpec>().unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{spec}: {error}");
    }
    for spec in [
        "keys=f16,recent=0",
        "keys=f16,min=9,max=8",
        "keys=f16,max=0",
        "keys=f16,select=top-p:0",
        "keys=f16,select=top-p:1.01",
        "keys=f16,select=top-p:nan",
        "keys=f16,select=top-k:0",
        "keys=f16,select=threshold:0",
        "keys=f16,select=threshold:nan",
        "keys=f16,rescore=f16@host,renorm=off",
        "keys=f16,sinks=18446744073709551615",
        "hca:25%,recent=18446744073709551615",
        "keys=f16,sinks=9223372036854775807,recent=9223372036854775809",
        "keys=lm2,values=f16@device,rescore=f16@host",
        "snapkv:25%,keys=lm2,rescore=int8@host",
        "snapkv:25%,keys=lm2,recent=0",
        "snapkv:25%,refresh=sync",
        "snapkv:25%,tau=0.5",
        "hca:25%,values=int8@device",
        "snapkv:25%,observe=0",
        "corm,observe=0",
        "hca-rescore:12.5%,evict=window,keep=25%",
        "keys=f16,keep=25%",
        "keys=f16,values=f16@device,evict=window",
        "keys=f16,values=f16@device,evict=window,keep=own",
        "keys=f16,values=f16@device,evict=window,observe=all,keep=100",
        "keys=f16,values=f16@device,evict=window,keep=100,every=18446744073709551615",
        "keys=f16,values=f16@device,evict=window,keep=25%,budget=votes",
        "keys=f16,values=f16@device,evict=window,budget=votes",
        "dbudget,keep=25%",
        "corm,keep=1024",
        "corm,evict=window",
        "snapkv:25%,budget=norm-drop:0.1",
        "snapkv:25%,budget=profile",
        "baklava:25%",
        "heterocache:50%",
        "snapkv:25%,every=drift:5",
        "snapkv:25%,select=top-p:0.9",
        "snapkv:25%,min=16",
        "keys=f16,values=f16@device,max=64",
        "keys=f16,values=f16@device,union=head",
        "keys=f16,values=f16@device,renorm=off",
        "hca,keys=f16,values=f16@device",
        "hca-rescore,keys=f16,values=f16@device,rescore=none",
    ] {
        let parsed: CacheSpec = spec.parse().unwrap_or_else(|e| panic!("{spec}: {e}"));
        assert!(parsed.resolve(&smollm2(), None).is_err(), "{spec}");
    }
}

#[test]
fn what_does_not_go_with_rows_that_come_back_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let heads = crate::forgetting::head_profile(folder.path(), &smollm2());
    for option in
        ["refresh=sync", "tau=0.7", "gqa=max", "evict=squared", "evict=key-norm", "budget=uniform"]
    {
        round_trip(&format!("heterocache:80%,{option},heads={heads}"));
    }
    for (spec, part) in [
        ("dbudget,every=drift:5", "cut the heads that say what has drifted"),
        ("corm,every=drift:5", "cut the heads that say what has drifted"),
        ("heterocache:80%,every=once,tau=0.5", "tau and refresh say how rows come back"),
        ("snapkv:25%", "do not go by a profile of heads"),
    ] {
        let parsed: CacheSpec = format!("{spec},heads={heads}").parse().unwrap();
        let error = parsed.resolve(&smollm2(), None).unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{spec}: {error}");
        assert!(error.to_string().contains(part), "{spec}: {error}");
    }
    round_trip("corm,evict=votes-seen");
    let error = "heterocache:80%,heads=a,b".parse::<CacheSpec>().unwrap_err();
    assert!(error.to_string().contains("the path of a file cannot hold one"), "{error}");
}

#[test]
fn an_option_given_twice_is_refused_by_name() {
    for (spec, twice) in [
        ("hca:25%,recent=64,recent=32", "recent"),
        ("keys=f16,sinks=4,min=1,sinks=4", "sinks"),
        ("keys=lm2,keys=lm3", "keys"),
    ] {
        let error = spec.parse::<CacheSpec>().unwrap_err();
        assert!(
            matches!(&error, Error::Repeated { option } if option == twice),
            "{spec}: {error:?}"
        );
    }
}

#[test]
fn the_grammar_names_every_option() {
    for word in [
        "full",
        "hca",
        "hca-rescore",
        "keys=",
        "keys=mix:",
        "values=",
        "rescore=",
        "select=",
        "min=",
        "max=",
        "union=",
        "renorm=",
        "sinks=",
        "recent=",
        "prefill=",
    ] {
        assert!(SPEC_GRAMMAR.contains(word), "{word}");
    }
    for spec in ["full", "hca:12.5%", "hca-rescore:6.25%", "hca:25%,recent=128"] {
        assert!(SPEC_GRAMMAR.contains(spec) && spec.parse::<CacheSpec>().is_ok(), "{spec}");
    }
}

/// Paths of mixes, odd ones among them, that a spec can hold.
fn paths() -> impl Strategy<Value = String> {
    "[ =:%@a-zß.\\\\\"-]{0,6}[=:%@a-zß.\\\\\"-]"
}

/// A spec that is right, or nearly.
fn near_specs() -> impl Strategy<Value = String> {
    let word = "(full|hca|hca-rescore|snapkv|corm|keys|values|rescore|select|min|max|union|renorm|sinks|recent|prefill|evict|observe|pool|gqa|budget|keep|every|refresh|)";
    let rest = "(:|=|)(f16|int8|int4|int4/32|int8-token|lm[0-9]|pq/[0-9]x[0-9]{1,3}|alloc/[0-9.]{1,4}|none|on|off|group|head|top-[pk]:|window|key-norm|all|mean:|pyramid:|global|once|step|drift:|sync|exact|anchor:|)";
    let end = "(@host|@disk|@device|[0-9.]{0,22}|)(%|)";
    let words = (word, rest, end).prop_map(|(word, rest, end)| word + &rest + &end);
    prop::collection::vec(words, 1..6).prop_map(|words| words.join(","))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = text.parse::<CacheSpec>();
    }

    #[test]
    fn no_near_spec_panics_and_what_resolves_is_written_out_and_read_back(text in near_specs()) {
        let Ok(spec) = text.parse::<CacheSpec>() else { return Ok(()) };
        let Ok(config) = spec.resolve(&smollm2(), None) else { return Ok(()) };
        for num_tokens in [0, 1, 5_000] {
            let _ = CachePlan::new(&config, &smollm2(), num_tokens);
        }
        let again = config.to_string().parse::<CacheSpec>().unwrap().resolve(&smollm2(), None).unwrap();
        prop_assert_eq!(again, config);
    }

    #[test]
    fn every_spec_that_is_read_is_printed_and_read_back(text in near_specs()) {
        let Ok(spec) = text.parse::<CacheSpec>() else { return Ok(()) };
        prop_assert_eq!(spec.to_string().parse::<CacheSpec>().unwrap(), spec);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_mix_of_any_path_that_a_spec_holds_is_printed_and_read_back(name in paths()) {
        let folder = tempfile::tempdir().unwrap();
        let shape = shape(1, 2, 2, 16);
        let path = folder.path().join(&name);
        prop_assume!(!path.is_dir());
        KeyMix::create(&path, "m", &shape, vec!["lm2".parse().unwrap(); 2]).unwrap();
        for rest in ["", ",sinks=3"] {
            let spec: CacheSpec = format!("keys=mix:{}{rest}", path.display()).parse().unwrap();
            prop_assert_eq!(&spec.to_string().parse::<CacheSpec>().unwrap(), &spec);
            let config = spec.resolve(&shape, None).unwrap();
            let again: CacheSpec = config.to_string().parse().unwrap();
            prop_assert_eq!(again.resolve(&shape, None).unwrap(), config);
        }
    }
}
