//! The comparer: f32 results against an f64 reference, where anything not provably close fails.

use std::fmt;

/// How far a result may be from its reference: `|actual - expected| <= absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Allowed distance whatever the size of the expected value.
    pub absolute: f64,
    /// Allowed distance as a share of the magnitude of the expected value.
    pub relative: f64,
}

impl Tolerance {
    /// Only equal numbers pass (and infinities of one sign).
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };

    /// The tolerance that a kernel has earned: twice the worst error of a naive implementation at
    /// the kernel's storage type, plus `epsilon` times the norm of what went in.
    ///
    /// - `naive`: what a textbook implementation gives on the same inputs.
    /// - `expected`: the f64 reference.
    /// - `epsilon`: the unit roundoff of the storage type (`f32::EPSILON` as f64 for f32).
    /// - `norm`: the size of a typical result's terms, such as the largest magnitude of a value row;
    ///   it keeps the bound above zero where the naive path happened to be exact.
    ///
    /// The relative part is `epsilon`. A naive result that is not finite, or of another length than
    /// the reference, earns a NaN tolerance, which nothing passes.
    #[must_use]
    pub fn derived(naive: &[f32], expected: &[f64], epsilon: f64, norm: f64) -> Self {
        if naive.len() != expected.len() {
            return Self { absolute: f64::NAN, relative: epsilon };
        }
        let mut worst = 0.0_f64;
        for (&got, &want) in naive.iter().zip(expected) {
            let error = distance(f64::from(got), want);
            // `max` would drop a NaN.
            if error.is_nan() {
                return Self { absolute: f64::NAN, relative: epsilon };
            }
            worst = worst.max(error);
        }
        let absolute = if worst.is_finite() { 2.0 * worst + epsilon * norm } else { f64::NAN };
        Self { absolute, relative: epsilon }
    }

    /// The distance allowed from `expected`.
    #[must_use]
    pub fn allowed(&self, expected: f64) -> f64 {
        self.absolute + self.relative * expected.abs()
    }
}

/// What a successful comparison saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Elements compared, at least one.
    pub num_compared: usize,
    /// Largest `|actual - expected|`.
    pub max_error: f64,
    /// Where the element nearest to its limit stands.
    pub worst_index: usize,
    /// The largest share of its allowed distance that any element used, at most 1.
    pub worst_share: f64,
    /// `sum((actual - expected)^2) / sum(expected^2)`, see [`normalised_mean_square_error`].
    pub nmse: f64,
}

/// Why a comparison failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// What was compared, for the message; set by [`Mismatch::at`].
    pub label: String,
    /// The seed of the inputs, for the message; set by [`Mismatch::at`].
    pub seed: Option<u64>,
    /// What was wrong.
    pub kind: MismatchKind,
}

/// The ways a comparison fails.
#[derive(Clone, Debug, PartialEq)]
pub enum MismatchKind {
    /// Nothing was compared, which is never a success.
    Empty,
    /// The two sides have different lengths.
    Length {
        /// Elements of the result.
        actual: usize,
        /// Elements of the reference.
        expected: usize,
    },
    /// At least one element is not within the tolerance.
    NotWithin {
        /// The element furthest beyond its limit; a NaN counts as furthest.
        index: usize,
        /// The result at `index`.
        actual: f32,
        /// The reference at `index`.
        expected: f64,
        /// The tolerance that was asked for.
        tolerance: Tolerance,
        /// Elements that are not within.
        num_failed: usize,
        /// Elements compared.
        num_compared: usize,
    },
}

impl Mismatch {
    /// Names the case and the seed in the message.
    #[must_use]
    pub fn at(mut self, label: impl Into<String>, seed: u64) -> Self {
        self.label = label.into();
        self.seed = Some(seed);
        self
    }
}

