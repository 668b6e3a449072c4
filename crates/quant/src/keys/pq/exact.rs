//! The few tokens of a block that are kept exactly, those whose codes are furthest from them.
//!
//! A block ends with `count` slots, each the number of a token and one more (0 for an empty slot), and its
//! coordinates in f16.

use crate::saturate::to_f16;

/// Tokens of a block that has slots.
pub(crate) const EXACT_BLOCK_TOKENS: usize = 128;

/// The slots of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExactSlots {
    pub(super) count: usize,
    pub(super) head_dim: usize,
}

impl ExactSlots {
    pub(super) fn bytes(self) -> usize {
        self.count * self.slot_bytes()
    }

    fn slot_bytes(self) -> usize {
        1 + 2 * self.head_dim
    }

    /// Keeps the tokens of the largest of `errors [EXACT_BLOCK_TOKENS]`, unless they are 0; of equals the first.
    /// `coordinates` holds those of all tokens.
    pub(super) fn write(self, slots: &mut [u8], errors: &[f32], coordinates: &[f32]) {
        slots.fill(0);
        let mut tokens: Vec<usize> = (0..errors.len()).filter(|&t| errors[t] > 0.0).collect();
        tokens.sort_by(|&a, &b| errors[b].total_cmp(&errors[a]));
        for (slot, token) in slots.chunks_exact_mut(self.slot_bytes()).zip(tokens) {
            slot[0] = (token + 1) as u8;
            let row = &coordinates[token * self.head_dim..][..self.head_dim];
            for (bytes, &x) in slot[1..].chunks_exact_mut(2).zip(row) {
                bytes.copy_from_slice(&to_f16(x).to_le_bytes());
            }
        }
    }

    /// The tokens that are kept, and their coordinates in f16 `[head_dim]`.
    pub(super) fn read(self, slots: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
        slots.chunks_exact(self.slot_bytes()).filter_map(|slot| {
            let token = usize::from(slot[0]).checked_sub(1)?;
            (token < EXACT_BLOCK_TOKENS).then_some((token, &slot[1..]))
        })
    }
}
