//! The peers that are written in Python: a virtual environment in the target folder, made once.
//!
//! What is installed is what `constraints.txt` beside the package pins. A stamp, written last, holds what it was
//! made from: with it there is nothing to do, and without it pip goes on with whatever is there already.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::process;
use crate::workspace::Workspace;

/// The package, from the root.
const PACKAGE: &str = "crates/bench/peers/python";

/// The virtual environment, in the target folder.
const VENV: &str = "peers";

/// Free disk that the installation needs: 6.2 GB stay, and pip keeps the packages beside them meanwhile.
const NEEDED_BYTES: u64 = 10_000_000_000;

/// Interpreters that the pinned packages have been tried with come first.
const PYTHONS: [&str; 5] = ["python3.11", "python3.12", "python3.13", "python3", "python"];

/// Exits with 0 under a Python that the pinned packages have builds for and that can make environments.
const SUITS: &str =
    "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))";

/// How llama.cpp is built: for this processor, without what reads pictures.
const CMAKE_ARGS: &str = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF";

/// In the environment: the digest of what it was made from. `InstalledPeers` of `heterokv-eval` looks for it.
const STAMP: &str = "heterokv-peers.stamp";

/// In the environment: the version of every package, as `pip freeze` prints them.
const VERSIONS: &str = "heterokv-peers.txt";

/// Where the peers are, or will be.
///
/// # Errors
/// If the workspace cannot be read.
pub(crate) fn folder(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.target_folder()?.join(VENV))
}

/// Installs the peers unless they are there, and returns the virtual environment.
///
/// # Errors
/// If the disk has too little room, Python or a C++ compiler is missing, or pip fails; the message says what to
/// do.
pub(crate) fn obtain(workspace: &Workspace) -> Result<PathBuf> {
    let package = workspace.root().join(PACKAGE);
    let target = workspace.target_folder()?;
    let venv = target.join(VENV);
    let wanted = digest(&package)?;
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let _lock = lock(&target.join("peers.lock"))?;
    let python = interpreter(&venv);
    if is_there(&venv, &wanted) {
        return Ok(venv);
    }
    let own_python = find_python(&PYTHONS)?;
    check_disk(own_python, &target, NEEDED_BYTES)?;
    check_compiler()?;
    eprintln!(
        "installing llama.cpp, kvpress and PyTorch into {}: downloads 3 GB, keeps 6.2 GB, and takes 5 to 10 \
         minutes on two cores",
        venv.display()
    );
    if !process::succeeds(Command::new(&python).args(["-m", "pip", "--version"])) {
        let mut make = Command::new(own_python);
        process::run_or_fail(make.args(["-m", "venv", "--clear"]).arg(&venv))?;
    }
    eprintln!("1 of 3: llama.cpp, built here for this processor");
    pip_install(&python, &package, &["llama-cpp-python".as_ref()])?;
    eprintln!("2 of 3: kvpress, transformers and PyTorch");
    pip_install(&python, &package, &["--editable".as_ref(), package.as_os_str()])?;
    eprintln!("3 of 3: trying them");
    let import = "import heterokv_peers.llama_cpp, heterokv_peers.kvpress";
    process::run_or_fail(Command::new(&python).args(["-c", import]))?;
    record(&python, &venv, &wanted)?;
    eprintln!("installed; the versions are in {}", venv.join(VERSIONS).display());
    Ok(venv)
}

/// Runs the tests of the package under the installed environment; those of llama.cpp need `model`.
///
/// # Errors
/// If Python cannot be started.
pub(crate) fn test(workspace: &Workspace, venv: &Path, model: &Path) -> Result<bool> {
    let mut command = Command::new(interpreter(venv));
    command.args(["-m", "unittest", "discover", "--start-directory", "tests", "-t", "."]);
    command.current_dir(workspace.root().join(PACKAGE)).env("HETEROKV_MODEL", model);
    process::run(&mut command)
}

/// The interpreter of a virtual environment.
fn interpreter(venv: &Path) -> PathBuf {
    venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}

/// Whether the environment was made from the wanted package to its end, and is not of another machine.
fn is_there(venv: &Path, wanted: &str) -> bool {
    let stamp = fs::read_to_string(venv.join(STAMP)).unwrap_or_default();
    stamp == wanted && process::succeeds(Command::new(interpreter(venv)).arg("--version"))
}

/// SHA-256 of all that decides what is installed, and of where the package lies, since its sources are read
/// there.
fn digest(package: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(package.as_os_str().as_encoded_bytes());
    for name in ["pyproject.toml", "constraints.txt"] {
        let path = package.join(name);
        hasher.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    hasher.update(CMAKE_ARGS);
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits until no other installation works. The system frees the lock of a process that dies.
fn lock(path: &Path) -> Result<File> {
    let context = || format!("cannot lock {}", path.display());
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(path).with_context(context)?;
    file.lock().with_context(context)?;
    Ok(file)
}

/// The first interpreter that suits.
fn find_python<'a>(names: &[&'a str]) -> Result<&'a str> {
    let suits = |name: &&&str| process::succeeds(Command::new(name).args(["-c", SUITS]));
    names.iter().find(suits).copied().with_context(|| {
        format!(
            "no Python 3.11 to 3.13 with venv was found (tried {}); install python3.11 and python3.11-venv",
            names.join(", ")
        )
    })
}

