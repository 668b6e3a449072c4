//! What is saved with a sequence beside its rows: a stream of bytes in a file of its own.
//!
//! The table of the sequence names the file, its length and the xxh3 of each of its blocks, so that it is read block by
//! block and nothing of it is believed that the table does not vouch for.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::sync::Arc;

use twox_hash::xxhash3_64::Hasher;

use crate::disk::{self, Disk, FileKind, OwnFile, io_error};
use crate::table::AttachedEntry;
use crate::{Damage, Error, Result};

/// Bytes that are written, checked and held at a time.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

/// The bytes, where they lie.
#[derive(Debug)]
pub(crate) struct Attached {
    own: OwnFile,
    entry: AttachedEntry,
}

/// Reads what was saved with a sequence, from its beginning on. It stays readable when something else is saved under
/// the name. A clone goes on from the same place.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The sequence's.
    name: String,
    attached: Arc<Attached>,
    block: Vec<u8>,
    /// Bytes of the block that were given out.
    taken: usize,
    next_block: usize,
}

/// Cuts what is written into blocks.
struct BlockWriter<'a> {
    own: &'a OwnFile,
    block: Vec<u8>,
    entry: AttachedEntry,
}

impl Attached {
    /// Writes what `write` writes into a file of its own, and makes it durable; its name is not.
    ///
    /// # Errors
    /// [`Error::LastFile`], and [`Error::Io`] also with what `write` fails with.
    pub(crate) fn write(
        disk: &Disk,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Self> {
        let (file, own) = disk.create_attached()?;
        let entry = AttachedEntry { file, num_bytes: 0, checksums: Vec::new() };
        let mut writer = BlockWriter { own: &own, block: Vec::new(), entry };
        let written = write(&mut writer).and_then(|()| writer.end_block());
        let written = written.and_then(|()| own.file().sync());
        written.map_err(|source| io_error("write", own.path(), source))?;
        let entry = writer.entry;
        Ok(Self { own, entry })
    }

    /// What a table names.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(disk: &Disk, entry: AttachedEntry) -> Result<Self> {
        Ok(Self { own: disk.open_own(FileKind::Attached, entry.file)?, entry })
    }

    pub(crate) fn entry(&self) -> &AttachedEntry {
        &self.entry
    }

    /// Lets the file stay.
    pub(crate) fn keep(&self) {
        self.own.keep();
    }
}

impl Attachment {
    /// What is saved with the sequence `name`.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::DamagedAttachment`] for a file of another length.
    pub(crate) fn new(name: &str, attached: Arc<Attached>) -> Result<Self> {
        let Attached { own, entry } = &*attached;
        let found = own.file().num_bytes();
        if found.map_err(|source| io_error("read", own.path(), source))? != entry.num_bytes {
            return Err(damaged(name, Damage::Length));
        }
        let name = name.to_owned();
        Ok(Self { name, attached, block: Vec::new(), taken: 0, next_block: 0 })
    }

    /// Bytes that are left to be read.
    #[must_use]
    pub fn rest_bytes(&self) -> u64 {
        let read = self.next_block as u64 * BLOCK_BYTES as u64;
        let unread = self.attached.entry.num_bytes.saturating_sub(read);
        unread + (self.block.len() - self.taken) as u64
    }

    /// Reads the next bytes. After an error what is read is not to be used.
    ///
    /// # Errors
    /// [`Error::DamagedAttachment`], with [`Damage::Length`] where fewer are left, and [`Error::Io`].
    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 > self.rest_bytes() {
            return Err(damaged(&self.name, Damage::Length));
        }
        let mut rest = out;
        while !rest.is_empty() {
            if self.taken == self.block.len() {
                self.read_block()?;
            }
            let from = &self.block[self.taken..];
            let count = from.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&from[..count]);
            (self.taken, rest) = (self.taken + count, later);
        }
        Ok(())
    }

    fn read_block(&mut self) -> Result<()> {
        let Attached { own, entry } = &*self.attached;
        let offset = self.next_block as u64 * BLOCK_BYTES as u64;
        let len = (entry.num_bytes - offset).min(BLOCK_BYTES as u64) as usize;
        // Without a block wherever this fails: no byte is given out that was not checked.
        let mut block = std::mem::take(&mut self.block);
        self.taken = 0;
        block.resize(len, 0);
        let parts = &mut [IoSliceMut::new(&mut block)];
        disk::read_all(own.file(), offset, parts).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => damaged(&self.name, Damage::Length),
            _ => io_error("read", own.path(), source),
        })?;
        if Hasher::oneshot(&block) != entry.checksums[self.next_block] {
            return Err(damaged(&self.name, Damage::Checksum));
        }
        self.block = block;
        self.next_block += 1;
        Ok(())
    }
}

impl BlockWriter<'_> {
    /// Writes what there is of a block.
    fn end_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let entry = &mut self.entry;
        disk::write_all(self.own.file(), entry.num_bytes, &mut [IoSlice::new(&self.block)])?;
        entry.num_bytes += self.block.len() as u64;
        entry.checksums.push(Hasher::oneshot(&self.block));
        self.block.clear();
        Ok(())
    }
}

impl Write for BlockWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (BLOCK_BYTES - self.block.len()).min(bytes.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK_BYTES {
            self.end_block()?;
        }
        Ok(count)
    }

    /// Nothing is written before a block is full.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn damaged(name: &str, damage: Damage) -> Error {
    Error::DamagedAttachment { name: name.to_owned(), damage }
}
