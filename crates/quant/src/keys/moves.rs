//! Codes that move as they are, from one place to another, without being decoded.
//!
//! A block of one group moves as a whole. In a strip the codes of 32 tokens lie between each other: what a token has
//! of it are nibbles of planes, then pairs of bytes, then single bytes, each row of them in the order of the tokens.

use super::planes::{PLANE_BYTES, STRIP, place_of};
use super::{KeyCoder, KeyLayout, Tail};

/// What a token has in a strip: so many nibbles, then pairs of bytes, then bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct StripCells {
    nibbles: usize,
    pairs: usize,
    bytes: usize,
}

impl StripCells {
    /// A strip of planes of nibbles, or of pairs of bytes, and the tails of its tokens.
    pub(super) fn new(nibbles: usize, pairs: usize, tail: Tail) -> Self {
        match tail {
            Tail::None => Self { nibbles, pairs, bytes: 0 },
            Tail::Exponent => Self { nibbles, pairs, bytes: 1 },
            Tail::Scale => Self { nibbles, pairs: pairs + 1, bytes: 0 },
            Tail::ScaleZero => Self { nibbles, pairs: pairs + 2, bytes: 0 },
        }
    }

    /// Copies what a token has in a strip to another slot, of another strip.
    fn copy(self, from: &[u8], from_slot: usize, to: &mut [u8], to_slot: usize) {
        let (from_planes, from_rest) = from.split_at(self.nibbles * PLANE_BYTES);
        let (to_planes, to_rest) = to.split_at_mut(self.nibbles * PLANE_BYTES);
        let ((from_place, from_shift), (place, shift)) = (place_of(from_slot), place_of(to_slot));
        let planes = from_planes.chunks_exact(PLANE_BYTES);
        for (from, to) in planes.zip(to_planes.chunks_exact_mut(PLANE_BYTES)) {
            let nibble = from[from_place] >> from_shift & 15;
            to[place] = to[place] & !(15 << shift) | nibble << shift;
        }
        let (from_pairs, from_bytes) = from_rest.split_at(self.pairs * 2 * STRIP);
        let (to_pairs, to_bytes) = to_rest.split_at_mut(self.pairs * 2 * STRIP);
        copy_rows::<2>(from_pairs, from_slot, to_pairs, to_slot);
        copy_rows::<1>(&from_bytes[..self.bytes * STRIP], from_slot, to_bytes, to_slot);
    }
}

/// Copies one cell of `WIDTH` bytes of each row of [`STRIP`] cells.
fn copy_rows<const WIDTH: usize>(from: &[u8], from_slot: usize, to: &mut [u8], to_slot: usize) {
    let rows = from.chunks_exact(WIDTH * STRIP).zip(to.chunks_exact_mut(WIDTH * STRIP));
    for (from, to) in rows {
        to[WIDTH * to_slot..][..WIDTH].copy_from_slice(&from[WIDTH * from_slot..][..WIDTH]);
    }
}

impl KeyLayout {
    /// Whether every token is coded alone, so that [`KeyCoder::copy_group`] moves tokens one by one; others move with the
    /// group that they share a scale or exact slots with.
    #[must_use]
    pub fn moves_tokens(&self) -> bool {
        self.group_tokens == 1
    }
}

impl KeyCoder {
    /// Copies the codes of the group of tokens that begins with `from_token` of `from` to where `to_token` begins one of
    /// `to`, as they are: both decode to the same keys, to the bit, and have the same scores. The codes of other tokens of
    /// `to` are left as they are. Both hold whole blocks, and both tokens are multiples of the layout's `group_tokens`.
    ///
    /// The last few tokens of those that are scored, fewer than a vector has, may be summed in another order than the
    /// others: a token has the same scores to the bit where both or none of its places are among those.
    ///
    /// # Panics
    /// When a token does not begin a group, or the codes do not hold it.
    pub fn copy_group(&self, from: &[u8], from_token: usize, to: &mut [u8], to_token: usize) {
        let group_len = self.layout.group_tokens * self.head_dim;
        self.check_span(from_token, group_len, from.len());
        self.check_span(to_token, group_len, to.len());
        let KeyLayout { block_tokens, block_bytes, .. } = self.layout;
        let from = &from[from_token / block_tokens * block_bytes..][..block_bytes];
        let to = &mut to[to_token / block_tokens * block_bytes..][..block_bytes];
        match self.codec.strip_cells() {
            None => to.copy_from_slice(from),
            Some(cells) => cells.copy(from, from_token % block_tokens, to, to_token % block_tokens),
        }
    }
}
