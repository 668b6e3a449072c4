//! One module per command.

mod chat;
mod eval;
mod generate;
mod inspect;
mod mix;
mod plan;
mod profile;
mod report;

use anyhow::Result;

use crate::args::Command;

/// Runs a command, inside the thread pool that it computes with.
///
/// # Errors
/// Whatever it cannot do; see [`failure`](crate::failure) for what becomes of it.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Mix(args) => mix::run(&args),
    }
}
