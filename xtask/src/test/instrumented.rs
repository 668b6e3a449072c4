//! The tests and decoders of the crates that hold unsafe code or many threads, under what finds their faults:
//! AddressSanitizer, ThreadSanitizer, Miri, coverage-guided fuzzing, and models of threads. All but the last are of
//! nightly compilers, which only rustup keeps beside another.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{runners, skipped};
use crate::process;
use crate::tally::{Runner, Tally};
use crate::workspace::Workspace;

/// The crate whose kernels read and write by pointer.
const CRATE: &str = "heterokv-quant";

/// The crate whose threads share pages.
const THREADED: &str = "heterokv-offload";

/// Its tests of how much memory a process takes, which is more under a sanitizer.
const OF_MEMORY: [&str; 2] = ["memory::a_stream", "memory::a_hostile"];

/// Folders of fuzz targets, each outside the workspace.
const FUZZED: [&str; 3] = ["crates/model", "crates/offload", "crates/quant"];

/// How long each target runs after it is built.
const FUZZ_SECONDS: u32 = 60;

/// Tests of [`CRATE`] that are all of a scalar form and small enough for an interpreter.
const MIRI_TESTS: [&str; 4] = ["bits::", "rotation::", "rows::", "simd::"];

/// All tests of [`CRATE`] and [`THREADED`], with every access to memory checked.
///
/// # Errors
/// If cargo cannot be started or dies.
pub(super) fn address_sanitizer(workspace: &Workspace) -> Result<Tally> {
    let Some(host) = nightly_host() else { return Ok(skipped(NO_NIGHTLY)) };
    sanitizer(workspace, "address", &["--package", CRATE, "--package", THREADED], &host)
}

/// All tests of [`THREADED`], with every order of accesses to memory checked. The standard library is built for it:
/// otherwise its locks are not seen.
///
/// # Errors
/// If cargo cannot be started or dies.
pub(super) fn thread_sanitizer(workspace: &Workspace) -> Result<Tally> {
    let Some(host) = nightly_host() else { return Ok(skipped(NO_NIGHTLY)) };
    if !has_library_source()? {
        return Ok(skipped(
            "there is no source to build: `rustup component add --toolchain nightly rust-src`",
        ));
    }
    sanitizer(workspace, "thread", &["-Zbuild-std", "--package", THREADED], &host)
}

fn sanitizer(workspace: &Workspace, kind: &str, what: &[&str], host: &str) -> Result<Tally> {
    let folder = workspace.target_folder()?.join(format!("{kind}-sanitizer"));
    let mut command = nightly(workspace, &["test", "--release", "--tests"]);
    // With a target named, the flags are not those of build scripts.
    command.args(what).args(["--target", host]).arg("--target-dir").arg(folder);
    command.args(["--", "--color", "never"]);
    for test in OF_MEMORY {
        command.args(["--skip", test]);
    }
    command.env("RUSTFLAGS", format!("-Zsanitizer={kind}"));
    runners::watch(&mut command, Runner::Libtest)
}

/// The models of [`THREADED`]: every order of the steps of their threads, with as many preemptions as take seconds.
///
/// # Errors
/// If cargo cannot be started or dies.
pub(super) fn models(workspace: &Workspace) -> Result<Tally> {
    let folder = workspace.target_folder()?.join("loom");
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--package", THREADED, "--lib"]);
    command.arg("--target-dir").arg(folder).args(["--", "--color", "never", "models::"]);
    command.current_dir(workspace.root());
    command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", "3");
    runners::watch(&mut command, Runner::Libtest)
}

/// What of the tests of [`CRATE`] Miri gets through in minutes; it has no vector instructions, so the level is the
/// scalar one.
///
/// # Errors
/// If cargo cannot be started or dies.
pub(super) fn miri(workspace: &Workspace) -> Result<Tally> {
    if !process::succeeds(&mut nightly(workspace, &["miri", "--version"])) {
        return Ok(skipped(
            "Miri is not installed: `rustup component add --toolchain nightly miri`",
        ));
    }
    let folder = workspace.target_folder()?.join("miri");
    let mut command = nightly(workspace, &["miri", "test", "--package", CRATE, "--lib"]);
    command.arg("--target-dir").arg(folder).args(["--", "--color", "never"]).args(MIRI_TESTS);
    // Property tests look for the failures of earlier runs on the disk, and try 256 cases unless told.
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "8");
    runners::watch(&mut command, Runner::Libtest)
}

