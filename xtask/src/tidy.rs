//! The structure of the tree, checked: `cargo xtask tidy`, and a test that runs with all others.
//!
//! Each check is a function from what it looks at to what it found, one line per finding, and has a test that
//! feeds it a bad sample.

mod documents;
mod edges;
mod sources;
#[cfg(test)]
mod tests;
mod tree;

use anyhow::{Result, ensure};

use crate::workspace::Workspace;

/// Everything found in the workspace, one line each; empty is good.
///
/// # Errors
/// If the tree cannot be read, or so little is in it that the checks would pass by looking at nothing.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let files = tree::read(workspace.root())?;
    let num_sources = files.iter().filter(|file| file.is_source()).count();
    ensure!(
        num_sources > 10,
        "only {num_sources} source files under {}",
        workspace.root().display()
    );
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(sources::check(file));
        findings.extend(documents::check(file, &|path| workspace.root().join(path).exists()));
    }
    findings.extend(sources::check_written_lists(&files));
    findings.extend(documents::check_presence(&files));
    let members = workspace.members()?;
    findings.extend(documents::check_crates(&members, workspace.root()));
    findings.extend(edges::check(&edges::Crate::of_workspace(&members)));
    Ok(findings)
}

/// Prints findings, or that there are none.
pub(crate) fn print(findings: &[String]) {
    for finding in findings {
        println!("{finding}");
    }
    println!("{} findings", findings.len());
}
