//! Where the time of a prompt and of decode steps goes, function by function, as perf samples it.
//!
//! A process each, which tells perf when what it is about begins and ends. Samples are of a thread that runs: one that
//! waits for work is not in them. The kernels that they name are counted in instructions by the suite `instructions`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heterokv_cache::KvCache;
use heterokv_model::{Checkpoint, ComputeType, Model};
use heterokv_quant::Level;
use rustix::fs::{CWD, FileType, Mode};

use super::ours::read_tokens;
use crate::caches::Planned;
use crate::end_to_end::Greedy;
use crate::machine::threads;
use crate::sheet::{Cell, Sheet};

/// The word that starts the process.
const COMMAND: &str = "speed-profile-process";

/// What is sampled: a cache, and whether a prompt into it or steps behind one.
const SUBJECTS: [(&str, bool); 3] = [("full", false), ("hca:12.5%", false), ("hca:12.5%", true)];

/// Tokens of the prompt.
const CONTEXT: usize = 7900;

/// Steps that are sampled, behind one that is not.
const NUM_STEPS: usize = 64;

/// Tokens that are needed of a text.
pub(super) const TOKENS: usize = CONTEXT + 1 + NUM_STEPS;

/// Samples a second and thread: no multiple of what else happens at round frequencies.
const FREQUENCY: &str = "1999";

/// Functions that are shown of each.
const SHOWN: usize = 8;

/// What the process is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    #[arg(long)]
    model: PathBuf,
    /// A JSON list of tokens: of the prompt, and what is fed behind it.
    #[arg(long)]
    tokens: PathBuf,
    #[arg(long)]
    cache: String,
    /// Tokens of the prompt.
    #[arg(long)]
    context: usize,
    /// The prompt is meant, not steps behind it.
    #[arg(long)]
    prefill: bool,
    #[arg(long)]
    pub(crate) threads: usize,
    /// Where perf takes orders.
    #[arg(long)]
    orders: PathBuf,
    /// Where it says that it has done them.
    #[arg(long)]
    answers: PathBuf,
}

