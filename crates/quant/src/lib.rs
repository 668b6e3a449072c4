//! Formats for keys, values and weights: encode, decode, score rows, sum rows.
//!
//! Every operation exists as a scalar form and as SIMD forms that are held to it; which one runs is a
//! [`Level`], a value chosen once by the caller and passed down.
//!
//! This crate knows no model, no device and no cache. It never allocates pages and never does I/O.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod affine;
mod bits;
mod error;
mod grouped;
pub mod keys;
pub mod mix;
mod rotation;
pub mod rows;
mod saturate;
pub mod simd;
pub mod weights;

pub use error::{Error, Result};
pub use grouped::GroupSize;
pub use keys::{
    AllocatedChannel, Cell, ChannelCodes, ChannelQueries, CodePlane, Encoding, FitInput,
    FrameChannel, FrameCodes, GroupFrame, GroupTables, KEY_FORMATS, KeyCoder, KeyFormat, KeyLayout,
    PlaneTables, Precision, PreparedQueries, QueryFrame, ScoreRows, SharedScale, Strips, Tail,
    TokenRule,
};
pub use rotation::Rotation;
pub use rows::{
    GroupQueries, PageRows, RowFormat, RowLayout, RowRun, RowSource, ScoredVectors, VectorList,
    WeightedRows,
};
pub use simd::Level;
