//! The centroids of every group, as they are stored: f16, in the coordinates of the frame.

use half::f16;

use crate::Level;
use crate::simd::nearest::{SortedPairs, nearest};
use crate::simd::rows::halves;

/// Centroids `[num_groups, num_centroids, width]`.
#[derive(Clone, Debug)]
pub(super) struct Codebooks {
    width: usize,
    num_centroids: usize,
    num_groups: usize,
    /// Little-endian f16.
    bytes: Vec<u8>,
    candidates: Candidates,
}

/// The same as they are searched.
#[derive(Clone, Debug)]
enum Candidates {
    /// Pairs of coordinates, each group in order, as they are fitted.
    Sorted(SortedPairs),
    /// Coordinate by coordinate `[num_groups, width, num_centroids]`.
    Columns(Vec<f16>),
}

impl Codebooks {
    /// From `values [num_groups, num_centroids, width]`.
    pub(super) fn new(values: &[f16], width: usize, num_centroids: usize) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let num_groups = values.len() / (width * num_centroids);
        let columns = || {
            let groups = values.chunks_exact(width * num_centroids);
            let place = |i: usize| i % num_centroids * width + i / num_centroids;
            groups.flat_map(|rows| (0..rows.len()).map(|i| rows[place(i)])).collect()
        };
        let sorted = (width == 2).then(|| SortedPairs::of(values, num_centroids)).flatten();
        let candidates = sorted.map_or_else(|| Candidates::Columns(columns()), Candidates::Sorted);
        Self { width, num_centroids, num_groups, bytes, candidates }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn num_groups(&self) -> usize {
        self.num_groups
    }

    pub(super) fn num_centroids(&self) -> usize {
        self.num_centroids
    }

    pub(super) fn head_dim(&self) -> usize {
        self.num_groups * self.width
    }

    /// The values that [`Codebooks::new`] took.
    pub(super) fn values(&self) -> Vec<f16> {
        self.bytes.as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x)).collect()
    }

    /// Writes the number of the centroid nearest to each group's part of `coordinates [head_dim]`; returns the sum of the
    /// squared distances.
    pub(super) fn nearest(&self, level: Level, coordinates: &[f32], codes: &mut [u16]) -> f32 {
        match &self.candidates {
            Candidates::Sorted(pairs) => pairs.nearest(level, coordinates.as_chunks().0, codes),
            Candidates::Columns(columns) => {
                let groups = columns.chunks_exact(self.width * self.num_centroids);
                let points = coordinates.chunks_exact(self.width);
                let found =
                    groups.zip(points).map(|(columns, point)| nearest(level, columns, point));
                let write = |((place, distance), code): ((usize, f32), &mut u16)| {
                    *code = place as u16;
                    distance
                };
                found.zip(codes).map(write).sum()
            }
        }
    }

    /// A centroid `[width]`.
    pub(super) fn centroid(&self, group: usize, code: usize) -> impl Iterator<Item = f32> {
        halves(&self.group(group)[2 * code * self.width..][..2 * self.width])
    }

    fn group(&self, group: usize) -> &[u8] {
        let len = 2 * self.width * self.num_centroids;
        &self.bytes[group * len..][..len]
    }

    /// Tells `see` the product of each centroid of a group with its part of a query `[head_dim]`.
    pub(super) fn products(&self, query: &[f32], group: usize, mut see: impl FnMut(usize, f32)) {
        let query = &query[group * self.width..][..self.width];
        for (c, centroid) in self.group(group).chunks_exact(2 * self.width).enumerate() {
            see(c, halves(centroid).zip(query).map(|(x, q)| x * q).sum());
        }
    }

    /// Puts a row `[head_dim]` in f16 together from the centroids that `codes [num_groups]` name.
    pub(super) fn put_together(&self, codes: &[u16], row: &mut [u8]) {
        match self.width {
            2 => self.copy::<4>(codes, row),
            4 => self.copy::<8>(codes, row),
            _ => self.copy::<16>(codes, row),
        }
    }

    /// With centroids of `BYTES` bytes.
    fn copy<const BYTES: usize>(&self, codes: &[u16], row: &mut [u8]) {
        let groups = self.bytes.as_chunks::<BYTES>().0.chunks_exact(self.num_centroids);
        for ((centroids, &code), out) in groups.zip(codes).zip(row.as_chunks_mut::<BYTES>().0) {
            *out = centroids[usize::from(code)];
        }
    }
}
