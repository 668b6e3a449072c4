//! What can go wrong in this crate.

use crate::weights::{ComputeType, TensorType};

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
    /// A vector longer than the coded formats hold.
    #[error("{format} keys need a head_dim of at most {max}, not {head_dim}")]
    HeadDimTooLong {
        /// The format that was asked for.
        format: &'static str,
        /// The length of a vector.
        head_dim: usize,
        /// The longest that can be held.
        max: usize,
    },
    /// Groups of more channels than there are.
    #[error("{format} has groups of {group} channels, more than a head_dim of {head_dim} has")]
    GroupTooLong {
        /// The format that was asked for.
        format: String,
        /// Channels of a group.
        group: usize,
        /// The length of a vector.
        head_dim: usize,
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
    /// A name that spells a format otherwise than it is called.
    #[error("the key format '{name}' is written {canonical}; write it so")]
    Spelling {
        /// The name as given.
        name: String,
        /// The one name of the format.
        canonical: String,
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
    /// An energy of the queries by which a fit cannot weigh errors.
    #[error("query energy {energy} of channel {channel} is not a finite number of at least 0")]
    QueryEnergy {
        /// Index of the channel.
        channel: usize,
        /// The value found.
        energy: f32,
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
    /// A stored table holds a value that no fit gives.
    #[error("stored table '{table}' of {format} holds an impossible value at {place}")]
    TableValue {
        /// The format being restored.
        format: String,
        /// Name of the table.
        table: &'static str,
        /// Index of the value.
        place: usize,
    },
    /// Stored widths do not add up to a row of their format.
    #[error("stored widths of {format} make rows of {actual} bytes, expected {expected}")]
    TableRow {
        /// The format being restored.
        format: String,
        /// Bytes that the widths take.
        actual: usize,
        /// Bytes of a row.
        expected: usize,
    },
    /// A head for which nothing can be chosen.
    #[error("head {head} has no candidates to choose from; give it one at least")]
    NoCandidates {
        /// Index of the head.
        head: usize,
    },
    /// A distortion by which candidates cannot be ordered.
    #[error(
        "distortion {distortion} of candidate {candidate} of head {head} is not a finite number; leave out \
         candidates without one"
    )]
    Distortion {
        /// Index of the head.
        head: usize,
        /// Index of the candidate.
        candidate: usize,
        /// The value found.
        distortion: f64,
    },
    /// Fewer bytes than the cheapest choice takes.
    #[error("a budget of {budget} bytes is too small, the cheapest choice takes {least}")]
    Budget {
        /// The budget.
        budget: u64,
        /// Bytes of the cheapest choice.
        least: u128,
    },
    /// A slice does not have the length that the shapes ask for.
    #[error("{what} has length {actual}, its shape needs {expected}")]
    LengthMismatch {
        /// Which slice.
        what: &'static str,
        /// The length that the shapes ask for.
        expected: usize,
        /// The length it has.
        actual: usize,
    },

    /// A row of a block type does not end at the end of a block.
    #[error("{num_elements} elements are not whole blocks of {ty}, which hold {} each", ty.block_len())]
    PartialBlock {
        /// The type whose blocks were to be read.
        ty: TensorType,
        /// The number of elements asked for.
        num_elements: usize,
    },

    /// A shape whose size in bytes does not fit the address space.
    #[error("a matrix of {rows} rows and {cols} columns does not fit memory")]
    TooLarge {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },

    /// A row number at or past the number of rows.
    #[error("row {row} does not exist, the matrix has {rows}")]
    RowOutOfRange {
        /// The row asked for.
        row: usize,
        /// Rows of the matrix.
        rows: usize,
    },

    /// A finite weight (or block scale) that half precision would turn into infinity.
    #[error("row {row} holds {value}, too large for compute type {compute}; load it as f32")]
    WeightOverflow {
        /// The source row.
        row: usize,
        /// The weight, or the block's scale or offset.
        value: f32,
        /// The compute type asked for.
        compute: ComputeType,
    },

    /// A word that names no compute type.
    #[error("unknown compute type `{given}`, expected one of f32, f16, q8, q8a8")]
    UnknownComputeType {
        /// The word given.
        given: String,
    },
}
