//! `cargo package` of every crate that is published, with no registry upload.
//!
//! Packaged together, the crates find one another in a registry that cargo makes for the occasion, so that the
//! unpublished ones can depend on each other. Each package is then unpacked and built from what it holds.

use anyhow::Result;
use cargo_metadata::Package;

use crate::process;
use crate::tally::Tally;
use crate::workspace::Workspace;

/// Packages and builds every published crate; each counts once, all of them with the same outcome.
///
/// # Errors
/// If the workspace cannot be read or cargo not be started.
pub(crate) fn run(workspace: &Workspace) -> Result<Tally> {
    let members = workspace.members()?;
    let published: Vec<_> =
        members.packages.iter().filter(|package| is_published(package)).collect();
    let mut command = workspace.cargo(&["package", "--allow-dirty"]);
    for package in &published {
        command.args(["--package", package.name.as_str()]);
    }
    let passed = process::run(&mut command)?;
    let mut tally = Tally::default();
    for _ in published {
        tally += Tally::of_check(passed);
    }
    Ok(tally)
}

/// Whether the manifest lets the crate go to a registry.
pub(crate) fn is_published(package: &Package) -> bool {
    package.publish.as_ref().is_none_or(|registries| !registries.is_empty())
}
