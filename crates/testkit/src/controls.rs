//! Negative controls: a right answer is damaged the way kernels go wrong, and the check must object.
//!
//! A parity test whose check would also accept these proves nothing, so every parity loop runs them
//! once on one of its cases.

use crate::guard::Patterned as _;

/// One way of being wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sabotage {
    /// The largest element has the other sign.
    SignFlip,
    /// The row that holds the largest element is 5 % too large.
    ScaledRow,
    /// Every token holds its predecessor's rows, the first one the last one's.
    ShiftedToken,
    /// The first and the last head are exchanged in every token.
    SwappedHeads,
    /// One element is NaN.
    NotANumber,
    /// One row was never written: it still holds the poison pattern of [`crate::Guarded`].
    UntouchedRow,
    /// Nothing was written.
    UntouchedBuffer,
    /// Everything is zero, as when a dispatch did nothing.
    AllZero,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::SignFlip,
        Self::ScaledRow,
        Self::ShiftedToken,
        Self::SwappedHeads,
        Self::NotANumber,
        Self::UntouchedRow,
        Self::UntouchedBuffer,
        Self::AllZero,
    ];
}

/// The layout of the answer to damage: `[num_tokens, num_heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Heads per token.
    pub num_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl Controls {
    /// Runs `check` on `good`, which it must accept, and on every sabotage of it, which it must not.
    ///
    /// Returns the sabotages that were tried. One that changes nothing (heads swapped where there is
    /// one head, rows shifted where all are equal) is not tried; a caller for whom it matters asserts
    /// that it is in the list.
    ///
    /// # Panics
    ///
    /// When `good` is not whole tokens or holds none, when `check` refuses it, or when `check`
    /// accepts a sabotage.
    #[track_caller]
    pub fn assert_rejects<S, E: std::fmt::Display>(
        &self,
        good: &[f32],
        check: impl Fn(&[f32]) -> Result<S, E>,
    ) -> Vec<Sabotage> {
        let token_len = self.num_heads * self.head_dim;
        assert!(
            token_len > 0 && !good.is_empty() && good.len().is_multiple_of(token_len),
            "{} elements are not whole tokens of {} heads of {}",
            good.len(),
            self.num_heads,
            self.head_dim,
        );
        if let Err(error) = check(good) {
            panic!("the check refuses the answer that the controls start from: {error}");
        }
        let mut tried = Vec::new();
        for sabotage in Sabotage::ALL {
            let bad = self.apply(sabotage, good);
            if bad.iter().zip(good).all(|(a, b)| a.same_bits(*b)) {
                continue;
            }
            assert!(check(&bad).is_err(), "the check accepts {sabotage:?}");
            tried.push(sabotage);
        }
        tried
    }

    /// The answer `good`, damaged.
    #[must_use]
    pub fn apply(&self, sabotage: Sabotage, good: &[f32]) -> Vec<f32> {
        let mut bad = good.to_vec();
        let token_len = self.num_heads * self.head_dim;
        let largest = (0..good.len()).max_by(|&a, &b| good[a].abs().total_cmp(&good[b].abs()));
        let Some(largest) = largest else { return bad };
        let row_start = largest / self.head_dim * self.head_dim;
        let row = row_start..row_start + self.head_dim;
        match sabotage {
            Sabotage::SignFlip => bad[largest] = -bad[largest],
            Sabotage::ScaledRow => bad[row].iter_mut().for_each(|value| *value *= 1.05),
            Sabotage::ShiftedToken => bad.rotate_right(token_len),
            Sabotage::SwappedHeads => {
                for token in bad.chunks_exact_mut(token_len) {
                    let (first, rest) = token.split_at_mut(self.head_dim);
                    if let Some(last) = rest.chunks_exact_mut(self.head_dim).last() {
                        first.swap_with_slice(last);
                    }
                }
            }
            Sabotage::NotANumber => bad[largest] = f32::NAN,
            Sabotage::UntouchedRow => bad[row].fill(f32::POISON),
            Sabotage::UntouchedBuffer => bad.fill(f32::POISON),
            Sabotage::AllZero => bad.fill(0.0),
        }
        bad
    }
}
