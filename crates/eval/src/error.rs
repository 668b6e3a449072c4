//! What can go wrong in this crate.

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A corpus that ends before the window does.
    #[error(
        "the corpus has {corpus_tokens} token{}, the window needs {needed_tokens} \
         (offset {offset} + context {context} + continuation {continuation} + 1)",
        if *corpus_tokens == 1 { "" } else { "s" }
    )]
    ShortCorpus {
        /// Tokens of the corpus.
        corpus_tokens: usize,
        /// Tokens needed.
        needed_tokens: usize,
        /// Offset of the window.
        offset: usize,
        /// Tokens of context.
        context: usize,
        /// Tokens fed behind it.
        continuation: usize,
    },
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
    /// The model produced something that is not a distribution.
    #[error("{what} is not finite at step {step}")]
    NotFinite {
        /// What was computed.
        what: &'static str,
        /// Index of the token fed.
        step: usize,
    },
    /// The model or a cache refused.
    #[error(transparent)]
    Model(#[from] heterokv_model::Error),
    /// A cache spec or a cache refused.
    #[error(transparent)]
    Cache(#[from] heterokv_cache::Error),
}
