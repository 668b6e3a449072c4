//! What a figure depends on besides the code: commit, CPU, caches, level, threads, command.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use heterokv_quant::Level;

/// Where and by what a run was made.
#[derive(Clone, Debug)]
pub(crate) struct Environment(Vec<(&'static str, String)>);

impl Environment {
    /// Looks at this machine; what it does not say is `unknown`.
    pub(crate) fn detect(level: Level, num_threads: usize) -> Self {
        let unknown = || "unknown".to_owned();
        let num_cores =
            std::thread::available_parallelism().map_or_else(|_| unknown(), |n| n.to_string());
        Self(vec![
            ("command", command()),
            ("commit", commit().unwrap_or_else(unknown)),
            ("cpu", cpu().unwrap_or_else(unknown)),
            ("cores", num_cores),
            ("L2 and L3", caches().unwrap_or_else(unknown)),
            ("level", level.to_string()),
            ("threads", num_threads.to_string()),
        ])
    }

    /// Names and values.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// As a list for a page.
    pub(crate) fn markdown(&self) -> String {
        let lines = self.0.iter().map(|(name, value)| match *name {
            "command" => format!("```sh\n{value}\n```\n\n"),
            _ => format!("- {name}: {value}\n"),
        });
        lines.collect()
    }

    /// Writes it beside the results.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name}: {value}"))
    }
}

/// The line to type for the same run: the automation starts this program with the words typed behind `bench`.
fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let mut line = "cargo xtask bench".to_owned();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        // Places on this machine that the automation filled in say nothing to others.
        if ["--out", "--model", "--corpus", "--peers-folder", "--program"].contains(&word.as_str())
        {
            words.next();
        } else {
            line = format!("{line} {word}");
        }
    }
    let is_with_peers = Path::new(&program)
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains("peers"));
    if is_with_peers { format!("{line} --peers") } else { line }
}

/// The commit of the working tree, with `+` behind it where it has changes.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let folder = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git").args(["-C", folder]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_clean = git(&["status", "--porcelain"])?.is_empty();
    Some(if is_clean { commit } else { format!("{commit}+") })
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    // Virtual machines shorten the name; the numbers tell the generation.
    Some(format!(
        "{}, family {}, model {}",
        field("model name")?,
        field("cpu family")?,
        field("model\t")?
    ))
}

fn caches() -> Option<String> {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    };
    Some(format!("{} and {}", size(2)?, size(3)?))
}
