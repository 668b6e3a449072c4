//! What can go wrong in this crate.

use std::path::PathBuf;

use heterokv_cache::KeyFormat;

use crate::{ExactTokens, Pieces};

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task that there is not.
    #[error("there is no task `{name}`; there are {}", known.join(", "))]
    NoSuchTask {
        /// The name asked for.
        name: String,
        /// Those that there are.
        known: Vec<&'static str>,
    },
    /// An input that a task needs and did not get.
    #[error("{task} needs {input}")]
    MissingInput {
        /// The task.
        task: &'static str,
        /// What it needs, and how it is given.
        input: &'static str,
    },
    /// A corpus that ends before the window does.
    #[error(
        "the corpus has {corpus_tokens} token{}, the window of {task} needs {needed_tokens} \
         (offset {offset} + context {context} + {behind} behind it); use a longer corpus, a lower offset or a \
         shorter context",
        if *corpus_tokens == 1 { "" } else { "s" }
    )]
    ShortCorpus {
        /// The task.
        task: &'static str,
        /// Tokens of the corpus.
        corpus_tokens: usize,
        /// Tokens needed.
        needed_tokens: usize,
        /// Offset of the window.
        offset: usize,
        /// Tokens of context.
        context: usize,
        /// Tokens behind it.
        behind: usize,
    },
    /// A context that cannot hold what a task puts in it.
    #[error(
        "a context of {context} tokens is too short for {task}, which needs {needed_tokens}; use a longer one"
    )]
    ShortTaskContext {
        /// The task.
        task: &'static str,
        /// Tokens of context.
        context: usize,
        /// Tokens needed.
        needed_tokens: usize,
    },
    /// A haystack that is shorter than the context.
    #[error(
        "the haystack has about {haystack_tokens} tokens, {task} needs {needed_tokens}; use a longer text, a shorter \
         context, or none, for generated text"
    )]
    ShortHaystack {
        /// The task.
        task: &'static str,
        /// Tokens of the haystack.
        haystack_tokens: usize,
        /// Tokens needed.
        needed_tokens: usize,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of figures that is none.
    #[error("{} is no file of figures: {reason}; make one with --write-gate", path.display())]
    BadGate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder, a pipe or a device where a file is to be.
    #[error("{} is not a regular file; give another name", path.display())]
    NoFile {
        /// Its path.
        path: PathBuf,
    },
    /// A results file that another program is writing.
    #[error("{} is being written by another program; wait for it, or give another file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A line of a JSONL file that is not what it should be.
    #[error("{} line {line}: {reason}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of prompts that is not what it should be.
    #[error("{}: {reason}", path.display())]
    BadPrompts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder or file without a record of a task.
    #[error("{} holds nothing for {task}: {needed}", path.display())]
    NoRecords {
        /// The folder or file.
        path: PathBuf,
        /// The task.
        task: &'static str,
        /// What it should hold.
        needed: &'static str,
    },
    /// A cache that is no smaller than it would be without compression.
    #[error(
        "compression was asked for and did not happen: {cache} holds {device_bytes} bytes on the device at \
         {num_tokens} tokens, and should hold {expected_bytes} at most (a full f16 cache: {full_bytes})"
    )]
    NotCompressed {
        /// The cache as it was named.
        cache: String,
        /// Tokens held.
        num_tokens: usize,
        /// Bytes counted.
        device_bytes: usize,
        /// Most that they should be.
        expected_bytes: usize,
        /// Bytes of a full f16 cache of these tokens.
        full_bytes: usize,
    },
    /// A program of others failed.
    #[error(transparent)]
    Peer(#[from] crate::PeerError),
    /// The tokenizer or the chat template refused.
    #[error(transparent)]
    Text(#[from] heterokv_model::text::Error),
    /// A context too short to hold the passage that is repeated.
    #[error(
        "recall repeats context tokens {first}..{end}, but the context has {context}; \
         use a longer context or a shorter continuation"
    )]
    ShortContext {
        /// First token of the passage.
        first: usize,
        /// End of the passage, exclusive.
        end: usize,
        /// Tokens of context.
        context: usize,
    },
    /// A text too short to have tokens to code.
    #[error(
        "{num_tokens} tokens are too few to code any: {} first and {} recent ones stay exact, and {num_steps} ask; \
         use a longer context",
        exact.sinks,
        exact.recent
    )]
    ShortSample {
        /// Tokens of the text.
        num_tokens: usize,
        /// Those that stay exact.
        exact: ExactTokens,
        /// Tokens at the end whose queries are asked.
        num_steps: usize,
    },
    /// Pieces of a text that are all sinks.
    #[error(
        "pieces of {} tokens leave none to fit tables on, since the first {} stay exact; use longer pieces",
        pieces.tokens,
        pieces.sinks
    )]
    ShortPieces {
        /// The pieces.
        pieces: Pieces,
    },
    /// A text too short to fit tables on.
    #[error(
        "{num_tokens} tokens are too few to fit the tables of {format} on, which need {needed}: {num_fitted} are left of them, since the first {} of every piece of {} stay exact; use more tokens",
        pieces.sinks,
        pieces.tokens
    )]
    ShortProfile {
        /// Tokens of the text.
        num_tokens: usize,
        /// Its pieces.
        pieces: Pieces,
        /// Tokens whose keys are left to fit on.
        num_fitted: usize,
        /// The format.
        format: KeyFormat,
        /// Tokens that its tables need.
        needed: usize,
    },
    /// A row that the token list does not have.
    #[error("row {row} is outside the {num_tokens} tokens")]
    NoSuchRow {
        /// The row asked for.
        row: i64,
        /// Tokens given.
        num_tokens: usize,
    },
    /// Nothing to measure.
    #[error("the continuation must have at least one token")]
    NoContinuation,
    /// A report of no rows.
    #[error("there are no results to report; give a file with at least one row")]
    NoResults,
    /// A chart of a report cannot be drawn.
    #[error("a chart of the report could not be drawn")]
    Chart(#[from] plotters::drawing::DrawingAreaErrorKind<std::io::Error>),
    /// The page of a report cannot be written.
    #[error("the page of the report could not be made")]
    Page(#[source] minijinja::Error),
    /// The model produced something that is not a distribution.
    #[error("{what} is not finite at step {step}")]
    NotFinite {
        /// What was computed.
        what: &'static str,
        /// Index of the token fed.
        step: usize,
    },
    /// The same, of a cache among others.
    #[error(
        "{cache}: {what} is not finite at step {step}; leave the cache out to go on with the others"
    )]
    CacheNotFinite {
        /// The cache as it was named.
        cache: String,
        /// What was computed.
        what: &'static str,
        /// Index of the token fed.
        step: usize,
    },
    /// A row whose summary JSON has no form for.
    #[error("{task} {sample}, {cache}: the summary is not finite, and no row can hold it")]
    SummaryNotFinite {
        /// The task.
        task: String,
        /// The sample.
        sample: String,
        /// The cache.
        cache: String,
    },
    /// A cost by which formats cannot be compared.
    #[error(
        "what {format} keys cost in layer {layer}, KV head {kv_head} is not a finite number; leave the format out, \
         or measure on another text"
    )]
    Cost {
        /// The format.
        format: KeyFormat,
        /// Layer of the head.
        layer: usize,
        /// KV head in the layer.
        kv_head: usize,
    },
    /// The attention of a head in which no positions can be found.
    #[error("the attention of layer {layer}, KV head {kv_head} cannot be measured")]
    HeadAttention {
        /// Layer of the head.
        layer: usize,
        /// KV head in the layer.
        kv_head: usize,
        /// What is wrong with it.
        source: heterokv_evict::Error,
    },
    /// An importance that is none.
    #[error(
        "the importance {value} of layer {layer}{} is not a number of at least 0; measure on another text",
        kv_head.map(|head| format!(", KV head {head}")).unwrap_or_default()
    )]
    Importance {
        /// The layer, or that of the head.
        layer: usize,
        /// KV head in the layer; none where it is that of the layer.
        kv_head: Option<usize>,
        /// The value found.
        value: f64,
    },
    /// A budget of heads that cannot be made or compared.
    #[error("{what} must be {range}, not {value}")]
    Budget {
        /// What is wrong.
        what: &'static str,
        /// What would be right.
        range: &'static str,
        /// Its value.
        value: f64,
    },
    /// A key format refused, or there is no mix of the size asked for.
    #[error(transparent)]
    Quant(#[from] heterokv_quant::Error),
    /// A selection is impossible, or a weight is not a number.
    #[error(transparent)]
    Evict(#[from] heterokv_evict::Error),
    /// The model or a cache refused.
    #[error(transparent)]
    Model(#[from] heterokv_model::Error),
    /// A cache spec or a cache refused.
    #[error(transparent)]
    Cache(#[from] heterokv_cache::Error),
}
