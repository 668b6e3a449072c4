//! Formats for keys, values and weights: encode, decode, score rows, sum rows.
//!
//! Every operation exists as a scalar form and as SIMD forms that are held to it; which one runs is a
//! [`Level`], a value chosen once by the caller and passed down.
//!
//! This crate knows no model, no device and no cache. It never allocates pages and never does I/O.

pub mod simd;
pub mod weights;

pub use simd::Level;