/// Every fuzz target for [`FUZZ_SECONDS`]; each counts once. What it finds stays in `fuzz/artifacts`, what it has
/// learned in `fuzz/corpus`, and git ignores both.
///
/// # Errors
/// If a folder's targets cannot be listed.
pub(super) fn fuzz(workspace: &Workspace) -> Result<Tally> {
    if nightly_host().is_none() {
        return Ok(skipped(NO_NIGHTLY));
    }
    if !process::succeeds(&mut nightly(workspace, &["fuzz", "--version"])) {
        return Ok(skipped("cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`"));
    }
    let target_folder = workspace.target_folder()?.join("fuzz");
    let mut tally = Tally::default();
    for of_crate in FUZZED {
        let folder = workspace.root().join(of_crate).join("fuzz");
        let in_folder = |word: &str| {
            let mut command = nightly(workspace, &["fuzz", word]);
            command.arg("--fuzz-dir").arg(&folder);
            command
        };
        for target in listed(&mut in_folder("list"))? {
            let corpus = folder.join("corpus").join(&target);
            fs::create_dir_all(&corpus)
                .with_context(|| format!("cannot create {}", corpus.display()))?;
            let mut command = in_folder("run");
            command.arg("--target-dir").arg(&target_folder).arg(&target).arg(&corpus);
            let fixtures = workspace.root().join(of_crate).join("tests/fixtures");
            if fixtures.is_dir() {
                command.arg(fixtures);
            }
            command.args(["--", &format!("-max_total_time={FUZZ_SECONDS}"), "-timeout=30"]);
            tally += Tally::of_check(process::run(&mut command)?);
        }
    }
    Ok(tally)
}

/// The names that `cargo fuzz list` prints, at least one.
fn listed(command: &mut Command) -> Result<Vec<String>> {
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo fuzz")?;
    let targets: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    ensure!(
        output.status.success() && !targets.is_empty(),
        "`{}` names no targets",
        process::shown(command)
    );
    Ok(targets)
}

const NO_NIGHTLY: &str = "there is no nightly toolchain: `rustup toolchain install nightly`";

/// The target of the nightly compiler's own machine, if there is such a compiler.
fn nightly_host() -> Option<String> {
    let output = Command::new("rustc").args(["+nightly", "--print", "host-tuple"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether the nightly toolchain has the source of its standard library.
fn has_library_source() -> Result<bool> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["+nightly", "--print", "sysroot"]).output();
    let output = output.context("cannot start rustc")?;
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(Path::new(&sysroot).join("lib/rustlib/src/rust/library").is_dir())
}

/// The cargo of the nightly toolchain, by way of rustup's.
fn nightly(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").args(arguments).current_dir(workspace.root());
    // The cargo that started us names its own program here.
    command.env("CARGO_TERM_COLOR", "never").env_remove("CARGO");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuzzed_crate_has_targets_that_are_there() {
        let workspace = Workspace::around_this_package().expect("we are in it");
        for of_crate in FUZZED {
            let folder = workspace.root().join(of_crate).join("fuzz");
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("it is there");
            let manifest: toml::Table = manifest.parse().expect("it is TOML");
            let targets = manifest["bin"].as_array().expect("targets are programs");
            assert!(!targets.is_empty(), "{of_crate}");
            for target in targets {
                let path = target["path"].as_str().expect("a path is text");
                assert!(folder.join(path).is_file(), "{of_crate}: {path}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn targets_are_listed_line_by_line_and_none_is_an_error() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            listed(&mut command)
        };
        assert_eq!(sh("echo keys; echo rows").expect("they are listed"), ["keys", "rows"]);
        assert!(sh("true").is_err());
        assert!(sh("echo keys; exit 1").is_err());
    }
}
