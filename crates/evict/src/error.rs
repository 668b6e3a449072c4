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
    /// A threshold of overlaps outside (0, 1].
    #[error("{what} must lie in (0, 1], not {value}")]
    HeadThreshold {
        /// Which threshold.
        what: &'static str,
        /// The value that was given.
        value: f64,
    },
    /// Another number of values than there are heads, or pairs of them.
    #[error("{what} has {actual} values for heads that need {expected}")]
    HeadLength {
        /// Which values.
        what: &'static str,
        /// Values found.
        actual: usize,
        /// Values needed.
        expected: usize,
    },
    /// What is to be an overlap of two sets and is none.
    #[error("the {what} {value} of head {head} does not lie in [0, 1]")]
    Overlap {
        /// What was given.
        what: &'static str,
        /// Index of the head.
        head: usize,
        /// The value found.
        value: f64,
    },
    /// Heads of which one is nearer to the other than the other to it.
    #[error("the similarity of heads {first} and {second} is not that of {second} and {first}")]
    Asymmetric {
        /// Index of the one.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// A satellite whose pivot is no pivot of its layer.
    #[error("head {head} is a satellite of head {pivot}, which is no pivot of its layer")]
    NoPivot {
        /// The satellite.
        head: usize,
        /// What it names as its pivot.
        pivot: usize,
    },
    /// A pivot that no head is a satellite of.
    #[error("head {head} is a pivot without satellites")]
    NoSatellite {
        /// The pivot.
        head: usize,
    },
    /// A word that is no role of a head.
    #[error("unknown role '{word}' of a head; known are anchor, volatile, pivot and satellite:N")]
    UnknownRole {
        /// The word as given.
        word: String,
    },
}
