//! How a coder brings queries into the frame of its codes, as data for kernels that do it elsewhere.
//!
//! Every format whose codes are numbers of channels does the same with a query, with other numbers:
//!
//! ```text
//! x[i] = scale[i] · q[order[i]], then a Walsh-Hadamard transform in blocks where there is one
//! offset = Σ over i of x[i] · offset[i],   sum = Σ over i of x[i],   bias = Σ over c of q[c] · centre[c]
//! ```
//!
//! Where codes lie channel by channel, `x` is what meets them ([`ChannelQueries`]); where they lie in planes, tables are
//! made of it ([`PlaneTables`]):
//!
//! ```text
//! tables[p, n] = Σ over the channels i of plane p of x[i] · value(the part of nibble n that is i's)
//! ```

use super::codes::TokenCodes;
use super::planes::Planes;
use super::{ChannelCodes, ChannelQueries, CodePlane, KeyCoder, KeyFormat, PlaneTables};
use super::{SharedScale, Tail};
use crate::Rotation;
use crate::simd::keys::Values;

/// What a coder does with a query before its codes are scored.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryFrame {
    /// By coded position `[head_dim]`.
    pub channels: Vec<FrameChannel>,
    /// Channels of a block of the Walsh–Hadamard transform, a power of two; 1 where there is none.
    pub transform_block: usize,
    /// What a query meets in its frame.
    pub codes: FrameCodes,
}

/// Where the codes lie that a framed query meets.
#[derive(Clone, Debug, PartialEq)]
pub enum FrameCodes {
    /// Channel by channel.
    Channels(ChannelCodes),
    /// In strips of nibble planes.
    Planes {
        /// The planes of a strip, in their order.
        planes: Vec<CodePlane>,
        /// What a part of a nibble stands for; none where it is itself.
        levels: Option<[f32; 16]>,
        /// What follows the planes of a strip.
        tail: Tail,
    },
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
    /// Whether coders of this format have a [frame](KeyCoder::query_frame).
    #[must_use]
    pub fn has_query_frame(&self) -> bool {
        match *self {
            Self::F16
            | Self::IntToken { .. }
            | Self::IntChannel { .. }
            | Self::Rotated { scale: SharedScale::Token | SharedScale::Channel { .. }, .. }
            | Self::Alloc { .. } => true,
            Self::LloydMax { bits } | Self::LloydMaxPlain { bits } => bits != 3,
            _ => false,
        }
    }
}

impl KeyFormat {
    /// Nibble planes of a strip that a framed query meets; 0 where codes lie channel by channel, or there is no frame.
    #[must_use]
    pub fn num_planes(&self, head_dim: usize) -> usize {
        let code_bits = match *self {
            Self::IntToken { bits } | Self::Rotated { bits, scale: SharedScale::Token } => {
                usize::from(bits) * head_dim
            }
            Self::LloydMax { bits } | Self::LloydMaxPlain { bits } if bits != 3 => {
                usize::from(bits) * head_dim
            }
            Self::Alloc { .. } => 8 * self.alloc_code_bytes(head_dim),
            _ => 0,
        };
        // Codes of a byte each lie channel by channel.
        if code_bits < 8 * head_dim { code_bits / 4 } else { 0 }
    }
}

impl KeyCoder {
    /// How queries are brought into the frame of the codes; none where codes lie neither in planes nor channel by
    /// channel, or are not numbers of channels (product quantization has a [frame of its own](KeyCoder::group_frame)).
    #[must_use]
    pub fn query_frame(&self) -> Option<QueryFrame> {
        self.codec.query_frame()
    }
}

impl QueryFrame {
    /// Of codes in the order of channels, without scales and centres.
    pub(super) fn plain(codes: FrameCodes, head_dim: usize) -> Self {
        let channel = |order| FrameChannel { order, scale: 1.0, centre: 0.0, offset: 0.0 };
        let channels = (0..head_dim as u16).map(channel).collect();
        Self { channels, transform_block: 1, codes }
    }

