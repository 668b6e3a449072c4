//! `cargo xtask bench`: builds the benchmarks, with or without their peers, and starts them.
//!
//! The words behind `bench` are the program's own, which has the help for them; only `--peers` is ours. Peers
//! have a package of their own outside the workspace, so that nothing here waits for what they depend on.
//! The default model and the folder for results are filled in where they are needed and not named.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::model_file;
use crate::peers;
use crate::process;
use crate::tally::{ANNOUNCEMENT, Tally};
use crate::workspace::Workspace;

/// The package outside the workspace.
pub(crate) const PEERS_MANIFEST: &str = "crates/bench/peers/Cargo.toml";

/// Where it is built, in the target folder.
const PEERS_TARGET: &str = "bench-peers";

/// The package of the program, and its file.
const PROGRAM: &str = "heterokv";

/// What to measure.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// A filter and options, or `quant`, `evict`, `gpu`, `offload`, `load` or `speed` and its own: `--help` and
    /// `quant --help` list them; none measures everything. `quant --peers` and `--peers speed` measure programs of others
    /// beside ours
    #[arg(value_name = "WORD", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Runs the program; true if it found every answer right and, where asked to look, every bar held.
///
/// # Errors
/// If it cannot be started, or the default model is needed and cannot be had.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let words = suite_first(&options.words);
    if measures_program(&words) {
        process::run_or_fail(&mut workspace.cargo(&["build", "--release", "--package", PROGRAM]))?;
    }
    process::run(&mut command(workspace, &words)?)
}

/// `--peers speed` as the program has it: a suite of its own, and its option.
fn suite_first(words: &[OsString]) -> Vec<OsString> {
    match words {
        [peers, speed, rest @ ..] if peers == "--peers" && speed == "speed" => {
            [&[speed.clone(), peers.clone()], rest].concat()
        }
        _ => words.to_vec(),
    }
}

/// Whether the suite starts the program `heterokv` itself.
fn measures_program(words: &[OsString]) -> bool {
    let is_left_out = ["--test", "--help", "-h", "--shape", "--program"];
    words.first().is_some_and(|first| first == "speed")
        && !is_left_out.into_iter().any(|option| has(words, option))
}

/// Every suite small, to see that its answers are right: a check each.
///
/// # Errors
/// As [`run`].
pub(crate) fn check_answers(workspace: &Workspace) -> Result<Tally> {
    let mut tally = check(workspace, &["--test"])?;
    tally += check(workspace, &["quant", "--test"])?;
    tally += check(workspace, &["quant", "--quality", "--test"])?;
    tally +=
        check(workspace, &["evict", "--quality", "--drift", "--latency", "--hybrid", "--test"])?;
    tally += check(workspace, &["load", "--test"])?;
    tally += check(workspace, &["offload", "--test"])?;
    tally += check(workspace, &["speed", "--test"])?;
    if !process::succeeds(Command::new("dd").arg("--version")) {
        println!("skipped: the disk's rates are held against dd, which is not installed");
        tally += Tally::of_skip();
    }
    if !process::succeeds(Command::new("valgrind").arg("--version")) {
        println!(
            "skipped: instructions of the kernels are counted by valgrind, which is not installed"
        );
        tally += Tally::of_skip();
    }
    Ok(tally)
}

/// The bars of every suite and the tests of the peers: a check each. Without the model or the text, the bars of quality are skipped.
///
/// # Errors
/// As [`run`].
pub(crate) fn check_bars(workspace: &Workspace, model: Option<&Path>) -> Result<Tally> {
    // The shape that the bars are set for.
    let speed = ["quant", "--peers", "--check", "--head-dims", "64", "--group-sizes", "3"];
    let mut tally = check(workspace, &speed)?;
    tally += check(workspace, &["offload", "ram", "--check"])?;
    let mut tests = workspace.cargo(&["test", "--release", "--manifest-path", PEERS_MANIFEST]);
    tests.arg("--target-dir").arg(workspace.target_folder()?.join(PEERS_TARGET));
    tally += Tally::of_check(process::run(&mut tests)?);
    let corpus = corpus(workspace);
    tally += match model {
        Some(model) if corpus.is_file() => {
            let words = ["quant", "--quality", "--peers", "--check"].map(OsString::from);
            let paths = ["--model".into(), model.into(), "--corpus".into(), corpus.into()];
            Tally::of_check(process::run(&mut command(workspace, &[words, paths].concat())?)?)
        }
        _ => {
            println!(
                "skipped: the bars of quality need the default model and {}",
                corpus.display()
            );
            Tally::of_skip()
        }
    };
    Ok(tally)
}

fn check(workspace: &Workspace, words: &[&str]) -> Result<Tally> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let mut num_skipped = 0;
    let passed = process::run_watched(&mut command(workspace, &words)?, |_, line| {
        num_skipped += u64::from(line.starts_with(ANNOUNCEMENT));
    })?;
    Ok(Tally { num_skipped, ..Tally::of_check(passed) })
}

/// The text that the quality tests use, too.
fn corpus(workspace: &Workspace) -> PathBuf {
    let shared = env::var_os("HETEROKV_SHARED").map(PathBuf::from);
    shared.unwrap_or_else(|| workspace.root().join("../shared")).join("data/moby-dick.txt")
}

