//! Finished parts of attention, and their exact merge.
//!
//! Over a set of tokens T, a head's state is
//!
//! ```text
//! lse(T) = ln sum_{t in T} exp(s_t)              natural logarithm
//! out(T) = sum_{t in T} exp(s_t - lse(T)) v_t    normalised
//! ```
//!
//! For disjoint A and B, `lse(A + B) = ln(exp(lse A) + exp(lse B))` and `out(A + B)` is the mean of the
//! two outputs weighted by `exp(lse)`: nothing else about A and B is needed. This is the merge of
//! FlashInfer (Ye et al., arXiv 2501.01005, section 2.2) and of ring attention.

use crate::AttnError;
use crate::error::check_len;

/// Attention over some set of tokens, for each head of a layer.
///
/// ```
/// use heterokv_attn::AttnState;
///
/// // One head of two channels: parts over one token each, of scores 0 and ln 3.
/// let mut state = AttnState::from_parts(2, vec![1.0, 0.0], vec![0.0])?;
/// let other = AttnState::from_parts(2, vec![0.0, 1.0], vec![3.0f32.ln()])?;
/// state.merge(&other)?;
/// assert!((state.out()[0] - 0.25).abs() < 1e-6 && (state.out()[1] - 0.75).abs() < 1e-6);
/// assert!((state.lse()[0] - 4.0f32.ln()).abs() < 1e-6);
///
/// // Nothing changes nothing.
/// let merged = state.clone();
/// state.merge(&AttnState::empty(1, 2))?;
/// assert_eq!(state, merged);
/// # Ok::<(), heterokv_attn::AttnError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AttnState {
    num_heads: usize,
    head_dim: usize,
    /// `[num_heads, head_dim]`, normalised; zero where the set is empty.
    out: Vec<f32>,
    /// `[num_heads]`, natural logarithm; minus infinity where the set is empty.
    lse: Vec<f32>,
}

impl AttnState {
    /// Attention over nothing: zero outputs and an lse of minus infinity. Merging with it, on either
    /// side, changes nothing.
    #[must_use]
    pub fn empty(num_heads: usize, head_dim: usize) -> Self {
        Self {
            num_heads,
            head_dim,
            out: vec![0.0; num_heads * head_dim],
            lse: vec![f32::NEG_INFINITY; num_heads],
        }
    }

    /// A state from its parts, `out [num_heads, head_dim]` and `lse [num_heads]`.
    ///
    /// # Errors
    ///
    /// [`AttnError::Length`] when `out` is not `lse.len()` rows of `head_dim`.
    pub fn from_parts(head_dim: usize, out: Vec<f32>, lse: Vec<f32>) -> Result<Self, AttnError> {
        check_len("out", lse.len().saturating_mul(head_dim), out.len())?;
        Ok(Self::of_rows(head_dim, out, lse))
    }

    /// [`AttnState::from_parts`] where the sizes agree by construction.
    pub(crate) fn of_rows(head_dim: usize, out: Vec<f32>, lse: Vec<f32>) -> Self {
        debug_assert_eq!(out.len(), lse.len() * head_dim);
        Self { num_heads: lse.len(), head_dim, out, lse }
    }

    /// Makes this state empty again, keeping its memory.
    pub fn reset(&mut self) {
        self.out.fill(0.0);
        self.lse.fill(f32::NEG_INFINITY);
    }

