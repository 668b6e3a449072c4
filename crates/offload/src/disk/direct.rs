//! Reads past the system's cache of files.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::Path;

/// Opens a file for them.
#[cfg(target_os = "linux")]
pub(super) fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flag = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flag).open(path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            unsupported("this file system has no reads past the system's cache")
        }
        _ => error,
    })
}

/// Refuses.
#[cfg(not(target_os = "linux"))]
pub(super) fn open(_path: &Path) -> io::Result<File> {
    Err(unsupported("reads past the system's cache are on Linux only"))
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{what}; read by pread instead"))
}

/// Copies bytes from `offset` on into the parts one after another, and says how many: fewer where the file ends
/// before.
#[cfg(target_os = "linux")]
pub(super) fn read(file: &File, offset: u64, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    use std::cell::RefCell;

    use super::SLOT_ALIGN;

    thread_local! {
        /// What a thread reads into: as large as its largest read.
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    let wanted: usize = parts.iter().map(|part| part.len()).sum();
    // The disk gives whole blocks from a whole block on, to memory aligned like them.
    let skipped = (offset % SLOT_ALIGN as u64) as usize;
    let len = (skipped + wanted).next_multiple_of(SLOT_ALIGN);
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len + SLOT_ALIGN {
            buffer.resize(len + SLOT_ALIGN, 0);
        }
        let start = buffer.as_ptr().align_offset(SLOT_ALIGN);
        let blocks = &mut buffer[start..][..len];
        let found = rustix::io::pread(file, &mut *blocks, offset - skipped as u64)?;
        let mut rest = &blocks[skipped.min(found)..found.min(skipped + wanted)];
        let num_bytes = rest.len();
        for part in parts {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
        }
        Ok(num_bytes)
    })
}

/// Refuses, as [`open`] has.
#[cfg(not(target_os = "linux"))]
pub(super) fn read(_: &File, _: u64, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    Err(unsupported("reads past the system's cache are on Linux only"))
}
