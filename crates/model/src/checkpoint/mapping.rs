//! The files of a checkpoint: weights mapped into memory, JSON read whole.

#![expect(
    unsafe_code,
    reason = "mapping a file into memory is unsafe by nature; it happens here only"
)]

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The whole content of one file, read-only.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Mapped: pages are read when first touched and may be dropped again by the system.
    Mapped(Mmap),
    /// In memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file. An empty file gives no bytes.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or mapped, a folder or a device among others.
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(std::io::Error::from(ErrorKind::InvalidInput)));
        }
        if metadata.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only, and every reader checks its bounds against the map's length.
        // The file must not be changed while it is mapped; that cannot be checked here and is asked of
        // the caller of `Checkpoint::open`.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }

    /// Gives back the memory of what was read so far, where the system can: it is read again when next touched, mostly out
    /// of the system's cache.
    pub(crate) fn release(&self) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: the map is of a file and read-only, so that no page holds anything that the file does not: what is
            // dropped comes back as it was.
            let released = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // A system that keeps the pages is none the worse.
            drop(released);
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The bound on JSON files: the index of the largest models takes a few megabytes.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The text of a JSON file; `None` where there is no such file.
///
/// # Errors
/// [`Error::Io`] and [`Error::FileTooLarge`].
pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let size_bytes = file.metadata().map_err(io)?.len();
    if size_bytes > MAX_JSON_BYTES {
        let path = path.to_path_buf();
        return Err(Error::FileTooLarge { path, size_bytes, limit_bytes: MAX_JSON_BYTES });
    }
    let mut text = String::new();
    file.take(MAX_JSON_BYTES).read_to_string(&mut text).map_err(io)?;
    Ok(Some(text))
}
