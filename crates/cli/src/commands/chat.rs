//! `heterokv chat`: a text read once, and questions about it until the input ends.

use std::io::{self, BufRead, IsTerminal};
use std::time::Instant;

use anyhow::{Context, Result};
use heterokv_model::text::{Conversation, Opening};
use heterokv_model::{GenerateSettings, Generator, SamplerSettings};

use super::generate::{feed, stream};
use crate::args::ChatArgs;
use crate::interrupt;
use crate::load::{Opened, check_ratio};
use crate::machine::{Task, run_on};
use crate::output::{print, print_line, say};
use crate::progress::Bar;
use crate::prompt::{UnreadFiles, reply_tokens};
use crate::report::{PromptFigures, Report};

pub(super) fn run(args: &ChatArgs) -> Result<()> {
    let files = UnreadFiles::new(&args.file)?;
    args.sampler.check()?;
    let opened = Opened::new(&args.model)?;
    let text = opened.text()?;
    let conversation = Conversation::new(&text, args.system.clone())?;
    let limit = opened.checkpoint.config().max_context_tokens;
    let allow_beyond_trained = args.cache.terms.allow_beyond_trained;
    let files = files.read(&text, (!allow_beyond_trained).then_some(limit))?;
    let opening = {
        let _bar = Bar::spinner("encoding the text");
        conversation.opening(&files.before_paragraph())?
    };
    let reply_tokens = |num_tokens| {
        let asked = args.sampler.max_tokens;
        reply_tokens(asked, num_tokens, limit, allow_beyond_trained, &text, &files)
    };

    let max_tokens = reply_tokens(opening.tokens.len())?;
    let task = Task { prompt: &opening.tokens, max_tokens, session: None };
    run_on(&opened, &args.cache, task, |ready| {
        let generator = Generator::new(ready.decoder, &text.tokenizer);
        converse(args, generator, &conversation, &opening, reply_tokens)
    })
}

/// Reads the opening, and answers questions until there are no more. `reply_tokens` says how long a reply may be behind so
/// many tokens.
fn converse(
    args: &ChatArgs,
    mut generator: Generator<'_>,
    conversation: &Conversation<'_>,
    opening: &Opening,
    reply_tokens: impl Fn(usize) -> Result<usize>,
) -> Result<()> {
    let sampler = args.sampler.settings();
    let terms = &args.cache.terms;
    feed(&mut generator, &opening.tokens)?;
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        say("Ask. Ctrl-C ends a reply; at the prompt it ends the program, as Ctrl-D does.");
    }
    for turn in 0u64.. {
        let Some(question) = next_question(is_terminal)? else { break };
        let tokens = match turn {
            0 => conversation.question(&question, &opening.behind, "")?,
            _ => conversation.next_turn(&question, "")?,
        };
        let settings = GenerateSettings {
            // Each reply draws numbers of its own.
            sampler: SamplerSettings { seed: sampler.seed.wrapping_add(turn), ..sampler },
            stops: args.sampler.stop.clone(),
            max_tokens: reply_tokens(generator.num_tokens() + tokens.len())?,
            allow_beyond_trained: terms.allow_beyond_trained,
        };
        let start = Instant::now();
        feed(&mut generator, &tokens)?;
        let seconds = start.elapsed().as_secs_f64();
        let reply = stream(&mut generator, &settings, true)?;
        print_line("")?;
        if args.stats {
            let prompt = PromptFigures {
                num_tokens: tokens.len(),
                read_seconds: seconds,
                ..PromptFigures::default()
            };
            let report = Report::new(&generator.figures(), &reply, &prompt);
            print_line(&format!("\n{}\n", report.table(&args.cache.cache)))?;
        }
    }
    let figures = generator.figures();
    // On a GPU there is room for the longest reply, by which the ratio was judged.
    if terms.strict_ratio && figures.link.is_none() {
        check_ratio(&args.cache.cache, figures.ratio(), figures.num_tokens)?;
    }
    Ok(())
}

/// The next line that is text and not blank; none at the end of the input.
fn next_question(is_terminal: bool) -> Result<Option<String>> {
    loop {
        if is_terminal {
            print("> ")?;
        }
        let mut line = Vec::new();
        let read = interrupt::at_prompt(|| io::stdin().lock().read_until(b'\n', &mut line));
        if read.context("cannot read the question")? == 0 {
            return Ok(None);
        }
        let line = match String::from_utf8(line) {
            Ok(line) => line,
            Err(error) => {
                // What was read stays in the cache; only this line is lost.
                let at = error.utf8_error().valid_up_to();
                say(&format!(
                    "this question is not UTF-8 text (byte {at}) and is left out; ask again"
                ));
                continue;
            }
        };
        if !line.trim().is_empty() {
            return Ok(Some(line.trim().to_owned()));
        }
    }
}