    /// Query heads.
    #[must_use]
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }

    /// Channels per head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Normalised outputs `[num_heads, head_dim]`, f32.
    #[must_use]
    pub fn out(&self) -> &[f32] {
        &self.out
    }

    /// Log-sum-exp of the scores `[num_heads]`, f32, natural logarithm.
    #[must_use]
    pub fn lse(&self) -> &[f32] {
        &self.lse
    }

    /// The output `[head_dim]` and lse of one head, to write a result into.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadIndex`].
    pub fn head_mut(&mut self, head: usize) -> Result<(&mut [f32], &mut f32), AttnError> {
        self.check_head(head)?;
        let row = head * self.head_dim..(head + 1) * self.head_dim;
        Ok((&mut self.out[row], &mut self.lse[head]))
    }

    /// Turns this state into the one over both sets of tokens, which must be disjoint.
    ///
    /// Commutative to the bit, associative up to rounding. A NaN in either state spreads into the
    /// result; two empty states give an empty one.
    ///
    /// # Errors
    ///
    /// [`AttnError::StateShape`] when the two are of different layers.
    pub fn merge(&mut self, other: &Self) -> Result<(), AttnError> {
        if (self.num_heads, self.head_dim) != (other.num_heads, other.head_dim) {
            return Err(AttnError::StateShape {
                num_heads: self.num_heads,
                head_dim: self.head_dim,
                other_heads: other.num_heads,
                other_dim: other.head_dim,
            });
        }
        for head in 0..self.num_heads {
            let row = head * self.head_dim..(head + 1) * self.head_dim;
            merge_rows(
                (&mut self.out[row.clone()], &mut self.lse[head]),
                (&other.out[row], 1.0, other.lse[head]),
            );
        }
        Ok(())
    }

    /// [`AttnState::merge`] of a single head with the output `out [head_dim]` and the lse (natural
    /// logarithm) of another part.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadIndex`] and [`AttnError::Length`].
    pub fn merge_head(&mut self, head: usize, out: &[f32], lse: f32) -> Result<(), AttnError> {
        self.merge_share(head, out, 1.0, lse)
    }

    /// [`AttnState::merge_head`] with the output `share · weighted`.
    pub(crate) fn merge_share(
        &mut self,
        head: usize,
        weighted: &[f32],
        share: f32,
        lse: f32,
    ) -> Result<(), AttnError> {
        check_len("out", self.head_dim, weighted.len())?;
        let own = self.head_mut(head)?;
        merge_rows(own, (weighted, share, lse));
        Ok(())
    }

    /// Divides one head by a larger normaliser than that of the rows it was summed over: the output
    /// is multiplied by `exp(lse - full_lse)`, the mass that the rows hold, and the lse becomes
    /// `full_lse` (natural logarithm).
    ///
    /// This is `renorm=off`: a selection keeps the softmax weights it had among all tokens, so that
    /// the mass that was not selected pulls the output towards zero. An empty head stays zero.
    ///
    /// # Errors
    ///
    /// [`AttnError::HeadIndex`].
    pub fn widen_normaliser(&mut self, head: usize, full_lse: f32) -> Result<(), AttnError> {
        let (out, lse) = self.head_mut(head)?;
        if *lse != f32::NEG_INFINITY {
            let mass = (*lse - full_lse).exp();
            out.iter_mut().for_each(|x| *x *= mass);
        }
        *lse = full_lse;
        Ok(())
    }

    fn check_head(&self, head: usize) -> Result<(), AttnError> {
        if head < self.num_heads {
            Ok(())
        } else {
            Err(AttnError::HeadIndex { head, num_heads: self.num_heads })
        }
    }
}

/// Merges `b` into `a` of one head: an output and its lse, and an output, what it is to be multiplied with, and its lse.
fn merge_rows(a: (&mut [f32], &mut f32), b: (&[f32], f32, f32)) {
    let (a_out, a_lse) = a;
    let (b_out, b_factor, b_lse) = b;
    // Minus infinity is compared for rather than left to arithmetic: the difference of two empty
    // states would be NaN, and merging with an empty one is to be the identity to the bit.
    if b_lse == f32::NEG_INFINITY {
        return;
    }
    if *a_lse == f32::NEG_INFINITY {
        a_out.iter_mut().zip(b_out).for_each(|(a, b)| *a = b * b_factor);
        *a_lse = b_lse;
        return;
    }
    let max = a_lse.max(b_lse);
    let distance = (*a_lse - b_lse).abs();
    let (a_weight, b_weight) = ((*a_lse - max).exp(), (b_lse - max).exp());
    // One of the weights is 1, so the sum is in [1, 2] and its logarithm loses nothing.
    let sum = a_weight + b_weight;
    let (a_share, b_share) = (a_weight / sum, b_factor * (b_weight / sum));
    for (a, b) in a_out.iter_mut().zip(b_out) {
        *a = *a * a_share + b * b_share;
    }
    // The smaller weight, from the distance: `min` of the two would drop a NaN.
    *a_lse = max + (-distance).exp().ln_1p();
}
