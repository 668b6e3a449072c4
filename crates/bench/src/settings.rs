//! What the suites of a run share: what is wanted, how often, how long, on how many threads.

use heterokv_quant::Level;
use rayon::ThreadPool;

use crate::selection::Selection;

/// The settings of a run.
#[derive(Clone)]
pub(crate) struct Settings<'a> {
    pub(crate) selection: Selection,
    /// Specs of the caches, `full` first.
    pub(crate) caches: Vec<String>,
    /// Tokens, in place of those of each suite; empty where each has its own.
    pub(crate) contexts: Vec<usize>,
    /// Samples of each case.
    pub(crate) num_rounds: usize,
    /// How long a sample takes at least, seconds.
    pub(crate) sample_seconds: f64,
    pub(crate) level: Level,
    pub(crate) pool: &'a ThreadPool,
}

impl Settings<'_> {
    /// The contexts asked for, or `usual`.
    pub(crate) fn contexts_or<'c>(&'c self, usual: &'c [usize]) -> &'c [usize] {
        if self.contexts.is_empty() { usual } else { &self.contexts }
    }

    /// Says where the run is.
    pub(crate) fn say(&self, message: &str) {
        eprintln!("{message}");
    }
}
