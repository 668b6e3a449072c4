//! What can go wrong with a vocabulary, a text or a chat template.

use std::path::PathBuf;

/// An error of the text side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The model folder has no tokenizer.
    #[error(
        "{} holds no tokenizer.json; copy it there from where the weights are from",
        folder.display()
    )]
    MissingTokenizer {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of the model folder is not the JSON it should be.
    #[error("{file} is not valid: {source}")]
    Json {
        /// The file's name.
        file: &'static str,
        /// What the parser found.
        source: serde_json::Error,
    },
    /// A field of a JSON file has another type or value than it may have.
    #[error("{file}: field `{field}` should be {expected}")]
    Field {
        /// The file's name.
        file: &'static str,
        /// The field's path inside the file.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The tokenizer's algorithm is not one that this crate knows.
    #[error("unknown tokenizer model `{name}`; known are {known}")]
    UnknownModel {
        /// The name in the file.
        name: String,
        /// The names known for this kind of file.
        known: &'static str,
    },
    /// The rule that cuts a text into words is not known.
    #[error("unknown pre-tokenizer `{name}`; known are {known}")]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// The names known for this kind of file.
        known: &'static str,
    },
    /// A byte-level vocabulary does not say how a text is cut into words.
    #[error("the file names no pre-tokenizer (`tokenizer.ggml.pre`); convert the model again")]
    MissingPreTokenizer,
    /// A step of `tokenizer.json` is of a kind that this crate does not know.
    #[error("tokenizer.json: {part} `{name}` is not supported")]
    UnsupportedPart {
        /// `normalizer`, `decoder`, `post_processor` or a field of the model.
        part: &'static str,
        /// The kind named in the file.
        name: String,
    },
    /// The model was not tuned for conversation.
    #[error(
        "this model has no chat template; use it without one, or a model that was tuned for conversation"
    )]
    NoChatTemplate,
    /// A template that leaves out or rewrites what is said.
    #[error(
        "the model's chat template leaves out or changes what is said in a message; use it without one"
    )]
    TemplateChangesText,
    /// The vocabulary holds no token.
    #[error("the vocabulary is empty")]
    EmptyVocab,
    /// Two arrays that describe the same tokens differ in length.
    #[error("`{array}` has {actual} entries for {expected} tokens")]
    ArrayLength {
        /// The array's name.
        array: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The array's length.
        actual: usize,
    },
    /// A token is the empty string, or an added token is one after the normalizer.
    #[error("token {id} is empty")]
    EmptyToken {
        /// The token.
        id: u32,
    },
    /// Two ids have the same text.
    #[error("tokens {first} and {second} are both {token:?}")]
    DuplicateToken {
        /// The text.
        token: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// Two texts have the same id.
    #[error("token id {id} is given to both {first:?} and {second:?}")]
    DuplicateId {
        /// The id.
        id: u32,
        /// One text.
        first: String,
        /// The other text.
        second: String,
    },
    /// A token's type is none of 1 to 6.
    #[error("token {id} has type {value}, which is none of 1 to 6")]
    TokenType {
        /// The token.
        id: u32,
        /// The value in the file.
        value: i32,
    },
    /// A token's score is not a number.
    #[error("the score of token {id} is not a number")]
    Score {
        /// The token.
        id: u32,
    },
    /// A token of type byte is not written `<0xNN>`.
    #[error("byte token {id} is {token:?} instead of <0xNN>")]
    ByteToken {
        /// The token.
        id: u32,
        /// Its text.
        token: String,
    },
    /// A merge is not two pieces, or names a piece that is not in the vocabulary.
    #[error("merge {index} ({merge:?}) does not join two tokens into a third")]
    Merge {
        /// Position in the list of merges.
        index: usize,
        /// The merge as the file has it.
        merge: String,
    },
    /// A token named for a purpose (beginning, end, …) lies outside of the vocabulary.
    #[error("{purpose} token id {id} lies outside of the vocabulary of {num_tokens} tokens")]
    TokenId {
        /// What the token is for.
        purpose: &'static str,
        /// The id in the file.
        id: u32,
        /// The number of tokens.
        num_tokens: usize,
    },
    /// A token named for a purpose is not in the vocabulary.
    #[error("{purpose} token {token:?} is not in the vocabulary")]
    TokenText {
        /// What the token is for.
        purpose: &'static str,
        /// The text in the file.
        token: String,
    },
    /// The model asks for a beginning or end token on every text but names none.
    #[error("the model adds a {purpose} token to every text but does not say which")]
    MissingToken {
        /// What the token is for.
        purpose: &'static str,
    },
    /// The `tokenizers` crate refused a vocabulary or a text.
    #[error("tokenizer: {0}")]
    Tokenizers(#[source] tokenizers::Error),
    /// A part of the text has no token.
    #[error("the vocabulary has no token for a part of {text:?}")]
    NoToken {
        /// The word that could not be written in tokens.
        text: String,
    },
    /// An id that the vocabulary does not have.
    #[error("token id {id} is not in the vocabulary of {num_tokens} tokens")]
    UnknownId {
        /// The id.
        id: u32,
        /// The number of tokens.
        num_tokens: usize,
    },
    /// The chat template does not parse.
    #[error("chat template: {0}")]
    TemplateSyntax(#[source] minijinja::Error),
    /// The chat template failed, raised an exception or ran past its limits.
    #[error("chat template failed: {0}")]
    TemplateRender(#[source] minijinja::Error),
    /// A stop string is empty and would stop every text at once.
    #[error(
        "stop string {} is empty and would end every reply at once; give it some text or leave it out",
        index + 1
    )]
    EmptyStop {
        /// Position in the list of stop strings.
        index: usize,
    },
}
