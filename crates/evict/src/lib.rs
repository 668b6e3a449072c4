//! Token selection: scores and budgets in, positions out.
//!
//! Pure functions over their arguments: no I/O, no device, nothing of the other crates. *Selection* is
//! per step and forgets nothing; it decides which coded tokens a step reads from the host.

mod error;
mod roles;
mod select;

pub use error::{Error, Result};
pub use roles::{HeadRole, check_roles, check_threshold, classify, overlap, stability_weights};
pub use select::{Enough, Rule, SelectScratch, Selector, Union};
