//! What can go wrong in this crate.

use crate::weights::{ComputeType, TensorType};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on formats was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
    #[error("unknown compute type `{given}`, expected one of f32, f16, q8")]
    UnknownComputeType {
        /// The word given.
        given: String,
    },
}
