//! The tokenizer: text to ids and back.

use std::collections::BTreeSet;

use tokenizers::tokenizer::{AddedVocabulary, OffsetType};
use tokenizers::{Model, ModelWrapper, PreTokenizer};

use super::detokenize::{DecodeStream, LeadingSpace, SpecialTokens};
use super::spm::SpmModel;
use super::token_table::TokenTable;
use super::{Error, Result};

/// Texts of control tokens that end a turn of a chat, whatever the model's named end token is.
const CHAT_ENDS: [&str; 14] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|eot|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "<｜end▁of▁sentence｜>",
];

/// What to do besides cutting the text into tokens. The default does neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Put the beginning and end tokens around the text that the model wants on every text.
    pub add_special: bool,
    /// Read control tokens written in the text as those tokens, not as their letters. Text from
    /// outside should be encoded without this. Tokens that are added but not control tokens are
    /// always read.
    pub parse_special: bool,
}

/// A tokenizer of one of the supported kinds: byte-level BPE, or SentencePiece BPE.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Added tokens, normalizer, cut into words and, for byte-level kinds, the merges.
    inner: tokenizers::Tokenizer,
    /// The added tokens again, set to leave control tokens in the text alone.
    plain_added: AddedVocabulary,
    /// Merging by score, where the vocabulary came with scores instead of merges.
    spm: Option<SpmModel>,
    table: TokenTable,
    named: NamedTokens,
    end_ids: BTreeSet<u32>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    leading_space: LeadingSpace,
}

/// The tokens that a model names for a purpose.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NamedTokens {
    pub(super) bos_id: Option<u32>,
    pub(super) eos_id: Option<u32>,
}

/// What a tokenizer is made of, from either kind of file.
pub(super) struct Parts {
    pub(super) inner: tokenizers::Tokenizer,
    pub(super) spm: Option<SpmModel>,
    pub(super) table: TokenTable,
    pub(super) named: NamedTokens,
    /// End tokens beyond `named.eos_id` and the known ends of chats.
    pub(super) end_ids: BTreeSet<u32>,
    /// Ids before and after every text.
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
    /// Whether encoding puts a space before the text that decoding has to take away.
    pub(super) leading_space: LeadingSpace,
}

impl Tokenizer {
    pub(super) fn from_parts(parts: Parts) -> Self {
        let Parts { inner, spm, table, named, mut end_ids, prefix, suffix, leading_space } = parts;
        let mut plain_added = inner.get_added_vocabulary().clone();
        plain_added.set_encode_special_tokens(true);
        end_ids.extend(named.eos_id);
        for text in CHAT_ENDS {
            let id = inner.token_to_id(text);
            end_ids.extend(id.filter(|&id| table.get(id).is_ok_and(|(_, special)| special)));
        }
        Self { inner, plain_added, spm, table, named, end_ids, prefix, suffix, leading_space }
    }

    /// The ids of `text`. The empty text has none besides what `add_special` puts around it.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] where the vocabulary cannot write a part of the text, and
    /// [`Error::Tokenizers`] where the `tokenizers` crate fails.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        let added = if options.parse_special {
            self.inner.get_added_vocabulary()
        } else {
            &self.plain_added
        };
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words).map_err(Error::Tokenizers)?;
        }
        words.tokenize(|word| self.encode_word(word.get())).map_err(own_error)?;
        let encoding = words.into_encoding(None, 0, OffsetType::None).map_err(Error::Tokenizers)?;
        let body = encoding.get_ids();
        if !options.add_special {
            return Ok(body.to_vec());
        }
        Ok([&self.prefix, body, &self.suffix].concat())
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD; the space that encoding put
    /// before the text is taken away again.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that the vocabulary does not have.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> Result<String> {
        let mut stream = self.decode_stream(special, self.leading_space);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// A stream that takes one id at a time, as a model produces them. With
    /// [`LeadingSpace::Keep`] the first text may begin with a space: right for text that goes on
    /// from a prompt.
    pub fn decode_stream(
        &self,
        special: SpecialTokens,
        leading_space: LeadingSpace,
    ) -> DecodeStream<'_> {
        DecodeStream::new(&self.table, special, leading_space)
    }

    /// The bytes of one token. They need not be UTF-8 on their own.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that the vocabulary does not have.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        Ok(self.table.get(id)?.0)
    }

    /// Whether `id` is a control token; `false` for an id that the vocabulary does not have.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.get(id).is_ok_and(|(_, special)| special)
    }

    /// The id of an added token, or of a piece as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        let added = self.inner.token_to_id(token);
        added.or_else(|| self.spm.as_ref().and_then(|spm| spm.piece_id(token)))
    }

    /// What people call its algorithm.
    pub fn kind(&self) -> &'static str {
        let falls_back_to_bytes = match self.inner.get_model() {
            ModelWrapper::BPE(bpe) => bpe.byte_fallback,
            _ => false,
        };
        match self.spm.is_some() || falls_back_to_bytes {
            true => "SentencePiece BPE",
            false => "byte-level BPE",
        }
    }

    /// The number of tokens. Ids may have gaps: see [`Tokenizer::max_id`].
    pub fn num_tokens(&self) -> usize {
        self.table.len()
    }

    /// Bytes of the longest text that one token stands for; 0 for a vocabulary of empty tokens.
    pub fn longest_token_bytes(&self) -> usize {
        self.table.longest_bytes()
    }

    /// The highest id, which must be below the width of the model's logits.
    pub fn max_id(&self) -> Option<u32> {
        self.table.max_id()
    }

    /// The token that begins a text, if the model names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.named.bos_id
    }

    /// The token that the model names as its end. Generation stops at any of
    /// [`Tokenizer::end_ids`], not only at this one.
    pub fn eos_id(&self) -> Option<u32> {
        self.named.eos_id
    }

    /// Every token that ends a text or a turn: what the model names, and control tokens whose text
    /// is a known end such as `<|im_end|>`.
    pub fn end_ids(&self) -> &BTreeSet<u32> {
        &self.end_ids
    }

    /// The text of the beginning token, as chat templates want it.
    pub fn bos_token(&self) -> Option<String> {
        self.token_text(self.named.bos_id)
    }

    /// The text of the named end token, as chat templates want it.
    pub fn eos_token(&self) -> Option<String> {
        self.token_text(self.named.eos_id)
    }

    /// Whether encoding puts a space before a text, so that decoding takes it away.
    pub fn leading_space(&self) -> LeadingSpace {
        self.leading_space
    }

    fn token_text(&self, id: Option<u32>) -> Option<String> {
        let (bytes, _) = self.table.get(id?).ok()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The tokens of one word, which must cover it.
    fn encode_word(&self, word: &str) -> tokenizers::Result<Vec<tokenizers::Token>> {
        if let Some(spm) = &self.spm {
            let ids = spm.encode(word)?;
            return Ok(ids
                .into_iter()
                .map(|id| tokenizers::Token::new(id, String::new(), (0, 0)))
                .collect());
        }
        let tokens = self.inner.get_model().tokenize(word)?;
        // The crate's BPE leaves out characters that are neither tokens nor have a fallback.
        if tokens.last().map_or(0, |token| token.offsets.1) != word.len() {
            return Err(Error::NoToken { text: word.to_owned() }.into());
        }
        Ok(tokens)
    }
}

/// Our own error where it went through the `tokenizers` crate.
fn own_error(error: tokenizers::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(other) => Error::Tokenizers(other),
    }
}
