//! A bounded reader over the header: every step says what it reads and fails at the end of the file.

use crate::error::{Error, Result};

/// A position in the file. Reading moves it on; nothing is copied.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Bytes from the start of the file.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes in the file.
    pub(super) fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8]> {
        self.ensure(len, 1, what)?;
        let end = self.offset + usize::try_from(len).expect("no longer than the file");
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }

    /// Fails unless `count` things of at least `min_bytes` each can still follow. Callers ask this
    /// before they allocate or loop by a count out of the file.
    pub(super) fn ensure(&self, count: u64, min_bytes: u64, what: &'static str) -> Result<()> {
        let available_bytes = (self.bytes.len() - self.offset) as u64;
        match count.checked_mul(min_bytes) {
            Some(needed) if needed <= available_bytes => Ok(()),
            needed => Err(Error::GgufTruncated {
                what,
                offset: self.offset as u64,
                needed_bytes: needed.unwrap_or(u64::MAX),
                available_bytes,
            }),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let taken = self.take(N as u64, what)?;
        Ok(taken.try_into().expect("as long as asked for"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length and that many bytes.
    pub(super) fn string_bytes(&mut self, what: &'static str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A string that must be UTF-8.
    pub(super) fn name(&mut self, what: &'static str) -> Result<&'a str> {
        let offset = self.offset as u64;
        std::str::from_utf8(self.string_bytes(what)?).map_err(|_| Error::GgufText { what, offset })
    }
}
