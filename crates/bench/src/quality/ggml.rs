//! The block formats of llama.cpp that its caches are kept in, by their definition: 32 elements of a row share
//! a scale in half precision. Rotated, keys and queries first pass through our randomised Hadamard rotation.
//!
//! `q8_0`: codes −127…127, scale = largest magnitude / 127. `q4_0`: codes 0…15 that mean −8…7, scale = the
//! element of largest magnitude / −8, so that this element is met exactly on its own side.

use anyhow::Result;
use half::f16;
use heterokv_quant::Rotation;

use super::{CodedScores, HeadKeys, KeyCodec};

/// Elements that share a scale.
const BLOCK: usize = 32;

/// Of the rotation; any will do.
const SEED: u64 = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Q8_0,
    Q4_0,
}

pub(super) struct Ggml {
    pub(super) block: Block,
    pub(super) is_rotated: bool,
}

impl Block {
    fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 2 + BLOCK,
            Self::Q4_0 => 2 + BLOCK / 2,
        }
    }

    /// Replaces a block by what its codes mean.
    fn round_trip(self, values: &mut [f32]) {
        let largest =
            values.iter().copied().fold(0.0f32, |a, x| if x.abs() > a.abs() { x } else { a });
        let (scale, zero, limit) = match self {
            Self::Q8_0 => (largest.abs() / 127.0, 0.0, 127.0),
            Self::Q4_0 => (largest / -8.0, 8.0, 15.0),
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let stored = f16::from_f32(scale).to_f32();
        for x in values {
            let code = match self {
                Self::Q8_0 => (*x * inverse).round(),
                Self::Q4_0 => (*x * inverse + 8.5).trunc(),
            };
            *x = stored * (code.min(limit) - zero);
        }
    }
}

impl KeyCodec for Ggml {
    fn name(&self) -> String {
        let name = format!("llama.cpp {:?}", self.block).to_lowercase();
        if self.is_rotated { format!("{name}, rotated") } else { name }
    }

    fn scores(&self, head: &HeadKeys<'_>) -> Result<Option<CodedScores>> {
        if !head.head_dim.is_multiple_of(BLOCK) {
            return Ok(None);
        }
        let (mut keys, mut queries) = (head.keys.to_vec(), head.queries.to_vec());
        if self.is_rotated {
            let rotation = Rotation::new(head.head_dim, SEED)?;
            for rows in [&mut keys, &mut queries] {
                rows.chunks_exact_mut(head.head_dim).for_each(|row| rotation.forward(row));
            }
        }
        keys.chunks_exact_mut(BLOCK).for_each(|block| self.block.round_trip(block));
        let scores = head.dot_products(&queries, &keys);
        Ok(Some(CodedScores {
            bits_per_element: 8.0 * self.block.bytes() as f64 / BLOCK as f64,
            scores: scores.iter().map(|&s| s as f32).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_rounded_by_their_definition() {
        let mut block = [0.0f32; BLOCK];
        block[..4].copy_from_slice(&[-8.0, 7.0, 0.4, -0.6]);
        let mut four = block;
        Block::Q4_0.round_trip(&mut four);
        assert_eq!(four[..5], [-8.0, 7.0, 0.0, -1.0, 0.0]);
        // The largest on the other side: the scale is negative, and 8 itself is out of reach on this one.
        let mut mirrored = block.map(|x| -x);
        Block::Q4_0.round_trip(&mut mirrored);
        assert_eq!(mirrored[..4], [8.0, -7.0, 0.0, 1.0]);
        let mut eight = [0.0f32; BLOCK];
        eight[..3].copy_from_slice(&[127.0, -126.6, 0.4]);
        Block::Q8_0.round_trip(&mut eight);
        assert_eq!(eight[..3], [127.0, -127.0, 0.0]);
        let mut zeros = [0.0f32; BLOCK];
        Block::Q4_0.round_trip(&mut zeros);
        assert_eq!(zeros, [0.0; BLOCK]);
    }

    #[test]
    fn bits_are_those_of_the_blocks() {
        assert_eq!((Block::Q8_0.bytes(), Block::Q4_0.bytes()), (34, 18));
    }
}
