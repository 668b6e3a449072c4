//! What a disk gives to threads that only read.

use std::fs;
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use heterokv_cache::{OsFiles, Reads};
use heterokv_offload::Files;

/// Bytes of a read: what neighbouring pages are read in at most.
const BLOCK_BYTES: u64 = 128 << 10;

/// Bytes that are read, at most.
const MOST_BYTES: u64 = 2 << 30;

/// Bytes per second at which `num_threads` read the page files of a store in `folder`, in blocks one after another.
///
/// # Errors
/// Where there are none, and one that cannot be read.
pub(super) fn read_rate(folder: &Path, reads: Reads, num_threads: usize) -> Result<f64> {
    let mut blocks: Vec<(PathBuf, u64)> = Vec::new();
    let names = OsFiles::default().names(folder).context("cannot list the store's folder")?;
    for name in names.iter().filter(|name| name.starts_with("pages-")) {
        let path = folder.join(name);
        let len =
            fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
        blocks.extend(
            (0..len.div_ceil(BLOCK_BYTES)).map(|block| (path.clone(), block * BLOCK_BYTES)),
        );
    }
    blocks.truncate((MOST_BYTES / BLOCK_BYTES) as usize);
    ensure!(!blocks.is_empty(), "the store has no files");
    let next = AtomicU64::new(0);
    let read = || -> Result<u64> {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        let mut open: Option<(&Path, Box<dyn heterokv_offload::File>)> = None;
        let mut num_bytes = 0;
        while let Some((path, offset)) = blocks.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let context = || format!("cannot read {}", path.display());
            if open.as_ref().is_none_or(|(opened, _)| opened != path) {
                open = Some((path, OsFiles { reads }.open(path).with_context(context)?));
            }
            let Some((_, file)) = &open else { continue };
            let parts = &mut [IoSliceMut::new(&mut buffer)];
            num_bytes += file.read_at(*offset, parts).with_context(context)? as u64;
        }
        Ok(num_bytes)
    };
    let start = Instant::now();
    let num_bytes = thread::scope(|scope| {
        let readers: Vec<_> = (0..num_threads).map(|_| scope.spawn(read)).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().expect("it does not panic"))
            .sum::<Result<u64>>()
    })?;
    Ok(num_bytes as f64 / start.elapsed().as_secs_f64())
}
