//! Ids to text, one at a time, never half a character.

use super::Result;
use super::token_table::TokenTable;

/// Whether control tokens appear in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are left out.
    Skip,
    /// They are written as the vocabulary spells them.
    Show,
}

/// What happens to one space at the very beginning of decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeadingSpace {
    /// It stays: vocabularies that add none, and text that goes on from other text.
    Keep,
    /// It goes: SentencePiece vocabularies put a space before every text.
    Strip,
}

/// An incremental decoder. What [`DecodeStream::push`] returns and what [`DecodeStream::finish`]
/// returns, put together, is the decoded text, however the bytes of a character are spread over
/// tokens.
#[derive(Debug, Clone)]
pub struct DecodeStream<'t> {
    table: &'t TokenTable,
    special: SpecialTokens,
    leading_space: LeadingSpace,
    /// The beginning of a character whose rest has not come: at most three bytes.
    pending: Vec<u8>,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(
        table: &'t TokenTable,
        special: SpecialTokens,
        leading_space: LeadingSpace,
    ) -> Self {
        Self { table, special, leading_space, pending: Vec::new() }
    }

    /// Takes one id and returns the text that is complete with it, often a word, sometimes
    /// nothing. Bytes that can be no part of a character become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`](super::Error::UnknownId); the stream is then as it was before.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let (mut bytes, special) = self.table.get(id)?;
        if special && self.special == SpecialTokens::Skip {
            return Ok(String::new());
        }
        if self.leading_space == LeadingSpace::Strip && !bytes.is_empty() {
            self.leading_space = LeadingSpace::Keep;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(self.take_complete())
    }

    /// Ends the stream: what is left of an incomplete character becomes one U+FFFD.
    #[must_use = "the last character may be in it"]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    /// Moves everything but the beginning of an unfinished character out of `pending`.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut kept = Vec::new();
        let num_chunks = self.pending.utf8_chunks().count();
        for (index, chunk) in self.pending.utf8_chunks().enumerate() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let unfinished = index + 1 == num_chunks
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if unfinished {
                kept = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending = kept;
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::Error;

    /// One token per byte, then a control token.
    fn byte_table() -> TokenTable {
        let mut table = TokenTable::default();
        for byte in 0..=u8::MAX {
            table.set(u32::from(byte), &[byte], false);
        }
        table.set(256, b"<|end|>", true);
        table
    }

    #[test]
    fn a_character_comes_whole() {
        let table = byte_table();
        let mut stream = DecodeStream::new(&table, SpecialTokens::Skip, LeadingSpace::Keep);
        let out: Vec<String> =
            "é🙂".bytes().map(|byte| stream.push(u32::from(byte)).unwrap()).collect();
        assert_eq!(out, ["", "é", "", "", "", "🙂"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn special_tokens_by_flag() {
        let table = byte_table();
        for (special, expected) in [(SpecialTokens::Skip, "a"), (SpecialTokens::Show, "a<|end|>")] {
            let mut stream = DecodeStream::new(&table, special, LeadingSpace::Keep);
            let text = stream.push(97).unwrap() + &stream.push(256).unwrap();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn only_the_first_space_goes() {
        let table = byte_table();
        let mut stream = DecodeStream::new(&table, SpecialTokens::Skip, LeadingSpace::Strip);
        let ids = [256, 32, 32, 97, 32];
        let text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(text, " a ");
    }

    #[test]
    fn an_unknown_id_leaves_the_stream_usable() {
        let table = byte_table();
        let mut stream = DecodeStream::new(&table, SpecialTokens::Skip, LeadingSpace::Keep);
        assert_eq!(stream.push(0xC3).unwrap(), "");
        let error = stream.push(9999).unwrap_err();
        assert!(matches!(error, Error::UnknownId { id: 9999, num_tokens: 257 }));
        assert_eq!(stream.push(0xA9).unwrap(), "é");
    }

    proptest! {
        #[test]
        fn pushes_add_up_to_the_lossy_text(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let table = byte_table();
            let mut stream = DecodeStream::new(&table, SpecialTokens::Skip, LeadingSpace::Keep);
            let mut text = String::new();
            for &byte in &bytes {
                text.push_str(&stream.push(u32::from(byte)).unwrap());
                prop_assert!(stream.pending.len() < 4);
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn valid_text_is_never_damaged(text in "\\PC{0,20}") {
            let table = byte_table();
            let mut stream = DecodeStream::new(&table, SpecialTokens::Show, LeadingSpace::Keep);
            let mut out = String::new();
            for byte in text.bytes() {
                out.push_str(&stream.push(u32::from(byte)).unwrap());
            }
            prop_assert_eq!(out, text);
        }
    }
}
