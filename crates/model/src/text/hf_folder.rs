//! A tokenizer and its chat templates from a Hugging Face folder.
//!
//! Read are `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` (names of the
//! special tokens, chat templates), `chat_template.jinja` and `generation_config.json` (end
//! tokens); all but the first may be missing. The vocabulary is checked here before the
//! `tokenizers` crate sees it: its own checks of a merge list do not cover every file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::AddedToken;

use self::model::HfModel;
use super::gguf_vocab::added_vocabulary;
use super::token_table::TokenTable;
use super::tokenizer::{NamedTokens, Parts, Tokenizer};
use super::{Error, Result};

mod decoder;
mod model;
mod processor;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_MAP: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// The text side of a Hugging Face folder.
#[derive(Debug, Clone)]
pub struct HfText {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Sources of the chat templates by name; the unnamed one is `default`. Empty for a model
    /// that has none.
    pub chat_templates: BTreeMap<String, String>,
}

impl HfText {
    /// Opens the folder.
    ///
    /// What surrounds a text with `add_special` is what the `post_processor` of `tokenizer.json`
    /// says.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTokenizer`], [`Error::Read`] and [`Error::Json`] for files that cannot be read, and every way in which
    /// their contents contradict one another or name a part that is not supported.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = read_json(folder, CONFIG)?;
        let special_map = read_json(folder, SPECIAL_MAP)?;
        let generation = read_json(folder, GENERATION)?;
        let path = folder.join(TOKENIZER);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::MissingTokenizer { folder: folder.to_owned() },
            _ => Error::Read { path, source },
        })?;
        let tokenizer = tokenizer(&bytes, [&config, &special_map], &generation)?;

        let mut chat_templates = templates(&config)?;
        if let Some(template) = read(folder, TEMPLATE)? {
            let template = String::from_utf8(template).map_err(|_| Error::Field {
                file: TEMPLATE,
                field: String::new(),
                expected: "UTF-8 text",
            })?;
            chat_templates.insert("default".to_owned(), template);
        }
        Ok(Self { tokenizer, chat_templates })
    }
}

/// One entry of `added_tokens`.
#[derive(Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

fn tokenizer(json: &[u8], configs: [&Value; 2], generation: &Value) -> Result<Tokenizer> {
    let file: Value = serde_json::from_slice(json).map_err(json_error)?;
    let normalizer: Option<NormalizerWrapper> = match &file["normalizer"] {
        Value::Null => None,
        value => {
            model::check_normalizer(value)?;
            Some(NormalizerWrapper::deserialize(value).map_err(json_error)?)
        }
    };
    let pre_tokenizer: Option<PreTokenizerWrapper> = match &file["pre_tokenizer"] {
        Value::Null => None,
        value => {
            model::check_pre_tokenizer(value)?;
            Some(PreTokenizerWrapper::deserialize(value).map_err(json_error)?)
        }
    };
    let added: Vec<Added> = match &file["added_tokens"] {
        Value::Null => Vec::new(),
        value => Vec::deserialize(value).map_err(json_error)?,
    };
    let model = HfModel::check(&file["model"])?;
    let decoder = decoder::Decoder::check(&file["decoder"])?;

    let mut table = TokenTable::default();
    for (token, &id) in &model.by_token {
        table.set(id, &decoder.bytes(token), false);
    }
    check_added(&added, &model)?;
    for Added { id, token } in &added {
        table.set(*id, &decoder.added_bytes(&token.content, token.special), token.special);
    }

    let (prefix, suffix) = processor::around(&file["post_processor"])?;
    for &id in prefix.iter().chain(&suffix) {
        check_known(&table, "surrounding", id)?;
    }
    let by_token = model.by_token.clone();
    let mut inner = tokenizers::Tokenizer::new(model.build()?);
    let tokens = added.into_iter().map(|added| (added.id, added.token)).collect();
    inner.with_added_vocabulary(added_vocabulary(tokens, normalizer.as_ref())?);
    // Set last: setting a normalizer goes over the added tokens, which must be there by then.
    inner.with_normalizer(normalizer).map_err(Error::Tokenizers)?;
    inner.with_pre_tokenizer(pre_tokenizer);

    let named = |purpose, field: &str| -> Result<Option<u32>> {
        let token = configs.iter().find_map(|config| match &config[field] {
            Value::String(token) => Some(token.clone()),
            value => value["content"].as_str().map(str::to_owned),
        });
        let Some(token) = token else { return Ok(None) };
        let added_id = inner.get_added_vocabulary().get_vocab().get(&token).copied();
        let id = added_id.or_else(|| by_token.get(&token).copied());
        id.map(Some).ok_or(Error::TokenText { purpose, token })
    };
    let named = NamedTokens {
        bos_id: named("beginning", "bos_token")?,
        eos_id: named("end", "eos_token")?,
    };
    let end_ids = end_ids(generation)?;
    for &id in &end_ids {
        check_known(&table, "end", id)?;
    }
    let leading_space = decoder.leading_space();
    Ok(Tokenizer::from_parts(Parts {
        inner,
        spm: None,
        table,
        named,
        end_ids,
        prefix,
        suffix,
        leading_space,
    }))
}

