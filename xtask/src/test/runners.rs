//! The test runners: nextest in stages where it is there, else libtest, and rustdoc's tests in either case.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::nvrtc;
use crate::process::{self, Stream};
use crate::tally::{Runner, RunnerOutput, Tally};
use crate::workspace::Workspace;

/// The tests that run the default model, and so share neither cores nor memory with others. The test group of
/// `.config/nextest.toml` has the same words, which a test of ours compares.
const MODEL_TESTS: &str = "binary_id(heterokv-tests::all) | (package(heterokv) & kind(test))";

/// The tests of kernels on devices, which a software device runs on all cores.
const DEVICE_TESTS: &str = "binary_id(heterokv-tests::parity)";

/// Those of them that run kernels in CUDA C++, which subgroups are nothing to: the beginning of their names.
const CUDA_TESTS: &str = "cuda::";

/// What turns them to CUDA devices.
const CUDA_FEATURE: &str = "heterokv-tests/cuda";

/// What fixes how many threads a subgroup of Mesa's software device has, 32 bits each; other devices pass it over.
const SUBGROUP_BITS: &str = "LP_NATIVE_VECTOR_WIDTH";

/// Whether there has to be a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Wanted {
    /// It fails where there is none.
    Required,
    /// Whatever there is; none is counted as skipped.
    #[default]
    Auto,
    /// None is looked for.
    None,
}

impl Wanted {
    fn word(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Auto => "auto",
            Self::None => "none",
        }
    }
}

/// What the tests are told, each by an environment variable.
pub(super) struct Settings {
    /// `HETEROKV_MODEL`: the default model; absent, the tests that need it announce that they are skipped.
    pub(super) model: Option<PathBuf>,
    /// `HETEROKV_LONG=1`: every bar in full.
    pub(super) is_long: bool,
    /// `HETEROKV_GPU`: what there has to be of devices for wgpu.
    pub(super) gpu: Wanted,
    /// `HETEROKV_CUDA`: the same of CUDA.
    pub(super) cuda: Wanted,
}

impl Settings {
    /// Sets the variables, and unsets those that the shell may have set otherwise.
    fn tell(&self, command: &mut Command) {
        match &self.model {
            Some(path) => command.env("HETEROKV_MODEL", path),
            None => command.env_remove("HETEROKV_MODEL"),
        };
        if self.is_long {
            command.env("HETEROKV_LONG", "1");
        } else {
            command.env_remove("HETEROKV_LONG");
        }
        command.env("HETEROKV_GPU", self.gpu.word());
        command.env("HETEROKV_CUDA", self.cuda.word());
        if let (false, Some(folder)) = (self.features().is_empty(), nvrtc::library()) {
            // A toolkit's own comes first.
            let known = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let folders = env::split_paths(&known).chain([folder]);
            if let Ok(path) = env::join_paths(folders) {
                command.env("LD_LIBRARY_PATH", path);
            }
        }
    }

    /// The features that are built: those of CUDA where there is, or has to be, a device.
    fn features(&self) -> &'static [&'static str] {
        let builds_cuda = match self.cuda {
            Wanted::Required => true,
            Wanted::Auto => has_nvidia_driver(),
            Wanted::None => false,
        };
        if builds_cuda { &["--features", CUDA_FEATURE] } else { &[] }
    }
}

/// Whether a driver of NVIDIA's is loaded.
fn has_nvidia_driver() -> bool {
    ["/dev/nvidiactl", "/dev/dxg"].iter().any(|path| Path::new(path).exists())
}

/// Builds libraries, programs and tests at once, since only then do they share their dependencies.
pub(super) fn build(workspace: &Workspace, settings: &Settings) -> Result<Tally> {
    let arguments = ["build", "--release", "--workspace", "--all-targets"];
    process::run_or_fail(workspace.cargo(&arguments).args(settings.features()))?;
    Ok(Tally::default())
}

/// Everything by `cargo test`, binary after binary.
pub(super) fn libtest(workspace: &Workspace, settings: &Settings) -> Result<Tally> {
    cargo_test(workspace, settings, &["--tests"])
}

/// The examples in the docs of all libraries.
pub(super) fn doctests(workspace: &Workspace, settings: &Settings) -> Result<Tally> {
    cargo_test(workspace, settings, &["--doc"])
}

/// The feature `cuda` built and linked where there is neither a toolkit nor a driver, and what it then says.
pub(super) fn cuda_without_device(workspace: &Workspace, settings: &Settings) -> Result<Tally> {
    let mut command = workspace.cargo(&["test", "--release", "--package", "heterokv-attn"]);
    command.args(["--features", "cuda", "--lib", "--", "--color", "never", "cuda::"]);
    settings.tell(&mut command);
    watch(&mut command, Runner::Libtest)
}