/// The functions with the most time of each subject.
///
/// # Errors
/// No perf, or one that may not sample, and a process that fails.
pub(super) fn measure(
    model: &Path,
    tokens: &[u32],
    num_threads: usize,
    folder: &Path,
    say: &dyn Fn(&str),
) -> Result<Sheet> {
    let file = folder.join("profile.json");
    fs::write(&file, serde_json::to_vec(tokens)?).context("cannot write the tokens")?;
    let mut child = ChildArgs {
        model: model.to_owned(),
        tokens: file,
        cache: String::new(),
        context: CONTEXT,
        prefill: false,
        threads: num_threads,
        orders: folder.join("orders"),
        answers: folder.join("answers"),
    };
    for pipe in [&child.orders, &child.answers] {
        rustix::fs::mknodat(CWD, pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .context("cannot make a pipe to perf")?;
    }
    let mut sheet = Sheet::new("Time by function", &["of", "function", "samples", "share %"]);
    for (cache, is_prefill) in SUBJECTS {
        let of = match is_prefill {
            true => format!("a prompt of {CONTEXT} tokens into {cache}"),
            false => format!("steps behind {CONTEXT} tokens in {cache}"),
        };
        say(&format!("profile: {of}"));
        child.cache = cache.to_owned();
        child.prefill = is_prefill;
        let by_function = sample(&child, folder).with_context(|| format!("profile: {of}"))?;
        let total: u64 = by_function.iter().map(|(_, count)| count).sum();
        for (function, count) in by_function.iter().take(SHOWN) {
            sheet.push(vec![
                Cell::text(&of),
                // A page would take what is between angle brackets for its own.
                Cell::text(format!("`{function}`")),
                Cell::Number(*count as f64, 0),
                Cell::Number(100.0 * *count as f64 / total as f64, 1),
            ]);
        }
    }
    Ok(sheet)
}

/// Samples by function, most first.
fn sample(child: &ChildArgs, folder: &Path) -> Result<Vec<(String, u64)>> {
    let samples = folder.join("perf.data");
    let mut command = Command::new("perf");
    // The clock of a processor, which machines without counters have, too; nothing until the process says so.
    command.args(["record", "--quiet", "--event=cpu-clock:u", "--freq", FREQUENCY, "--delay=-1"]);
    let pipes = format!("fifo:{},{}", child.orders.display(), child.answers.display());
    command.arg("--control").arg(pipes).arg("--output").arg(&samples).arg("--");
    command.arg(std::env::current_exe().context("cannot find this program")?).arg(COMMAND);
    command.args(["--cache", &child.cache, "--context", &child.context.to_string()]);
    command.args(["--threads", &child.threads.to_string()]);
    command.arg("--model").arg(&child.model).arg("--tokens").arg(&child.tokens);
    command.arg("--orders").arg(&child.orders).arg("--answers").arg(&child.answers);
    if child.prefill {
        command.arg("--prefill");
    }
    said(command)?;
    let mut command = Command::new("perf");
    command.args(["report", "--stdio", "--quiet", "--no-children", "--fields=sample,symbol"]);
    command.args(["--field-separator=|", "--input"]).arg(&samples);
    let by_function = by_function(&said(command)?)?;
    ensure!(!by_function.is_empty(), "perf took no samples");
    Ok(by_function)
}

/// What a command of perf's prints.
fn said(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.context(
        "cannot start perf; the package manager has it, as linux-perf, linux-tools or perf",
    )?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "perf: {}; where it may not sample, `sysctl kernel.perf_event_paranoid=2` lets it",
        told.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Prepares the subject, and computes it while perf samples.
///
/// # Errors
/// A model or text that cannot be had, what the cache refuses, and a perf that does not answer.
pub(crate) fn run_child(arguments: &ChildArgs) -> Result<()> {
    let orders = File::options().write(true).open(&arguments.orders);
    let answers = File::open(&arguments.answers);
    let mut perf = Perf {
        orders: orders.context("cannot open the pipe to perf")?,
        answers: BufReader::new(answers.context("cannot open the pipe from perf")?),
    };
    threads(arguments.threads)?.install(|| {
        compute(arguments, &mut |section| {
            perf.order("enable")?;
            section()?;
            perf.order("disable")
        })
    })
}

/// The other ends of its pipes.
struct Perf {
    orders: File,
    answers: BufReader<File>,
}

impl Perf {
    fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").context("perf does not listen")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).context("perf does not answer")?;
        // It ends its answers by a zero, too.
        ensure!(answer.trim_matches(['\0', '\n']) == "ack", "perf answers {answer:?} to {order}");
        Ok(())
    }
}

/// Runs what is given to it, between whatever it does before and behind.
type Around<'a> = &'a mut dyn FnMut(&mut dyn FnMut() -> Result<()>) -> Result<()>;

/// Prepares the subject, and computes it inside of `sampled`.
fn compute(arguments: &ChildArgs, sampled: Around<'_>) -> Result<()> {
    let level = Level::detect();
    let tokens = read_tokens(&arguments.tokens)?;
    ensure!(tokens.len() > arguments.context, "there is no token behind the prompt");
    let (prompt, fed) = tokens.split_at(arguments.context);
    let model = &Model::load(&Checkpoint::open(&arguments.model)?, ComputeType::Q8, level)?;
    let shape = model.kv_shape();
    let planned = Planned::new(&arguments.cache, &shape, arguments.context)?;
    let mut caches = [KvCache::new(shape, planned.config, level, None)?];
    let mut prefill = || model.prefill(prompt, &mut caches, None).map(drop).map_err(Into::into);
    if arguments.prefill {
        return sampled(&mut prefill);
    }
    prefill()?;
    let [cache] = &mut caches;
    let mut greedy = Greedy::default();
    // The first one sets things up.
    greedy.step(model, fed[0], cache)?;
    sampled(&mut || {
        fed[1..].iter().try_for_each(|&token| greedy.step(model, token, cache).map(drop))
    })
}

/// Samples of each function, most first, from what `perf report` prints: a count, a bar, and the function behind a letter
/// in brackets that says where it is.
fn by_function(report: &str) -> Result<Vec<(String, u64)>> {
    let lines = report.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let function = |line: &str| {
        let (count, symbol) = line.split_once('|')?;
        let (_, name) = symbol.split_once("] ")?;
        Some((shown(name.trim()), count.trim().parse().ok()?))
    };
    let mut counts: Vec<(String, u64)> = Vec::new();
    for line in lines {
        let (name, count) = function(line).with_context(|| format!("perf reports {line:?}"))?;
        // Instances of a generic function have a line each.
        match counts.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += count,
            None => counts.push((name, count)),
        }
    }
    counts.sort_by(|(_, a), (_, b)| b.cmp(a));
    Ok(counts)
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
    fn each_function_has_the_samples_of_its_instances() {
        let report = "# a comment\n\n 17      |[.] a::inner::h0123456789abcdef\n 12|[k] other  \n 9 |[.] a::inner::h00000000000000ff\n";
        let expected = [("a::inner".to_owned(), 26), ("other".to_owned(), 12)];
        assert_eq!(by_function(report).expect("it is one"), expected);
        assert!(by_function("").expect("it is one without samples").is_empty());
        let told = by_function("seventeen |[.] a").expect_err("it is no count").to_string();
        assert!(told.contains("seventeen"), "{told}");
        assert_eq!(shown("main"), "main");
        assert_eq!(shown("a::help"), "a::help");
    }

    #[test]
    fn every_subject_computes_inside_of_what_is_sampled() {
        use crate::caches::{FULL, TINY};
        use crate::subject::Place;

        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::tiny();
        let ids = place.tokens(&Checkpoint::open(&place.model).expect("it is there"), 41);
        let tokens = folder.path().join("tokens.json");
        let text = serde_json::to_vec(&ids.expect("they are drawn")).expect("it can be");
        fs::write(&tokens, text).expect("it can be written");
        let subjects = [FULL, TINY[1]].map(|cache| [(cache, false), (cache, true)]);
        for (cache, prefill) in subjects.into_iter().flatten() {
            let arguments = ChildArgs {
                model: place.model.clone(),
                tokens: tokens.clone(),
                cache: cache.to_owned(),
                context: 38,
                prefill,
                threads: 1,
                orders: PathBuf::new(),
                answers: PathBuf::new(),
            };
            let mut num_sampled = 0;
            let sampled: Around<'_> = &mut |section| {
                num_sampled += 1;
                section()
            };
            compute(&arguments, sampled).expect("it computes");
            assert_eq!(num_sampled, 1);
            let longer = ChildArgs { context: 41, ..arguments };
            let told = compute(&longer, &mut |_| Ok(())).expect_err("no token is behind it");
            assert!(told.to_string().contains("no token behind"), "{told}");
        }
    }

    #[test]
    fn an_order_waits_for_its_answer() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("answers");
        fs::write(&path, "ack\n\0ack\n\0no\n").expect("it can be written");
        let orders = File::create(folder.path().join("orders")).expect("it can be made");
        let answers = BufReader::new(File::open(&path).expect("it is there"));
        let mut perf = Perf { orders, answers };
        perf.order("enable").expect("it is answered");
        perf.order("disable").expect("it is answered");
        assert!(perf.order("enable").is_err(), "the answer is another");
        assert!(perf.order("enable").is_err(), "there is none");
    }
}