/// That added tokens do not contradict each other or the vocabulary.
fn check_added(added: &[Added], model: &HfModel) -> Result<()> {
    let mut by_content = BTreeMap::new();
    let mut by_id = BTreeMap::new();
    for Added { id, token } in added {
        let content = token.content.as_str();
        if content.is_empty() {
            return Err(Error::EmptyToken { id: *id });
        }
        let in_vocab = model.by_token.get(content).copied();
        let earlier = by_content.insert(content, *id).or(in_vocab.filter(|other| other != id));
        if let Some(other) = earlier {
            let (first, second) = (other.min(*id), other.max(*id));
            return Err(Error::DuplicateToken { token: content.to_owned(), first, second });
        }
        let in_vocab = model.by_id.get(id).map(String::as_str);
        let earlier = by_id.insert(*id, content).or(in_vocab.filter(|other| *other != content));
        if let Some(first) = earlier {
            let (first, second) = (first.to_owned(), content.to_owned());
            return Err(Error::DuplicateId { id: *id, first, second });
        }
    }
    Ok(())
}

fn check_known(table: &TokenTable, purpose: &'static str, id: u32) -> Result<()> {
    let unknown = |_| Error::TokenId { purpose, id, num_tokens: table.len() };
    table.get(id).map(|_| ()).map_err(unknown)
}

/// `eos_token_id` of `generation_config.json`: absent, one id or several.
fn end_ids(generation: &Value) -> Result<BTreeSet<u32>> {
    let field = &generation["eos_token_id"];
    let ids = match field {
        Value::Null => return Ok(BTreeSet::new()),
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let wrong = || Error::Field {
        file: GENERATION,
        field: "eos_token_id".to_owned(),
        expected: "a token id or a list of token ids",
    };
    ids.iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong))
        .collect()
}

/// `chat_template` of `tokenizer_config.json`: absent, one template or a list of named ones.
fn templates(config: &Value) -> Result<BTreeMap<String, String>> {
    let wrong = |field: String| Error::Field {
        file: CONFIG,
        field,
        expected: "a template or a list of templates with `name` and `template`",
    };
    match &config["chat_template"] {
        Value::Null => Ok(BTreeMap::new()),
        Value::String(template) => Ok(BTreeMap::from([("default".to_owned(), template.clone())])),
        Value::Array(entries) => (0..)
            .zip(entries)
            .map(|(index, entry)| {
                let text = |key: &str| {
                    let text = entry[key].as_str().map(str::to_owned);
                    text.ok_or_else(|| wrong(format!("chat_template[{index}].{key}")))
                };
                Ok((text("name")?, text("template")?))
            })
            .collect(),
        _ => Err(wrong("chat_template".to_owned())),
    }
}

/// A file's bytes, or nothing where it is missing.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// A JSON file; null where it is missing.
fn read_json(folder: &Path, file: &'static str) -> Result<Value> {
    let Some(bytes) = read(folder, file)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { file, source })
}

fn json_error(source: serde_json::Error) -> Error {
    Error::Json { file: TOKENIZER, source }
}

#[cfg(test)]
mod tests;
