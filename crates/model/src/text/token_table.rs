//! The bytes that every token stands for, and whether it is a control token.

use std::collections::HashMap;

use super::{Error, Result};

/// Bytes and kind of every token. Ids may have gaps.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    entries: HashMap<u32, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    end: usize,
    special: bool,
}

impl TokenTable {
    /// Adds a token, or replaces what was said of it.
    pub(super) fn set(&mut self, id: u32, bytes: &[u8], special: bool) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.entries.insert(id, Entry { start, end: self.bytes.len(), special });
    }

    /// The number of tokens.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the longest token.
    pub(super) fn longest_bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.end - entry.start).max().unwrap_or(0)
    }

    /// The highest id, if there is any token.
    pub(super) fn max_id(&self) -> Option<u32> {
        self.entries.keys().copied().max()
    }

    /// The bytes of a token and whether it is a control token.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that was never set.
    pub(super) fn get(&self, id: u32) -> Result<(&[u8], bool)> {
        let entry = self.entries.get(&id);
        let entry = entry.ok_or(Error::UnknownId { id, num_tokens: self.len() })?;
        Ok((&self.bytes[entry.start..entry.end], entry.special))
    }
}

/// The bytes behind the printable alphabet of byte-level vocabularies.
pub(super) struct ByteAlphabet {
    bytes: HashMap<char, u8>,
}

impl ByteAlphabet {
    /// The alphabet of GPT-2: printable bytes of Latin-1 stand for themselves, the others for the
    /// characters from U+0100 on, in order.
    pub(super) fn new() -> Self {
        let mut moved = 0x100_u32..;
        let bytes = (0..=u8::MAX)
            .filter_map(|byte| {
                let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
                let code = if printable { u32::from(byte) } else { moved.next()? };
                Some((char::from_u32(code)?, byte))
            })
            .collect();
        Self { bytes }
    }

    /// The bytes of a piece; a piece with a character outside of the alphabet is its own UTF-8.
    pub(super) fn decode(&self, piece: &str) -> Vec<u8> {
        let bytes: Option<Vec<u8>> = piece.chars().map(|c| self.bytes.get(&c).copied()).collect();
        bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
    }
}

/// The byte that a piece of the form `<0xNN>` stands for.
pub(super) fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn alphabet_is_the_one_of_the_tokenizers_crate() {
        let ours = ByteAlphabet::new();
        let theirs = ByteLevel::alphabet();
        assert_eq!(ours.bytes.len(), 256);
        assert!(theirs.iter().all(|c| ours.bytes.contains_key(c)));
        assert_eq!(ours.decode("Ġa"), b" a");
        assert_eq!(ours.decode("Ċ"), b"\n");
        assert_eq!(ours.decode("a b"), b"a b");
    }

    #[test]
    fn byte_pieces() {
        assert_eq!(byte_of_piece("<0x0A>"), Some(10));
        assert_eq!(byte_of_piece("<0xfF>"), Some(255));
        for wrong in ["<0x>", "<0x0>", "<0x0AB>", "0x0A", "<0x+1>", "<0x0é>"] {
            assert_eq!(byte_of_piece(wrong), None, "{wrong}");
        }
    }
}
