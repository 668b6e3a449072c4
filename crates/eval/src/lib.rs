//! Quality of a compressed KV cache against the full one: KL, top-1, perplexity, recall.
//!
//! A context is prefilled once, into every cache under test and into `full`, by the call that `generate`
//! uses; then each cache is fed the same tokens one at a time, and its next-token distributions are
//! compared with those of `full`.
//!
//! What a key format costs in the attention of a single head is measured too ([`ExactAttention`]), and by it
//! formats are chosen head by head ([`measure_sensitivity`]). Tables are fitted on texts longer than a context
//! ([`fit_profile`]).
//!
//! Programs of others are measured on the same windows by a process of their own ([`Peer`]).
//!
//! This crate prints nothing and reads no file.

mod attention;
mod compare;
mod error;
mod fit;
mod heads;
mod logits;
mod metrics;
mod peer;
mod projected;
mod selection;
mod sensitivity;

pub use attention::{AttentionError, ExactAttention, exact_scores};
pub use compare::{CacheResult, Mode, Window, compare_caches};
pub use error::{Error, Result};
pub use fit::{FitRows, Pieces, fit_profile, visit_fit_rows};
pub use heads::{ExactTokens, HeadRows, HeadSample, LayerRows, relative_energy, visit_layers};
pub use logits::{LogitsReport, LogitsRow, logits_report};
pub use metrics::{Distribution, kl_divergence};
pub use peer::{
    Peer, PeerEngine, PeerError, PeerInfo, PeerLine, PeerQuality, PeerRequest, PeerSpeed,
    PeerSpeedRequest, PeerSteps, PeerWindow,
};
pub use sensitivity::{KeyUse, Sensitivity, SensitivitySettings, measure_sensitivity};
