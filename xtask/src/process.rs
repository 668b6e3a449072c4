//! Running other programs: what is run is printed, and nothing that is run can ask a question.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail};

/// Prints the command, runs it with its output passed through and no input; true if it exited with 0.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn run(command: &mut Command) -> Result<bool> {
    announce(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    Ok(status.success())
}

/// As [`run`], but anything other than exit status 0 is an error that names the command.
///
/// # Errors
/// If it cannot be started or fails.
pub(crate) fn run_or_fail(command: &mut Command) -> Result<()> {
    if !run(command)? {
        bail!("`{}` failed", shown(command));
    }
    Ok(())
}

/// Whether the command starts and exits with 0, its output thrown away: how a tool is looked for.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Which of a program's two streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    Error,
}

/// As [`run`], and hands every line of both streams to `watch` while passing it on to our own.
///
/// Bytes that are not UTF-8 are replaced: a test may print anything.
///
/// # Errors
/// If it cannot be started or waited for.
pub(crate) fn run_watched(
    command: &mut Command,
    mut watch: impl FnMut(Stream, &str),
) -> Result<bool> {
    announce(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let (sender, lines) = mpsc::channel();
    let output = child.stdout.take().context("the child's output is not piped")?;
    let error = child.stderr.take().context("the child's errors are not piped")?;
    let readers = [
        send_lines(output, Stream::Output, sender.clone()),
        send_lines(error, Stream::Error, sender),
    ];
    for (stream, line) in lines {
        match stream {
            Stream::Output => println!("{line}"),
            Stream::Error => eprintln!("{line}"),
        }
        watch(stream, &line);
    }
    for reader in readers {
        // A reader ends when its pipe does; it has nothing to panic on.
        reader.join().ok().context("a reader of the child's output died")?;
    }
    let status = child.wait().with_context(|| format!("cannot wait for {}", shown(command)))?;
    Ok(status.success())
}

fn send_lines(
    pipe: impl Read + Send + 'static,
    stream: Stream,
    sender: mpsc::Sender<(Stream, String)>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while pipe.read_until(b'\n', &mut bytes).is_ok_and(|num_bytes| num_bytes > 0) {
            let line = String::from_utf8_lossy(&bytes);
            if sender.send((stream, line.trim_end_matches(['\r', '\n']).to_owned())).is_err() {
                return;
            }
            bytes.clear();
        }
    })
}

fn announce(command: &Command) {
    eprintln!("$ {}", shown(command));
}

/// The command as one would type it, quoted for a POSIX shell where that is needed.
pub(crate) fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    // Cargo tells us its own full path; what the user types is its name.
    let program = match program.file_stem() {
        Some(stem) if stem == "cargo" => stem,
        _ => program.as_os_str(),
    };
    let words = std::iter::once(program).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_typed_again() {
        let mut command = Command::new("heterokv");
        command.args(["generate", "--cache", "hca:12.5%", "--prompt", "What's it?\nIt is", ""]);
        assert_eq!(
            shown(&command),
            "heterokv generate --cache hca:12.5% --prompt 'What'\\''s it?\nIt is' ''"
        );
    }

    #[cfg(unix)]
    #[test]
    fn both_streams_are_watched_to_their_ends() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; printf 'three\\377'; exit 3"]);
        let mut seen = Vec::new();
        let succeeded =
            run_watched(&mut command, |stream, line| seen.push((stream, line.to_owned())))
                .expect("sh is there");
        assert!(!succeeded);
        seen.sort_by_key(|(stream, _)| *stream == Stream::Error);
        let expected = [
            (Stream::Output, "one".to_owned()),
            (Stream::Output, "three\u{fffd}".to_owned()),
            (Stream::Error, "two".to_owned()),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_or_an_absence() {
        assert!(run(&mut Command::new("no-such-program-anywhere")).is_err());
        assert!(!succeeds(&mut Command::new("no-such-program-anywhere")));
    }
}
