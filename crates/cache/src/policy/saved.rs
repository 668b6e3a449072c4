//! What is saved of a policy: what a prompt has decided, and what is expected of queries behind it.

use std::io::Write;

use heterokv_evict::ExpectedScores;
use heterokv_offload::Attachment;
use serde::{Deserialize, Serialize};

use super::Policy;
use crate::saved::damaged;
use crate::{KvShape, Result};

/// A policy in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedPolicy {
    /// Tokens that limits are for; 0 where there are none yet.
    limits_at: usize,
    /// Whether something is expected of queries.
    expects: bool,
}

impl SavedPolicy {
    /// Bytes of the policy of a cache of so many tokens; none where its numbers are no policy's.
    pub(crate) fn num_bytes(&self, shape: &KvShape, num_tokens: usize) -> Option<u64> {
        let of_head = if self.expects { num_expected(shape) } else { 0 };
        let bytes = 8 * (1 + of_head) * shape.places().count();
        // Limits are made for the token that comes.
        (self.limits_at <= num_tokens + 1).then_some(bytes as u64)
    }
}

fn num_expected(shape: &KvShape) -> usize {
    ExpectedScores::num_numbers(shape.heads.group_size(), shape.heads.head_dim)
}

impl Policy {
    pub(crate) fn saved(&self) -> SavedPolicy {
        let expects = self.expected.iter().any(Option::is_some);
        SavedPolicy { limits_at: self.limits_at, expects }
    }

    /// Writes of each head its weight, and what is expected of its queries.
    pub(crate) fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for (weight, expected) in self.allotment.weights.iter().zip(&self.expected) {
            out.write_all(&weight.to_le_bytes())?;
            for number in expected.iter().flat_map(ExpectedScores::numbers) {
                out.write_all(&number.to_le_bytes())?;
            }
        }
        Ok(())
    }

    /// Reads what was written of a policy into a new one.
    pub(crate) fn read(
        &mut self,
        saved: &SavedPolicy,
        shape: &KvShape,
        data: &mut Attachment,
    ) -> Result<()> {
        let mut number = || -> Result<f64> {
            let mut bytes = [0; 8];
            data.read_exact(&mut bytes)?;
            Ok(f64::from_le_bytes(bytes))
        };
        for (weight, expected) in self.allotment.weights.iter_mut().zip(&mut self.expected) {
            *weight = number()?;
            if !(weight.is_finite() && *weight >= 0.0) {
                return Err(damaged("the share of a head is none"));
            }
            if saved.expects {
                let numbers = (0..num_expected(shape)).map(|_| number());
                let numbers = numbers.collect::<Result<Vec<f64>>>()?;
                if numbers.iter().any(|x| x.is_nan()) {
                    return Err(damaged("what is expected of queries is not a number"));
                }
                *expected = Some(ExpectedScores::from_numbers(shape.heads.head_dim, &numbers)?);
            }
        }
        self.limits_at = saved.limits_at;
        if self.limits_at > 0 {
            self.limits = self.allotment.limits(self.limits_at)?;
        }
        Ok(())
    }
}
