//! The `heterokv` program: parses, calls, prints.
//!
//! Exit codes: 0 when all went well, 2 for input that cannot be used, 1 when output cannot be written
//! or the numbers came out wrong. An error is one line on stderr.

mod args;
mod commands;
mod failure;
mod host;
mod interrupt;
mod load;
mod machine;
mod output;
mod progress;
mod prompt;
mod report;
mod requirement;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::output::say;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            match failure::of_arguments(&error) {
                Some(line) => say(&line),
                // Help may go to a closed stdout; there is no one left to tell then.
                None => drop(error.print()),
            }
            return ExitCode::from(if error.use_stderr() { failure::BAD_INPUT } else { 0 });
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = failure::exit_code(&error);
            if code != 0 {
                say(&format!("error: {}", failure::one_line(&error)));
            }
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    interrupt::install()?;
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = cli.threads {
        pool = pool.num_threads(threads);
    }
    // The whole command runs inside the pool: entering it from outside for every small product would
    // cost more than the product.
    pool.build()?.install(|| commands::run(cli.command))
}