fn cargo_test(workspace: &Workspace, settings: &Settings, targets: &[&str]) -> Result<Tally> {
    // A model test holds a model and its own threads: many at once would not fit a small machine.
    let num_threads = thread::available_parallelism().map_or(1, |n| n.get().min(4));
    let mut command = workspace.cargo(&["test", "--release", "--workspace", "--no-fail-fast"]);
    command.args(settings.features());
    command.args(targets).args(["--", "--show-output", "--color", "never"]);
    command.env("RUST_TEST_THREADS", num_threads.to_string());
    settings.tell(&mut command);
    watch(&mut command, Runner::Libtest)
}

/// Which part of the tests nextest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Units,
    Models,
    /// On devices; Mesa's software device has subgroups of so many threads.
    Devices {
        subgroup_size: u32,
    },
    /// Kernels in CUDA C++: emulated, compiled, and on a device where there is one.
    Cuda,
}

impl Stage {
    fn filter(self) -> String {
        match self {
            Self::Units => format!("not ({MODEL_TESTS} | {DEVICE_TESTS})"),
            Self::Models => MODEL_TESTS.to_owned(),
            Self::Devices { .. } => format!("{DEVICE_TESTS} - test(/^{CUDA_TESTS}/)"),
            Self::Cuda => format!("{DEVICE_TESTS} & test(/^{CUDA_TESTS}/)"),
        }
    }

    /// The filter's meaning, on one test of the list.
    fn takes(self, suite: &Suite, test: &str) -> bool {
        let is_device = suite.binary_id == "heterokv-tests::parity";
        let is_model = suite.binary_id == "heterokv-tests::all"
            || (suite.package_name == "heterokv" && suite.kind == "test");
        match self {
            Self::Units => !is_device && !is_model,
            Self::Models => is_model,
            Self::Devices { .. } => is_device && !test.starts_with(CUDA_TESTS),
            Self::Cuda => is_device && test.starts_with(CUDA_TESTS),
        }
    }
}

/// The tests that nextest lists, known before they run so that none can get lost.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Nextest {
    rust_suites: BTreeMap<String, Suite>,
}

/// One test binary.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Suite {
    binary_id: String,
    package_name: String,
    kind: String,
    testcases: BTreeMap<String, Testcase>,
}

#[derive(Deserialize)]
struct Testcase {
    ignored: bool,
}

impl Nextest {
    /// Whether `cargo nextest` can be called.
    pub(super) fn is_there(workspace: &Workspace) -> bool {
        process::succeeds(&mut workspace.cargo(&["nextest", "--version"]))
    }

    /// Asks nextest for all tests of the workspace.
    ///
    /// # Errors
    /// If nextest fails, or its list is not what this program can read.
    pub(super) fn list(workspace: &Workspace, settings: &Settings) -> Result<Self> {
        let mut command = workspace.cargo(&["nextest", "list", "--workspace"]);
        command.args(settings.features());
        command.args(["--cargo-profile", "release", "--message-format", "json"]);
        let list = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo nextest")?;
        ensure!(list.status.success(), "`{}` failed", process::shown(&command));
        Self::read(&list.stdout)
    }

    fn read(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json)
            .context("the list of tests from cargo nextest is not understood")
    }

    /// How many tests of a stage are to run, and how many are ignored.
    fn expected(&self, stage: Stage) -> (u64, u64) {
        let tests = self.rust_suites.values().flat_map(|suite| {
            suite.testcases.iter().map(move |(name, testcase)| (suite, name, testcase))
        });
        let tests = tests.filter(|(suite, name, _)| stage.takes(suite, name));
        let (ignored, run): (Vec<_>, Vec<_>) = tests.partition(|(.., testcase)| testcase.ignored);
        (run.len() as u64, ignored.len() as u64)
    }

    /// Runs one stage; tests that are listed and did not run count as failed, ignored ones as skipped.
    ///
    /// # Errors
    /// If nextest ends without a summary, or fails without a failed test.
    pub(super) fn run(
        &self,
        workspace: &Workspace,
        settings: &Settings,
        stage: Stage,
    ) -> Result<Tally> {
        let mut command = workspace.cargo(&["nextest", "run", "--workspace"]);
        command.args(["--cargo-profile", "release", "--no-fail-fast", "--no-tests", "pass"]);
        command.args(["--success-output", "immediate", "--color", "never"]);
        command.args(["--profile", if settings.is_long { "long" } else { "default" }]);
        command.args(["--filterset", &stage.filter()]).args(settings.features());
        settings.tell(&mut command);
        if let Stage::Devices { subgroup_size } = stage {
            command.env(SUBGROUP_BITS, (32 * subgroup_size).to_string());
        }
        let mut tally = watch(&mut command, Runner::Nextest)?;
        let (num_expected, num_ignored) = self.expected(stage);
        let num_lost = num_expected.saturating_sub(tally.num_tests());
        if num_lost > 0 {
            println!("{num_lost} of {num_expected} listed tests did not run");
        }
        tally += Tally { num_failed: num_lost, num_skipped: num_ignored, ..Tally::default() };
        Ok(tally)
    }
}

