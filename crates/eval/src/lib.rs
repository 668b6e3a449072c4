//! Quality of a compressed KV cache against the full one: KL, top-1, perplexity, recall.
//!
//! A context is prefilled once, into every cache under test and into `full`, by the call that `generate`
//! uses; then each cache is fed the same tokens one at a time, and its next-token distributions are
//! compared with those of `full`.
//!
//! This crate prints nothing and reads no file.

mod compare;
mod error;
mod logits;
mod metrics;

pub use compare::{CacheResult, Mode, Window, compare_caches};
pub use error::{Error, Result};
pub use logits::{LogitsReport, LogitsRow, logits_report};
pub use metrics::{Distribution, kl_divergence};
