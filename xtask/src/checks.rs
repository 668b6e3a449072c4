//! The last step of every test run: format, lints, docs, licences and structure.

use std::process::Command;

use anyhow::Result;

use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{bench, licence, process, tidy};

/// The lint of what only a build for CUDA has, tests included; it needs neither a driver nor a toolkit.
const CUDA_LINTS: [&str; 12] = [
    "clippy",
    "--release",
    "--package",
    "heterokv-attn",
    "--package",
    "heterokv-tests",
    "--features",
    "heterokv-attn/cuda,heterokv-tests/cuda",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];

/// Makes every check, each counted once; one whose tool is absent is named and counted as skipped.
///
/// # Errors
/// If a tool that is there cannot be started.
pub(crate) fn run(workspace: &Workspace) -> Result<Tally> {
    let mut tally = Tally::default();
    tally += by_tool(workspace, "fmt", &["fmt", "--all", "--check"], |_| {})?;
    let peers = ["fmt", "--manifest-path", bench::PEERS_MANIFEST, "--check"];
    tally += by_tool(workspace, "fmt", &peers, |_| {})?;
    let lints = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    tally += by_tool(workspace, "clippy", &lints, |_| {})?;
    tally += by_tool(workspace, "clippy", &CUDA_LINTS, |_| {})?;
    let docs = ["doc", "--release", "--workspace", "--no-deps"];
    tally += by_tool(workspace, "doc", &docs, |command| {
        command.env("RUSTDOCFLAGS", "-D warnings");
    })?;
    tally += findings("licences", licence::check(workspace));
    if is_there(workspace, "deny") {
        // Advisories need a network and change from day to day; these three do not.
        let parts = ["deny", "--all-features", "check", "licenses", "bans", "sources"];
        tally += Tally::of_check(process::run(&mut workspace.cargo(&parts))?);
    }
    let found = tidy::check(workspace);
    tally += findings("structure", found);
    Ok(tally)
}

fn by_tool(
    workspace: &Workspace,
    tool: &str,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Result<Tally> {
    if !is_there(workspace, tool) {
        println!("{tool}: skipped, since `cargo {tool}` is not installed");
        return Ok(Tally::of_skip());
    }
    let mut command = workspace.cargo(arguments);
    prepare(&mut command);
    Ok(Tally::of_check(process::run(&mut command)?))
}

fn is_there(workspace: &Workspace, tool: &str) -> bool {
    // `cargo doc` is part of cargo; `--help` is what all of them answer to.
    process::succeeds(&mut workspace.cargo(&[tool, "--help"]))
}

/// Prints what a check of our own found; an error is a finding too.
fn findings(name: &str, found: Result<Vec<String>>) -> Tally {
    let found = found.unwrap_or_else(|error| vec![format!("{error:#}")]);
    println!("{name}: {}", if found.is_empty() { "nothing found" } else { "found" });
    for finding in &found {
        println!("  {finding}");
    }
    Tally::of_check(found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_and_errors_fail_a_check_and_nothing_found_passes_it() {
        assert_eq!(findings("a", Ok(vec![])), Tally::of_check(true));
        assert_eq!(findings("a", Ok(vec!["tab in line 3".into()])), Tally::of_check(false));
        assert_eq!(findings("a", Err(anyhow::anyhow!("no file"))), Tally::of_check(false));
    }

    #[test]
    fn a_tool_that_is_not_installed_is_a_skip() {
        let workspace = Workspace::around_this_package().expect("we are in it");
        let tally = by_tool(&workspace, "no-such-tool", &["no-such-tool"], |_| {});
        assert_eq!(tally.expect("nothing is started"), Tally::of_skip());
    }
}
