//! Quality of a compressed KV cache against the full one: KL, top-1, perplexity, recall.
//!
//! A context is prefilled once, into every cache under test and into `full`, by the call that `generate`
//! uses; then each cache is fed the same tokens one at a time, and its next-token distributions are
//! compared with those of `full`.
//!
//! What a key format costs in the attention of a single head is measured too ([`ExactAttention`]), and by it
//! formats are chosen head by head ([`measure_sensitivity`]). Tables are fitted on texts longer than a context
//! ([`fit_profile`]). What a head attends to says what it is to a cache ([`measure_heads`]), and what it changes how
//! much of one it should have ([`measure_importance`]); which budgets cost least is tried ([`mean_divergences`]).
//!
//! Programs of others are measured on the same windows by a process of their own ([`Peer`]).
//!
//! This crate prints nothing. It reads and writes no files but those that it is given: records of LongBench, results
//! and gates; and it starts no processes but peers.

mod aggregate;
mod attention;
mod bootstrap;
mod divergence;
mod error;
mod evaluate;
mod fit;
mod gate;
mod hash;
mod head_importance;
mod head_roles;
mod heads;
mod logits;
mod mean_divergence;
mod metric;
mod peer;
mod projected;
mod prompting;
mod reading;
mod report;
mod results;
mod row;
mod selection;
mod sensitivity;
mod side_by_side;
mod subject;
mod task;
#[cfg(test)]
mod test_rows;

pub use aggregate::{Aggregate, Figure, aggregate};
pub use attention::{AttentionError, ExactAttention, exact_scores};
pub use divergence::{Distribution, Steps, Summary, kl_divergence};
pub use error::{Error, Result};
pub use evaluate::{Engine, Job, Watcher, evaluate, inputs_digest};
pub use fit::{FitRows, Pieces, fit_profile, visit_fit_rows};
pub use gate::{Gate, Gated, Regression};
pub use head_importance::{
    BudgetChoice, BudgetGrid, HeadImportance, Objective, measure_importance,
};
pub use head_roles::measure_heads;
pub use heads::{ExactTokens, HeadRows, HeadSample, LayerRows, relative_energy, visit_layers};
pub use logits::{LogitsReport, LogitsRow, logits_report};
pub use mean_divergence::mean_divergences;
pub use metric::Metric;
pub use peer::{
    InstalledPeers, Peer, PeerEngine, PeerError, PeerInfo, PeerLine, PeerQuality, PeerRequest,
    PeerSetting, PeerSpeed, PeerSpeedRequest, PeerWindow, evaluate_peer,
};
pub use prompting::{Asked, Prompting};
pub use report::{html, markdown};
pub use results::{Results, read_rows};
pub use row::{Answer, Memory, Outcome, ROW_VERSION, Row, Run, Time};
pub use sensitivity::{KeyUse, Sensitivity, SensitivitySettings, measure_sensitivity};
pub use side_by_side::{Said, SideBySide};
pub use subject::{Candidate, Replace, Subject};
pub use task::{Inputs, Probe, Question, Sample, Settings, Task, task, tasks};
