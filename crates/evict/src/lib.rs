//! Token selection: scores and budgets in, positions out.
//!
//! Pure functions over their arguments: no I/O, no device, nothing of the other crates. *Selection*
//! ([`Selector`]) is per step and forgets nothing; it decides which coded tokens a step reads from the host.
//! *Eviction* forgets: a [`Scoring`] says what each token of a KV head is worth, a budget how many a head
//! keeps, and [`keep_best`] which; a [`Schedule`] says when. A [`HeadRole`] says what a KV head is to its cache.

mod budget;
mod error;
mod keep;
mod overlap;
mod roles;
mod schedule;
mod scoring;
mod select;
mod simd;
mod token_set;
mod words;

pub use budget::{
    Budget, LastQueries, Pyramid, adaptive, apportion, beside_whole, global, norm_drop,
};
pub use error::{Error, Result};
pub use keep::{keep_best, keep_voted, top_positions};
pub use overlap::overlap;
pub use roles::{HeadRole, check_roles, check_threshold, classify, stability_weights};
pub use schedule::{DriftMonitor, Schedule};
pub use scoring::{
    ExpectedQueries, ExpectedScores, Gqa, Pool, PromptEvidence, RotaryTurns, Scorer, Scoring,
    key_diff, key_norm, per_query,
};
pub use select::{Enough, Rule, SelectScratch, Selector, Union};
pub use token_set::TokenSet;
