//! From files, prompt and chat template to tokens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use heterokv_model::text::{EncodeOptions, ModelText};

use crate::load::{read_text, text_bytes};
use crate::output::{bytes, count, tokens};
use crate::progress::Bar;

/// Tokens of a reply, where nothing else is asked for.
const DEFAULT_MAX_TOKENS: usize = 256;

/// A tokenizer may rewrite a text before it encodes it, composing characters above all; a text that becomes
/// more than this many times shorter by that is no text that anyone means.
const MAX_SHORTENING: u64 = 4;

/// Files that are there and can be read, but are not read yet.
pub(crate) struct UnreadFiles<'a> {
    paths: &'a [PathBuf],
    /// Of all of them.
    size_bytes: u64,
}

impl<'a> UnreadFiles<'a> {
    /// Looks at the files.
    ///
    /// # Errors
    /// One that is not there, empty, not a regular file, or larger than any text.
    pub(crate) fn new(paths: &'a [PathBuf]) -> Result<Self> {
        let mut size_bytes = 0u64;
        for path in paths {
            let size = text_bytes(path)?;
            ensure!(size > 0, "{} is empty; give a file with some text", path.display());
            size_bytes = size_bytes.saturating_add(size);
        }
        Ok(Self { paths, size_bytes })
    }

    /// Reads the files in order, unless they have more bytes than `max_tokens` tokens of this tokenizer
    /// can stand for; no bound where it is none.
    ///
    /// # Errors
    /// When they have, and when a file cannot be read or is not text.
    pub(crate) fn read(&self, text: &ModelText, max_tokens: Option<usize>) -> Result<Files> {
        if let Some(max_tokens) = max_tokens {
            let per_token = MAX_SHORTENING * text.tokenizer.longest_token_bytes() as u64;
            let limit_bytes = per_token.saturating_mul(max_tokens as u64);
            ensure!(
                self.size_bytes <= limit_bytes,
                "{} take{} {}, and the {} that this model was trained for cannot hold more than {}; use a \
                 shorter text, or add --allow-beyond-trained",
                names(self.paths),
                if self.paths.len() == 1 { "s" } else { "" },
                bytes(self.size_bytes),
                tokens(max_tokens),
                bytes(limit_bytes)
            );
        }
        let texts: Result<Vec<String>> = self.paths.iter().map(|path| read_text(path)).collect();
        Ok(Files { paths: self.paths.to_vec(), text: texts?.concat() })
    }
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Text that was put together from files.
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    pub(crate) text: String,
}

impl Files {
    /// The files, up to where a paragraph of its own begins.
    pub(crate) fn before_paragraph(&self) -> String {
        let text = &self.text;
        let gap = match () {
            () if text.is_empty() || text.ends_with("\n\n") => "",
            () if text.ends_with('\n') => "\n",
            () => "\n\n",
        };
        format!("{text}{gap}")
    }

    /// The files with `prompt` as a paragraph of its own behind them.
    pub(crate) fn with_paragraph(&self, prompt: &str) -> String {
        if prompt.is_empty() {
            return self.text.clone();
        }
        format!("{}{prompt}", self.before_paragraph())
    }
}

/// How long a reply may be behind `num_tokens`: as asked, or what fits the trained context.
///
/// # Errors
/// When prompt and reply together are beyond what the model was trained for.
pub(crate) fn reply_tokens(
    asked: Option<usize>,
    num_tokens: usize,
    limit: usize,
    allow_beyond: bool,
    text: &ModelText,
    files: &Files,
) -> Result<usize> {
    let room = limit.saturating_sub(num_tokens);
    let max_tokens = match asked {
        Some(max_tokens) => max_tokens,
        None if room == 0 || allow_beyond => DEFAULT_MAX_TOKENS,
        None => DEFAULT_MAX_TOKENS.min(room),
    };
    if allow_beyond || max_tokens <= room {
        return Ok(max_tokens);
    }
    let of_files = match files.paths.as_slice() {
        [] => String::new(),
        paths => {
            let tokens = text.tokenizer.encode(&files.text, EncodeOptions::default())?.len();
            format!(" ({} of them from {})", count(tokens), names(paths))
        }
    };
    bail!(
        "the prompt has {}{of_files}, and up to {} more may follow, but this model was trained for \
         {}; use a shorter text, lower --max-tokens, or add --allow-beyond-trained",
        tokens(num_tokens),
        count(max_tokens),
        count(limit)
    )
}

/// Encodes text that is no conversation: control tokens written in it are letters.
///
/// # Errors
/// Text that the vocabulary cannot write.
pub(crate) fn encode_plain(text: &ModelText, plain: &str) -> Result<Vec<u32>> {
    let _bar = Bar::spinner("encoding the text");
    Ok(text.tokenizer.encode(plain, EncodeOptions { add_special: true, parse_special: false })?)
}

/// `num_tokens` of the tokens of `corpus`, from token `offset` on.
///
/// # Errors
/// A text that ends too soon; where it is too short from its beginning on, too, `fewer` says how to need less.
pub(crate) fn stretch<'a>(
    corpus: &Path,
    all: &'a [u32],
    offset: usize,
    num_tokens: usize,
    fewer: &str,
) -> Result<&'a [u32]> {
    all.get(offset..offset.saturating_add(num_tokens)).with_context(|| {
        let remedy = if num_tokens <= all.len() { "a lower --token-offset" } else { fewer };
        format!(
            "{} has {}, {} from token {} are asked for; use a longer text or {remedy}",
            corpus.display(),
            tokens(all.len()),
            count(num_tokens),
            count(offset)
        )
    })
}

/// Refuses a prompt without text; files that are there have some.
///
/// # Errors
/// When it has none.
pub(crate) fn check_not_empty(files: &UnreadFiles<'_>, prompt: &str) -> Result<()> {
    ensure!(
        !files.paths.is_empty() || !prompt.is_empty(),
        "the prompt is empty; give --prompt TEXT or --file FILE with some text"
    );
    Ok(())
}
