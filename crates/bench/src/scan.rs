//! The scan of coded keys that a decode step spends its time in, by every format, beside two yardsticks.
//!
//! A case is a format, a shape and a place (`Place`): codes that fit the L2 cache, or codes many times
//! larger than any cache. Each thread scores its own share of the tokens of one KV head, a block of
//! [`SCORE_BLOCK`] tokens at a time; the scores of a block are consumed, as the largest of each query head,
//! and overwritten by the next, so that they stay in cache. Queries are prepared once per case.
//!
//! The yardsticks are the same scan over the same keys in f16, and the read bandwidth of the machine. A
//! sample of a case stands between samples of both.

mod bars;
mod coded;
mod expected;
mod grid;
mod probe;
mod report;

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use heterokv_quant::{Level, Precision};
use rayon::ThreadPool;

use crate::synthetic;

pub(crate) use bars::{Judgement, judge};
pub(crate) use coded::OurFormat;
pub use expected::Expected;
pub(crate) use grid::measure;
pub(crate) use probe::Probe;
pub(crate) use report::{
    bandwidth_sheet, bar_shape_sheet, samples_sheet, scan_sheet, shapes_sheet,
};

/// Tokens of which the scores exist at a time, in every thread.
pub const SCORE_BLOCK: usize = 512;

/// Different keys; longer streams of codes repeat theirs, which no cache can tell.
pub const PERIOD_TOKENS: usize = 4096;

/// The keys that every format codes.
#[derive(Debug)]
pub struct ScanKeys {
    /// Length of a key.
    pub head_dim: usize,
    /// Keys `[PERIOD_TOKENS, head_dim]`, post-RoPE.
    pub keys: Vec<f32>,
    /// Mean of q² per channel `[head_dim]` over queries like those that will meet these keys, over its mean.
    pub query_energy: Vec<f32>,
    /// Queries `[16, head_dim]`, of which a case takes the first.
    queries: Vec<f32>,
}

/// Query heads that there are queries for.
pub(crate) const MAX_GROUP_SIZE: usize = 16;

impl ScanKeys {
    /// Keys and queries of a [synthetic head](synthetic::head).
    #[must_use]
    pub fn new(head_dim: usize) -> Self {
        let rows = synthetic::head(0x5eed, head_dim, 1, PERIOD_TOKENS);
        let query_energy = synthetic::energy(&rows.queries, head_dim);
        let last = rows.queries.len() - MAX_GROUP_SIZE * head_dim;
        let queries = rows.queries[last..].to_vec();
        Self { head_dim, keys: rows.keys, query_energy, queries }
    }

    /// Queries `[group_size, head_dim]` of one KV head's group; at most 16.
    ///
    /// # Errors
    /// For a larger group.
    pub fn queries(&self, group_size: usize) -> Result<&[f32]> {
        let queries = self.queries.get(..group_size * self.head_dim);
        queries.ok_or_else(|| {
            anyhow::anyhow!("at most {MAX_GROUP_SIZE} query heads, not {group_size}")
        })
    }

    /// What `sm_scale` is for these keys.
    #[must_use]
    pub fn sm_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// What a thread of the pool works on; a panic in another run has ended this one anyway.
pub(crate) fn locked<T>(lane: &Mutex<T>) -> MutexGuard<'_, T> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A way of coding keys whose scan can be timed: one of our formats, or a peer.
pub trait ScanFormat {
    /// How tables call it.
    fn name(&self) -> String;

    /// Codes the keys; `None` where the format does not hold rows of this length.
    ///
    /// # Errors
    /// What the format refuses.
    fn encode<'a>(&self, keys: &'a ScanKeys) -> Result<Option<Box<dyn Coded + 'a>>>;
}

/// Coded keys, from which streams of codes of any length are laid out.
pub trait Coded {
    /// Bytes that a scan reads per token, tables aside.
    fn bytes_per_token(&self) -> f64;

    /// The arithmetic that it can be asked for.
    fn arithmetics(&self) -> &'static [Arithmetic];

    /// Lays out the codes of one task, at least [`PERIOD_TOKENS`] or what `num_bytes` holds.
    ///
    /// # Errors
    /// What the format refuses.
    fn lay_out<'a>(&'a self, task: &ScanTask<'a>) -> Result<Box<dyn Scan + 'a>>;
}

/// What is scanned, by whom and how.
#[derive(Clone, Copy, Debug)]
pub struct ScanTask<'a> {
    /// The keys that were coded.
    pub keys: &'a ScanKeys,
    /// Queries `[group_size, head_dim]`.
    pub queries: &'a [f32],
    /// What the scores may round.
    pub arithmetic: Arithmetic,
    /// Bytes of codes, of all threads together.
    pub num_bytes: usize,
    /// The instruction set of our own kernels.
    pub level: Level,
    /// The threads, each of which takes its own share of the tokens.
    pub pool: &'a ThreadPool,
}

/// Codes laid out and queries prepared.
pub trait Scan {
    /// Scores the next tokens, about `num_tokens` of all threads together, from where the last call ended,
    /// and begins again at the end; returns how many there were.
    ///
    /// # Errors
    /// What a peer refuses.
    fn run(&mut self, num_tokens: usize) -> Result<usize>;

    /// Compares scores at several places, and the largest that the runs so far have seen, with the
    /// decoded keys' in f64.
    ///
    /// # Errors
    /// A score that is wrong.
    fn check(&mut self) -> Result<()>;
}

/// What a scan may round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// [`Precision::Exact`].
    Exact,
    /// [`Precision::Select`].
    Select,
    /// What a peer does.
    Own,
}

impl Arithmetic {
    /// How tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Select => "select",
            Self::Own => "its own",
        }
    }

    /// As our kernels take it; that of a peer is exact to them.
    #[must_use]
    pub fn precision(self) -> Precision {
        match self {
            Self::Select => Precision::Select,
            _ => Precision::Exact,
        }
    }
}

/// Where the codes are when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In every thread's L2 cache.
    Cache,
    /// In memory: many times the size of any cache, read from end to end.
    Memory,
}

impl Place {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Memory => "memory",
        }
    }
}
