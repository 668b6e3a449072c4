//! Reads out of a file mapped into memory.

#![expect(
    unsafe_code,
    reason = "mapping a file into memory is unsafe by nature; it happens here only"
)]

use std::fs::File;
use std::io::{self, IoSliceMut};

use memmap2::MmapOptions;

/// Copies bytes from `offset` on into the parts one after another, and says how many: fewer where the file
/// ends before. The file is mapped for as long as this takes, so that what is mapped counts for nobody's
/// memory afterwards.
pub(super) fn read(file: &File, offset: u64, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let wanted: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let in_file = file.metadata()?.len().saturating_sub(offset);
    let len = usize::try_from(wanted.min(in_file)).map_err(io::Error::other)?;
    if len == 0 {
        return Ok(0);
    }
    let mut options = MmapOptions::new();
    options.offset(offset).len(len);
    // SAFETY: the map is read-only, lies within the length of the file, and is gone when this returns. The
    // store has its folder to itself (`Files::lock`), writes no slot that is being read, and does not
    // truncate; that no other program does is asked of whoever chooses `Reads::Mapped`.
    let map = unsafe { options.map(file) }?;
    let mut rest = &map[..];
    for part in parts {
        let (now, later) = rest.split_at(part.len().min(rest.len()));
        part[..now.len()].copy_from_slice(now);
        rest = later;
    }
    Ok(len)
}
