//! How a coder turns queries into the tables of [`PlaneTables`](super::PlaneTables), as data for kernels that do it
//! elsewhere.
//!
//! Every format whose codes lie in planes does the same with a query, with other numbers:
//!
//! ```text
//! x[i] = scale[i] · q[order[i]], then a Walsh-Hadamard transform in blocks where there is one
//! tables[p, n] = Σ over the channels i of plane p of x[i] · value(the part of nibble n that is i's)
//! offset = Σ over i of x[i] · offset[i],   sum = Σ over i of x[i],   bias = Σ over c of q[c] · centre[c]
//! ```

use super::planes::Planes;
use super::{CodePlane, KeyCoder, KeyFormat, PlaneTables, SharedScale, Tail};
use crate::Rotation;
use crate::simd::keys::Values;

/// What a coder does with a query before its planes are scored.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryFrame {
    /// By coded position `[head_dim]`.
    pub channels: Vec<FrameChannel>,
    /// Channels of a block of the Walsh–Hadamard transform, a power of two; 1 where there is none.
    pub transform_block: usize,
    /// The planes of a strip, in their order.
    pub planes: Vec<CodePlane>,
    /// What a part of a nibble stands for; none where it is itself.
    pub levels: Option<[f32; 16]>,
    /// What follows the planes of a strip.
    pub tail: Tail,
}

/// What a frame knows of a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrameChannel {
    /// The channel at this coded position.
    pub order: u16,
    /// What the query is multiplied by there.
    pub scale: f32,
    /// What the key is about in the channel of this number, coded position or not.
    pub centre: f32,
    /// What the query, in the frame, adds to the offset.
    pub offset: f32,
}

impl KeyFormat {
    /// Whether coders of this format for keys of `head_dim` channels have a [frame](KeyCoder::query_frame).
    #[must_use]
    pub fn has_query_frame(&self, head_dim: usize) -> bool {
        match *self {
            Self::IntToken { bits } | Self::Rotated { bits, scale: SharedScale::Token } => bits < 8,
            Self::LloydMax { bits } | Self::LloydMaxPlain { bits } => bits != 3,
            // Codes of 8 bits in every channel lie in rows of bytes.
            Self::Alloc { .. } => self.alloc_code_bytes(head_dim) < head_dim,
            _ => false,
        }
    }
}

impl KeyCoder {
    /// How tables are made of queries; none where this coder's codes do not lie in planes, or where a plane is more
    /// than parts of channels (product quantization).
    #[must_use]
    pub fn query_frame(&self) -> Option<QueryFrame> {
        self.codec.query_frame()
    }
}

impl QueryFrame {
    /// Of codes in the order of channels, without scales and centres.
    pub(super) fn plain(planes: &Planes, head_dim: usize) -> Self {
        let channel = |order| FrameChannel { order, scale: 1.0, centre: 0.0, offset: 0.0 };
        Self {
            channels: (0..head_dim as u16).map(channel).collect(),
            transform_block: 1,
            planes: planes.code_planes().collect(),
            levels: match planes.values() {
                Values::Integer => None,
                Values::Levels(levels) => Some(*levels),
            },
            tail: planes.tail(),
        }
    }

    /// The same of queries that are rotated first.
    pub(super) fn rotated(mut self, rotation: &Rotation) -> Self {
        for (channel, sign) in self.channels.iter_mut().zip(rotation.signs()) {
            channel.scale *= sign;
        }
        self.transform_block = rotation.block();
        self
    }

    /// The tables of `queries [num_heads, head_dim]`, by the formula alone: what
    /// [`KeyCoder::plane_tables`] gives, up to the order of sums.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn tables(&self, queries: &[f32], sm_scale: f32) -> PlaneTables {
        let head_dim = self.channels.len();
        assert!(queries.len().is_multiple_of(head_dim), "whole queries");
        let (mut tables, mut finals) = (Vec::new(), Vec::new());
        for query in queries.chunks_exact(head_dim) {
            let scaled = self
                .channels
                .iter()
                .map(|channel| sm_scale * channel.scale * query[usize::from(channel.order)]);
            let mut x: Vec<f32> = scaled.collect();
            x.chunks_exact_mut(self.transform_block).for_each(crate::rotation::walsh_hadamard);
            for plane in &self.planes {
                tables.extend((0..16u8).map(|nibble| self.product(*plane, nibble, &x)));
            }
            let offset = x.iter().zip(&self.channels).map(|(x, c)| x * c.offset).sum();
            let bias = query.iter().zip(&self.channels).map(|(q, c)| sm_scale * q * c.centre).sum();
            finals.push([offset, x.iter().sum(), bias, 0.0]);
        }
        PlaneTables { num_planes: self.planes.len(), tail: self.tail, tables, finals }
    }

    fn product(&self, plane: CodePlane, nibble: u8, x: &[f32]) -> f32 {
        let mask = (1u8 << plane.bits) - 1;
        let part = |i: usize| (nibble >> (i as u8 * plane.bits) & mask) << plane.shift;
        let value = |i| match &self.levels {
            None => f32::from(part(i)),
            Some(levels) => levels[usize::from(part(i))],
        };
        let count = 4 / usize::from(plane.bits);
        (0..count).map(|i| x[plane.first_channel as usize + i] * value(i)).sum()
    }
}
