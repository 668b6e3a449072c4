//! What can go wrong in this crate.

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A mass outside (0, 1].
    #[error("top-p must lie in (0, 1], not {top_p}")]
    TopP {
        /// The mass that was asked for.
        top_p: f32,
    },
    /// A floor above the cap.
    #[error("at least {min} rows and at most {max} cannot both hold; lower min or raise max")]
    MinAboveMax {
        /// The floor.
        min: usize,
        /// The cap.
        max: usize,
    },
    /// A count of rows that selects nothing.
    #[error("{what} must be at least 1; without a limit, leave it out")]
    ZeroRows {
        /// Which count.
        what: &'static str,
    },
    /// A weight that is not a weight.
    #[error("weight {weight} at token {token} is not a finite number of at least 0")]
    Weight {
        /// Index within the weights.
        token: usize,
        /// The value found.
        weight: f32,
    },
}