fn command(workspace: &Workspace, words: &[OsString]) -> Result<Command> {
    let target = workspace.target_folder()?;
    let has = |option: &str| has(words, option);
    let is_quant = words.first().is_some_and(|first| first == "quant");
    let mut command = if is_quant && has("--peers") {
        let run = ["run", "--release", "--manifest-path", PEERS_MANIFEST];
        let mut command = workspace.cargo(&run);
        command.arg("--target-dir").arg(target.join(PEERS_TARGET));
        command
    } else {
        workspace.cargo(&["run", "--release", "--package", "heterokv-bench"])
    };
    command.arg("--").args(words.iter().filter(|word| !is_quant || *word != "--peers"));
    if !is_quant && has("--peers") && !has("--peers-folder") {
        command.arg("--peers-folder").arg(peers::folder(workspace)?);
    }
    // Kernels on a GPU are made up, and what they take goes to the terminal.
    let is_gpu = words.first().is_some_and(|first| first == "gpu");
    if !has("--help") && !has("-h") && !is_gpu {
        if !has("--out") {
            command.arg("--out").arg(target.join("bench"));
        }
        if needs_model(words) {
            command.arg("--model").arg(model_file::obtain_default()?);
        }
        if measures_program(words) {
            let name = format!("{PROGRAM}{}", env::consts::EXE_SUFFIX);
            command.arg("--program").arg(target.join("release").join(name));
        }
    }
    Ok(command)
}

/// Whether an option is among the words, with or without a value behind `=`.
fn has(words: &[OsString], option: &str) -> bool {
    words.iter().any(|word| {
        let rest = word.to_str().and_then(|word| word.strip_prefix(option));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// Whether the program asks for a model that the words do not name.
fn needs_model(words: &[OsString]) -> bool {
    let has = |option: &str| has(words, option);
    if has("--test") || has("--model") {
        return false;
    }
    match words.first() {
        Some(first) if first == "quant" => has("--quality"),
        Some(first) if first == "offload" => false,
        Some(first) if first == "evict" => true,
        Some(first) if first == "speed" => !has("--shape"),
        _ if has("--measured") => false,
        _ => {
            // The filter is a word that is no option and no option's value; it may begin with a suite's name.
            let is_option = |word: &OsString| word.to_string_lossy().starts_with("--");
            let follows_option = |place: usize| place > 0 && is_option(&words[place - 1]);
            let filters = words.iter().enumerate().filter(|(place, _)| !follows_option(*place));
            let begins = |filter: &OsString| {
                let filter = filter.to_string_lossy();
                ["machine", "instructions"].into_iter().any(|suite| filter.starts_with(suite))
            };
            !filters.map(|(_, filter)| filter).any(begins)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(words: &[&str]) -> String {
        let workspace = Workspace::around_this_package().expect("we are in it");
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        process::shown(&command(&workspace, &words).expect("the workspace can be read"))
    }

    #[test]
    fn words_are_passed_on_and_peers_choose_the_package() {
        let alone = shown(&["quant", "--test", "--out", "x"]);
        assert!(alone.ends_with("--package heterokv-bench -- quant --test --out x"), "{alone}");
        let with_peers = shown(&["quant", "--peers", "--help"]);
        assert!(with_peers.contains("crates/bench/peers"), "{with_peers}");
        assert!(with_peers.ends_with("-- quant --help"), "{with_peers}");
        let small = shown(&["quant", "--quality", "--test"]);
        assert!(!small.contains("--model") && small.contains("--out"), "{small}");
    }

    #[test]
    fn speed_beside_peers_is_a_suite_and_its_options() {
        let beside = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let words = suite_first(&words);
            let workspace = Workspace::around_this_package().expect("we are in it");
            process::shown(&command(&workspace, &words).expect("the workspace can be read"))
        };
        let shown =
            beside(&["--peers", "speed", "--model", "m", "--peers-folder", "p", "--out", "o"]);
        assert!(shown.contains("-- speed --peers --model m --peers-folder p --out o"), "{shown}");
        assert!(shown.contains("--program") && shown.contains("release/heterokv"), "{shown}");
        let small = beside(&["speed", "--test"]);
        assert!(!small.contains("--program") && !small.contains("--model"), "{small}");
        let other = beside(&["--peers", "speed", "--shape", "llama3-8b"]);
        assert!(!other.contains("--model") && other.contains("--peers-folder"), "{other}");
        let filtered = beside(&["--peers", "hca:25%", "--model", "m"]);
        assert!(filtered.contains("-- --peers hca:25% --model m"), "{filtered}");
    }

    #[test]
    fn the_model_is_filled_in_where_a_suite_needs_it() {
        let needs =
            |words: &[&str]| needs_model(&words.iter().map(OsString::from).collect::<Vec<_>>());
        for words in [
            &[][..],
            &["attention"],
            &["hca:25%", "--splice"],
            &["quant", "--quality"],
            &["load", "--context", "100000"],
            &["evict", "--bars"],
            &["evict", "--latency", "--cache", "machine"],
            &["--out", "machine-of-mine"],
            &["--compare", "instructions-old.json"],
        ] {
            assert!(needs(words), "{words:?}");
        }
        for words in [
            &["--test"][..],
            &["machine"],
            &["--rounds", "3", "machine/read"],
            &["instructions", "--record"],
            &["--compare", "a", "--measured", "b"],
            &["model", "--model", "x"],
            &["load", "--test"],
            &["evict", "--quality", "--test"],
            &["quant"],
            &["offload", "ram"],
        ] {
            assert!(!needs(words), "{words:?}");
        }
    }
}
