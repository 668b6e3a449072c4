//! Where the workspace and the cache folder lie and how cargo is called.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{CargoOpt, Metadata, MetadataCommand};
use etcetera::BaseStrategy;

/// Where what is kept from clone to clone lies, below the user's own cache folder.
///
/// # Errors
/// If the user has no home folder.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let strategy = etcetera::choose_base_strategy().context("there is no home folder")?;
    Ok(strategy.cache_dir().join("heterokv"))
}

/// The workspace that this package belongs to.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace around the folder that cargo compiled this package from.
    ///
    /// # Errors
    /// If that folder has since been moved away.
    pub(crate) fn around_this_package() -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        match package.parent() {
            Some(root) if root.join("Cargo.toml").is_file() => Ok(Self { root: root.to_owned() }),
            _ => bail!(
                "no workspace around {}; run `cargo xtask` inside the clone",
                package.display()
            ),
        }
    }

    /// The folder of the root manifest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `cargo` with its first arguments, to be run in the root, with colours off so that its lines can be read.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.root).env("CARGO_TERM_COLOR", "never");
        command
    }

    /// The workspace's own packages, without their dependencies: no network, no lock file is needed.
    ///
    /// # Errors
    /// If `cargo metadata` fails, say for a manifest that does not parse.
    pub(crate) fn members(&self) -> Result<Metadata> {
        let mut command = MetadataCommand::new();
        command.manifest_path(self.root.join("Cargo.toml")).no_deps();
        command.exec().context("`cargo metadata` failed")
    }

    /// Every package that the lock file pins, ours included, and those that only features ask for.
    ///
    /// # Errors
    /// If `cargo metadata` fails.
    pub(crate) fn packages(&self) -> Result<Metadata> {
        let mut command = MetadataCommand::new();
        command.manifest_path(self.root.join("Cargo.toml")).features(CargoOpt::AllFeatures);
        command.exec().context("`cargo metadata` failed")
    }

    /// Where cargo builds: `target` in the root unless the user's configuration says otherwise.
    ///
    /// # Errors
    /// If `cargo metadata` fails.
    pub(crate) fn target_folder(&self) -> Result<PathBuf> {
        Ok(self.members()?.target_directory.into_std_path_buf())
    }
}
