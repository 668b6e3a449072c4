//! `cargo xtask gate`: a small fixed run of `heterokv eval` whose figures are held against those committed.

use std::env::consts::EXE_SUFFIX;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::model_file;
use crate::process;
use crate::workspace::Workspace;

/// The text, of the first chapters of a book in the public domain.
const CORPUS: &str = "tests/gate/moby-dick.txt";

/// The figures.
const FIGURES: &str = "tests/gate/figures.json";

/// What is measured: what follows in a text, what is said in it once more, and a number hidden in another, at a length
/// from which presets keep their ratios and at depths where the full cache answers.
const RUN: [&str; 20] = [
    "--task",
    "kl,recall,passkey",
    "--context",
    "4096",
    "--continuation",
    "64",
    "--depth",
    "10,30,50,60",
    "--seed",
    "7",
    "--cache",
    "hca:25%",
    "--cache",
    "hca:12.5%",
    "--cache",
    "hca-rescore:12.5%",
    "--cache",
    "hca-rescore:6.25%",
    "--corpus",
    CORPUS,
];

/// What to do with the figures.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write the figures measured instead of holding them against those written
    #[arg(long)]
    write: bool,
}

/// Builds the program, gets the model and measures; true if no figure is worse.
///
/// # Errors
/// If the program does not build, or the model cannot be had.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    process::run_or_fail(&mut workspace.cargo(&["build", "--release", "--package", "heterokv"]))?;
    let model = model_file::obtain_default()?;
    let option = if options.write { "--write-gate" } else { "--gate" };
    process::run(&mut command(workspace, &model, option)?)
}

/// Holds the figures, with a program that is built.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn hold(workspace: &Workspace, model: &Path) -> Result<bool> {
    process::run(&mut command(workspace, model, "--gate")?)
}

fn command(workspace: &Workspace, model: &Path, option: &str) -> Result<Command> {
    let program = workspace.target_folder()?.join("release").join(format!("heterokv{EXE_SUFFIX}"));
    let mut command = Command::new(program);
    command.current_dir(workspace.root()).arg("eval").arg("--model").arg(model);
    command.args(RUN).args([option, FIGURES]);
    Ok(command)
}
