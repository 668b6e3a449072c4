//! Token selection: scores and budgets in, positions out.
//!
//! Pure functions over their arguments: no I/O, no device, nothing of the other crates. *Selection* is
//! per step and forgets nothing; it decides which coded tokens a step reads from the host.

mod error;
mod select;

pub use error::{Error, Result};
pub use select::{Enough, Rule, SelectScratch, Selector, Union};
