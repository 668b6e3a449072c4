//! The text files of the workspace that the checks look at.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Folders of the root that hold our files, walked to their ends; the root itself is read without its others.
const FOLDERS: [&str; 6] = ["crates", "docs", "shaders", "tests", "xtask", ".ci"];

/// Endings of the files that are read, and the one file that has none.
const ENDINGS: [&str; 8] = [".rs", ".wgsl", ".cu", ".cuh", ".hpp", ".md", ".toml", "run"];

/// One text file.
#[derive(Clone, Debug)]
pub(super) struct TextFile {
    /// From the root, with forward slashes.
    pub(super) path: String,
    pub(super) text: String,
}

impl TextFile {
    /// Whether a compiler reads it.
    pub(super) fn is_source(&self) -> bool {
        [".rs", ".wgsl", ".cu", ".cuh", ".hpp"].iter().any(|ending| self.path.ends_with(ending))
    }

    /// Whether people read it.
    pub(super) fn is_document(&self) -> bool {
        self.path.ends_with(".md")
    }
}

/// Reads all of them, in order of path.
///
/// # Errors
/// If one cannot be read or is not UTF-8.
pub(super) fn read(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    walk(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(root: &Path, folder: &str, files: &mut Vec<TextFile>) -> Result<()> {
    let context = || format!("cannot read {}", root.join(folder).display());
    for entry in fs::read_dir(root.join(folder)).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if entry.file_type().with_context(context)?.is_dir() {
            let is_ours = if folder.is_empty() {
                FOLDERS.contains(&name.as_str())
            } else {
                // A package that was built on its own has its target folder here.
                name != "target"
            };
            if is_ours {
                walk(root, &path, files)?;
            }
        } else if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("cannot read {}", entry.path().display()))?;
            files.push(TextFile { path, text });
        }
    }
    Ok(())
}