/// Runs a runner, counting what it prints.
pub(super) fn watch(command: &mut Command, runner: Runner) -> Result<Tally> {
    let mut output = RunnerOutput::of(runner);
    let mut error = RunnerOutput::of(runner);
    let succeeded = process::run_watched(command, |stream, line| match stream {
        Stream::Output => output.line(line),
        Stream::Error => error.line(line),
    })?;
    for reason in output.reasons().iter().chain(error.reasons()) {
        println!("skipped: {reason}");
    }
    // Nextest speaks on one stream and libtest on the other; a silent stream has no tally.
    let mut tally = Tally::default();
    let tallies = [output.tally(), error.tally()];
    if tallies == [None, None] {
        bail!("`{}` ended without a summary", process::shown(command));
    }
    for part in tallies.into_iter().flatten() {
        tally += part;
    }
    if !succeeded && tally.num_failed == 0 {
        bail!("`{}` failed, though none of its tests did", process::shown(command));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{ "test-count": 8, "rust-suites": {
        "heterokv-quant": { "binary-id": "heterokv-quant", "package-name": "heterokv-quant", "kind": "lib",
            "status": "listed", "testcases": { "a": { "ignored": false }, "b": { "ignored": true } } },
        "heterokv": { "binary-id": "heterokv", "package-name": "heterokv", "kind": "bin",
            "testcases": { "a": { "ignored": false } } },
        "heterokv::program": { "binary-id": "heterokv::program", "package-name": "heterokv", "kind": "test",
            "testcases": { "a": { "ignored": false } } },
        "heterokv-tests::all": { "binary-id": "heterokv-tests::all", "package-name": "heterokv-tests",
            "kind": "test",
            "testcases": { "a": { "ignored": false }, "b": { "ignored": false }, "c": { "ignored": true } } },
        "heterokv-tests::parity": { "binary-id": "heterokv-tests::parity", "package-name": "heterokv-tests",
            "kind": "test",
            "testcases": { "a": { "ignored": false }, "cuda::a": { "ignored": false } } }
    } }"#;

    #[test]
    fn every_listed_test_belongs_to_one_stage() {
        let list = Nextest::read(LIST.as_bytes()).expect("it is a list");
        assert_eq!(list.expected(Stage::Units), (2, 1));
        assert_eq!(list.expected(Stage::Models), (3, 1));
        assert_eq!(list.expected(Stage::Devices { subgroup_size: 8 }), (1, 0));
        assert_eq!(list.expected(Stage::Cuda), (1, 0));
        assert!(Nextest::read(b"{}").is_err());
    }

    #[test]
    fn the_group_in_the_configuration_holds_the_model_tests() {
        let root = Workspace::around_this_package().expect("we are in it").root().to_owned();
        let text = std::fs::read_to_string(root.join(".config/nextest.toml")).expect("it is there");
        let table: toml::Table = text.parse().expect("it is TOML");
        for profile in ["default", "long"] {
            let filter = &table["profile"][profile]["overrides"][0]["filter"];
            let one_by_one = format!("{MODEL_TESTS} | {DEVICE_TESTS}");
            assert_eq!(filter.as_str(), Some(one_by_one.as_str()), "{profile}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_runner_that_dies_or_fails_without_a_failed_test_is_an_error() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            watch(&mut command, Runner::Libtest)
        };
        let line = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured";
        assert_eq!(sh(&format!("echo '{line}'")).expect("it passed").num_passed, 1);
        assert!(sh(&format!("echo '{line}'; exit 101")).is_err());
        assert!(sh("exit 0").is_err());
    }

    #[test]
    fn what_is_not_set_is_unset() {
        let mut command = Command::new("true");
        let settings =
            Settings { model: None, is_long: false, gpu: Wanted::Auto, cuda: Wanted::None };
        settings.tell(&mut command);
        let unset: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).collect();
        assert_eq!(unset.len(), 2);
    }

    #[test]
    fn a_required_cuda_device_is_built_for_and_none_is_not() {
        let of = |cuda| Settings { model: None, is_long: false, gpu: Wanted::Auto, cuda };
        assert_eq!(of(Wanted::Required).features(), ["--features", CUDA_FEATURE]);
        assert_eq!(of(Wanted::None).features(), [""; 0]);
    }
}
