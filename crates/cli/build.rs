//! Tells the program the commit that it is built from, for the results that it writes.

use std::process::Command;

fn main() {
    // It changes with every commit, and is not there where the sources are in no repository.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    // So does a file of ours that is changed.
    println!("cargo::rerun-if-changed=..");
    println!("cargo::rustc-env=HETEROKV_COMMIT={}", commit().unwrap_or("unknown".to_owned()));
}

/// The commit, with `+` behind it where files have changes.
fn commit() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if is_clean { commit } else { format!("{commit}+") })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
