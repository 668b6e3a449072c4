//! The running softmax that kernels keep while they walk over tokens.
//!
//! After any number of tokens, row r holds the largest score seen, `max`, and relative to it the
//! un-normalised `sum = sum_t exp(s_t - max)` and `weighted = sum_t exp(s_t - max) v_t`. A larger score
//! rescales both (Milakov and Gimelshein, arXiv 1805.02867). Dividing happens once, at the end.

use crate::error::check_len;
use crate::simd::strip::VALUE_LANES;
use crate::{AttnError, AttnState};

/// Un-normalised attention of some rows (heads, or heads times query tokens), in f32.
#[derive(Clone, Debug)]
pub struct Accumulator {
    pub(crate) head_dim: usize,
    /// `head_dim` rounded up to whole vectors; the lanes beyond it stay zero.
    pub(crate) row_stride: usize,
    /// `[num_rows]`, minus infinity before the first token.
    pub(crate) max: Vec<f32>,
    /// `[num_rows]`.
    pub(crate) sum: Vec<f32>,
    /// `[num_rows, row_stride]`.
    pub(crate) weighted: Vec<f32>,
}

impl Accumulator {
    /// `num_rows` empty rows of `head_dim` channels.
    #[must_use]
    pub fn new(num_rows: usize, head_dim: usize) -> Self {
        let row_stride = head_dim.next_multiple_of(VALUE_LANES);
        Self {
            head_dim,
            row_stride,
            max: vec![f32::NEG_INFINITY; num_rows],
            sum: vec![0.0; num_rows],
            weighted: vec![0.0; num_rows * row_stride],
        }
    }

    /// Rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.max.len()
    }

    /// Makes every row empty again, keeping the memory.
    pub fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.weighted.fill(0.0);
    }

    /// Takes in one token: its score (already scaled) and its value row `[head_dim]`.
    ///
    /// A score of minus infinity is a masked token and changes nothing. A NaN spreads.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadIndex`] and [`AttnError::Length`].
    pub fn push(&mut self, row: usize, score: f32, value: &[f32]) -> Result<(), AttnError> {
        self.push_weighted(row, score, 1.0, value)
    }

    /// Takes in a set of tokens at once: `max` of their scores, `sum` of `exp(score - max)`, and the
    /// sum of their value rows under those weights, `weighted [head_dim]`.
    ///
    /// An empty set has a `max` of minus infinity and changes nothing. A NaN spreads.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadIndex`] and [`AttnError::Length`].
    pub fn push_weighted(
        &mut self,
        row: usize,
        max: f32,
        sum: f32,
        weighted: &[f32],
    ) -> Result<(), AttnError> {
        self.check_row(row)?;
        check_len("weighted", self.head_dim, weighted.len())?;
        if max == f32::NEG_INFINITY {
            return Ok(());
        }
        let old_max = self.max[row];
        let new_max = old_max.max(max);
        // exp(-inf) is 0 for a row that was empty.
        let (old_scale, new_scale) = ((old_max - new_max).exp(), (max - new_max).exp());
        self.max[row] = new_max;
        self.sum[row] = self.sum[row] * old_scale + sum * new_scale;
        let start = row * self.row_stride;
        for (own, new) in self.weighted[start..start + self.head_dim].iter_mut().zip(weighted) {
            *own = *own * old_scale + new * new_scale;
        }
        Ok(())
    }

    /// Writes the normalised output `[head_dim]` of one row and returns its lse (natural logarithm):
    /// zero and minus infinity for a row that saw nothing.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadIndex`] and [`AttnError::Length`].
    pub fn finish_row(&self, row: usize, out: &mut [f32]) -> Result<f32, AttnError> {
        self.check_row(row)?;
        check_len("out", self.head_dim, out.len())?;
        Ok(self.write_row(row, out))
    }

    /// The state in which head h is row h of this accumulator.
    #[must_use]
    pub fn finish(&self) -> AttnState {
        let mut out = vec![0.0; self.num_rows() * self.head_dim];
        let lse = (0..self.num_rows())
            .map(|row| self.write_row(row, &mut out[row * self.head_dim..][..self.head_dim]))
            .collect();
        AttnState::of_rows(self.head_dim, out, lse)
    }

    /// [`Accumulator::finish_row`] of a row that exists into an output of its size.
    pub(crate) fn write_row(&self, row: usize, out: &mut [f32]) -> f32 {
        // Asked of the sum, not of the maximum, which does not show a NaN among the scores.
        if self.sum[row] == 0.0 {
            out.fill(0.0);
            return f32::NEG_INFINITY;
        }
        // The sum is at least 1: the largest score contributes exp(0).
        let share = 1.0 / self.sum[row];
        for (out, weighted) in out.iter_mut().zip(&self.weighted[row * self.row_stride..]) {
            *out = weighted * share;
        }
        self.max[row] + self.sum[row].ln()
    }

    fn check_row(&self, row: usize) -> Result<(), AttnError> {
        if row < self.num_rows() {
            Ok(())
        } else {
            Err(AttnError::HeadIndex { head: row, num_heads: self.num_rows() })
        }
    }
}