    /// The same of queries that are rotated first.
    pub(super) fn rotated(mut self, rotation: &Rotation) -> Self {
        for (channel, sign) in self.channels.iter_mut().zip(rotation.signs()) {
            channel.scale *= sign;
        }
        self.transform_block = rotation.block();
        self
    }

    /// `queries [num_heads, head_dim]` in the frame, by the formula alone: what [`KeyCoder::channel_queries`] gives, up
    /// to the order of sums; none where codes do not lie channel by channel.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn queries(&self, queries: &[f32], sm_scale: f32) -> Option<ChannelQueries> {
        let FrameCodes::Channels(codes) = self.codes else { return None };
        let (queries, finals) = self.framed(queries, sm_scale);
        Some(ChannelQueries { codes, queries, finals })
    }

    /// The tables of `queries [num_heads, head_dim]`, by the formula alone: what [`KeyCoder::plane_tables`] gives, up to
    /// the order of sums; none where codes do not lie in planes.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn tables(&self, queries: &[f32], sm_scale: f32) -> Option<PlaneTables> {
        let FrameCodes::Planes { planes, levels, tail } = &self.codes else { return None };
        let (framed, finals) = self.framed(queries, sm_scale);
        let of_query = |x: &[f32]| -> Vec<f32> {
            let of_plane = |plane: &CodePlane| {
                let plane = *plane;
                (0..16).map(move |nibble| product(plane, levels.as_ref(), nibble, x))
            };
            planes.iter().flat_map(of_plane).collect()
        };
        let tables = framed.chunks_exact(self.channels.len()).flat_map(of_query).collect();
        Some(PlaneTables { num_planes: planes.len(), tail: *tail, tables, finals })
    }

    /// Queries in the frame, with the offset, sum and bias of each.
    fn framed(&self, queries: &[f32], sm_scale: f32) -> (Vec<f32>, Vec<[f32; 4]>) {
        let head_dim = self.channels.len();
        assert!(queries.len().is_multiple_of(head_dim), "whole queries");
        let (mut framed, mut finals) = (Vec::new(), Vec::new());
        for query in queries.chunks_exact(head_dim) {
            let scaled = self
                .channels
                .iter()
                .map(|channel| sm_scale * channel.scale * query[usize::from(channel.order)]);
            let mut x: Vec<f32> = scaled.collect();
            x.chunks_exact_mut(self.transform_block).for_each(crate::rotation::walsh_hadamard);
            let offset = x.iter().zip(&self.channels).map(|(x, c)| x * c.offset).sum();
            let bias = query.iter().zip(&self.channels).map(|(q, c)| sm_scale * q * c.centre).sum();
            finals.push([offset, x.iter().sum(), bias, 0.0]);
            framed.extend(x);
        }
        (framed, finals)
    }
}

impl FrameCodes {
    /// Of planes.
    fn of_planes(planes: &Planes) -> Self {
        Self::Planes {
            planes: planes.code_planes().collect(),
            levels: match planes.values() {
                Values::Integer => None,
                Values::Levels(levels) => Some(*levels),
            },
            tail: planes.tail(),
        }
    }

    /// Of codes token by token, where they can be met by framed queries.
    pub(super) fn of(codes: &TokenCodes) -> Option<Self> {
        match codes.planes() {
            Some(planes) => Some(Self::of_planes(planes)),
            None => codes.channel_codes().map(Self::Channels),
        }
    }
}

/// What a nibble of a plane comes to under a framed query.
fn product(plane: CodePlane, levels: Option<&[f32; 16]>, nibble: u8, x: &[f32]) -> f32 {
    let mask = (1u8 << plane.bits) - 1;
    let part = |i: usize| (nibble >> (i as u8 * plane.bits) & mask) << plane.shift;
    let value = |i| match levels {
        None => f32::from(part(i)),
        Some(levels) => levels[usize::from(part(i))],
    };
    let count = 4 / usize::from(plane.bits);
    (0..count).map(|i| x[plane.first_channel as usize + i] * value(i)).sum()
}
