//! The text side of a model: tokenizer, incremental detokenizer, chat template, stop strings.
//!
//! A [`Tokenizer`] comes from a Hugging Face folder ([`HfText::open`]) or from what a GGUF file
//! says of its vocabulary ([`GgufVocab`]). Both give the same type, and everything downstream of
//! it (ids, bytes of a token, end tokens) does not know which it was.
//!
//! This module reads files of a folder when asked to open one; it opens no network connection,
//! knows no model weights and never guesses: a vocabulary, pre-tokenizer or decoder that it does
//! not know is an error that names it.

mod chat;
mod conversation;
mod detokenize;
mod error;
mod gguf_vocab;
mod hf_folder;
mod of_checkpoint;
mod pre_tokenizer;
mod spm;
mod stop;
mod strftime;
mod token_table;
mod tokenizer;

pub use chat::{ChatTemplate, Message, RenderOptions};
pub use conversation::{Conversation, Opening};
pub use detokenize::{DecodeStream, LeadingSpace, SpecialTokens};
pub use error::Error;
pub use gguf_vocab::GgufVocab;
pub use hf_folder::HfText;
pub use of_checkpoint::ModelText;
pub use stop::{StopMatch, StopMatcher};
pub use tokenizer::{EncodeOptions, Tokenizer};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;
