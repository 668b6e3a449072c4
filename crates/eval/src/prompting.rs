//! From texts and questions to tokens, with a chat template or without one.

use heterokv_model::text::{Conversation, EncodeOptions, ModelText, SpecialTokens};

use crate::Result;

/// How texts and questions become tokens.
#[derive(Debug)]
pub struct Prompting<'a> {
    text: &'a ModelText,
    conversation: Option<Conversation<'a>>,
}

/// The tokens of a text behind which a question will come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The text's tokens: what caches take in.
    pub context: Vec<u32>,
    /// What the chat template writes behind the question.
    behind: String,
}

impl<'a> Prompting<'a> {
    /// Texts as they are: a question goes on behind them, and a model continues it.
    #[must_use]
    pub fn plain(text: &'a ModelText) -> Self {
        Self { text, conversation: None }
    }

    /// A text and its first question are a user's message, by the model's chat template.
    ///
    /// # Errors
    /// When the model has none.
    pub fn chat(text: &'a ModelText) -> Result<Self> {
        Ok(Self { text, conversation: Some(Conversation::new(text, None)?) })
    }

    /// The same tokenizer without a chat template.
    #[must_use]
    pub fn without_chat(&self) -> Self {
        Self::plain(self.text)
    }

    /// The tokenizer and template.
    #[must_use]
    pub fn text(&self) -> &'a ModelText {
        self.text
    }

    /// The tokens of a text that stands alone, with those that begin one; control tokens written in it are letters.
    ///
    /// # Errors
    /// Text that the vocabulary cannot write.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_special: true, parse_special: false };
        Ok(self.text.tokenizer.encode(text, options)?)
    }

    /// How many tokens a piece in the middle of a text has, about: pieces may join at their ends.
    ///
    /// # Errors
    /// Text that the vocabulary cannot write.
    pub fn count(&self, piece: &str) -> Result<usize> {
        Ok(self.encode_piece(piece)?.len())
    }

    /// The tokens of a text that a question will follow.
    ///
    /// # Errors
    /// What the tokenizer or the template refuses.
    pub fn context(&self, text: &str) -> Result<Asked> {
        match &self.conversation {
            None => Ok(Asked { context: self.encode(text)?, behind: String::new() }),
            Some(conversation) => {
                let opening = conversation.opening(text)?;
                Ok(Asked { context: opening.tokens, behind: opening.behind })
            }
        }
    }

    /// The tokens of the first question behind a text, up to where the reply begins, with the first words of the
    /// reply, `reply`, put into the model's mouth.
    ///
    /// # Errors
    /// What the tokenizer or the template refuses.
    pub fn first_question(&self, asked: &Asked, question: &str, reply: &str) -> Result<Vec<u32>> {
        match &self.conversation {
            None => self.encode_piece(&format!("{question}{reply}")),
            Some(conversation) => Ok(conversation.question(question, &asked.behind, reply)?),
        }
    }

    /// The tokens of a further question, behind the reply to the one before it. Without a chat template it
    /// is a paragraph of its own.
    ///
    /// # Errors
    /// What the tokenizer or the template refuses.
    pub fn next_question(&self, question: &str, reply: &str) -> Result<Vec<u32>> {
        match &self.conversation {
            None => self.encode_piece(&format!("\n\n{question}{reply}")),
            Some(conversation) => Ok(conversation.next_turn(question, reply)?),
        }
    }

    /// The text of tokens, control tokens left out.
    ///
    /// # Errors
    /// An id that the vocabulary does not have.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        Ok(self.text.tokenizer.decode(tokens, SpecialTokens::Skip)?)
    }

    fn encode_piece(&self, piece: &str) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_special: false, parse_special: false };
        Ok(self.text.tokenizer.encode(piece, options)?)
    }
}
