//! `heterokv eval`: caches against the full one on a text, or the logits of a token list.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec};
use heterokv_eval::{CacheResult, Mode, Window, compare_caches, logits_report};
use serde::{Deserialize, Serialize};

use crate::args::EvalArgs;
use crate::load::{Opened, check_ratio, read_text};
use crate::output::{bytes, count, is_above_promise, percent, print_line, say, table, tokens};
use crate::progress::Bar;
use crate::prompt::encode_plain;
use crate::requirement::{check_memory, plan, say_uncoded};

/// What `--json` prints of a cache.
#[derive(Serialize)]
struct Output<'a> {
    /// As it was named.
    cache: String,
    #[serde(flatten)]
    result: &'a CacheResult,
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    match (&args.tokens, &args.corpus) {
        (Some(tokens), _) => logits(args, tokens),
        (None, Some(corpus)) => compare(args, corpus),
        (None, None) => unreachable!("the command line demands one of the two"),
    }
}

fn compare(args: &EvalArgs, corpus: &Path) -> Result<()> {
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let mode = if args.recall { Mode::Recall } else { Mode::Plain };
    let tokens = encode_plain(&opened.text()?, &read_text(corpus)?)?;
    let window = Window::cut(&tokens, args.token_offset, args.context, args.continuation, mode)?;
    ensure!(args.context > 0, "--context must be at least 1");
    let (held_tokens, max_tokens) = (window.context.len(), window.steps());
    let limit_tokens = config.max_context_tokens;
    if held_tokens.saturating_add(max_tokens) > limit_tokens && !args.terms.allow_beyond_trained {
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens, limit_tokens })?;
    }
    let configs: Result<Vec<CacheConfig>> =
        args.cache.iter().map(|spec| opened.resolve(spec)).collect();
    let configs = configs?;
    let plans: Result<Vec<CachePlan>> = std::iter::once(&CacheConfig::Full)
        .chain(&configs)
        .map(|cache| plan(config, cache, held_tokens + max_tokens))
        .collect();
    check_memory(config, opened.weight_bytes()?, &plans?, held_tokens)?;
    let profile = opened.profile(args.terms.profile.as_ref())?;
    for (spec, cache) in args.cache.iter().zip(&configs) {
        let at_context = plan(config, cache, held_tokens)?;
        if args.terms.strict_ratio {
            check_ratio(spec, at_context.ratio(), held_tokens)?;
        }
        if profile.is_none() {
            say_uncoded(spec, &at_context);
        }
        // What does not fit is refused before the weights are read.
        let profile = profile.as_ref().filter(|_| *cache != CacheConfig::Full);
        opened.cache(cache.clone(), profile)?;
    }
    let line = opened.first_line();
    if args.json {
        say(&line)
    } else {
        print_line(&line)?
    }
    let model = opened.load()?;
    let results = {
        let bar = Bar::new("reading the context");
        let mut show = |done, total| bar.set(done, total);
        compare_caches(&model, &window, &configs, profile.as_ref(), Some(&mut show))?
    };
    let full = CacheSpec::full();
    let specs: Vec<&CacheSpec> = std::iter::once(&full).chain(&args.cache).collect();
    if args.json {
        for (result, spec) in results.iter().zip(&specs) {
            print_line(&serde_json::to_string(&Output { cache: spec.to_string(), result })?)?;
        }
    } else {
        print_line(&format!("\n{}", show(&results, &specs, &window)))?;
    }
    if args.terms.strict_ratio {
        for (result, spec) in results.iter().zip(specs) {
            check_ratio(spec, result.ratio, held_tokens + max_tokens)?;
        }
    }
    Ok(())
}

/// A ratio reached, with a mark where the context is too short for what `spec` promises.
fn ratio(reached: f64, spec: &CacheSpec) -> String {
    let mark = if is_above_promise(reached, spec) { "*" } else { "" };
    format!("{}{mark}", percent(reached))
}

/// What the mark stands for; empty where there is none.
fn footnote(results: &[CacheResult], specs: &[&CacheSpec]) -> String {
    let mut promises: Vec<String> = Vec::new();
    for (result, spec) in results.iter().zip(specs) {
        let Some(promise) = spec.promise() else { continue };
        let text =
            format!("{spec} keeps {} % from {} on", promise.percent, tokens(promise.min_tokens));
        if is_above_promise(result.ratio, spec) && !promises.contains(&text) {
            promises.push(text);
        }
    }
    if promises.is_empty() { String::new() } else { format!("\n* {}", promises.join(", ")) }
}

fn show(results: &[CacheResult], specs: &[&CacheSpec], window: &Window) -> String {
    let header = [
        "cache",
        "KL mean",
        "KL p99",
        "top-1",
        "perplexity",
        "rows read",
        "device",
        "host",
        "ratio",
        "tok/s",
    ];
    let header = header.map(str::to_owned);
    let rows: Vec<Vec<String>> = results
        .iter()
        .zip(specs)
        .map(|(result, spec)| {
            vec![
                spec.to_string(),
                format!("{:.5}", result.kl_mean),
                format!("{:.5}", result.kl_p99),
                percent(result.top1),
                format!("{:.3}", result.ppl),
                percent(result.rows_read),
                bytes(result.device_bytes as u64),
                bytes(result.host_bytes as u64),
                ratio(result.ratio, spec),
                format!("{:.1}", result.tok_s),
            ]
        })
        .collect();
    let what = match window.mode {
        Mode::Plain => "the text that follows",
        Mode::Recall => "a passage of the context again",
    };
    format!(
        "{} of context from token {}, then {} of {what}; KL(full || cache) in nats\n\n{}{}",
        tokens(window.context.len()),
        count(window.offset),
        count(window.steps()),
        table(&header, &rows),
        footnote(results, specs)
    )
}

/// A token list as a file holds it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenFile {
    Ids(Vec<u32>),
    Object { ids: Vec<u32> },
}

fn logits(args: &EvalArgs, path: &Path) -> Result<()> {
    let file: TokenFile = serde_json::from_str(&read_text(path)?).with_context(|| {
        format!(
            "{} should be a JSON array of token ids, or an object with one as `ids`",
            path.display()
        )
    })?;
    let (TokenFile::Ids(ids) | TokenFile::Object { ids }) = file;
    ensure!(!ids.is_empty(), "{} holds no token ids", path.display());
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let limit_tokens = config.max_context_tokens;
    if ids.len() > limit_tokens && !args.terms.allow_beyond_trained {
        let held_tokens = ids.len();
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens: 0, limit_tokens })?;
    }
    let plan = plan(config, &CacheConfig::Full, ids.len())?;
    check_memory(config, opened.weight_bytes()?, &[plan], ids.len())?;
    say(&opened.first_line());
    let model = opened.load()?;
    let report = {
        let _bar = Bar::spinner("computing the logits");
        logits_report(&model, &ids, &args.rows)?
    };
    print_line(&serde_json::to_string(&report)?)?;
    Ok(())
}
