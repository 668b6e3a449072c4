//! Where the instructions of a prompt and of decode steps go, function by function, counted by callgrind.
//!
//! A process under valgrind, on one thread and at AVX2, as valgrind knows no AVX-512. The context of a step is a short prompt
//! over and over, in near tiles, since a long one takes too long there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heterokv_cache::KvCache;
use heterokv_model::{Checkpoint, ComputeType, Model};

use crate::caches::Planned;
use crate::end_to_end::Greedy;
use crate::instructions;
use crate::machine::threads;
use crate::prompt_rows::{PromptRows, Tiles};
use crate::sheet::{Cell, Sheet};

/// The word that starts the process.
const COMMAND: &str = "speed-profile-process";

/// What is counted: a cache, and whether a prompt into it or a step over it.
const SUBJECTS: [(&str, bool); 3] = [("full", false), ("hca:12.5%", false), ("hca:12.5%", true)];

/// Tokens of the prompt that is repeated: valgrind takes some 300 times as long for products of f32.
const REAL_TOKENS: usize = 32;

/// Tokens in the cache of a step.
const STEP_TOKENS: usize = 4096;

/// Tokens of the prompt that is counted.
const PREFILL_TOKENS: usize = 128;

/// Tokens that are needed of a text.
pub(super) const TOKENS: usize = PREFILL_TOKENS + 1;

/// Functions that are shown of each.
const SHOWN: usize = 6;

/// What the process is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    #[arg(long)]
    model: PathBuf,
    /// A JSON list of tokens: of the prompt, and one behind it.
    #[arg(long)]
    tokens: PathBuf,
    #[arg(long)]
    cache: String,
    /// Tokens in the cache.
    #[arg(long)]
    context: usize,
    /// Count the prompt, not a step behind it.
    #[arg(long)]
    prefill: bool,
}

/// The functions with the most instructions of each subject.
///
/// # Errors
/// No valgrind, and a process that fails.
pub(super) fn measure(
    model: &Path,
    tokens: &[u32],
    folder: &Path,
    say: &dyn Fn(&str),
) -> Result<Sheet> {
    let mut sheet = Sheet::new(
        format!("Instructions, one thread at {}", instructions::level()),
        &["of", "function", "millions", "share %"],
    );
    for (cache, is_prefill) in SUBJECTS {
        let (context, of) = match is_prefill {
            true => (PREFILL_TOKENS, format!("{PREFILL_TOKENS} tokens into {cache}")),
            false => (STEP_TOKENS, format!("a step over {STEP_TOKENS} tokens in {cache}")),
        };
        say(&format!("profile: {of}"));
        let num_prompt = if is_prefill { context } else { REAL_TOKENS };
        ensure!(tokens.len() > num_prompt, "{num_prompt} tokens and one are needed");
        let file = folder.join("profile.json");
        fs::write(&file, serde_json::to_vec(&tokens[..=num_prompt])?)
            .context("cannot write the tokens")?;
        let child = ChildArgs {
            model: model.to_owned(),
            tokens: file,
            cache: cache.to_owned(),
            context,
            prefill: is_prefill,
        };
        let by_function = count(&child, folder).with_context(|| format!("profile: {of}"))?;
        let total: u64 = by_function.iter().map(|(_, count)| count).sum();
        for (function, count) in by_function.iter().take(SHOWN) {
            sheet.push(vec![
                Cell::text(&of),
                Cell::text(function),
                Cell::Number(1e-6 * *count as f64, 1),
                Cell::Number(100.0 * *count as f64 / total as f64, 1),
            ]);
        }
    }
    Ok(sheet)
}

/// Instructions by function, most first.
fn count(child: &ChildArgs, folder: &Path) -> Result<Vec<(String, u64)>> {
    let counts = folder.join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind", "--toggle-collect=*counted_section*"]);
    command.arg(format!("--callgrind-out-file={}", counts.display()));
    command.arg(std::env::current_exe().context("cannot find this program")?);
    command.args([COMMAND, "--cache", &child.cache, "--context", &child.context.to_string()]);
    command.arg("--model").arg(&child.model).arg("--tokens").arg(&child.tokens);
    if child.prefill {
        command.arg("--prefill");
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.context("cannot start valgrind; install it by the package manager")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "under valgrind: {}", said.trim());
    let text = fs::read_to_string(&counts).context("callgrind wrote no counts")?;
    let by_function = by_function(&text);
    ensure!(!by_function.is_empty(), "callgrind counted nothing: are symbols stripped?");
    Ok(by_function)
}

