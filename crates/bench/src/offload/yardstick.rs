//! What others reach on the same file system: `dd`, which writes and reads a file in order.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::sheet::Cell;

/// Its name, under which it is looked for and reported.
pub(super) const PROGRAM: &str = "dd";

/// Bytes of a block.
const BLOCK_BYTES: usize = 1 << 20;

/// Seconds that writing `num_bytes` of zeros and making them durable takes; none where there is no such program.
///
/// # Errors
/// If it fails.
pub(super) fn write(program: &str, path: &Path, num_bytes: usize) -> Result<Option<f64>> {
    let count = num_bytes.div_ceil(BLOCK_BYTES);
    let mut to = std::ffi::OsString::from("of=");
    to.push(path);
    let mut command = Command::new(program);
    command.arg("if=/dev/zero").arg(to).args([&format!("count={count}"), "conv=fsync"]);
    timed(&mut command)
}

/// Seconds that reading a file takes; none where there is no such program.
///
/// # Errors
/// If it fails.
pub(super) fn read(program: &str, path: &Path) -> Result<Option<f64>> {
    let mut from = std::ffi::OsString::from("if=");
    from.push(path);
    timed(Command::new(program).arg(from).arg("of=/dev/null"))
}

fn timed(command: &mut Command) -> Result<Option<f64>> {
    command.arg(format!("bs={BLOCK_BYTES}")).stdin(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    match command.status() {
        Ok(status) => {
            let seconds = start.elapsed().as_secs_f64();
            ensure!(status.success(), "{command:?} failed: {status}");
            Ok(Some(seconds))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot start {command:?}")),
    }
}

/// A rate of it in a table, or that it is not there.
pub(super) fn cell(seconds: Option<f64>, num_bytes: usize) -> Cell {
    let rate = |seconds| Cell::Number(1e-6 * num_bytes as f64 / seconds, 0);
    seconds.map_or_else(|| Cell::text("not there"), rate)
}

/// Asks the system to forget what it has of the files in a folder; false where there is no way to ask.
///
/// # Errors
/// If a file cannot be opened or the system refuses.
pub(super) fn forget(folder: &Path) -> Result<bool> {
    let context = || format!("cannot drop the cached pages of {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let file = File::open(entry.with_context(context)?.path()).with_context(context)?;
        if !drop_cached(&file).with_context(context)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(target_os = "linux")]
fn drop_cached(file: &File) -> io::Result<bool> {
    file.sync_all()?;
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
fn drop_cached(_: &File) -> io::Result<bool> {
    Ok(false)
}

/// Bytes that this process has had from disks so far; none where the system does not say.
pub(super) fn bytes_from_disk() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_and_what_fails_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        assert!(matches!(write("heterokv-no-such-program", &path, 1), Ok(None)));
        assert_eq!(cell(None, 1), Cell::text("not there"));
        if let Ok(Some(seconds)) = write(PROGRAM, &path, 3 << 20) {
            assert!(seconds > 0.0);
            assert_eq!(std::fs::metadata(&path).expect("it was written").len(), 3 << 20);
            assert!(read(PROGRAM, &folder.path().join("none")).is_err());
        }
        assert!(forget(&folder.path().join("none")).is_err());
    }
}
