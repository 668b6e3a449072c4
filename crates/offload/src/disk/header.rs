//! The header of a page on disk: what it is, and a checksum over that and the page's bytes.

use twox_hash::xxhash3_64::Hasher;

use crate::{Damage, PageName};

/// Bytes of a header; the page's bytes follow it.
pub(crate) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"hkv-page";
const VERSION: u32 = 1;
/// Bytes of a header that the checksum covers; the checksum follows them, and zeros follow it.
const COVERED: usize = 48;

/// What a page on disk says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Of the store: its model, format and shape.
    pub(crate) fingerprint: u64,
    pub(crate) name: PageName,
    pub(crate) num_rows: u32,
}

impl Header {
    /// The header of a page with these bytes, and the checksum of both.
    pub(crate) fn encode(&self, payload: &[u8]) -> ([u8; HEADER_BYTES], u64) {
        let mut bytes = [0; HEADER_BYTES];
        let PageName { sequence, layer, kv_head, page_idx } = self.name;
        let len = payload.len() as u32;
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.fingerprint.to_le_bytes());
        let words = [VERSION, sequence, layer, kv_head, page_idx, self.num_rows, len];
        for (word, place) in words.iter().zip(bytes[16..].chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let checksum = checksum(&bytes[..COVERED], payload);
        bytes[COVERED..COVERED + 8].copy_from_slice(&checksum.to_le_bytes());
        (bytes, checksum)
    }

    /// Holds what was read against what was written: this header, bytes of this length and this checksum.
    ///
    /// # Errors
    /// The first difference.
    pub(crate) fn check(
        &self,
        found: &[u8; HEADER_BYTES],
        payload: &[u8],
        checksum: u64,
    ) -> Result<(), Damage> {
        let (expected, actual) = self.encode(payload);
        let fields = [
            (0..8, Damage::Magic),
            (16..20, Damage::Version),
            (8..16, Damage::Fingerprint),
            (20..40, Damage::Identity),
            (40..44, Damage::Length),
            // The checksum that was remembered tells a page from an earlier one of the same place.
            (44..HEADER_BYTES, Damage::Checksum),
        ];
        for (field, damage) in fields {
            if found[field.clone()] != expected[field] {
                return Err(damage);
            }
        }
        if actual == checksum { Ok(()) } else { Err(Damage::Checksum) }
    }
}

/// xxh3 over both, of 64 bits.
fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    Hasher::oneshot_with_seed(Hasher::oneshot(header), payload)
}

#[cfg(all(test, not(loom)))]
mod tests;
