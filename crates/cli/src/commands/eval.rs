//! `heterokv eval`: caches put to the test against the full one, or the logits of a token list.

mod gate;
mod logits;
mod peers;
mod samples;
mod tables;
mod watch;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, Profile};
use heterokv_eval::{Candidate, Engine, Gate, Job, Probe, Run, aggregate, evaluate};
use heterokv_model::text::ModelText;

use super::report;
use crate::args::EvalArgs;
use crate::load::{Opened, check_ratio, file_digest};
use crate::output::{print_line, say};
use crate::requirement::{check_memory, plan, say_uncoded};
use watch::Watch;

/// What computes, as rows name it.
const ENGINE: &str = "heterokv";

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    match &args.tokens {
        Some(tokens) => logits::run(args, tokens),
        None => measure(args),
    }
}

fn measure(args: &EvalArgs) -> Result<()> {
    check_arguments(args)?;
    let opened = Opened::new(&args.model)?;
    let gate = args.gate.as_deref().map(|path| gate::read(path, &opened)).transpose()?;
    let text = opened.text()?;
    let jobs = samples::make(args, &text)?;
    let profile_digest = args.terms.profile.as_deref().map(file_digest).transpose()?;
    let profile = opened.profile(args.terms.profile.as_ref())?;
    let profile = profile.as_ref().zip(profile_digest.as_deref());
    let candidates = candidates(args, &opened, profile)?;
    check(args, &opened, &candidates, &jobs)?;
    if args.peers {
        peers::check(args, &jobs)?;
    }
    let run = of_program(args, &opened)?;
    let mut watch = Watch::new(args.out.as_deref(), args.json)?;
    let line = opened.first_line();
    if args.json {
        say(&line)
    } else {
        print_line(&line)?
    }
    if args.peers {
        in_turns(args, &opened, &text, &jobs, &candidates, &run, &mut watch)?;
    } else if watch.is_any_left(&jobs, &candidates, &run) {
        let model = opened.load()?;
        let engine = Engine { model: &model, tokenizer: &text.tokenizer };
        evaluate(engine, &jobs, &candidates, &run, &mut watch)?;
    }
    let rows = watch.into_rows(&jobs)?;
    if let Some(out) = &args.report {
        report::write(&rows, out)?;
    }
    let aggregates = aggregate(&rows);
    if !args.json {
        print_line(&format!("\n{}", tables::show(&aggregates, &args.cache)))?;
    }
    if args.terms.strict_ratio {
        for spec in &args.cache {
            for aggregate in aggregates.iter().filter(|aggregate| is_of(aggregate, spec)) {
                let ratio =
                    aggregate.ratio.with_context(|| format!("{spec}: no bytes were counted"))?;
                check_ratio(spec, ratio, aggregate.context)?;
            }
        }
    }
    match (&gate, &args.write_gate) {
        (Some(gate), _) => gate::hold(gate, &aggregates),
        (None, Some(path)) => {
            // Where the model is on this machine says nothing to others.
            let model = quoted(&args.model.model.to_string_lossy());
            gate::write(path, &aggregates, &run.command.replace(&model, &opened.name))
        }
        (None, None) => Ok(()),
    }
}

