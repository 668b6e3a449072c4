//! The `decoder` of `tokenizer.json`, as a rule from a token to its bytes.

use serde_json::Value;

use super::model::{children, name_of};
use crate::text::detokenize::LeadingSpace;
use crate::text::token_table::{ByteAlphabet, byte_of_piece};
use crate::text::{Error, Result};

/// How tokens become bytes.
pub(super) enum Decoder {
    /// Characters of the byte alphabet.
    ByteLevel(ByteAlphabet),
    /// Pieces with a sign for the space, and perhaps byte pieces.
    Pieces {
        /// What is replaced by what, in order.
        replace: Vec<(String, String)>,
        byte_fallback: bool,
        leading_space: LeadingSpace,
    },
}

impl Decoder {
    /// Reads `decoder`.
    pub(super) fn check(value: &Value) -> Result<Self> {
        if value["type"] == "ByteLevel" {
            return Ok(Self::ByteLevel(ByteAlphabet::new()));
        }
        let steps = match value["type"].as_str() {
            Some("Sequence") => children(value, "decoders")?,
            _ => std::slice::from_ref(value),
        };
        // A sequence may hold nothing but the byte-level decoder.
        if let [step] = steps
            && step["type"] == "ByteLevel"
        {
            return Ok(Self::ByteLevel(ByteAlphabet::new()));
        }
        let mut replace = Vec::new();
        let mut byte_fallback = false;
        let mut fused = false;
        let mut leading_space = LeadingSpace::Keep;
        for step in steps {
            let unsupported = || Error::UnsupportedPart { part: "decoder", name: step.to_string() };
            match name_of(step).as_str() {
                "Replace" if !byte_fallback && !fused => {
                    let from = step["pattern"]["String"].as_str().ok_or_else(unsupported)?;
                    let to = step["content"].as_str().ok_or_else(unsupported)?;
                    replace.push((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" if !fused => byte_fallback = true,
                "Fuse" => fused = true,
                // Only after the tokens are one text does it mean the beginning of the text.
                "Strip" if fused && step["content"] == " " && step["stop"] == 0 => {
                    leading_space = match step["start"].as_u64() {
                        Some(0) => LeadingSpace::Keep,
                        Some(1) => LeadingSpace::Strip,
                        _ => return Err(unsupported()),
                    };
                }
                "Metaspace" if steps.len() == 1 => {
                    let sign = step["replacement"].as_str().ok_or_else(unsupported)?;
                    replace.push((sign.to_owned(), " ".to_owned()));
                    let never = step["prepend_scheme"] == "never"
                        || step["add_prefix_space"] == Value::Bool(false);
                    if !never {
                        leading_space = LeadingSpace::Strip;
                    }
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(Self::Pieces { replace, byte_fallback, leading_space })
    }

    /// The bytes of a token of the vocabulary.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel(alphabet) => alphabet.decode(token),
            Self::Pieces { replace, byte_fallback, .. } => {
                if let Some(byte) = byte_of_piece(token).filter(|_| *byte_fallback) {
                    return vec![byte];
                }
                let steps = replace.iter();
                steps.fold(token.to_owned(), |text, (from, to)| text.replace(from, to)).into_bytes()
            }
        }
    }

    /// The bytes of an added token. Control tokens, and all of them beside a byte-level
    /// vocabulary, are spelled as they are.
    pub(super) fn added_bytes(&self, token: &str, special: bool) -> Vec<u8> {
        match self {
            Self::Pieces { .. } if !special => self.bytes(token),
            _ => token.as_bytes().to_vec(),
        }
    }

    /// Whether the text begins with a space that is not part of it.
    pub(super) fn leading_space(&self) -> LeadingSpace {
        match self {
            Self::ByteLevel(_) => LeadingSpace::Keep,
            Self::Pieces { leading_space, .. } => *leading_space,
        }
    }
}
