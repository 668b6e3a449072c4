//! From files, prompt and chat template to tokens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use heterokv_model::text::{ChatTemplate, EncodeOptions, Message, ModelText, RenderOptions};

use crate::load::{read_text, text_bytes};
use crate::output::{bytes, count, tokens};
use crate::progress::Bar;

/// Tokens of a reply, where nothing else is asked for.
const DEFAULT_MAX_TOKENS: usize = 256;

/// Stands where a question or a reply will be; no template touches it and no text holds it.
const PLACEHOLDER: &str = "\u{2063}heterokv placeholder\u{2063}";

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
    /// The files with `prompt` as a paragraph of its own behind them.
    pub(crate) fn with_paragraph(&self, prompt: &str) -> String {
        let text = &self.text;
        let gap = match () {
            () if text.is_empty() || prompt.is_empty() || text.ends_with("\n\n") => "",
            () if text.ends_with('\n') => "\n",
            () => "\n\n",
        };
        format!("{text}{gap}{prompt}")
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

/// A conversation as the model's chat template sees it.
pub(crate) struct Conversation<'a> {
    text: &'a ModelText,
    template: &'a ChatTemplate,
    system: Option<String>,
}

impl<'a> Conversation<'a> {
    /// A conversation with a system message or none.
    ///
    /// # Errors
    /// When the model has no chat template.
    pub(crate) fn new(text: &'a ModelText, system: Option<String>) -> Result<Self> {
        let template = text.chat_template.as_ref().context(
            "this model has no chat template; use `heterokv generate` without --chat, or a model that was \
             tuned for conversation",
        )?;
        Ok(Self { text, template, system })
    }

    /// The tokens of a first message, up to where the reply begins.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses.
    pub(crate) fn first_turn(&self, message: &str) -> Result<Vec<u32>> {
        let _bar = Bar::spinner("encoding the text");
        self.encode(&self.render(&[Message::new("user", message)])?)
    }

    /// The tokens up to where the question stands in a first message that begins with `files`, and the
    /// text behind the question.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses.
    pub(crate) fn opening(&self, files: &Files) -> Result<(Vec<u32>, String)> {
        let _bar = Bar::spinner("encoding the text");
        let message = files.with_paragraph(PLACEHOLDER);
        let rendered = self.render(&[Message::new("user", message)])?;
        let (before, behind) = rendered.rsplit_once(PLACEHOLDER).context(NO_PLACE)?;
        Ok((self.encode(before)?, behind.to_owned()))
    }

    /// The tokens of a question and of what the template puts behind it.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub(crate) fn question(&self, question: &str, behind: &str) -> Result<Vec<u32>> {
        self.encode(&format!("{question}{behind}"))
    }

    /// The tokens between the end of a reply and the beginning of the next, with the question in them.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses.
    pub(crate) fn next_turn(&self, question: &str) -> Result<Vec<u32>> {
        // What was said before is in the cache; only what follows a reply is wanted.
        let rendered = self.render(&[
            Message::new("user", "."),
            Message::new("assistant", PLACEHOLDER),
            Message::new("user", question),
        ])?;
        let (_, behind) = rendered.split_once(PLACEHOLDER).context(NO_PLACE)?;
        self.encode(behind)
    }

    fn render(&self, turns: &[Message]) -> Result<String> {
        let system = self.system.iter().map(|system| Message::new("system", system.as_str()));
        let messages: Vec<Message> = system.chain(turns.iter().cloned()).collect();
        let (bos, eos) = (self.text.tokenizer.bos_token(), self.text.tokenizer.eos_token());
        let options = RenderOptions {
            add_generation_prompt: true,
            bos_token: bos.as_deref(),
            eos_token: eos.as_deref(),
        };
        Ok(self.template.render(&messages, options)?)
    }

    fn encode(&self, rendered: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_special: false, parse_special: true };
        Ok(self.text.tokenizer.encode(rendered, options)?)
    }
}

const NO_PLACE: &str = "the model's chat template leaves out or changes what is said in a message; use \
                        `heterokv generate` without --chat";

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
