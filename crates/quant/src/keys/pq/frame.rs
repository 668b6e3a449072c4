//! The frame in which product quantization cuts keys into groups.
//!
//! Channels are weighted by the queries' energy, so that a squared distance is what an error costs in q·k on
//! average. Then either rotary partners are brought together, `i` with `i + head_dim / 2`, since post-RoPE keys
//! move on rings in those planes, which a codebook of two dimensions follows and adjacent channels would not
//! show; or a learned rotation spreads the energy evenly over the groups (OPQ: Ge, He, Ke and Sun, CVPR 2013).

use half::f16;

use super::orthogonal::{NotOrthonormal, orthonormalise};
use crate::saturate::in_f16_range;

/// Smallest energy of a channel against the largest: no channel is free.
const MIN_RELATIVE_ENERGY: f32 = 1e-4;

/// What weights can be: square roots of such energies, with room for their rounding.
pub(crate) const WEIGHTS: std::ops::RangeInclusive<f32> = 0.0099..=1.0;

/// How far the rounding to f16 takes an entry of an orthonormal matrix from it, well above it.
const ROTATION_ROUNDING: f64 = 0.01;

/// From keys to coordinates `[num_groups, width]` and back.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    weights: Vec<f32>,
    inverse_weights: Vec<f32>,
    basis: Basis,
}

#[derive(Clone, Debug)]
enum Basis {
    /// The channel of each coordinate.
    RotaryPlanes(Vec<u16>),
    /// An orthonormal matrix `[head_dim, head_dim]`, a row per coordinate, and its transpose.
    Learned { rows: Vec<f32>, columns: Vec<f32> },
}

impl Frame {
    /// Of weights `[head_dim]`, none of which is 0.
    pub(super) fn of_rotary_planes(weights: &[f16], width: usize) -> Self {
        let (half, head_dim) = (width / 2, weights.len());
        let channel = |i: usize| {
            let (group, e) = (i / width, i % width);
            (group * half + e % half + e / half * (head_dim / 2)) as u16
        };
        Self::new(weights, Basis::RotaryPlanes((0..head_dim).map(channel).collect()))
    }

    /// Of weights `[head_dim]`, none of which is 0, and a matrix `[head_dim, head_dim]` whose rows are orthonormal up
    /// to the rounding to f16, which is undone here.
    ///
    /// # Errors
    /// [`NotOrthonormal`] where they are not.
    pub(super) fn of_rotation(weights: &[f16], rotation: &[f16]) -> Result<Self, NotOrthonormal> {
        let n = weights.len();
        let mut rows: Vec<f64> = rotation.iter().map(|x| x.to_f64()).collect();
        orthonormalise(&mut rows, n)?;
        let is_far = |(x, y): (&f64, &f16)| (x - y.to_f64()).abs() > ROTATION_ROUNDING;
        if let Some(place) = rows.iter().zip(rotation).position(is_far) {
            return Err(NotOrthonormal { row: place / n });
        }
        let rows: Vec<f32> = rows.iter().map(|&x| x as f32).collect();
        let columns = (0..n * n).map(|i| rows[i % n * n + i / n]).collect();
        Ok(Self::new(weights, Basis::Learned { rows, columns }))
    }

    fn new(weights: &[f16], basis: Basis) -> Self {
        let weights: Vec<f32> = weights.iter().map(|w| w.to_f32()).collect();
        let inverse_weights = weights.iter().map(|w| 1.0 / w).collect();
        Self { weights, inverse_weights, basis }
    }

    pub(super) fn head_dim(&self) -> usize {
        self.weights.len()
    }

    /// The coordinates `[head_dim]` of a key.
    pub(super) fn of_key(&self, key: &[f32], out: &mut [f32]) {
        let weighted = |c: usize| in_f16_range(key[c]) * self.weights[c];
        match &self.basis {
            Basis::RotaryPlanes(channels) => {
                out.iter_mut().zip(channels).for_each(|(x, &c)| *x = weighted(c.into()));
            }
            Basis::Learned { columns, .. } => {
                multiply(columns, (0..key.len()).map(weighted), out);
            }
        }
    }

    /// The key `[head_dim]` of coordinates.
    pub(super) fn to_key(&self, coordinates: &[f32], key: &mut [f32]) {
        match &self.basis {
            Basis::RotaryPlanes(channels) => {
                channels.iter().zip(coordinates).for_each(|(&c, &x)| key[usize::from(c)] = x);
            }
            Basis::Learned { rows, .. } => multiply(rows, coordinates.iter().copied(), key),
        }
        key.iter_mut().zip(&self.inverse_weights).for_each(|(x, w)| *x *= w);
    }

    /// What [`Frame::of_query`] does, as data: the channel of each coordinate with what it is multiplied by, and the
    /// matrix whose rows, each times its coordinate, are then added up.
    pub(super) fn steps(&self) -> (Vec<(u16, f32)>, Option<&[f32]>) {
        let weighted = |c: u16| (c, self.inverse_weights[usize::from(c)]);
        match &self.basis {
            Basis::RotaryPlanes(channels) => {
                (channels.iter().map(|&c| weighted(c)).collect(), None)
            }
            Basis::Learned { columns, .. } => {
                ((0..self.head_dim() as u16).map(weighted).collect(), Some(columns))
            }
        }
    }

    /// The coordinates by which a query's product with those of a key is q·k.
    pub(super) fn of_query(&self, query: &[f32], out: &mut [f32]) {
        let weighted = |c: usize| query[c] * self.inverse_weights[c];
        match &self.basis {
            Basis::RotaryPlanes(channels) => {
                out.iter_mut().zip(channels).for_each(|(x, &c)| *x = weighted(c.into()));
            }
            Basis::Learned { columns, .. } => {
                multiply(columns, (0..query.len()).map(weighted), out);
            }
        }
    }
}

/// The sum of the rows of a matrix, each times its factor.
fn multiply(rows: &[f32], factors: impl Iterator<Item = f32>, out: &mut [f32]) {
    out.fill(0.0);
    for (row, factor) in rows.chunks_exact(out.len()).zip(factors) {
        out.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
    }
}

/// Square roots of energies over the largest of them.
pub(super) fn weights_of(query_energy: &[f32]) -> Vec<f16> {
    let largest = query_energy.iter().copied().fold(0.0, f32::max);
    let relative = |energy: f32| if largest > 0.0 { energy / largest } else { 1.0 };
    let weight = |&energy: &f32| f16::from_f32(relative(energy).max(MIN_RELATIVE_ENERGY).sqrt());
    query_energy.iter().map(weight).collect()
}
