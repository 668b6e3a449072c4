//! Instructions of the hot kernels, counted by callgrind: they do not depend on what else the machine does.
//!
//! Each kernel runs once in a process of its own under valgrind, on one thread and at AVX2, as valgrind knows no
//! AVX-512. Only what happens inside of [`measured_kernel`] is counted.

mod guard;
mod kernels;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heterokv_quant::Level;

use crate::caches::distance;
use crate::machine::threads;
use crate::record::{Case, Record};
use crate::settings::Settings;
use crate::sheet::{Cell, Sheet};
use guard::{Counts, Verdict};
use kernels::{Kernel, NAMES};

pub(crate) const SUITE: &str = "instructions";

/// The word that starts the process of a kernel.
const COMMAND: &str = "instructions-process";

/// What the process of a kernel is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    #[arg(long)]
    kernel: String,
}

/// Counts the instructions of every kernel; tells where there is no valgrind.
///
/// # Errors
/// A kernel whose answer is wrong, or a count that cannot be read.
pub(crate) fn measure(settings: &Settings<'_>, record: &mut Record) -> Result<()> {
    let wanted = NAMES.iter().map(|name| (*name, format!("{SUITE}/{name}")));
    let wanted: Vec<_> = wanted.filter(|(_, case)| settings.selection.wants(case)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let version = Command::new("valgrind").arg("--version").stdin(Stdio::null()).output();
    let Ok(version) =
        version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    else {
        record.leave_out(SUITE, "there is no valgrind; install it by the package manager");
        return Ok(());
    };
    settings.say(&format!("{SUITE}: {} kernels", wanted.len()));
    let folder = tempfile::tempdir().context("cannot make a folder for the counts")?;
    for (name, case) in wanted {
        let count = count(name, folder.path()).with_context(|| format!("{SUITE}: {name}"))?;
        let level = level();
        let case = Case::new(SUITE, case).noting(format!("{level}, {version}"));
        record.cases.push(Case { instructions: Some(count), ..case });
    }
    Ok(())
}

/// Holds the counts of a record to those in `crates/bench/instructions.json`, or keeps them there, where `keep`, beside those of
/// the kernels that it does not have; false where a kernel needs more than a twentieth more.
///
/// # Errors
/// A file that cannot be read or written.
pub(crate) fn guard(record: &Record, keep: bool) -> Result<bool> {
    let Some(counts) = Counts::of(record) else { return Ok(true) };
    let path = guard::path();
    if keep {
        let counts = if path.exists() { counts.beside(&Counts::load(&path)?) } else { counts };
        counts.write(&path)?;
        println!("{}: {} kernels", path.display(), counts.kernels.len());
        return Ok(true);
    }
    match counts.against(&Counts::load(&path)?) {
        Verdict::Held(fewer) => {
            fewer.iter().for_each(|remark| println!("{remark}"));
            Ok(true)
        }
        Verdict::Missed(missed) => {
            missed.iter().for_each(|missed| println!("MISSED: {missed}"));
            Ok(false)
        }
        Verdict::NotCompared(reason) => {
            // The line by which `cargo xtask test` counts what could not be checked.
            println!("SKIPPED: instructions are not compared: {reason}");
            Ok(true)
        }
    }
}

/// The counts in `crates/bench/instructions.json`, and what a token or weight takes of them.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn kept() -> Result<Sheet> {
    let counts = Counts::load(&guard::path())?;
    let title = format!("Instructions of the kernels, {}", counts.counted_by);
    let mut sheet = Sheet::new(title, &["kernel", "over", "of", "instructions", "of each"]);
    for (case, &count) in &counts.kernels {
        let name = case.strip_prefix("instructions/").unwrap_or(case);
        let (num, of) = kernels::work(name);
        sheet.push(vec![
            Cell::text(name),
            Cell::Number(num as f64, 0),
            Cell::text(of),
            Cell::Number(count as f64, 0),
            Cell::Scientific(count as f64 / num as f64),
        ]);
    }
    Ok(sheet)
}

/// Instructions of one kernel.
fn count(name: &str, folder: &Path) -> Result<u64> {
    let counts = folder.join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind", "--toggle-collect=*measured_kernel*"]);
    command.arg(format!("--callgrind-out-file={}", counts.display()));
    command.arg(std::env::current_exe().context("cannot find this program")?);
    command.args([COMMAND, "--kernel", name]);
    let output = command.stdin(Stdio::null()).output().context("cannot start valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "under valgrind: {}", said.trim());
    let text = fs::read_to_string(&counts).context("callgrind wrote no counts")?;
    let count = summary(&text).context("callgrind's counts have no summary")?;
    ensure!(count > 0, "callgrind counted nothing: are the symbols of this program stripped?");
    Ok(count)
}

/// The count of all instructions in a file of callgrind's.
fn summary(text: &str) -> Option<u64> {
    let total = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    total("summary:").or_else(|| total("totals:"))?.trim().parse().ok()
}

/// Runs one kernel and checks its answer before and after; the process of [`count`].
///
/// # Errors
/// An unknown kernel, or an answer that is wrong.
pub(crate) fn run_child(arguments: &ChildArgs) -> Result<()> {
    threads(1)?.install(|| {
        let level = level();
        let mut kernel = kernels::build(&arguments.kernel, level)?;
        kernel.run(level);
        check(kernel.as_ref(), &arguments.kernel)?;
        measured_kernel(kernel.as_mut(), level);
        check(kernel.as_ref(), &arguments.kernel)
    })
}

/// AVX2 where there is one, as valgrind knows nothing beyond.
fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    return Level::avx2().unwrap_or(Level::SCALAR);
    #[cfg(not(target_arch = "x86_64"))]
    return Level::detect();
}

/// What callgrind counts: valgrind looks for it by this name.
#[inline(never)]
fn measured_kernel(kernel: &mut dyn Kernel, level: Level) {
    kernel.run(level);
}

fn check(kernel: &dyn Kernel, name: &str) -> Result<()> {
    let expected: Vec<f32> = kernel.expected().iter().map(|&x| x as f32).collect();
    let answer = kernel.answer();
    ensure!(answer.len() == expected.len(), "{name}: the answer has another length");
    let (_, error) = distance(&answer, &expected);
    // Written so that NaN fails.
    let most = kernel.error();
    ensure!(error <= most, "{name} is {error:.2e} from what it stands for, and may be {most}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_callgrind_writes() {
        assert_eq!(summary("version: 1\nsummary: 1234\nfn=x\n"), Some(1234));
        assert_eq!(summary("events: Ir\ntotals: 77\n"), Some(77));
        assert_eq!(summary("summary: none\n"), None);
        assert_eq!(summary(""), None);
    }

    #[test]
    fn every_kernel_is_right_and_a_wrong_answer_is_seen() {
        for name in NAMES {
            run_child(&ChildArgs { kernel: name.to_owned() }).expect(name);
        }
        let told = run_child(&ChildArgs { kernel: "none".to_owned() }).expect_err("it is none");
        assert!(told.to_string().contains("score/alloc/2"), "{told}");
        // Before it runs, a kernel's answer is not there.
        let kernel = kernels::build(NAMES[0], level()).expect("it is one");
        assert!(check(kernel.as_ref(), NAMES[0]).is_err());
    }
}
