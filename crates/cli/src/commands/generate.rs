//! `heterokv generate`: a prompt in, a reply out as it comes.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Result, anyhow};
use heterokv_model::text::Conversation;
use heterokv_model::{FinishReason, GenerateSettings, Generation, Generator, Session};
use serde::Serialize;

use crate::args::GenerateArgs;
use crate::failure::{Unwritable, one_line};
use crate::interrupt;
use crate::load::{Opened, check_ratio};
use crate::machine::{Task, run_on};
use crate::output::{print, print_line, say};
use crate::progress::Bar;
use crate::prompt::{UnreadFiles, check_not_empty, encode_plain, reply_tokens};
use crate::report::{PromptFigures, Report};

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

    let task = Task { prompt: &tokens, max_tokens, session: args.session.as_deref() };
    run_on(&opened, &args.cache, task, |ready| {
        let found = ready.session.as_ref().map_or(0, |(_, found)| *found);
        let generator = Generator::resume(ready.decoder, &text.tokenizer, &tokens[..found]);
        let done = reply(args, &opened, generator, (&tokens, ready.session), &settings);
        done.map_err(|error| match &args.session {
            Some(folder) if is_damaged_page(&error) => error.context(format!(
                "session {}: remove this folder, and the text is read again",
                folder.display()
            )),
            _ => error,
        })
    })
}

/// Whether rows on disk are not those that were written.
fn is_damaged_page(error: &anyhow::Error) -> bool {
    use heterokv_cache::{Error as CacheError, StoreError};

    let damaged =
        |error: &CacheError| matches!(error, CacheError::Offload(StoreError::DamagedPage { .. }));
    matches!(error.downcast_ref(), Some(heterokv_model::Error::Cache(error)) if damaged(error))
}

/// Reads of the prompt what the session does not have, saves it there, and writes the reply and what is asked for of it.
fn reply(
    args: &GenerateArgs,
    opened: &Opened,
    mut generator: Generator<'_>,
    (tokens, session): (&[u32], Option<(&mut Session, usize)>),
    settings: &GenerateSettings,
) -> Result<()> {
    let mut prompt = PromptFigures {
        num_tokens: tokens.len(),
        session_tokens: session.as_ref().map(|(_, found)| *found),
        ..PromptFigures::default()
    };
    let unread = &tokens[prompt.session_tokens.unwrap_or(0)..];
    let mut saved = Ok(());
    if !unread.is_empty() {
        let start = Instant::now();
        feed(&mut generator, unread)?;
        prompt.read_seconds = start.elapsed().as_secs_f64();
        if let Some((session, _)) = session.filter(|(session, _)| !session.has_all_of(tokens)) {
            saved = generator.save(session);
            // What was read is there to answer from.
            if let Err(error) = &saved {
                say(&one_line(&anyhow!("what was read is not kept: {error}")));
            }
            prompt.save_seconds = start.elapsed().as_secs_f64() - prompt.read_seconds;
        }
    }
    let reply = stream(&mut generator, settings, !args.json)?;
    let report = Report::new(&generator.figures(), &reply, &prompt);
    if args.json {
        let spec = &args.cache.cache;
        let output = Output {
            model: &opened.name,
            compute: opened.compute().to_string(),
            cache: spec.to_string(),
            spec: generator.figures().config.to_string(),
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
    // On a GPU there is room for the longest reply, by which the ratio was judged.
    if args.cache.terms.strict_ratio && generator.figures().link.is_none() {
        check_ratio(&args.cache.cache, report.ratio(), generator.figures().num_tokens)?;
    }
    Ok(saved?)
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
    generator.reset_stats();
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
