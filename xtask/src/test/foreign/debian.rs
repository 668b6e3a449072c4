//! Debian's Rust with its standard library for 64-bit ARM, unpacked into the cache folder.
//!
//! Installed, the package `rustc-web` would take the place of any other Rust of Debian's; unpacked it disturbs
//! nobody, and apt with lists of its own needs no rights and leaves the system's lists alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{process, workspace};

const COMPILER: &str = "rustc-web";
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";

/// Where it is unpacked.
///
/// # Errors
/// If there is no cache folder.
pub(super) fn folder() -> Result<PathBuf> {
    Ok(workspace::cache_folder()?.join("rust-aarch64"))
}

/// The folder of the libraries that the compiler loads: the one below `lib` that is named after a system.
pub(super) fn libraries(usr: &Path) -> Option<PathBuf> {
    let mut folders = fs::read_dir(usr.join("lib")).ok()?.flatten().map(|entry| entry.path());
    folders.find(|path| path.to_string_lossy().ends_with("-linux-gnu"))
}

/// Downloads and unpacks it; false where apt has no such packages.
///
/// # Errors
/// If the cache folder cannot be written or a program cannot be started.
pub(crate) fn unpack() -> Result<bool> {
    if !process::succeeds(Command::new("apt-get").arg("--version")) {
        return Ok(false);
    }
    let cache = workspace::cache_folder()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // What is unpacked is moved to its place as a whole, so that a killed run leaves no half of it there.
    let temporary = tempfile::Builder::new()
        .prefix(".unpack-")
        .tempdir_in(&cache)
        .with_context(|| format!("cannot write in {}", cache.display()))?;
    let temporary = temporary.path();
    let architecture = Command::new("dpkg").arg("--print-architecture").output()?;
    let apt = |program: &str| apt(program, temporary, architecture.stdout.trim_ascii());
    fs::create_dir_all(temporary.join("lists/partial"))?;
    if !process::run(apt("apt-get").args(["--quiet", "update"]))? {
        return Ok(false);
    }
    let needed = dependencies(&mut apt("apt-cache"))?;
    let mut download = apt("apt-get");
    download.args(["--quiet", "download", COMPILER, &format!("{STANDARD_LIBRARY}:arm64")]);
    if !process::run(download.args(needed))? {
        return Ok(false);
    }
    let unpacked = temporary.join("unpacked");
    for entry in fs::read_dir(temporary)? {
        let file = entry?.path();
        if file.extension().is_some_and(|ending| ending == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            process::run_or_fail(unpack.arg("--extract").args([&file, &unpacked]))?;
        }
    }
    let folder = folder()?;
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(&unpacked, &folder)
        .with_context(|| format!("cannot move what was unpacked to {}", folder.display()))?;
    Ok(true)
}

/// A program of apt that keeps its lists in `folder`, those of ARM beside those of the machine's `architecture`.
fn apt(program: &str, folder: &Path, architecture: &[u8]) -> Command {
    let mut command = Command::new(program);
    for option in [
        &format!("APT::Architectures::={}", String::from_utf8_lossy(architecture)),
        "APT::Architectures::=arm64",
        // Started by root, apt would download as a user who may not write here.
        "APT::Sandbox::User=root",
        &format!("Dir::State::Lists={}", folder.join("lists").display()),
        &format!("Dir::Cache={}", folder.display()),
    ] {
        command.args(["-o", option]);
    }
    command.current_dir(folder);
    command
}

/// The standard library of this machine and all that it depends on.
fn dependencies(apt_cache: &mut Command) -> Result<Vec<String>> {
    apt_cache.args(["depends", "--recurse", "--important", STANDARD_LIBRARY]);
    let output = apt_cache.stderr(Stdio::inherit()).output().context("cannot start apt-cache")?;
    ensure!(output.status.success(), "`{}` failed", process::shown(apt_cache));
    Ok(package_names(&String::from_utf8_lossy(&output.stdout)))
}

/// The packages that `apt-cache depends --recurse` prints, each on a line of its own before the indented lines of
/// what it depends on. Those of other architectures are left out, and so is the C library: one that is not the
/// machine's own would run nothing.
fn package_names(lines: &str) -> Vec<String> {
    let is_name = |line: &&str| !line.starts_with([' ', '<', '|']) && !line.contains(':');
    lines.lines().filter(is_name).filter(|name| *name != "libc6").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_this_machine_are_taken_and_the_c_library_is_not() {
        let lines = "libstd-rust-web-dev\n  Depends: libstd-rust-web-1.96\nlibstd-rust-web-1.96\n \
                     |Depends: libc6\n  Depends: libllvm22\nlibc6\nlibc6:arm64\n<libc-dev>\nlibllvm22\n";
        let expected = ["libstd-rust-web-dev", "libstd-rust-web-1.96", "libllvm22"];
        assert_eq!(package_names(lines), expected);
    }

    #[test]
    fn apt_writes_only_where_it_is_told_to() {
        let shown = process::shown(&apt("apt-get", Path::new("here"), b"amd64"));
        for option in
            ["APT::Architectures::=amd64", "Dir::State::Lists=here/lists", "Dir::Cache=here"]
        {
            assert!(shown.contains(option), "{shown}");
        }
    }

    #[test]
    fn the_libraries_are_in_the_folder_of_their_system() {
        let usr = tempfile::tempdir().expect("a folder can be made");
        assert_eq!(libraries(usr.path()), None);
        for name in ["rustlib", "x86_64-linux-gnu"] {
            fs::create_dir_all(usr.path().join("lib").join(name)).expect("it can be written");
        }
        assert_eq!(libraries(usr.path()), Some(usr.path().join("lib/x86_64-linux-gnu")));
    }
}
