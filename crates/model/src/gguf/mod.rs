//! GGUF files, versions 2 and 3, little-endian: header, metadata and tensor directory.
//!
//! Layout: magic `GGUF`, version `u32`, number of tensors `u64`, number of metadata pairs `u64`, the
//! pairs (key, type, value), the tensor directory (name, axes, type, offset), padding up to
//! `general.alignment`, the tensors' data. A string is a `u64` length and that many bytes.
//!
//! The existing GGUF crates allocate by the counts a header claims and copy every value, so that a
//! file of 40 bytes can ask for terabytes. Here nothing is allocated by a count that has not been
//! compared with the bytes that are left, values stay where they lie in the mapped file, and nested
//! arrays are bounded, so that any bytes at all give either a directory whose ranges lie inside
//! the file or an error.

mod config;
mod cursor;
mod metadata;
mod tensors;
mod values;

use std::sync::Arc;

pub(crate) use config::ROPE_FACTORS;
pub use metadata::{Array, Metadata, Value};

use crate::{
    checkpoint::{Bytes, StoredTensor},
    error::{Error, Result},
};
use cursor::Cursor;

/// The first bytes of every GGUF file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// A parsed header: what it says, and where the tensors lie.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<StoredTensor>,
}

impl Gguf {
    /// Parses the header of `bytes`.
    ///
    /// # Errors
    /// Any of the `Gguf*` variants, [`Error::Duplicate`], [`Error::TensorBounds`] or
    /// [`Error::UnsupportedTensorType`]; never a panic, whatever the bytes.
    pub(crate) fn parse(bytes: Arc<Bytes>) -> Result<Self> {
        let mut cursor = Cursor::new(&bytes);
        let magic = cursor.take(4, "magic")?;
        if magic != MAGIC {
            return Err(Error::GgufField {
                what: "the magic number".to_owned(),
                value: u64::from(u32::from_le_bytes([magic[0], magic[1], magic[2], magic[3]])),
                rule: "the letters GGUF",
            });
        }
        let version = cursor.u32("version")?;
        if version != 2 && version != 3 {
            let big_endian = matches!(version.swap_bytes(), 1..=3);
            return Err(Error::GgufVersion { version, big_endian });
        }
        let num_tensors = cursor.u64("tensor count")?;
        let num_pairs = cursor.u64("metadata count")?;
        let entries = values::parse(&mut cursor, num_pairs)?;
        let metadata = Metadata::new(Arc::clone(&bytes), entries);
        let alignment = u64::from(metadata.u32("general.alignment")?.unwrap_or(32));
        if !alignment.is_power_of_two() {
            return Err(Error::GgufField {
                what: "general.alignment".to_owned(),
                value: alignment,
                rule: "a power of two",
            });
        }
        let tensors = tensors::parse(&mut cursor, num_tensors, alignment)?;
        Ok(Self { metadata, tensors })
    }
}