/// Prepares the subject, and computes it once where callgrind counts.
///
/// # Errors
/// A model or text that cannot be had, and what the cache refuses.
pub(crate) fn run_child(arguments: &ChildArgs) -> Result<()> {
    threads(1)?.install(|| {
        let level = instructions::level();
        let text = fs::read(&arguments.tokens).context("cannot read the tokens")?;
        let tokens: Vec<u32> = serde_json::from_slice(&text).context("cannot read the tokens")?;
        let (&last, prompt) = tokens.split_last().context("there are no tokens")?;
        let model = &Model::load(&Checkpoint::open(&arguments.model)?, ComputeType::Q8, level)?;
        let shape = model.kv_shape();
        let planned = Planned::new(&arguments.cache, &shape, arguments.context)?;
        let mut caches = [KvCache::new(shape, planned.config, level, None)?];
        if arguments.prefill {
            return counted_section(&mut || {
                model.prefill(prompt, &mut caches, None)?;
                Ok(())
            });
        }
        let rows = PromptRows::of_model(model, prompt)?;
        let frequencies = model.config().rope.inverse_frequencies(shape.heads.head_dim);
        let tiles = Tiles::Near { frequencies: &frequencies };
        for layer in 0..shape.num_layers {
            rows.tiled(layer, arguments.context, tiles).store(&mut caches, layer, level)?;
        }
        let [cache] = &mut caches;
        let mut greedy = Greedy::default();
        let mut step = || greedy.step(model, last, cache).map(drop);
        // The first one sets things up.
        step()?;
        counted_section(&mut step)
    })
}

/// What callgrind counts: valgrind looks for it by this name.
#[inline(never)]
fn counted_section(section: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    section()
}

/// The instructions that each function needs itself, most first, from a file of callgrind's.
fn by_function(text: &str) -> Vec<(String, u64)> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut function = "";
    // The line behind `calls=` is what the call cost, which its function has already.
    let mut is_of_call = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            // A name is written once, behind its number in brackets.
            let (id, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            if line.starts_with("fn=") {
                function = id;
            }
        } else if line.starts_with("calls=") {
            is_of_call = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<u64>().ok());
            if !is_of_call {
                *counts.entry(function).or_default() += cost.unwrap_or(0);
            }
            is_of_call = false;
        }
    }
    let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
    for (id, count) in counts {
        *by_name.entry(shown(names.get(id).unwrap_or(&id))).or_default() += count;
    }
    let mut counts: Vec<(String, u64)> =
        by_name.into_iter().filter(|(_, count)| *count > 0).collect();
    counts.sort_by(|(_, a), (_, b)| b.cmp(a));
    counts
}

/// A function's name without the compiler's hash.
fn shown(name: &str) -> String {
    let hash =
        name.rfind("::h").filter(|&at| name[at + 3..].chars().all(|c| c.is_ascii_hexdigit()));
    hash.map_or(name, |at| &name[..at]).replace('|', "¦")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_function_has_what_it_needs_itself() {
        let text = "events: Ir\nfl=(1) a.rs\nfn=(1) a::outer::h0123456789abcdef\n10 5\n+1 7\ncfn=(2) a::inner::hfedcba9876543210\ncalls=3 40\n* 300\n* 1\n\nfn=(2)\n40 290\n-2 10\nfn=(3) a::inner::h00000000000000ff\n1 2\ntotals: 315\n";
        assert_eq!(by_function(text), [("a::inner".to_owned(), 302), ("a::outer".to_owned(), 13)]);
        assert!(by_function("").is_empty());
        assert_eq!(shown("main"), "main");
        assert_eq!(shown("a::help"), "a::help");
    }

    #[test]
    fn every_subject_computes() {
        use crate::subject::Place;

        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::tiny();
        let ids = place.tokens(&Checkpoint::open(&place.model).expect("it is there"), 41);
        let tokens = folder.path().join("tokens.json");
        let text = serde_json::to_vec(&ids.expect("they are drawn")).expect("it can be");
        fs::write(&tokens, text).expect("it can be written");
        for prefill in [false, true] {
            let arguments = ChildArgs {
                model: place.model.clone(),
                tokens: tokens.clone(),
                cache: "full".to_owned(),
                context: 100,
                prefill,
            };
            run_child(&arguments).expect("it computes");
        }
    }
}
