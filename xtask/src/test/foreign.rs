//! The kernels of another instruction set: NEON, compiled for 64-bit ARM and run by qemu's user emulation.

pub(crate) mod debian;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use cargo_metadata::semver::Version;

use super::{runners, skipped};
use crate::process;
use crate::tally::{Runner, Tally};
use crate::workspace::Workspace;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The crate that has kernels of this instruction set.
const CRATE: &str = "heterokv-quant";

/// The C compiler that links, the emulator that runs, and the C library that is run with; Debian's packages of them
/// are [`TOOLS`].
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
const C_LIBRARY: &str = "/usr/aarch64-linux-gnu";

/// Tests of encoders and decoders over every format, shape and kind of input: these have no form for this instruction
/// set, and the emulator would be at them for half an hour.
const FORMLESS: &[&str] = &["keys::tests::bounds", "keys::tests::distortion"];

/// Debian's packages of linker, C library and emulator.
pub(crate) const TOOLS: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"];

/// What a person would type where [`debian::unpack`] is of no use.
pub(crate) const ADD_TARGET: &str = "rustup target add aarch64-unknown-linux-gnu";

/// Whether [`TOOLS`] are there.
pub(crate) fn has_tools() -> bool {
    [LINKER, EMULATOR].iter().all(|tool| process::succeeds(Command::new(tool).arg("--version")))
        && Path::new(C_LIBRARY).is_dir()
}

/// Whether there is a compiler with a standard library for ARM.
pub(crate) fn has_rust() -> bool {
    Compiler::find().is_some()
}

/// The tests of [`CRATE`] but for [`FORMLESS`], by the emulator.
///
/// # Errors
/// If cargo cannot be started or dies.
pub(super) fn run(workspace: &Workspace) -> Result<Tally> {
    if cfg!(target_arch = "aarch64") {
        println!("this machine is a 64-bit ARM itself: the steps above ran its kernels");
        return Ok(Tally::default());
    }
    if !has_tools() {
        return Ok(skipped(&format!(
            "{LINKER}, {EMULATOR} or {C_LIBRARY} is missing; see --setup"
        )));
    }
    let Some(compiler) = Compiler::find() else {
        return Ok(skipped("there is no standard library of Rust for 64-bit ARM; see --setup"));
    };
    let Compiler { rustc, version, .. } = &compiler;
    let members = workspace.members()?;
    let package = members.packages.iter().find(|package| package.name == CRATE);
    if let Some(needed) = package.and_then(|package| package.rust_version.as_ref())
        && version < needed
    {
        return Ok(skipped(&format!("Rust for ARM is {version}, and {CRATE} needs {needed}")));
    }
    println!("{TARGET}: compiled by {} {version}, run by {EMULATOR}", rustc.display());
    let mut command =
        workspace.cargo(&["test", "--release", "--package", CRATE, "--tests", "--target", TARGET]);
    command.arg("--target-dir").arg(workspace.target_folder()?.join("aarch64"));
    command.args(["--", "--color", "never"]);
    command.args(FORMLESS.iter().flat_map(|tests| ["--skip", tests]));
    compiler.use_for(&mut command);
    runners::watch(&mut command, Runner::Libtest)
}

/// A compiler that has a standard library for ARM.
struct Compiler {
    rustc: PathBuf,
    /// What it loads itself, where that is not where the system looks.
    libraries: Option<PathBuf>,
    version: Version,
}

impl Compiler {
    /// The compiler that the workspace is built by, or else Debian's.
    fn find() -> Option<Self> {
        Self::at("rustc".into(), None).or_else(|| {
            let usr = debian::folder().ok()?.join("usr");
            Self::at(usr.join("bin/rustc"), Some(debian::libraries(&usr)?))
        })
    }

    fn at(rustc: PathBuf, libraries: Option<PathBuf>) -> Option<Self> {
        let ask = |arguments: &[&str]| {
            let mut command = Command::new(&rustc);
            command.args(arguments).stderr(Stdio::null());
            command.envs(libraries.iter().map(|folder| ("LD_LIBRARY_PATH", folder)));
            Some(String::from_utf8_lossy(&command.output().ok()?.stdout).into_owned())
        };
        let folder = ask(&["--print", "target-libdir", "--target", TARGET])?;
        let version = Path::new(folder.trim()).is_dir().then(|| ask(&["--version"]))??;
        Some(Self { version: version_in(&version)?, rustc, libraries })
    }

    /// Makes cargo compile by it, and run what it compiled.
    fn use_for(&self, command: &mut Command) {
        let name =
            |end: &str| format!("CARGO_TARGET_{}_{end}", TARGET.replace('-', "_").to_uppercase());
        command.env("RUSTC", &self.rustc);
        command.envs(self.libraries.iter().map(|folder| ("LD_LIBRARY_PATH", folder)));
        command.env(name("LINKER"), LINKER);
        // The libraries of the compiler are none of the emulated program's.
        command.env(name("RUNNER"), format!("{EMULATOR} -U LD_LIBRARY_PATH -L {C_LIBRARY}"));
    }
}

/// The number in `rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)`.
fn version_in(line: &str) -> Option<Version> {
    line.strip_prefix("rustc ")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_off_the_first_line() {
        let line = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n";
        assert_eq!(version_in(line), Some(Version::new(1, 96, 0)));
        assert_eq!(version_in("rustc: error while loading shared libraries"), None);
        assert_eq!(version_in(""), None);
    }

    #[test]
    fn what_is_no_compiler_is_not_found() {
        assert!(Compiler::at("no-such-program-anywhere".into(), None).is_none());
        assert!(Compiler::at("true".into(), None).is_none());
    }

    #[test]
    fn cargo_is_told_of_compiler_linker_and_emulator() {
        let (rustc, libraries) = ("usr/bin/rustc".into(), Some("usr/lib".into()));
        let compiler = Compiler { rustc, libraries, version: Version::new(1, 96, 0) };
        let mut command = Command::new("cargo");
        compiler.use_for(&mut command);
        let told: Vec<_> = command.get_envs().filter_map(|(_, value)| value?.to_str()).collect();
        for value in ["usr/bin/rustc", "usr/lib", LINKER] {
            assert!(told.contains(&value), "{value} in {told:?}");
        }
        let runner = told.iter().find(|value| value.starts_with(EMULATOR));
        assert!(runner.is_some_and(|runner| runner.contains(C_LIBRARY)), "{told:?}");
        assert!(ADD_TARGET.ends_with(TARGET));
    }
}
