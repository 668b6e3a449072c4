//! k-means over short vectors: k-means++ seeding, Lloyd iterations, empty clusters repaired.
//!
//! Deterministic by seed, whatever the number of threads: one call is sequential, and callers run many.

use crate::rotation::SplitMix64;

/// Iterations after which Lloyd's algorithm stops even if it still moves.
const MAX_ITERATIONS: usize = 20;

/// Points that the seeding looks at; all of them take part in the iterations.
const SEED_POINTS: usize = 2048;

/// Finds `num_centroids` centroids `[num_centroids, width]` of `points [n, width]`, n ≥ 1.
pub(super) fn kmeans(points: &[f32], width: usize, num_centroids: usize, seed: u64) -> Vec<f32> {
    let mut centroids = Centroids::seed(points, width, num_centroids, &mut SplitMix64(seed));
    let num_points = points.len() / width;
    let mut owners = vec![usize::MAX; num_points];
    let mut distances = vec![0.0f32; num_points];
    let mut scratch = vec![0.0f32; num_centroids];
    for _ in 0..MAX_ITERATIONS {
        let mut moved = 0;
        for (i, point) in points.chunks_exact(width).enumerate() {
            let (owner, distance) = centroids.nearest(point, &mut scratch);
            moved += usize::from(owner != owners[i]);
            (owners[i], distances[i]) = (owner, distance);
        }
        if moved == 0 {
            break;
        }
        centroids.update(points, &owners, &mut distances);
    }
    centroids.into_rows()
}

/// Centroids, one slice per coordinate, so that a point meets all of them in vector lanes.
pub(super) struct Centroids {
    width: usize,
    count: usize,
    /// `[width, count]`.
    columns: Vec<f32>,
}

impl Centroids {
    /// From rows `[count, width]`.
    pub(super) fn from_rows(rows: &[f32], width: usize) -> Self {
        let count = rows.len() / width;
        let columns =
            (0..width).flat_map(|e| (0..count).map(move |c| rows[c * width + e])).collect();
        Self { width, count, columns }
    }

    fn into_rows(self) -> Vec<f32> {
        (0..self.count)
            .flat_map(|c| (0..self.width).map(move |e| (e, c)))
            .map(|(e, c)| self.columns[e * self.count + c])
            .collect()
    }

    /// k-means++ (Arthur and Vassilvitskii 2007): each next centroid is a point drawn with probability
    /// proportional to its squared distance from those before.
    fn seed(points: &[f32], width: usize, count: usize, random: &mut SplitMix64) -> Self {
        let stride = (points.len() / width).div_ceil(SEED_POINTS).max(1);
        let sample: Vec<&[f32]> = points.chunks_exact(width).step_by(stride).collect();
        let mut rows = sample[random.below(sample.len())].to_vec();
        let mut distances = vec![f32::INFINITY; sample.len()];
        for _ in 1..count {
            let last = rows.len() - width;
            let mut total = 0.0f64;
            for (distance, point) in distances.iter_mut().zip(&sample) {
                *distance = distance.min(squared_distance(point, &rows[last..]));
                total += f64::from(*distance);
            }
            let mut left = random.unit() * total;
            let drawn = distances.iter().position(|&distance| {
                left -= f64::from(distance);
                left < 0.0
            });
            let drawn = drawn.unwrap_or_else(|| random.below(sample.len()));
            rows.extend_from_slice(sample[drawn]);
        }
        Self::from_rows(&rows, width)
    }

    /// The centroid closest to `point [width]` (the first of equals) and its squared distance;
    /// `distances [count]` is scratch.
    pub(super) fn nearest(&self, point: &[f32], distances: &mut [f32]) -> (usize, f32) {
        distances.fill(0.0);
        for (column, &x) in self.columns.chunks_exact(self.count).zip(point) {
            for (distance, centroid) in distances.iter_mut().zip(column) {
                *distance += (x - centroid) * (x - centroid);
            }
        }
        // Two passes, a minimum and its place, since each of them runs in vector lanes.
        let least = distances.iter().copied().fold(f32::INFINITY, f32::min);
        let place = distances.iter().position(|&distance| distance == least);
        (place.unwrap_or(0), least)
    }

    /// Moves each centroid to the mean of its points; one without points takes over the point that is
    /// farthest from its own centroid.
    fn update(&mut self, points: &[f32], owners: &[usize], distances: &mut [f32]) {
        let mut sums = vec![0.0f64; self.count * self.width];
        let mut counts = vec![0usize; self.count];
        for (point, &owner) in points.chunks_exact(self.width).zip(owners) {
            counts[owner] += 1;
            for (sum, &x) in sums[owner * self.width..].iter_mut().zip(point) {
                *sum += f64::from(x);
            }
        }
        for c in 0..self.count {
            if counts[c] == 0 {
                let farthest =
                    (0..distances.len()).max_by(|&a, &b| distances[a].total_cmp(&distances[b]));
                let Some(farthest) = farthest else { continue };
                distances[farthest] = 0.0;
                for e in 0..self.width {
                    self.columns[e * self.count + c] = points[farthest * self.width + e];
                }
                continue;
            }
            for e in 0..self.width {
                self.columns[e * self.count + c] =
                    (sums[c * self.width + e] / counts[c] as f64) as f32;
            }
        }
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}
