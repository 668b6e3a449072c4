//! A file read from the disk, after its pages have been dropped from the cache.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Bytes of a read.
const BLOCK_BYTES: usize = 1 << 20;

/// A temporary file without a name, which goes with its handle.
pub(crate) struct DiskFile {
    file: File,
    num_bytes: usize,
    /// The wrapping sum of its words.
    expected: u64,
}

impl DiskFile {
    /// Writes a file of `num_bytes`, a multiple of 8, into `folder` and through to the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn create(folder: &Path, num_bytes: usize) -> Result<Self> {
        let context =
            || format!("cannot write a file of {num_bytes} bytes to {}", folder.display());
        let mut file = tempfile::tempfile_in(folder).with_context(context)?;
        let (mut expected, mut written) = (0u64, 0);
        while written < num_bytes {
            let len = BLOCK_BYTES.min(num_bytes - written);
            // No two words alike, so that no disk stores less than is written.
            let words = (written / 8..(written + len) / 8)
                .map(|i| (i as u64 ^ 0x5DEE_CE66).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let bytes: Vec<u8> = words.clone().flat_map(u64::to_le_bytes).collect();
            expected = words.fold(expected, u64::wrapping_add);
            file.write_all(&bytes).with_context(context)?;
            written += len;
        }
        file.sync_all().with_context(context)?;
        Ok(Self { file, num_bytes, expected })
    }

    /// Asks the system to forget the pages of the file.
    ///
    /// # Errors
    /// If it refuses.
    #[cfg(target_os = "linux")]
    pub(crate) fn drop_cached(&self) -> Result<()> {
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)
            .context("the system does not drop the pages of a file")
    }

    /// Asks the system to forget the pages of the file.
    ///
    /// # Errors
    /// Always: only on Linux is there a call for it.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn drop_cached(&self) -> Result<()> {
        anyhow::bail!("the disk is measured on Linux only; pass a filter such as `attention`")
    }

    /// Seconds that reading the whole file takes.
    ///
    /// # Errors
    /// If it cannot be read or does not hold what was written.
    pub(crate) fn read(&self) -> Result<f64> {
        let context = "cannot read the file of the disk's measurement";
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).context(context)?;
        let mut block = vec![0u8; BLOCK_BYTES];
        let (mut sum, mut left) = (0u64, self.num_bytes);
        let start = Instant::now();
        while left > 0 {
            let len = BLOCK_BYTES.min(left);
            file.read_exact(&mut block[..len]).context(context)?;
            let words =
                block[..len].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            sum = words.fold(sum, u64::wrapping_add);
            left -= len;
        }
        let seconds = start.elapsed().as_secs_f64();
        ensure!(sum == self.expected, "the disk does not give back what was written");
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_changed_byte_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = DiskFile::create(folder.path(), BLOCK_BYTES + 8).expect("it can be written");
        #[cfg(target_os = "linux")]
        disk.drop_cached().expect("linux does");
        assert!(disk.read().expect("it is there") > 0.0);
        let mut file = &disk.file;
        file.seek(SeekFrom::Start(3)).expect("it can");
        file.write_all(&[0xFF, 0xFE]).expect("it can be written");
        assert!(disk.read().is_err());
        assert!(DiskFile::create(&folder.path().join("none"), 8).is_err());
    }
}
