//! `heterokv generate`: a prompt in, a reply out as it comes.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use heterokv_cache::KvCache;
use heterokv_model::text::Conversation;
use heterokv_model::{FinishReason, GenerateSettings, Generation, Generator, Model};
use serde::Serialize;

use crate::args::{CacheArgs, GenerateArgs};
use crate::failure::Unwritable;
use crate::interrupt;
use crate::load::{Opened, check_ratio};
use crate::output::{print, print_line, ratio, say, tokens};
use crate::progress::Bar;
use crate::prompt::{UnreadFiles, check_not_empty, encode_plain, reply_tokens};
use crate::report::Report;
use crate::requirement::{check_memory, plan};

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    model: &'a str,
    compute: String,
    cache: String,
    spec: String,
    text: &'a str,
    tokens: &'a [u32],
    finish: FinishReason,
    end_token: Option<u32>,
    promised_percent: Option<f64>,
    promised_from_tokens: Option<usize>,
    #[serde(flatten)]
    report: &'a Report,
}

pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    let files = UnreadFiles::new(&args.file)?;
    check_not_empty(&files, &args.prompt)?;
    args.sampler.check()?;
    let opened = Opened::new(&args.model)?;
    let text = opened.text()?;
    let limit = opened.checkpoint.config().max_context_tokens;
    let allow_beyond_trained = args.cache.terms.allow_beyond_trained;
    let files = files.read(&text, (!allow_beyond_trained).then_some(limit))?;
    let tokens = if args.chat {
        let conversation = Conversation::new(&text, args.system.clone())?;
        let _bar = Bar::spinner("encoding the text");
        conversation.first_turn(&files.with_paragraph(&args.prompt))?
    } else {
        encode_plain(&text, &format!("{}{}", files.text, args.prompt))?
    };
    let max_tokens = args.sampler.max_tokens;
    let max_tokens =
        reply_tokens(max_tokens, tokens.len(), limit, allow_beyond_trained, &text, &files)?;
    let settings = GenerateSettings {
        sampler: args.sampler.settings(),
        stops: args.sampler.stop.clone(),
        max_tokens,
        allow_beyond_trained,
    };

    let (model, cache) = prepare(&opened, &args.cache, tokens.len(), max_tokens)?;
    let mut generator = Generator::new(&model, &text.tokenizer, cache);
    let start = Instant::now();
    feed(&mut generator, &tokens)?;
    let prefill_seconds = start.elapsed().as_secs_f64();
    let reply = stream(&mut generator, &settings, !args.json)?;
    let report = Report::new(generator.cache(), &reply, tokens.len(), prefill_seconds);
    if args.json {
        let spec = &args.cache.cache;
        let output = Output {
            model: &opened.name,
            compute: opened.compute().to_string(),
            cache: spec.to_string(),
            spec: generator.cache().config().to_string(),
            text: &reply.text,
            tokens: &reply.tokens,
            finish: reply.finish,
            end_token: reply.end_token,
            promised_percent: spec.promise().map(|promise| promise.percent),
            promised_from_tokens: spec.promise().map(|promise| promise.min_tokens),
            report: &report,
        };
        print_line(&serde_json::to_string(&output)?)?;
    } else {
        print_line("")?;
    }
    if args.stats {
        print_line(&format!("\n{}", report.table(&args.cache.cache)))?;
    }
    if args.cache.terms.strict_ratio {
        let num_tokens = generator.cache().num_tokens();
        check_ratio(&args.cache.cache, report.ratio(), num_tokens)?;
    }
    Ok(())
}

/// Holds what is asked for against the machine, says what will run, and loads it.
pub(super) fn prepare(
    opened: &Opened,
    args: &CacheArgs,
    num_prompt_tokens: usize,
    max_tokens: usize,
) -> Result<(Model, KvCache)> {
    let (spec, terms) = (&args.cache, &args.terms);
    let config = opened.checkpoint.config();
    let resolved = opened.resolve(spec)?;
    let at_prompt = plan(config, &resolved, num_prompt_tokens)?;
    let at_end = plan(config, &resolved, num_prompt_tokens.saturating_add(max_tokens))?;
    check_memory(config, opened.weight_bytes()?, &[at_end], num_prompt_tokens)?;
    if terms.strict_ratio {
        check_ratio(spec, at_prompt.ratio(), num_prompt_tokens)?;
    }
    let profile = opened.profile(terms.profile.as_ref())?;
    let cache = opened.cache(resolved, profile.as_ref())?;
    say(&format!(
        "{}; {} of prompt, cache {spec}: {}",
        opened.first_line(),
        tokens(num_prompt_tokens),
        ratio(at_prompt.ratio(), spec)
    ));
    Ok((opened.load()?, cache))
}

/// Feeds tokens and shows how far they are.
pub(super) fn feed(generator: &mut Generator<'_>, tokens: &[u32]) -> Result<()> {
    let bar = Bar::new("reading the prompt");
    let mut show = |done, total| bar.set(done, total);
    Ok(generator.feed(tokens, Some(&mut show))?)
}

/// Generates a reply and prints it as it comes, where `is_shown`. Ctrl-C ends it.
pub(super) fn stream(
    generator: &mut Generator<'_>,
    settings: &GenerateSettings,
    is_shown: bool,
) -> Result<Generation> {
    generator.cache_mut().reset_stats();
    let mut printed: Result<(), Unwritable> = Ok(());
    let reply = interrupt::replying(|| {
        generator.generate(settings, |text| {
            if is_shown && !text.is_empty() {
                printed = print(text);
            }
            if printed.is_err() || interrupt::is_stopping() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
    })?;
    printed?;
    Ok(reply)
}
