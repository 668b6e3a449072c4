//! The table of a saved sequence: which pages its heads have, and where they lie.
//!
//! Numbers are little-endian: the mark `hkv-save`, the version, the length of the description and the description, the
//! fingerprint, the number of heads, for each head its numbers of rows and of pages and the pages, the number of the
//! attachment's file (0 where there is none), its length and the xxh3 of each of its blocks, and xxh3 of all that.

use twox_hash::xxhash3_64::Hasher;

use crate::Damage;
use crate::attached::BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"hkv-save";
const VERSION: u32 = 2;

/// A saved sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The store that it is of, in words.
    pub(crate) description: String,
    /// The same as a number.
    pub(crate) fingerprint: u64,
    pub(crate) heads: Vec<HeadEntry>,
    pub(crate) attached: Option<AttachedEntry>,
}

/// The pages of one (layer, KV head).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeadEntry {
    pub(crate) num_rows: u64,
    pub(crate) pages: Vec<PageEntry>,
}

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageEntry {
    /// Number of its file.
    pub(crate) file: u32,
    pub(crate) slot: u32,
    /// The sequence that wrote it.
    pub(crate) sequence: u32,
    /// Rows that were written, which may be more than the head still has.
    pub(crate) num_rows: u32,
    pub(crate) checksum: u64,
}

/// What is saved beside the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttachedEntry {
    /// Number of its file, from 1 on.
    pub(crate) file: u32,
    pub(crate) num_bytes: u64,
    /// Of its blocks.
    pub(crate) checksums: Vec<u64>,
}

impl Table {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.description.len() as u32).to_le_bytes());
        bytes.extend(self.description.as_bytes());
        bytes.extend(self.fingerprint.to_le_bytes());
        bytes.extend((self.heads.len() as u32).to_le_bytes());
        for head in &self.heads {
            bytes.extend(head.num_rows.to_le_bytes());
            bytes.extend((head.pages.len() as u32).to_le_bytes());
            for page in &head.pages {
                for word in [page.file, page.slot, page.sequence, page.num_rows] {
                    bytes.extend(word.to_le_bytes());
                }
                bytes.extend(page.checksum.to_le_bytes());
            }
        }
        let file = self.attached.as_ref().map_or(0, |attached| attached.file);
        bytes.extend(file.to_le_bytes());
        if let Some(AttachedEntry { num_bytes, checksums, .. }) = &self.attached {
            bytes.extend(num_bytes.to_le_bytes());
            bytes.extend(checksums.iter().flat_map(|checksum| checksum.to_le_bytes()));
        }
        let checksum = Hasher::oneshot(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Reads a table. Nothing is allocated beyond a few times the length of the bytes.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let (covered, checksum) = bytes.split_last_chunk().ok_or(Damage::Length)?;
        let mut rest = covered;
        if take::<8>(&mut rest)? != MAGIC {
            return Err(Damage::Magic);
        }
        if take_u32(&mut rest)? != VERSION {
            return Err(Damage::Version);
        }
        if Hasher::oneshot(covered) != u64::from_le_bytes(*checksum) {
            return Err(Damage::Checksum);
        }
        let len = take_u32(&mut rest)? as usize;
        let (description, after) = rest.split_at_checked(len).ok_or(Damage::Length)?;
        rest = after;
        let description = str::from_utf8(description).map_err(|_| Damage::Identity)?.to_owned();
        let fingerprint = take_u64(&mut rest)?;
        let num_heads = take_u32(&mut rest)?;
        let mut heads = Vec::new();
        for _ in 0..num_heads {
            let num_rows = take_u64(&mut rest)?;
            let num_pages = take_u32(&mut rest)?;
            let mut pages = Vec::new();
            for _ in 0..num_pages {
                pages.push(PageEntry {
                    file: take_u32(&mut rest)?,
                    slot: take_u32(&mut rest)?,
                    sequence: take_u32(&mut rest)?,
                    num_rows: take_u32(&mut rest)?,
                    checksum: take_u64(&mut rest)?,
                });
            }
            heads.push(HeadEntry { num_rows, pages });
        }
        let attached = match take_u32(&mut rest)? {
            0 => None,
            file => {
                let num_bytes = take_u64(&mut rest)?;
                let blocks = 0..num_bytes.div_ceil(BLOCK_BYTES as u64);
                let mut checksums = Vec::new();
                for _ in blocks {
                    checksums.push(take_u64(&mut rest)?);
                }
                Some(AttachedEntry { file, num_bytes, checksums })
            }
        };
        let table = Self { description, fingerprint, heads, attached };
        if rest.is_empty() { Ok(table) } else { Err(Damage::Length) }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Damage> {
    let (first, after) = rest.split_first_chunk().ok_or(Damage::Length)?;
    *rest = after;
    Ok(*first)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, Damage> {
    take(rest).map(u32::from_le_bytes)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, Damage> {
    take(rest).map(u64::from_le_bytes)
}

#[cfg(all(test, not(loom)))]
mod tests;
