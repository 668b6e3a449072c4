//! The one error type of this crate.

use std::{io, path::PathBuf};

/// What can be wrong with a checkpoint, named so that the reader knows which file, key or tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is neither a folder nor a GGUF file.
    #[error(
        "{} starts with {found:02x?}: not a GGUF file, and not a folder with config.json and \
         safetensors files either", path.display()
    )]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// Its first bytes, at most four.
        found: Vec<u8>,
    },
    /// A Hugging Face folder lacks a file that every checkpoint has.
    #[error("{} holds no {file}; a checkpoint folder needs it", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file, or the two of which one is needed.
        file: &'static str,
    },
    /// A JSON file is larger than any real one.
    #[error("{} takes {size_bytes} bytes, more than the {limit_bytes} such a file may have", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// A JSON file does not parse.
    #[error("{file} is not the JSON it should be")]
    Json {
        /// The file's name.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A safetensors header is damaged.
    #[error("{file} is damaged")]
    Safetensors {
        /// The file's name.
        file: String,
        /// What the header check found.
        source: safetensors::SafeTensorError,
    },
    /// A safetensors header claims more bytes than the file has.
    #[error("{file} claims {claimed_bytes} bytes of {what} where {available_bytes} are left")]
    SafetensorsBounds {
        /// The file's name.
        file: String,
        /// The part that does not fit.
        what: String,
        /// Bytes claimed.
        claimed_bytes: u64,
        /// Bytes the file has left for it.
        available_bytes: u64,
    },
    /// A shard index names a file that is not a plain `*.safetensors` name inside the folder.
    #[error(
        "the shard index puts tensor {tensor} into {shard:?}, which is not a file of its folder"
    )]
    ShardName {
        /// The tensor.
        tensor: String,
        /// The name given.
        shard: String,
    },
    /// The shard index and the shards disagree.
    #[error("the shard index and {shard} disagree about tensor {tensor}: {in_index} by the index")]
    ShardIndex {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
        /// `there` or `not there`.
        in_index: &'static str,
    },
    /// A GGUF file ends inside its header.
    #[error(
        "the file ends inside {what}: {needed_bytes} bytes needed at offset {offset}, {available_bytes} left"
    )]
    GgufTruncated {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the file.
        offset: u64,
        /// Bytes needed there, at least.
        needed_bytes: u64,
        /// Bytes left there.
        available_bytes: u64,
    },
    /// A GGUF version other than 2 and 3.
    #[error("GGUF version {version} is not supported (2 and 3 are{})", if *big_endian { "; this file is big-endian" } else { "" })]
    GgufVersion {
        /// The version found.
        version: u32,
        /// True when the number makes sense in the other byte order.
        big_endian: bool,
    },
    /// A field of the GGUF header has a value that the format does not allow.
    #[error("the GGUF header gives {what} as {value}, but it must be {rule}")]
    GgufField {
        /// The field, with the key or tensor it belongs to.
        what: String,
        /// The value found.
        value: u64,
        /// What the format demands.
        rule: &'static str,
    },
    /// A name in a GGUF header is not UTF-8.
    #[error("{what} at offset {offset} of the GGUF header is not UTF-8")]
    GgufText {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the file.
        offset: u64,
    },
    /// A metadata key or a tensor appears twice.
    #[error("{what} {name} appears twice")]
    Duplicate {
        /// `metadata key` or `tensor`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A tensor's data is not where it can be: past the end, not aligned, or inside another tensor.
    #[error("tensor {name} claims bytes {start}..{end} of the data section, but {rule}")]
    TensorBounds {
        /// The tensor.
        name: String,
        /// First byte claimed.
        start: u64,
        /// One past the last byte claimed; `u64::MAX` where the sum overflows.
        end: u64,
        /// What is violated.
        rule: String,
    },
    /// A metadata value has another type than its key demands.
    #[error("{key} should be {expected} but is {actual}")]
    ValueType {
        /// The metadata or configuration key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
    /// A metadata or configuration key is missing.
    #[error("the checkpoint's configuration has no {key}")]
    MissingConfig {
        /// The key.
        key: String,
    },
    /// A configuration value that makes no sense, alone or beside others.
    #[error("{key} is {value}, but it must be {rule}")]
    InvalidConfig {
        /// The key.
        key: String,
        /// The value found.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// A configuration value that makes sense but asks for maths that is not implemented.
    #[error("{key} = {value} is not supported: {reason}")]
    UnsupportedConfig {
        /// The key.
        key: String,
        /// The value found.
        value: String,
        /// What is supported.
        reason: &'static str,
    },
    /// An architecture of another family.
    #[error("architecture {found:?} is not supported; known: {}", known.join(", "))]
    UnsupportedArchitecture {
        /// The name found.
        found: String,
        /// The names that would do.
        known: &'static [&'static str],
    },
    /// A RoPE scaling of another kind.
    #[error("RoPE type {found:?} is not supported; known: {}", known.join(", "))]
    UnsupportedRopeType {
        /// The name found.
        found: String,
        /// The names that would do.
        known: &'static [&'static str],
    },
    /// A tensor is stored in a type that is not read.
    #[error("tensor {tensor} has type {found}, which is not supported; known: {known}")]
    UnsupportedTensorType {
        /// The tensor.
        tensor: String,
        /// The type found.
        found: String,
        /// The types that would do.
        known: String,
    },
    /// A tensor that the configuration demands is not in the file.
    #[error("the checkpoint has no tensor {name}")]
    MissingTensor {
        /// Its name in the file's own naming.
        name: String,
    },
    /// A tensor is in the file that the configuration has no use for, so that the maths would differ.
    #[error(
        "the checkpoint holds tensor {name}, which its architecture and configuration do not use"
    )]
    UnexpectedTensor {
        /// Its name in the file's own naming.
        name: String,
    },
    /// A tensor's shape is not what the configuration says.
    #[error("tensor {name} has shape {actual:?} where the configuration demands {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Shape demanded, outermost axis first.
        expected: Vec<u64>,
        /// Shape found, outermost axis first.
        actual: Vec<u64>,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// More tokens than the model was trained to tell apart by position.
    #[error(
        "{held_tokens} token{} of context and {max_tokens} behind it are more than the {limit_tokens} \
         that the model was trained for; shorten one of them, or allow it with --allow-beyond-trained",
        if *held_tokens == 1 { "" } else { "s" }
    )]
    BeyondTrained {
        /// Tokens that the cache holds.
        held_tokens: usize,
        /// Tokens that may follow.
        max_tokens: usize,
        /// [`max_context_tokens`](crate::ModelConfig::max_context_tokens).
        limit_tokens: usize,
    },
    /// A token id that the vocabulary does not have.
    #[error("token id {token} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab_size: usize,
    },
    /// A tensor cannot be held in the compute form.
    #[error("tensor {name}: {source}")]
    Weights {
        /// The tensor.
        name: String,
        /// The reason.
        source: heterokv_quant::Error,
    },
    /// A product was refused.
    #[error(transparent)]
    Quant(#[from] heterokv_quant::Error),
    /// The tokenizer or the chat template refused.
    #[error(transparent)]
    Text(#[from] crate::text::Error),
    /// The sampler's settings or the logits are not usable.
    #[error(transparent)]
    Sampler(#[from] crate::SamplerError),
    /// A form of weights that no kernel of a GPU computes with.
    #[error("weights in {compute} have no kernels on a GPU; compute in f16 or q8 there")]
    NoDeviceForm {
        /// The form.
        compute: heterokv_quant::weights::ComputeType,
    },
    /// A device refused.
    #[error(transparent)]
    Gpu(#[from] heterokv_gpu::Error),
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] heterokv_cache::Error),
    /// A session that cannot be had: of another model or cache, or damaged; or one that cannot be saved.
    #[error("session {}", path.display())]
    Session {
        /// Its folder.
        path: PathBuf,
        /// The reason.
        source: heterokv_cache::Error,
    },
    /// A path at which no session can be.
    #[error("{} cannot be a session's folder: {reason}", path.display())]
    SessionFolder {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A folder that cannot be made.
    #[error(
        "cannot make the folder {}; give a path in a folder that is there and can be written", path.display()
    )]
    MakeFolder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A cache that is to be saved in a session that it is not of.
    #[error(
        "the cache was not resumed from the session {}; save it in the one that it was resumed from", path.display()
    )]
    OtherSession {
        /// The session's folder.
        path: PathBuf,
    },
    /// A session of another text than the prompt.
    #[error(
        "the session {} holds another text: of its {num_tokens} tokens only {common} begin this prompt, and the others \
         would be lost; give another path, or remove it", path.display()
    )]
    OtherText {
        /// Its folder.
        path: PathBuf,
        /// Tokens that both begin with.
        common: usize,
        /// Tokens of the session.
        num_tokens: usize,
    },
    /// No built-in model shape of this name.
    #[error("no built-in model shape {name:?}; known: {}", known.join(", "))]
    UnknownBuiltin {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: &'static [&'static str],
    },
}

/// A result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
