//! NVIDIA's run-time compiler for CUDA C++ out of its PyPI package, in the target folder: it compiles without a GPU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::model_file::pip;
use crate::process;
use crate::workspace::Workspace;

/// Name and version as pip takes them.
const REQUIREMENT: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";

/// The folder in the target folder; the parity tests look for it there.
const FOLDER: &str = "nvrtc";

/// In the folder, written last: what is installed.
const STAMP: &str = "heterokv-nvrtc.stamp";

/// Installs it unless it is there, and returns the folder.
///
/// # Errors
/// If there is no Python with pip, or pip fails.
pub(crate) fn obtain(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target_folder()?.join(FOLDER);
    if is_installed(&folder) {
        return Ok(folder);
    }
    let pythons = pip::pythons();
    let python = pythons.iter().find(|python| pip::has_pip(python)).with_context(|| {
        let tried: Vec<_> = pythons.iter().map(|python| python.to_string_lossy()).collect();
        format!(
            "no Python with pip was found (tried {}); install python3 and python3-pip",
            tried.join(", ")
        )
    })?;
    eprintln!("installing {REQUIREMENT} into {}: downloads 90 MB", folder.display());
    if !process::run(&mut install(python, &folder))? {
        bail!(
            "pip could not install {REQUIREMENT} (its words are above): it is there for Linux and Windows on x86-64; \
             check the connection and run it again"
        );
    }
    let stamp = folder.join(STAMP);
    fs::write(&stamp, REQUIREMENT).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(folder)
}

/// Whether it is there, of the version that is wanted.
pub(crate) fn is_there() -> bool {
    library().is_some()
}

/// The folder of its library, where it is installed.
pub(crate) fn library() -> Option<PathBuf> {
    let target = Workspace::around_this_package().and_then(|workspace| workspace.target_folder());
    let folder = target.ok()?.join(FOLDER);
    is_installed(&folder).then(|| folder.join("nvidia/cuda_nvrtc/lib"))
}

fn is_installed(folder: &Path) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp == REQUIREMENT)
}

fn install(python: &OsString, folder: &Path) -> Command {
    let mut command = Command::new(python);
    command.args([
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
    ]);
    // A folder of its own, so that neither an environment nor a system's packages are touched.
    command.args(["--progress-bar", "off", "--upgrade", "--target"]).arg(folder).arg(REQUIREMENT);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_its_stamp_or_with_an_older_one_is_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!is_installed(folder.path()));
        for (stamp, expected) in [("nvidia-cuda-nvrtc-cu12==12.0.76", false), (REQUIREMENT, true)] {
            fs::write(folder.path().join(STAMP), stamp).expect("it can be written");
            assert_eq!(is_installed(folder.path()), expected, "{stamp}");
        }
    }

    #[test]
    fn pip_asks_nothing_and_touches_no_environment() {
        let shown = process::shown(&install(&"python3".into(), Path::new("target/nvrtc")));
        assert!(shown.contains("--no-input") && shown.contains("--target target/nvrtc"), "{shown}");
        assert!(shown.ends_with(REQUIREMENT), "{shown}");
    }
}
