//! How many tokens each head keeps under one budget.
//!
//! A budget here is tokens of all heads it is shared by; bytes and ratios are turned into tokens by
//! whoever knows what a token takes. Every rule ends in one count for each head, and
//! [`keep_best`](crate::keep_best) finds which tokens these are.
//!
//! | [`Budget`] | counts by |
//! | --- | --- |
//! | uniform | [`apportion`] with equal weights |
//! | pyramid | [`apportion`] with [`Pyramid::shares`] |
//! | adaptive | [`adaptive`] |
//! | global | [`global`] |
//! | norm drop | [`norm_drop`] |
//! | votes | [`keep_voted`](crate::keep_voted), which keeps what it keeps |
//! | stability | [`beside_whole`] with weights of a head profile |
//! | profile | [`apportion`] with weights of a file |

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result, words};

mod apportion;
mod joint;
mod norm;
mod pyramid;

pub use apportion::{apportion, beside_whole};
pub use joint::{adaptive, global};
pub use norm::{LastQueries, norm_drop};
pub use pyramid::Pyramid;

/// How a budget is shared over layers and heads.
///
/// As words: `uniform`, `pyramid:BETA`, `pyramid-within:BETA`, `adaptive:FLOOR`, `global`,
/// `norm-drop:THETA`, `norm-drop-tail:THETA`, `votes`, `stability`, `profile`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The same for all heads.
    Uniform,
    /// More in lower layers, the mean of all over the narrowest by this much, at least 1 (PyramidKV,
    /// arXiv 2406.02069: 20).
    Pyramid(f64),
    /// [`Budget::Pyramid`] with the last tokens, which every layer keeps, counted within what falls from layer to
    /// layer, as NVIDIA kvpress does.
    PyramidWithin(f64),
    /// Within a layer to the heads with the highest scores, each at least this part of an equal share, in
    /// [0, 1] (Ada-KV, arXiv 2407.11550: 0.2).
    Adaptive(f64),
    /// To the highest scores of all layers and heads, in whole pages (KV-Compress, arXiv 2410.00161).
    Global,
    /// As few tokens per layer as leave the norm of the last query's attention within this drop, in
    /// [0, 1] (DBudgetKV, arXiv 2502.16886: 0.05). Sets its own budget.
    NormDrop(f64),
    /// [`Budget::NormDrop`] with the sinks left out of the norm, which they would be all of.
    NormDropTail(f64),
    /// Whatever has a recent vote (CORM, arXiv 2404.15949). Sets its own budget.
    Votes,
    /// By inverse stability: volatile and pivot heads keep everything, unstable ones of the others more than
    /// stable ones (HeteroCache, arXiv 2601.13684).
    Stability,
    /// By weights that were searched for offline (BaKlaVa, arXiv 2502.13176).
    Profile,
}

/// Budgets without a number.
const PLAIN: [(&str, Budget); 5] = [
    ("uniform", Budget::Uniform),
    ("global", Budget::Global),
    ("votes", Budget::Votes),
    ("stability", Budget::Stability),
    ("profile", Budget::Profile),
];

const KNOWN: &str = "uniform, pyramid:BETA, pyramid-within:BETA, adaptive:FLOOR, global, norm-drop:THETA, \
                     norm-drop-tail:THETA, votes, stability, profile";

impl Budget {
    /// Whether it says by itself how much is kept.
    #[must_use]
    pub fn sets_its_own(self) -> bool {
        matches!(self, Self::NormDrop(_) | Self::NormDropTail(_) | Self::Votes)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pyramid(beta) => write!(f, "pyramid:{beta}"),
            Self::PyramidWithin(beta) => write!(f, "pyramid-within:{beta}"),
            Self::Adaptive(floor) => write!(f, "adaptive:{floor}"),
            Self::NormDrop(theta) => write!(f, "norm-drop:{theta}"),
            Self::NormDropTail(theta) => write!(f, "norm-drop-tail:{theta}"),
            plain => words::write(f, plain, &PLAIN),
        }
    }
}

impl FromStr for Budget {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let unknown = || words::unknown("budget", word, KNOWN);
        let Some((name, number)) = word.split_once(':') else {
            return words::find("budget", word, &PLAIN).map_err(|_| unknown());
        };
        let number = words::number("budget", word, number, KNOWN)?;
        match name {
            "pyramid" | "pyramid-within" => {
                pyramid::check_beta(number)?;
                let of = if name == "pyramid" { Self::Pyramid } else { Self::PyramidWithin };
                Ok(of(number))
            }
            "adaptive" => Ok(Self::Adaptive(share("floor", number)?)),
            "norm-drop" => Ok(Self::NormDrop(share("norm drop", number)?)),
            "norm-drop-tail" => Ok(Self::NormDropTail(share("norm drop", number)?)),
            _ => Err(unknown()),
        }
    }
}

/// A number in [0, 1], or an error that says which one is not.
fn share(what: &'static str, value: f64) -> Result<f64> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(Error::Range { what, range: "[0, 1]", value }),
    }
}

#[cfg(test)]
mod tests;
