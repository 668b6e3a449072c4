//! `cargo xtask test`: every runner and every check, timed, counted and summed into one closing line.
//!
//! All of it builds in the `release` profile and for the whole workspace, so that each dependency is compiled
//! once with one set of features; which tests a step runs is the runner's filter, never cargo's.

pub(crate) mod foreign;
mod instrumented;
mod report;
mod runners;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{bench, checks, gate, model_file, needs, package};

use report::{Report, Step};
use runners::{Nextest, Settings, Stage, Wanted};

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install first what the tests need beside Rust; asks nothing
    #[arg(long)]
    setup: bool,
    /// Measure every bar in full instead of the short tier that CI runs; also link the feature `cuda`, run the kernels
    /// for 64-bit ARM under qemu, AddressSanitizer, Miri and the fuzz targets, and package every published crate
    #[arg(long)]
    long: bool,
    /// Do without the default model: the tests that need it are skipped and counted
    #[arg(long, conflicts_with = "model")]
    no_model: bool,
    /// A copy of the default model that you have already; it is verified
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Whether there has to be a device for wgpu, a software one included: `auto` takes what there is, and is the
    /// default, but behind --setup, whose driver has to work
    #[arg(long, value_name = "WHICH")]
    gpu: Option<Wanted>,
    /// Whether there has to be a CUDA device, and all by which its kernels are tested without one: `auto` takes what
    /// there is
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    cuda: Wanted,
}

/// Runs every step, whatever became of those before it, and prints the table and the closing line; true if
/// nothing failed.
///
/// # Errors
/// If the workspace cannot be read.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let mut report = Report::begin();
    if options.setup {
        report.step(Step::new("setup"), || needs::set_up(options.long));
    }
    let set_up = options.setup && needs::has_vulkan_driver();
    let gpu = options.gpu.unwrap_or(if set_up { Wanted::Required } else { Wanted::Auto });
    let mut settings = Settings { model: None, is_long: options.long, gpu, cuda: options.cuda };
    if !options.no_model {
        report.step(Step::new("model"), || {
            settings.model = Some(model(options.model.as_deref())?);
            Ok(Tally::default())
        });
    }
    let nextest = Nextest::is_there(workspace);
    let built =
        report.step(Step::new("build").within_minutes(12), || runners::build(workspace, &settings));
    if built {
        if nextest {
            run_by_nextest(&mut report, workspace, &settings);
        } else {
            println!(
                "cargo-nextest is not there: `cargo test` runs the tests, without their time limits"
            );
            report.step(Step::new("tests").within_minutes(18), || {
                runners::libtest(workspace, &settings)
            });
        }
        report.step(Step::new("doctests").within_minutes(2), || {
            runners::doctests(workspace, &settings)
        });
        report.step(Step::new("benches, small").within_minutes(1), || {
            bench::check_answers(workspace)
        });
        report.step(Step::new("quality gate").within_minutes(4), || match &settings.model {
            Some(model) => Ok(Tally::of_check(gate::hold(workspace, model)?)),
            None => Ok(skipped("the quality gate needs the default model")),
        });
    }
    if options.long {
        report.step(Step::new("bars of benches"), || {
            bench::check_bars(workspace, settings.model.as_deref())
        });
        report.step(Step::new("the feature cuda").within_minutes(4), || {
            runners::cuda_without_device(workspace, &settings)
        });
        run_elsewise(&mut report, workspace);
        report.step(Step::new("package"), || package::run(workspace));
    }
    report.step(Step::new("checks").within_minutes(4), || checks::run(workspace));
    Ok(report.end())
}

fn run_by_nextest(report: &mut Report, workspace: &Workspace, settings: &Settings) {
    let mut nextest = None;
    let listed = report.step(Step::new("list"), || {
        nextest = Some(Nextest::list(workspace, settings)?);
        Ok(Tally::default())
    });
    if let (true, Some(nextest)) = (listed, nextest) {
        report.step(Step::new("unit and property tests").within_minutes(8), || {
            nextest.run(workspace, settings, Stage::Units)
        });
        report.step(Step::new("model and program tests").within_minutes(10), || {
            nextest.run(workspace, settings, Stage::Models)
        });
        // The smallest and the largest; the one between them where there is time.
        let sizes = [
            ("devices, subgroups of 4", 4, false),
            ("devices, subgroups of 8", 8, true),
            ("devices, subgroups of 16", 16, false),
        ];
        for (name, subgroup_size, is_long) in sizes {
            if is_long && !settings.is_long {
                continue;
            }
            report.step(Step::new(name).within_minutes(2), || {
                nextest.run(workspace, settings, Stage::Devices { subgroup_size })
            });
        }
        report.step(Step::new("kernels in CUDA C++").within_minutes(2), || {
            nextest.run(workspace, settings, Stage::Cuda)
        });
    }
}

/// What other compilers make of the code; a step whose compiler or tool is absent is counted as skipped.
fn run_elsewise(report: &mut Report, workspace: &Workspace) {
    report.step(Step::new("64-bit ARM").within_minutes(30), || foreign::run(workspace));
    report.step(Step::new("AddressSanitizer").within_minutes(15), || {
        instrumented::address_sanitizer(workspace)
    });
    report.step(Step::new("ThreadSanitizer").within_minutes(15), || {
        instrumented::thread_sanitizer(workspace)
    });
    report.step(Step::new("models of threads").within_minutes(15), || {
        instrumented::models(workspace)
    });
    report.step(Step::new("Miri").within_minutes(15), || instrumented::miri(workspace));
    report.step(Step::new("fuzz").within_minutes(20), || instrumented::fuzz(workspace));
}

/// Something that cannot be checked here, and why.
fn skipped(reason: &str) -> Tally {
    println!("skipped: {reason}");
    Tally::of_skip()
}

/// The default model: the user's copy, which must be the very file that the expected figures belong to, or ours.
fn model(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(path) => {
            model_file::verify(&model_file::DEFAULT_MODEL, path)?;
            Ok(std::path::absolute(path)?)
        }
        None => model_file::obtain_default(),
    }
}
