//! The `model`, `normalizer` and `pre_tokenizer` of `tokenizer.json`, checked.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::models::bpe::BPE;

use crate::text::{Error, Result};

/// Normalizers whose use cannot fail on a text.
const NORMALIZERS: [&str; 12] = [
    "BertNormalizer",
    "ByteLevel",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Prepend",
    "Replace",
    "Strip",
    "StripAccents",
];

/// Pre-tokenizers, and how an error lists them.
const PRE_TOKENIZERS: [&str; 10] = [
    "BertPreTokenizer",
    "ByteLevel",
    "CharDelimiterSplit",
    "Digits",
    "Metaspace",
    "Punctuation",
    "Split",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
];
const KNOWN_PRE_TOKENIZERS: &str = "BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, \
     Metaspace, Punctuation, Sequence, Split, UnicodeScripts, Whitespace, WhitespaceSplit";

/// A BPE model whose merges are known to join tokens of its vocabulary.
pub(super) struct HfModel {
    pub(super) by_token: HashMap<String, u32>,
    pub(super) by_id: HashMap<u32, String>,
    merges: Vec<(String, String)>,
    unk_token: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
}

impl HfModel {
    /// Reads `model` of `tokenizer.json`.
    pub(super) fn check(model: &Value) -> Result<Self> {
        // Files from before the field existed are recognised by their merges.
        if model["type"] != "BPE" && !(model["type"].is_null() && model["merges"].is_array()) {
            return Err(Error::UnknownModel { name: name_of(model), known: "BPE" });
        }
        for field in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[field].as_str().is_some_and(|text| !text.is_empty()) {
                return Err(Error::UnsupportedPart { part: "model", name: field.to_owned() });
            }
        }
        // Dropout leaves out merges by chance.
        if model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0) {
            return Err(Error::UnsupportedPart { part: "model", name: "dropout".to_owned() });
        }
        let (by_token, by_id) = vocab(&model["vocab"])?;
        let merges = merges(&model["merges"], &by_token)?;
        let unk_token = model["unk_token"].as_str().map(str::to_owned);
        if let Some(token) = unk_token.clone().filter(|token| !by_token.contains_key(token)) {
            return Err(Error::TokenText { purpose: "unknown", token });
        }
        let flag = |field: &str| model[field].as_bool().unwrap_or(false);
        Ok(Self {
            by_token,
            by_id,
            merges,
            unk_token,
            fuse_unk: flag("fuse_unk"),
            byte_fallback: flag("byte_fallback"),
            ignore_merges: flag("ignore_merges"),
        })
    }

    /// The model of the `tokenizers` crate.
    pub(super) fn build(self) -> Result<BPE> {
        let mut builder = BPE::builder()
            .vocab_and_merges(
                self.by_token.into_iter().collect::<tokenizers::models::bpe::Vocab>(),
                self.merges,
            )
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(unk_token) = self.unk_token {
            builder = builder.unk_token(unk_token);
        }
        builder.build().map_err(Error::Tokenizers)
    }
}

fn vocab(vocab: &Value) -> Result<(HashMap<String, u32>, HashMap<u32, String>)> {
    let entries = vocab.as_object().ok_or_else(|| invalid("model.vocab", "an object"))?;
    if entries.is_empty() {
        return Err(Error::EmptyVocab);
    }
    let mut by_token = HashMap::with_capacity(entries.len());
    let mut by_id = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| invalid("model.vocab", "a map from token to id"))?;
        if token.is_empty() {
            return Err(Error::EmptyToken { id });
        }
        if let Some(first) = by_id.insert(id, token.clone()) {
            return Err(Error::DuplicateId { id, first, second: token.clone() });
        }
        by_token.insert(token.clone(), id);
    }
    Ok((by_token, by_id))
}

/// Merges as pairs; older files write a pair as one string with a space.
fn merges(merges: &Value, vocab: &HashMap<String, u32>) -> Result<Vec<(String, String)>> {
    let entries = merges.as_array().ok_or_else(|| invalid("model.merges", "an array"))?;
    let mut pairs = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let wrong = || Error::Merge { index, merge: entry.to_string() };
        let (left, right) = match entry {
            Value::String(pair) => pair.split_once(' ').ok_or_else(wrong)?,
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => (left.as_str(), right.as_str()),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        let joined = format!("{left}{right}");
        if [left, right, &joined].iter().any(|piece| !vocab.contains_key(*piece)) {
            return Err(wrong());
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    Ok(pairs)
}

/// That every normalizer is a known one.
pub(super) fn check_normalizer(value: &Value) -> Result<()> {
    if value["type"] == "Sequence" {
        return children(value, "normalizers")?.iter().try_for_each(check_normalizer);
    }
    let name = name_of(value);
    if NORMALIZERS.contains(&name.as_str()) {
        return Ok(());
    }
    Err(Error::UnsupportedPart { part: "normalizer", name })
}

/// That every pre-tokenizer is a known one.
pub(super) fn check_pre_tokenizer(value: &Value) -> Result<()> {
    if value["type"] == "Sequence" {
        return children(value, "pretokenizers")?.iter().try_for_each(check_pre_tokenizer);
    }
    let name = name_of(value);
    if PRE_TOKENIZERS.contains(&name.as_str()) {
        return Ok(());
    }
    Err(Error::UnknownPreTokenizer { name, known: KNOWN_PRE_TOKENIZERS })
}

/// The steps of a part of type `Sequence`.
pub(super) fn children<'v>(value: &'v Value, field: &'static str) -> Result<&'v [Value]> {
    value[field].as_array().map(Vec::as_slice).ok_or_else(|| invalid(field, "an array"))
}

/// The `type` of a part, or how the file has it where that is no text.
pub(super) fn name_of(value: &Value) -> String {
    match &value["type"] {
        Value::String(name) => name.clone(),
        other => other.to_string(),
    }
}

/// An error about a field of `tokenizer.json`.
pub(super) fn invalid(field: &str, expected: &'static str) -> Error {
    Error::Field { file: super::TOKENIZER, field: field.to_owned(), expected }
}
