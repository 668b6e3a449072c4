//! Prompts: ours, or those of a file in the form of LongBench's `dataset2prompt.json`.

use std::collections::BTreeMap;
use std::path::Path;

use super::dataset::{self, Dataset};
use super::record::Record;
use crate::results::read_file;
use crate::{Error, Result};

/// Where a prompt has the record's text.
const CONTEXT: &str = "{context}";
/// Where it has the record's question.
const INPUT: &str = "{input}";

/// Where prompts come from.
#[derive(Debug)]
pub(super) enum Prompts<'a> {
    /// Those of the datasets, in our wording.
    Ours,
    /// Those of a file.
    Given {
        /// The file.
        path: &'a Path,
        /// By name of the dataset.
        prompts: BTreeMap<String, String>,
    },
}

impl<'a> Prompts<'a> {
    /// The prompts of the file: one JSON object, name of a dataset to prompt. Names of no dataset are passed over.
    /// Without a file, ours.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadPrompts`] for anything else than such an object, and for a prompt of a dataset that
    /// does not have the record's text once, with a word behind it.
    pub(super) fn read(path: Option<&'a Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Ours) };
        let bad = |reason| Error::BadPrompts { path: path.to_owned(), reason };
        let bytes = read_file(path)?;
        let prompts: BTreeMap<String, String> =
            serde_json::from_slice(&bytes).map_err(|error| {
                bad(format!(
                    "{error}; it should be a JSON object with a prompt by name of a dataset"
                ))
            })?;
        for (name, prompt) in &prompts {
            if dataset::all().iter().any(|dataset| dataset.name == *name) {
                checked(prompt).map_err(|what| bad(format!("the prompt of {name} {what}")))?;
            }
        }
        Ok(Self::Given { path, prompts })
    }

    /// The prompt of a dataset.
    ///
    /// # Errors
    /// [`Error::BadPrompts`] for a dataset that the file does not name.
    pub(super) fn of<'p>(&'p self, dataset: &'p Dataset) -> Result<&'p str> {
        match self {
            Self::Ours => Ok(&dataset.prompt),
            Self::Given { path, prompts } => {
                prompts.get(&dataset.name).map(String::as_str).ok_or_else(|| Error::BadPrompts {
                    path: (*path).to_owned(),
                    reason: format!(
                        "it has no prompt for {}, whose records are asked for",
                        dataset.name
                    ),
                })
            }
        }
    }
}

/// What is wrong with a prompt, where something is.
pub(super) fn checked(prompt: &str) -> Result<(), String> {
    let count = prompt.matches(CONTEXT).count();
    if count != 1 {
        return Err(format!("has {CONTEXT} {count} times, and needs it once"));
    }
    match prompt.split_once(CONTEXT) {
        Some((_, behind)) if !behind.replace(INPUT, "").is_empty() => Ok(()),
        // A reply cannot begin where no token is fed behind the text, and a record's question may be empty.
        _ => Err(format!("needs something behind {CONTEXT}, other than {INPUT} alone")),
    }
}

/// What stands before the record's text, and what stands behind it, with the record's question in them.
pub(super) fn filled(prompt: &str, record: &Record) -> (String, String) {
    let (instruction, behind) = prompt.split_once(CONTEXT).unwrap_or((prompt, ""));
    let with_question = |part: &str| part.replace(INPUT, &record.input);
    (with_question(instruction), with_question(behind))
}
