//! How an error becomes one line and an exit code.

use std::io;

/// Exit code for input that cannot be used.
pub(crate) const BAD_INPUT: u8 = 2;

/// Exit code for output that cannot be written, and for numbers that came out wrong.
const FAILED: u8 = 1;

/// The line: the error and those of its causes that say something new.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What is wrong with the arguments, as one line; none where help or the version was asked for or nothing
/// was given.
pub(crate) fn of_arguments(error: &clap::Error) -> Option<String> {
    use clap::error::ErrorKind;

    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help || !error.use_stderr() {
        return None;
    }
    // The first paragraph says what is wrong; usage and advice follow.
    let text = error.to_string();
    let first = text.lines().take_while(|line| !line.trim().is_empty());
    let words: Vec<&str> = first.flat_map(str::split_whitespace).collect();
    Some(format!("{} (see --help)", words.join(" ")))
}

/// The exit code; 0 where the reader of our output has simply had enough of it.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(Unwritable(source)) = error.downcast_ref() {
        return if source.kind() == io::ErrorKind::BrokenPipe { 0 } else { FAILED };
    }
    if error.is::<Worse>() {
        return FAILED;
    }
    match error.downcast_ref() {
        Some(
            heterokv_eval::Error::NotFinite { .. } | heterokv_eval::Error::NotCompressed { .. },
        ) => FAILED,
        _ => BAD_INPUT,
    }
}

/// Figures are worse than those written down.
#[derive(Debug)]
pub(crate) struct Worse {
    pub(crate) num_worse: usize,
    pub(crate) num_figures: usize,
}

impl std::fmt::Display for Worse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} figures are worse than those written down",
            self.num_worse, self.num_figures
        )
    }
}

impl std::error::Error for Worse {}

/// Stdout could not be written to.
#[derive(Debug)]
pub(crate) struct Unwritable(pub(crate) io::Error);

impl std::fmt::Display for Unwritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write the output: {}", self.0)
    }
}

impl std::error::Error for Unwritable {}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_are_joined_once_and_on_one_line() {
        let error = Err::<(), _>(anyhow!("no such\n  file")).context("cannot read x").unwrap_err();
        assert_eq!(one_line(&error), "cannot read x: no such file");
        let error = Err::<(), _>(anyhow!("gone")).context("cannot read x: gone").unwrap_err();
        assert_eq!(one_line(&error), "cannot read x: gone");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = Unwritable(io::ErrorKind::BrokenPipe.into());
        assert_eq!(exit_code(&closed.into()), 0);
        let full = Unwritable(io::ErrorKind::StorageFull.into());
        assert_eq!(exit_code(&full.into()), FAILED);
        assert_eq!(exit_code(&anyhow!("unknown word")), BAD_INPUT);
    }
}
