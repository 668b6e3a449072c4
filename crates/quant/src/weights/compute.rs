//! The names of the compute forms.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// The form that a matrix is held and multiplied in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComputeType {
    /// f32 weights.
    F32,
    /// f16 weights, f32 arithmetic.
    F16,
    /// Weights in 8 bits, or in 4 where the tensor has no more, with an f16 scale (and offset) per 32 columns. Up to four
    /// vectors have 16-bit activations, integer dot products inside a block and f32 sums over the blocks; more, as in a
    /// prompt, meet the weights in f32.
    Q8,
    /// As `Q8` for up to four vectors. [`WeightMatrix::gemm`](super::WeightMatrix::gemm) of more rounds activations to 8
    /// bits for every 32 columns, and what that leaves once more where a block's scale is over 1.5 times the mean of its
    /// vector's, or where there are at most eight vectors.
    Q8A8,
}

impl fmt::Display for ComputeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q8A8 => "q8a8",
        })
    }
}

impl FromStr for ComputeType {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "q8" => Ok(Self::Q8),
            "q8a8" => Ok(Self::Q8A8),
            _ => Err(Error::UnknownComputeType { given: word.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ComputeType;
    use crate::Error;

    #[test]
    fn words_name_the_forms() {
        for compute in [ComputeType::F32, ComputeType::F16, ComputeType::Q8, ComputeType::Q8A8] {
            assert_eq!(compute.to_string().parse::<ComputeType>().unwrap(), compute);
        }
        let error = "Q8".parse::<ComputeType>().unwrap_err();
        assert!(matches!(&error, Error::UnknownComputeType { given } if given == "Q8"));
        assert!(error.to_string().contains("f32, f16, q8, q8a8"));
    }
}
