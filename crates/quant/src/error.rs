//! What can go wrong in this crate.

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A format cannot hold vectors of this length.
    #[error("{format} keys need a head_dim that is a multiple of {multiple_of}, not {head_dim}")]
    HeadDim {
        /// The format that was asked for.
        format: &'static str,
        /// The length of a vector.
        head_dim: usize,
        /// What it must be a multiple of.
        multiple_of: usize,
    },
    /// A name of a format that is not known.
    #[error("unknown {kind} format '{name}'; known are {known}")]
    UnknownFormat {
        /// Key or row.
        kind: &'static str,
        /// The name as given.
        name: String,
        /// The names that would be accepted.
        known: &'static str,
    },
    /// A vector to be encoded holds NaN or an infinity.
    #[error("value {value} at token {token}, channel {channel} cannot be encoded")]
    NotFinite {
        /// Index of the row within the call.
        token: usize,
        /// Index within the row.
        channel: usize,
        /// The value found.
        value: f32,
    },
    /// Too few tokens to fit the tables of a format.
    #[error("{format} needs at least {needed} tokens to fit its tables, got {tokens}")]
    TooFewTokens {
        /// The format to be fitted.
        format: String,
        /// Tokens that were given.
        tokens: usize,
        /// Tokens that are needed.
        needed: usize,
    },
    /// Stored tables do not have the shape of their format.
    #[error("stored table '{table}' of {format} has {actual} values, expected {expected}")]
    Table {
        /// The format being restored.
        format: String,
        /// Name of the table.
        table: &'static str,
        /// Values found.
        actual: usize,
        /// Values needed.
        expected: usize,
    },
}