impl From<MismatchKind> for Mismatch {
    fn from(kind: MismatchKind) -> Self {
        Self { label: String::new(), seed: None, kind }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.label.is_empty() {
            write!(f, "{}: ", self.label)?;
        }
        match &self.kind {
            MismatchKind::Empty => f.write_str("nothing to compare")?,
            MismatchKind::Length { actual, expected } => {
                write!(f, "{actual} elements where {expected} were expected")?;
            }
            MismatchKind::NotWithin {
                index,
                actual,
                expected,
                tolerance,
                num_failed,
                num_compared,
            } => write!(
                f,
                "{num_failed} of {num_compared} elements are not within tolerance, worst at \
                 {index}: {actual:e} where {expected:e} was expected, off by {:e}, allowed {:e} \
                 (absolute {:e}, relative {:e})",
                distance(f64::from(*actual), *expected),
                tolerance.allowed(*expected),
                tolerance.absolute,
                tolerance.relative,
            )?,
        }
        match self.seed {
            Some(seed) => write!(f, ", seed {seed}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Compares element by element, in f64.
///
/// A NaN on either side fails, infinities pass only against an infinity of the same sign, and an
/// empty comparison fails: it would prove nothing.
///
/// # Errors
///
/// [`Mismatch`] naming the worst element.
pub fn compare(
    actual: &[f32],
    expected: &[f64],
    tolerance: Tolerance,
) -> Result<Summary, Mismatch> {
    if actual.len() != expected.len() {
        return Err(MismatchKind::Length { actual: actual.len(), expected: expected.len() }.into());
    }
    if actual.is_empty() {
        return Err(MismatchKind::Empty.into());
    }
    let mut num_failed = 0;
    let (mut max_error, mut worst_index, mut worst_share) = (0.0_f64, 0, -1.0_f64);
    for (index, (&got, &want)) in actual.iter().zip(expected).enumerate() {
        let error = distance(f64::from(got), want);
        let allowed = tolerance.allowed(want);
        // An infinite error is never within, though the limit at an infinite reference is infinite.
        let within = if error == 0.0 {
            !tolerance.absolute.is_nan() && !tolerance.relative.is_nan()
        } else {
            error.is_finite() && error <= allowed
        };
        let share = match within {
            true if error == 0.0 => 0.0,
            true => error / allowed,
            false => {
                num_failed += 1;
                // Beyond every element that passed, and NaN beyond everything.
                let beyond = error / allowed;
                if beyond.is_nan() { f64::INFINITY } else { beyond.max(1.0 + f64::EPSILON) }
            }
        };
        if share > worst_share {
            (worst_index, worst_share) = (index, share);
        }
        max_error = max_error.max(error);
    }
    if num_failed > 0 {
        return Err(MismatchKind::NotWithin {
            index: worst_index,
            actual: actual[worst_index],
            expected: expected[worst_index],
            tolerance,
            num_failed,
            num_compared: actual.len(),
        }
        .into());
    }
    Ok(Summary {
        num_compared: actual.len(),
        max_error,
        worst_index,
        worst_share,
        nmse: normalised_mean_square_error(actual, expected),
    })
}

/// [`compare`] for a test body.
///
/// # Panics
///
/// With the mismatch, the label and the seed, when the comparison fails.
#[track_caller]
pub fn assert_close(
    label: &str,
    seed: u64,
    actual: &[f32],
    expected: &[f64],
    tolerance: Tolerance,
) -> Summary {
    match compare(actual, expected, tolerance) {
        Ok(summary) => summary,
        Err(mismatch) => panic!("{}", mismatch.at(label, seed)),
    }
}

/// `sum((actual - expected)^2) / sum(expected^2)`: the error's share of the signal's energy.
///
/// 0 where both are zero everywhere, infinite where only the reference is. NaN when the lengths
/// differ, when there is nothing to compare, or when either side holds a NaN or an infinity that the
/// other does not match; a test should therefore ask `nmse <= limit`, never `!(nmse > limit)`.
#[must_use]
pub fn normalised_mean_square_error(actual: &[f32], expected: &[f64]) -> f64 {
    if actual.len() != expected.len() || actual.is_empty() {
        return f64::NAN;
    }
    let (mut noise, mut signal) = (0.0, 0.0);
    for (&got, &want) in actual.iter().zip(expected) {
        let error = distance(f64::from(got), want);
        noise += error * error;
        // A matched infinity carries no error and would drown every other element.
        if want.is_finite() || error != 0.0 {
            signal += want * want;
        }
    }
    if noise == 0.0 { 0.0 } else { noise / signal }
}

/// `|a - b|`, where two equal infinities are at distance 0 (their difference would be NaN).
fn distance(a: f64, b: f64) -> f64 {
    if a == b { 0.0 } else { (a - b).abs() }
}
