//! What can go wrong in this crate.

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system gave no memory, or the arena's limit is reached.
    #[error(
        "the {arena} arena cannot give {requested_bytes} bytes more, {in_use_bytes} are in use; \
         use a shorter context, a smaller cache spec or a larger limit"
    )]
    OutOfMemory {
        /// Name of the arena.
        arena: &'static str,
        /// Bytes asked for.
        requested_bytes: usize,
        /// Bytes in use.
        in_use_bytes: usize,
    },
    /// A row that is not in the store.
    #[error("row {row} was asked for, layer {layer}, KV head {kv_head} holds {num_rows}")]
    NoSuchRow {
        /// Position asked for.
        row: u32,
        /// Layer.
        layer: usize,
        /// KV head.
        kv_head: usize,
        /// Rows held.
        num_rows: usize,
    },
    /// A row cannot be encoded.
    #[error("layer {layer}, KV head {kv_head}: {source}")]
    Encode {
        /// Layer.
        layer: usize,
        /// KV head.
        kv_head: usize,
        /// The reason.
        source: heterokv_quant::Error,
    },
}
