//! A conversation as the model's chat template sees it, token by token as it grows.

use super::{ChatTemplate, EncodeOptions, Error, Message, ModelText, RenderOptions, Result};

/// Marks where a question or a reply belongs in what a template writes, to cut it there; no template touches it and no text holds it.
const MARK: &str = "\u{2063}heterokv mark\u{2063}";

/// Turns messages into the tokens that a model was taught to see, a stretch at a time, so that what was said
/// before can stay in a cache.
#[derive(Debug)]
pub struct Conversation<'a> {
    text: &'a ModelText,
    template: &'a ChatTemplate,
    system: Option<String>,
}

/// The beginning of a first message, up to where its question will stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// What the template writes behind the question, up to where the reply begins.
    pub behind: String,
}

impl<'a> Conversation<'a> {
    /// A conversation with a system message or none.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`].
    pub fn new(text: &'a ModelText, system: Option<String>) -> Result<Self> {
        let template = text.chat_template.as_ref().ok_or(Error::NoChatTemplate)?;
        Ok(Self { text, template, system })
    }

    /// The tokens of a first message, up to where the reply begins.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses.
    pub fn first_turn(&self, message: &str) -> Result<Vec<u32>> {
        self.encode(&self.render(&[Message::new("user", message)])?)
    }

    /// A first message that begins with `text`, whose question is yet to come.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses, and [`Error::TemplateChangesText`].
    pub fn opening(&self, text: &str) -> Result<Opening> {
        let rendered = self.render(&[Message::new("user", format!("{text}{MARK}"))])?;
        let (before, behind) = rendered.rsplit_once(MARK).ok_or(Error::TemplateChangesText)?;
        Ok(Opening { tokens: self.encode(before)?, behind: behind.to_owned() })
    }

    /// The tokens of the question behind an opening, up to where the reply begins, and of the first words of
    /// the reply, where they are given.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub fn question(&self, question: &str, behind: &str, reply: &str) -> Result<Vec<u32>> {
        self.encode(&format!("{question}{behind}{reply}"))
    }

    /// The tokens between the end of a reply and where the next begins, with the question in them, and of the
    /// first words of that reply.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses, and [`Error::TemplateChangesText`].
    pub fn next_turn(&self, question: &str, reply: &str) -> Result<Vec<u32>> {
        // What was said before is in the cache; only what follows a reply is wanted.
        let rendered = self.render(&[
            Message::new("user", "."),
            Message::new("assistant", MARK),
            Message::new("user", question),
        ])?;
        let (_, behind) = rendered.split_once(MARK).ok_or(Error::TemplateChangesText)?;
        self.encode(&format!("{behind}{reply}"))
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
        self.template.render(&messages, options)
    }

    fn encode(&self, rendered: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_special: false, parse_special: true };
        self.text.tokenizer.encode(rendered, options)
    }
}
