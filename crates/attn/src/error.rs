//! What can be wrong with a call into this crate.

/// Everything that attention refuses. Checked once, where the call enters the crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttnError {
    /// The heads do not form groups, a count is zero, or the counts overflow when multiplied.
    #[error(
        "{num_qo_heads} query heads over {num_kv_heads} KV heads of {head_dim} channels is no head \
         shape: each must be positive and the query heads a multiple of the KV heads"
    )]
    HeadShape {
        /// Query heads.
        num_qo_heads: usize,
        /// Key and value heads.
        num_kv_heads: usize,
        /// Channels per head.
        head_dim: usize,
    },
    /// The scale of the scores is not a positive finite number.
    #[error("sm_scale is {sm_scale}, which is not a positive finite number")]
    SmScale {
        /// The scale given.
        sm_scale: f32,
    },
    /// A tensor is not a whole number of rows.
    #[error("`{tensor}` has {len} elements, which is not a multiple of its row of {row_len}")]
    RaggedRows {
        /// Name of the argument.
        tensor: &'static str,
        /// Elements given.
        len: usize,
        /// Elements of one row.
        row_len: usize,
    },
    /// A tensor has the wrong number of elements for the others.
    #[error("`{tensor}` has {actual} elements where {expected} are needed")]
    Length {
        /// Name of the argument.
        tensor: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// More queries than keys: the first query would have nothing to attend to.
    #[error("{qo_len} queries over {kv_len} keys: a query attends at least to its own token")]
    QueriesExceedKeys {
        /// Query tokens.
        qo_len: usize,
        /// Key tokens.
        kv_len: usize,
    },
    /// An input holds a NaN or an infinity.
    #[error("`{tensor}` holds {value} at element {index}; attention needs finite inputs")]
    NotFinite {
        /// Name of the argument.
        tensor: &'static str,
        /// The first such element.
        index: usize,
        /// What it holds.
        value: f32,
    },
    /// Two states that are to be merged describe different heads.
    #[error(
        "a state of {other_heads} heads of {other_dim} channels cannot merge into one of \
         {num_heads} heads of {head_dim}"
    )]
    StateShape {
        /// Heads of the state merged into.
        num_heads: usize,
        /// Channels of the state merged into.
        head_dim: usize,
        /// Heads of the other state.
        other_heads: usize,
        /// Channels of the other state.
        other_dim: usize,
    },
    /// A head index beyond the state.
    #[error("head {head} of a state of {num_heads} heads")]
    HeadIndex {
        /// The index given.
        head: usize,
        /// Heads of the state.
        num_heads: usize,
    },
}

/// Refuses `tensor` unless it has exactly `expected` elements.
pub(crate) fn check_len(
    tensor: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), AttnError> {
    if actual == expected { Ok(()) } else { Err(AttnError::Length { tensor, expected, actual }) }
}

/// Refuses `tensor` if it holds a NaN or an infinity.
pub(crate) fn check_finite(tensor: &'static str, values: &[f32]) -> Result<(), AttnError> {
    const EXPONENT: u32 = 0x7F80_0000;
    const CHUNK: usize = 1024;
    for (chunk_idx, chunk) in values.chunks(CHUNK).enumerate() {
        // No early exit inside a chunk, so that it becomes vector code: this runs over whole prompts.
        let any =
            chunk.iter().fold(0, |any, x| any | u32::from(x.to_bits() & EXPONENT == EXPONENT));
        if any != 0
            && let Some(offset) = chunk.iter().position(|x| !x.is_finite())
        {
            let index = chunk_idx * CHUNK + offset;
            return Err(AttnError::NotFinite { tensor, index, value: values[index] });
        }
    }
    Ok(())
}
