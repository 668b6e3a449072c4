//! Which tokens the queries of a prompt attend to.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;

/// Which of the tokens up to its own a query of a prompt attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefillPattern {
    /// All of them: attention as the model was trained with, of a cost that grows with the square of the prompt.
    #[default]
    Exact,
    /// The first block, the anchor, and its own block, after Star Attention (Acharya et al., arXiv 2411.17116):
    /// of a cost that grows with the prompt.
    ///
    /// Positions stay those of the prompt. As there the query behind a context attends to all of it, so do
    /// the last `block` tokens here, among which a question is.
    Anchor {
        /// Tokens of a block.
        block: NonZeroUsize,
        /// Tokens before its own block that a query attends to as well.
        recent: usize,
    },
}

impl PrefillPattern {
    /// The tokens that the query of token `position` leaves out of a prompt of `num_tokens`, to which it
    /// belongs; empty where it leaves none out.
    #[must_use]
    pub fn left_out(self, position: usize, num_tokens: usize) -> Range<usize> {
        match self {
            Self::Anchor { block, recent } if !is_in_last(block, position, num_tokens) => {
                let own = position / block * block.get();
                let end = own.saturating_sub(recent);
                if block.get() < end { block.get()..end } else { 0..0 }
            }
            _ => 0..0,
        }
    }

    /// The first token behind `position` whose query leaves out others, or the end of the prompt.
    pub(super) fn next_change(self, position: usize, num_tokens: usize) -> usize {
        match self {
            Self::Anchor { block, .. } if !is_in_last(block, position, num_tokens) => {
                let next = (position / block + 1).saturating_mul(block.get());
                next.min(num_tokens - block.get())
            }
            _ => num_tokens,
        }
    }
}

/// Whether a token of a prompt is one of the last `block`, which attend to everything.
fn is_in_last(block: NonZeroUsize, position: usize, num_tokens: usize) -> bool {
    num_tokens.saturating_sub(position) <= block.get()
}

impl fmt::Display for PrefillPattern {
    /// As in a cache spec: `exact`, `anchor:BLOCK` or `anchor:BLOCK:RECENT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Anchor { block, recent: 0 } => write!(f, "anchor:{block}"),
            Self::Anchor { block, recent } => write!(f, "anchor:{block}:{recent}"),
        }
    }
}