fn check_disk(python: &str, folder: &Path, needed: u64) -> Result<()> {
    let ask = "import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free)";
    let output = Command::new(python)
        .args(["-c", ask])
        .arg(folder)
        .output()
        .with_context(|| format!("cannot start {python}"))?;
    let free = String::from_utf8_lossy(&output.stdout);
    let free: u64 = free
        .trim()
        .parse()
        .with_context(|| format!("cannot see how much room {} has", folder.display()))?;
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    ensure!(
        free >= needed,
        "the peers need {:.1} GB of disk and {} has {:.1} GB free; free some, or build elsewhere by \
         CARGO_TARGET_DIR",
        gigabytes(needed),
        folder.display(),
        gigabytes(free)
    );
    eprintln!("disk: {:.1} GB needed, {:.1} GB free", gigabytes(needed), gigabytes(free));
    Ok(())
}

fn check_compiler() -> Result<()> {
    let named = std::env::var_os("CXX");
    let known = ["c++", "g++", "clang++"].map(OsStr::new);
    let mut compilers = named.as_deref().into_iter().chain(known);
    if compilers.any(|name| process::succeeds(Command::new(name).arg("--version"))) {
        return Ok(());
    }
    bail!("llama.cpp is built here and there is no C++ compiler; install g++, or set CXX")
}

fn pip_install(python: &Path, package: &Path, what: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check"]);
    // Kept packages would take the room once more in the user's cache folder.
    command.args(["--no-cache-dir", "--progress-bar", "off", "--constraint"]);
    command.arg(package.join("constraints.txt")).args(what);
    // What pip unpacks meanwhile must lie on the disk whose room was looked at.
    let temporary = room_beside(python)?;
    command.env("TMPDIR", temporary.path());
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    command.env("CMAKE_ARGS", CMAKE_ARGS).env("CMAKE_BUILD_PARALLEL_LEVEL", jobs.to_string());
    ensure!(
        process::run(&mut command)?,
        "pip failed (its words are above): mend what it names or check the connection, and run it again; what is \
         installed already stays"
    );
    Ok(())
}

/// An empty folder inside the environment, gone when it is dropped.
fn room_beside(python: &Path) -> Result<tempfile::TempDir> {
    let folder = python.parent().context("the interpreter lies in no folder")?;
    tempfile::tempdir_in(folder).with_context(|| format!("cannot write in {}", folder.display()))
}

/// Writes the versions and then the stamp.
fn record(python: &Path, venv: &Path, wanted: &str) -> Result<()> {
    let freeze = ["-m", "pip", "freeze", "--disable-pip-version-check"];
    let output = Command::new(python)
        .args(freeze)
        .output()
        .with_context(|| format!("cannot start {}", python.display()))?;
    ensure!(output.status.success(), "`pip freeze` failed in {}", venv.display());
    for (name, contents) in [(VERSIONS, output.stdout.as_slice()), (STAMP, wanted.as_bytes())] {
        let path = venv.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_small_a_disk_is_an_error_with_both_figures() {
        let python = find_python(&["python3", "python"]).expect("a Python");
        let folder = tempfile::tempdir().expect("a folder");
        let error = check_disk(python, folder.path(), u64::MAX).expect_err("no disk is so large");
        let error = error.to_string();
        assert!(error.contains("need 18446744073.7 GB") && error.contains("GB free"), "{error}");
        assert!(error.contains("CARGO_TARGET_DIR"), "{error}");
        check_disk(python, folder.path(), 1).expect("a byte is free");
    }

    #[test]
    fn a_missing_python_is_an_error_that_names_what_to_install() {
        let error = find_python(&["no-such-python"]).expect_err("it is not there").to_string();
        assert!(error.contains("tried no-such-python") && error.contains("install"), "{error}");
    }

    #[test]
    fn the_stamp_follows_what_is_pinned() {
        let package = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            fs::write(package.path().join(name), text).expect("it can be written");
        };
        assert!(digest(package.path()).is_err());
        write("pyproject.toml", "a");
        write("constraints.txt", "torch==1");
        let first = digest(package.path()).expect("both are there");
        assert_eq!(digest(package.path()).expect("both are there"), first);
        write("constraints.txt", "torch==2");
        assert_ne!(digest(package.path()).expect("both are there"), first);
    }

    #[cfg(unix)]
    #[test]
    fn an_environment_without_its_stamp_or_its_python_is_not_there() {
        let venv = tempfile::tempdir().expect("a folder");
        fs::create_dir(venv.path().join("bin")).expect("it can be made");
        assert!(!is_there(venv.path(), "x"));
        fs::write(venv.path().join(STAMP), "x").expect("it can be written");
        assert!(!is_there(venv.path(), "x"));
        std::os::unix::fs::symlink("/bin/true", interpreter(venv.path())).expect("a link");
        assert!(is_there(venv.path(), "x"));
        assert!(!is_there(venv.path(), "y"));
    }
}
