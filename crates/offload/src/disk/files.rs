//! What the store asks of a file system: a small trait, so that tests can be a disk that fails.

use std::any::Any;
use std::fmt::Debug;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::path::Path;

use super::{direct, mapped};

/// A file system. Paths are those of the folder that a store was given, and of files in it.
pub trait Files: Debug + Send + Sync {
    /// A new file, to write and read; what was there is gone.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// A file that is there, to read.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Names of the files in a folder.
    ///
    /// # Errors
    /// What the system says, also where there is no such folder.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Puts `from` in the place of `to`, as one step.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes durable which names a folder has.
    ///
    /// # Errors
    /// What the system says.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Keeps every other process out of what the file at `path` stands for, until the result is dropped.
    ///
    /// # Errors
    /// What the system says, or [`ErrorKind::WouldBlock`] where another has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
}

/// One file, read and written at offsets by several threads.
pub trait File: Debug + Send + Sync {
    /// Bytes that it has.
    ///
    /// # Errors
    /// What the system says.
    fn num_bytes(&self) -> io::Result<u64>;

    /// Reads into the parts one after another, and says how many bytes: fewer than they hold where the
    /// system gave fewer, none at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, offset: u64, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Writes the parts one after another, and says how many bytes.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Makes durable what was written. Where it fails, anything since the last success may be lost,
    /// whatever a later call says.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
}

/// How pages are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reads {
    /// By positioned reads.
    #[default]
    Pread,
    /// Out of the file mapped into memory, for as long as the read takes. A page is copied and checked
    /// either way: were it used in the mapping, the system could drop it and read it again unchecked,
    /// and a file truncated by another process would end ours. A truncation in the very moment of the
    /// copy still would; pread has no such moment.
    Mapped,
    /// Past the system's cache of files, so that RAM holds what the budget says and nothing twice: by positioned
    /// reads into memory aligned for the disk, and a copy. On Linux, and where the file system has it.
    Direct,
}

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFiles {
    /// How pages are read.
    pub reads: Reads,
}

#[derive(Debug)]
struct OsFile {
    file: std::fs::File,
    reading: Reading,
}

/// How a file is read.
#[derive(Debug)]
enum Reading {
    Pread,
    Mapped,
    /// With the same file, opened for that.
    Direct(std::fs::File),
}

impl OsFile {
    fn new(file: std::fs::File, path: &Path, reads: Reads) -> io::Result<Self> {
        let reading = match reads {
            Reads::Pread => Reading::Pread,
            Reads::Mapped => Reading::Mapped,
            Reads::Direct => Reading::Direct(direct::open(path)?),
        };
        Ok(Self { file, reading })
    }
}

impl Files for OsFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Box::new(OsFile::new(file, path, self.reads)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        // To open what is no file may wait for somebody else.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(Box::new(OsFile::new(std::fs::File::open(path)?, path, self.reads)?))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(folder)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened, and a rename is durable by itself.
        if cfg!(unix) { std::fs::File::open(folder)?.sync_all() } else { Ok(()) }
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path)?;
        file.try_lock()?;
        Ok(Box::new(file))
    }
}

impl File for OsFile {
    fn num_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match &self.reading {
            Reading::Pread => positioned::read(&self.file, offset, parts),
            Reading::Mapped => mapped::read(&self.file, offset, parts),
            Reading::Direct(file) => direct::read(file, offset, parts),
        }
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        positioned::write(&self.file, offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Reads all parts, however few bytes a call gives.
///
/// # Errors
/// [`ErrorKind::UnexpectedEof`] where the file ends before, and what the system says.
pub(crate) fn read_all(
    file: &dyn File,
    mut offset: u64,
    mut parts: &mut [IoSliceMut<'_>],
) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.read_at(offset, parts) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(num_bytes) => {
                offset += num_bytes as u64;
                IoSliceMut::advance_slices(&mut parts, num_bytes);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all parts, however few bytes a call takes.
///
/// # Errors
/// [`ErrorKind::WriteZero`] where a call takes none, and what the system says.
pub(crate) fn write_all(
    file: &dyn File,
    mut offset: u64,
    mut parts: &mut [IoSlice<'_>],
) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.write_at(offset, parts) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(num_bytes) => {
                offset += num_bytes as u64;
                IoSlice::advance_slices(&mut parts, num_bytes);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Positioned reads and writes of several parts in one call.
#[cfg(target_os = "linux")]
mod positioned {
    use std::fs::File;
    use std::io::{self, IoSlice, IoSliceMut};

    pub(super) fn read(
        file: &File,
        offset: u64,
        parts: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        Ok(rustix::io::preadv(file, parts, offset)?)
    }

    pub(super) fn write(file: &File, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::pwritev(file, parts, offset)?)
    }
}

/// Positioned reads and writes of the first part; whoever wants all asks again.
#[cfg(not(target_os = "linux"))]
mod positioned {
    use std::fs::File;
    use std::io::{self, IoSlice, IoSliceMut};
    #[cfg(unix)]
    use std::os::unix::fs::FileExt;
    #[cfg(windows)]
    use std::os::windows::fs::FileExt;

    pub(super) fn read(
        file: &File,
        offset: u64,
        parts: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        let part = parts.iter_mut().find(|part| !part.is_empty());
        part.map_or(Ok(0), |part| {
            #[cfg(unix)]
            return file.read_at(part, offset);
            #[cfg(windows)]
            return file.seek_read(part, offset);
        })
    }

    pub(super) fn write(file: &File, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let part = parts.iter().find(|part| !part.is_empty());
        part.map_or(Ok(0), |part| {
            #[cfg(unix)]
            return file.write_at(part, offset);
            #[cfg(windows)]
            return file.seek_write(part, offset);
        })
    }
}
