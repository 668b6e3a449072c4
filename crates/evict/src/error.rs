//! What can go wrong in this crate.

use crate::Scorer;

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
    /// A threshold where only a mass or a count will do.
    #[error(
        "a threshold says neither a mass nor a count, by which a GPU selects; take top-p or top-k there, or the CPU"
    )]
    NoMass,
    /// A word that names nothing.
    #[error("unknown {what} '{word}'; known are {known}")]
    UnknownWord {
        /// What the word was read as.
        what: &'static str,
        /// The word as given.
        word: String,
        /// The words that would be accepted.
        known: String,
    },
    /// A count that must not be 0.
    #[error("{what} must be at least 1")]
    Zero {
        /// Which count.
        what: &'static str,
    },
    /// A number outside its range.
    #[error("{what} must lie in {range}, not {value}")]
    Range {
        /// Which number.
        what: &'static str,
        /// The range, in words.
        range: &'static str,
        /// The value found.
        value: f64,
    },
    /// A slice of another length than the others ask for.
    #[error("{what}: {actual} values where {expected} were expected")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Its length.
        actual: usize,
        /// The length that fits.
        expected: usize,
    },
    /// An index beyond what there is.
    #[error("{what} {index} of {count}")]
    Index {
        /// Which index.
        what: &'static str,
        /// Its value.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Rows that are not whole.
    #[error("{len} values of {what} are not whole rows of {head_dim}")]
    Rows {
        /// Which rows.
        what: &'static str,
        /// The values given.
        len: usize,
        /// The length of a row.
        head_dim: usize,
    },
    /// Positions that do not rise.
    #[error(
        "position at index {index} is not above the one before it; give each once, in rising order"
    )]
    Ascending {
        /// Index within the positions.
        index: usize,
    },
    /// A step of a monitor was passed over whose set can change its decision.
    #[error(
        "the set of step {step} of a look at drift can change what comes of it; give it to observe"
    )]
    SetNeeded {
        /// Steps of the look before it.
        step: usize,
    },
    /// A score that cannot be compared.
    #[error("the score of token {token} is not a number")]
    NotANumber {
        /// Index within the scores.
        token: usize,
    },
    /// A weight of a share that is no weight.
    #[error("weight {weight} of share {share} is not a finite number of at least 0")]
    ShareWeight {
        /// Index within the weights.
        share: usize,
        /// The value found.
        weight: f64,
    },
    /// A budget below what is kept in any case.
    #[error(
        "a budget of {budget} tokens cannot hold the {least} that are kept in any case (sinks, recent tokens, \
         floors in whole pages, heads kept whole); raise it or ask for fewer of these"
    )]
    BudgetTooSmall {
        /// Tokens of the budget.
        budget: usize,
        /// Tokens that it must hold at least.
        least: usize,
    },
    /// Attention was shown to a scorer that does not look at it.
    #[error("scorer '{scorer}' does not look at attention; give it rows of keys or none")]
    NoAttention {
        /// The scorer.
        scorer: Scorer,
    },
    /// Statistics of queries where none were added.
    #[error(
        "no query behind the {sinks} sinks was added; expected attention needs a longer prompt"
    )]
    NoQueries {
        /// Sinks that are left out of the statistics.
        sinks: usize,
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
}
