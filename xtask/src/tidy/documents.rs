//! Documents: they are there, and every path that they name exists.

use std::path::Path;

use cargo_metadata::Metadata;

use super::tree::TextFile;
use crate::package;

/// What a reader looks for first.
const REQUIRED: [&str; 4] = ["ARCHITECTURE.md", "CHANGELOG.md", "README.md", ".ci/run"];

/// A word in backticks that begins so is a path from the root.
const PATH_BEGINNINGS: [&str; 6] = ["crates/", "docs/", "shaders/", "tests/", "xtask/", ".ci/"];

/// The paths in backticks of one document that do not exist.
pub(super) fn check(file: &TextFile, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    if !file.is_document() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (line_idx, line) in file.text.lines().enumerate() {
        // Every second part of a line split at backticks stands between two of them.
        for word in line.split('`').skip(1).step_by(2) {
            let is_path = PATH_BEGINNINGS.iter().any(|beginning| word.starts_with(beginning))
                && !word.contains([' ', '*', '<', '{']);
            if is_path && !exists(word) {
                findings.push(format!("{}:{}: `{word}` does not exist", file.path, line_idx + 1));
            }
        }
    }
    findings
}

/// The required documents that are missing.
pub(super) fn check_presence(files: &[TextFile]) -> Vec<String> {
    let is_missing = |path: &&&str| !files.iter().any(|file| file.path == **path);
    REQUIRED.iter().filter(is_missing).map(|path| format!("{path}: missing")).collect()
}

/// The published crates without a README that their manifest names.
pub(super) fn check_crates(members: &Metadata, root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    for package in members.packages.iter().filter(|package| package::is_published(package)) {
        let manifest = package.manifest_path.as_std_path();
        let shown = manifest.strip_prefix(root).unwrap_or(manifest).display();
        let is_there = match (&package.readme, manifest.parent()) {
            (Some(readme), Some(folder)) => folder.join(readme).is_file(),
            _ => false,
        };
        if !is_there {
            findings.push(format!("{shown}: a published crate names a README that is there"));
        }
    }
    findings
}
