//! The centroids of every group, as they are stored: f16, in the coordinates of the frame.

use half::f16;

use crate::Level;
use crate::simd::nearest::{Order, Orders, nearest, nearest_in_order};
use crate::simd::rows::halves;

/// Centroids `[num_groups, num_centroids, width]`.
#[derive(Clone, Debug)]
pub(super) struct Codebooks {
    width: usize,
    num_centroids: usize,
    num_groups: usize,
    /// Little-endian f16.
    bytes: Vec<u8>,
    /// The same group by group, coordinate by coordinate `[num_groups, width, num_centroids]`, for searches.
    columns: Vec<f16>,
    /// The orders of all groups, where these are pairs of coordinates and all in order.
    orders: Option<Orders>,
}

impl Codebooks {
    /// From `values [num_groups, num_centroids, width]`.
    pub(super) fn new(values: &[f16], width: usize, num_centroids: usize) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let num_groups = values.len() / (width * num_centroids);
        let columns = values.chunks_exact(width * num_centroids).flat_map(|rows| {
            (0..width * num_centroids).map(|i| rows[i % num_centroids * width + i / num_centroids])
        });
        let columns: Vec<f16> = columns.collect();
        let orders = if width == 2 { Orders::of(&columns, width, num_centroids) } else { None };
        Self { width, num_centroids, num_groups, bytes, columns, orders }
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
        let groups = self.columns.chunks_exact(self.width * self.num_centroids);
        let mut error = 0.0;
        let mut write = |code: &mut u16, (place, distance): (usize, f32)| {
            *code = place as u16;
            error += distance;
        };
        if let Some(orders) = &self.orders {
            // Where to begin in every group first: what is read for it does not wait for the searches.
            let points = coordinates.as_chunks::<2>().0;
            let begin = |(order, &point): (Order<'_>, &[f32; 2])| order.around(point) as u16;
            codes.iter_mut().zip(orders.iter().zip(points).map(begin)).for_each(|(c, b)| *c = b);
            for (((columns, order), &point), code) in
                groups.zip(orders.iter()).zip(points).zip(codes)
            {
                let first = usize::from(*code);
                write(code, nearest_in_order(level, columns, order, first, point));
            }
        } else {
            let points = coordinates.chunks_exact(self.width);
            for ((columns, point), code) in groups.zip(points).zip(codes) {
                write(code, nearest(level, columns, point));
            }
        }
        error
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
