//! The only automation of the workspace: fetch the default model, show the demo, run every test and benchmark,
//! keep the tree tidy.
//!
//! `cargo xtask demo` and `cargo xtask test --setup` are all the set-up that a clone needs, and `.ci/run` calls
//! nothing else. What this program never does: ask a question, write outside `target/`, the user's cache folder and
//! what git ignores beside the fuzz targets (setting up aside), or take a path through the code that a user of
//! `heterokv` could not take by hand.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports what it does; results go to stdout, progress to stderr"
)]

mod bench;
mod checks;
mod demo;
mod gate;
mod licence;
mod model_file;
mod needs;
mod nvrtc;
mod package;
mod peers;
mod process;
mod tally;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The command line; its doc comments are the help texts.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The automation of heterokv")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the program, get the default model and answer a question over a long context
    Demo(demo::Options),
    /// Run every test, then the lint, format, docs, licence and structure checks
    Test(test::Options),
    /// Measure; `bench --help` and `bench quant --help` have the options
    Bench(bench::Options),
    /// Hold the quality of caches on a small fixed run against committed figures; part of `test`
    Gate(gate::Options),
    /// Get the default model, if it is not there yet, and print where it is; what else is asked for, too
    Fetch(FetchOptions),
    /// Check the structure of the tree: heads, sizes, unsafe code, paths in documents, edges between crates
    Tidy,
}

/// What to get.
#[derive(clap::Args)]
struct FetchOptions {
    /// Install the programs of others that `heterokv eval --peers` measures, too, and print where they are (6 GB)
    #[arg(long)]
    peers: bool,
    /// Install NVIDIA's compiler for CUDA C++, by which tests compile the kernels, and print where it is (90 MB)
    #[arg(long)]
    nvrtc: bool,
    /// Run the tests of what measures peers
    #[arg(long, requires = "peers")]
    check: bool,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Performs one task; `Ok(false)` if it ran to its end and found something wrong, which it has then printed.
fn perform(task: Task) -> Result<bool> {
    let workspace = Workspace::around_this_package()?;
    match task {
        Task::Demo(options) => demo::run(&workspace, &options),
        Task::Test(options) => test::run(&workspace, &options),
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::Gate(options) => gate::run(&workspace, &options),
        Task::Fetch(options) => fetch(&workspace, &options),
        Task::Tidy => {
            let findings = tidy::check(&workspace)?;
            tidy::print(&findings);
            Ok(findings.is_empty())
        }
    }
}

/// Gets the model, and whatever else is asked for.
fn fetch(workspace: &Workspace, options: &FetchOptions) -> Result<bool> {
    let model = model_file::obtain_default()?;
    println!("{}", model.display());
    if options.nvrtc {
        println!("{}", nvrtc::obtain(workspace)?.display());
    }
    if !options.peers {
        return Ok(true);
    }
    let venv = peers::obtain(workspace)?;
    println!("{}", venv.display());
    if options.check { peers::test(workspace, &venv, &model) } else { Ok(true) }
}
