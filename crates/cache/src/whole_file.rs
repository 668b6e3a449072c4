//! Files that are replaced whole or not at all.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Refuses a path that [`replace`] could not write to: in a folder that is missing or not writable, or of
/// something that is there and no regular file.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        let reason = "there is something else than a regular file at this path";
        return Err(Error::new(ErrorKind::InvalidInput, reason));
    }
    let partial = partial_path(path);
    fs::File::create(&partial).and_then(|_| fs::remove_file(&partial))
}

/// Writes `bytes` to `path`.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_path(path);
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path))
}

/// Where a file is written before it is whole.
fn partial_path(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    partial.into()
}