/// Ours and the peers on one context after the other, so that whatever disturbs the machine hits all alike. Each is
/// loaded anew, so that none has the memory that another holds.
fn in_turns(
    args: &EvalArgs,
    opened: &Opened,
    text: &ModelText,
    jobs: &[Job],
    candidates: &[Candidate<'_>],
    run: &Run,
    watch: &mut Watch,
) -> Result<()> {
    let mut rest = jobs.to_vec();
    while let Some(first) = rest.first() {
        let context = first.sample.context.clone();
        let (turn, others): (Vec<Job>, Vec<Job>) =
            rest.into_iter().partition(|job| job.sample.context == context);
        rest = others;
        if watch.is_any_left(&turn, candidates, run) {
            let model = opened.load()?;
            let engine = Engine { model: &model, tokenizer: &text.tokenizer };
            evaluate(engine, &turn, candidates, run, watch)?;
        }
        peers::measure(args, &turn, run, watch)?;
    }
    Ok(())
}

/// Refuses what can be seen of the arguments alone: contexts of nothing, names given twice, whose rows could not be told
/// apart, and a gate that cannot be written.
fn check_arguments(args: &EvalArgs) -> Result<()> {
    ensure!(
        args.samples.context.iter().all(|&context| context > 0),
        "--context must be at least 1"
    );
    if let Some(path) = &args.write_gate {
        Gate::check_place(path)?;
    }
    if let Some(path) = &args.report {
        report::check(path)?;
    }
    let written = [&args.out, &args.write_gate, &args.report];
    let written: Vec<&PathBuf> = written.into_iter().flatten().collect();
    for (place, path) in written.iter().enumerate() {
        let is_taken = written[..place].contains(path);
        ensure!(!is_taken, "{} is to hold two things; give another name", path.display());
    }
    check_once("context", &args.samples.context)?;
    check_once("token-offset", &args.samples.token_offset)?;
    check_once("depth", &args.samples.depth)?;
    check_once("cache", &args.cache.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    check_once("task", &args.task)
}

fn check_once<T: PartialEq + Display>(option: &str, values: &[T]) -> Result<()> {
    let mut places = values.iter().enumerate();
    match places.find(|(place, value)| values[..*place].contains(value)) {
        Some((_, value)) => bail!("--{option} {value} is given twice; once is enough"),
        None => Ok(()),
    }
}

/// The full cache, and those that were asked for beside it.
fn candidates<'a>(
    args: &EvalArgs,
    opened: &Opened,
    profile: Option<(&'a Profile, &str)>,
) -> Result<Vec<Candidate<'a>>> {
    let mut candidates = vec![Candidate::full()];
    for spec in args.cache.iter().filter(|spec| spec.to_string() != "full") {
        let config = opened.resolve(spec)?;
        let profile = profile.filter(|_| config != CacheConfig::Full);
        candidates.push(Candidate {
            name: spec.to_string(),
            promise: spec.promise(),
            config,
            profile: profile.map(|(profile, digest)| (profile, digest.to_owned())),
            replace: None,
        });
    }
    Ok(candidates)
}

/// Refuses what cannot go well before the weights are read.
fn check(
    args: &EvalArgs,
    opened: &Opened,
    candidates: &[Candidate<'_>],
    jobs: &[Job],
) -> Result<()> {
    let config = opened.checkpoint.config();
    let limit_tokens = config.max_context_tokens;
    let mut longest = 0;
    for job in jobs {
        let (held_tokens, max_tokens) =
            (job.sample.context.len(), tokens_behind(&job.sample.probe));
        if held_tokens.saturating_add(max_tokens) > limit_tokens && !args.terms.allow_beyond_trained
        {
            Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens, limit_tokens })
                .with_context(|| format!("{} {}", job.task, job.sample.name))?;
        }
        longest = longest.max(held_tokens.saturating_add(max_tokens));
    }
    // A probe works on forks, and beside all of them there is the full cache that they are held against.
    let full = Candidate::full();
    let caches = std::iter::once(&full).chain(candidates);
    let plans: Result<Vec<CachePlan>> =
        caches.map(|candidate| plan(config, &candidate.config, longest)).collect();
    let plans = plans?.repeat(2);
    check_memory(config, opened.weight_bytes()?, &plans, longest)?;
    let shortest = jobs.iter().map(|job| job.sample.context.len()).min().unwrap_or(0);
    for spec in &args.cache {
        let Some(candidate) = candidates.iter().find(|one| one.name == spec.to_string()) else {
            continue;
        };
        let at_context = plan(config, &candidate.config, shortest)?;
        if args.terms.strict_ratio {
            check_ratio(spec, at_context.ratio(), shortest)?;
        }
        if candidate.profile.is_none() {
            say_uncoded(spec, &at_context);
        }
        let profile = candidate.profile.as_ref().map(|(profile, _)| *profile);
        opened.cache(candidate.config.clone(), profile)?;
    }
    Ok(())
}

/// Most tokens that a probe puts behind the context.
fn tokens_behind(probe: &Probe) -> usize {
    match probe {
        Probe::Tokens(tokens) => tokens.len() - 1,
        Probe::OwnText { num_steps } => *num_steps,
        Probe::Questions(questions) => {
            questions.iter().map(|question| question.tokens.len() + question.max_tokens).sum()
        }
    }
}

/// What this program is, for whoever reads its rows.
fn of_program(args: &EvalArgs, opened: &Opened) -> Result<Run> {
    let build = file_digest(&std::env::current_exe().context("cannot find this program")?)?;
    let words = std::env::args_os().skip(1).map(|word| quoted(&word.to_string_lossy()));
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    Ok(Run {
        engine: ENGINE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build,
        commit: env!("HETEROKV_COMMIT").to_owned(),
        model: opened.name.clone(),
        fingerprint: opened.fingerprint(),
        conditions: format!("{} weights, {}", opened.compute(), opened.level()),
        threads: rayon::current_num_threads(),
        seed: args.samples.seed,
        command: std::iter::once("heterokv".to_owned()).chain(words).collect::<Vec<_>>().join(" "),
        date: now.split('T').next().unwrap_or_default().to_owned(),
    })
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=%@+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether an aggregate is of our cache of that name.
fn is_of(aggregate: &heterokv_eval::Aggregate, spec: &CacheSpec) -> bool {
    aggregate.engine == ENGINE && aggregate.cache == spec.to_string()
}

/// The rows of a results file, which must have some.
pub(super) fn read_results(path: &Path) -> Result<Vec<heterokv_eval::Row>> {
    let rows = heterokv_eval::read_rows(path)?;
    ensure!(!rows.is_empty(), "{} holds no results yet", path.display());
    Ok(rows)
}
