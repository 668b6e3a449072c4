//! k-means over short vectors: k-means++ seeding, mini-batches where there are many points, Lloyd
//! iterations, empty clusters repaired.
//!
//! Deterministic by seed, whatever the number of threads: one call is sequential, and callers run many.

use crate::Level;
use crate::rotation::SplitMix64;
use crate::simd::nearest::nearest;

/// Iterations after which Lloyd's algorithm stops even if it still moves, and the share of the error that one has to
/// gain to be followed by another.
const MAX_ITERATIONS: usize = 20;
const LEAST_GAIN: f64 = 1e-3;

/// Points that the seeding looks at, or twice as many as there are centroids; all of them take part in the
/// iterations.
const SEED_POINTS: usize = 2048;

/// Points from which mini-batches bring the centroids near before all points are looked at, fewer times.
const BATCH_FROM: usize = 16_384;
const ITERATIONS_AFTER_BATCHES: usize = 6;

/// Mini-batches, and the points of each per centroid.
const NUM_BATCHES: usize = 30;
const BATCH_POINTS_PER_CENTROID: usize = 4;

/// Finds `num_centroids` centroids `[num_centroids, width]`, a multiple of 16, of `points [n, width]`, n ≥ 1.
pub(super) fn kmeans(
    level: Level,
    points: &[f32],
    width: usize,
    num_centroids: usize,
    seed: u64,
) -> Vec<f32> {
    let mut random = SplitMix64(seed);
    let seeds = seed_centroids(points, width, num_centroids, &mut random);
    let (centroids, iterations) = if points.len() / width < BATCH_FROM {
        (seeds, MAX_ITERATIONS)
    } else {
        (run_batches(level, points, width, seeds, &mut random), ITERATIONS_AFTER_BATCHES)
    };
    lloyd(level, points, width, centroids, iterations)
}

/// At most `iterations` rounds of assigning every point to its nearest centroid and moving each centroid to
/// the mean of its points, from `centroids [count, width]` on; fewer where they gain little any more.
pub(super) fn lloyd(
    level: Level,
    points: &[f32],
    width: usize,
    mut centroids: Vec<f32>,
    iterations: usize,
) -> Vec<f32> {
    let mut owners = vec![0; points.len() / width];
    let mut distances = vec![0.0f32; owners.len()];
    let mut error = f64::INFINITY;
    for _ in 0..iterations {
        let columns = columns_of(&centroids, width);
        let own = owners.iter_mut().zip(&mut distances);
        for (point, (owner, distance)) in points.chunks_exact(width).zip(own) {
            (*owner, *distance) = nearest(level, &columns, point);
        }
        let before = error;
        error = distances.iter().map(|&distance| f64::from(distance)).sum();
        if error >= (1.0 - LEAST_GAIN) * before {
            break;
        }
        update(&mut centroids, points, width, &owners, &mut distances);
    }
    centroids
}

/// Centroids `[count, width]` coordinate by coordinate.
pub(super) fn columns_of(centroids: &[f32], width: usize) -> Vec<f32> {
    let count = centroids.len() / width;
    (0..width * count).map(|i| centroids[i % count * width + i / count]).collect()
}

/// k-means++ (Arthur and Vassilvitskii 2007): each next centroid is a point drawn with probability
/// proportional to its squared distance from those before.
fn seed_centroids(points: &[f32], width: usize, count: usize, random: &mut SplitMix64) -> Vec<f32> {
    let stride = (points.len() / width).div_ceil(SEED_POINTS.max(2 * count)).max(1);
    let sample: Vec<&[f32]> = points.chunks_exact(width).step_by(stride).collect();
    let columns: Vec<Vec<f32>> =
        (0..width).map(|e| sample.iter().map(|point| point[e]).collect()).collect();
    let mut distances = vec![f32::INFINITY; sample.len()];
    let mut from_last = vec![0.0f32; sample.len()];
    let mut rows = sample[random.below(sample.len())].to_vec();
    for _ in 1..count {
        from_last.fill(0.0);
        let last = &rows[rows.len() - width..];
        for (column, x) in columns.iter().zip(last) {
            for (distance, y) in from_last.iter_mut().zip(column) {
                *distance += (y - x) * (y - x);
            }
        }
        for (distance, &other) in distances.iter_mut().zip(&from_last) {
            *distance = if other < *distance { other } else { *distance };
        }
        rows.extend_from_slice(sample[draw(&distances, random)]);
    }
    rows
}

/// An index drawn with probability proportional to its weight; any where all weights are 0.
fn draw(weights: &[f32], random: &mut SplitMix64) -> usize {
    // Sums of chunks first, which run in vector lanes, then a walk inside one chunk.
    const CHUNK: usize = 64;
    let sum = |chunk: &[f32]| -> f64 {
        let (lanes, rest) = chunk.as_chunks::<8>();
        let mut sums = [0.0f32; 8];
        for lanes in lanes {
            sums.iter_mut().zip(lanes).for_each(|(sum, x)| *sum += x);
        }
        sums.iter().chain(rest).map(|&x| f64::from(x)).sum()
    };
    let sums: Vec<f64> = weights.chunks(CHUNK).map(sum).collect();
    let mut left = random.unit() * sums.iter().sum::<f64>();
    for (i, (chunk, sum)) in weights.chunks(CHUNK).zip(&sums).enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (j, &weight) in chunk.iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 && weight > 0.0 {
                return i * CHUNK + j;
            }
        }
    }
    random.below(weights.len())
}

/// Mini-batch k-means (Sculley 2010): each point of a batch pulls its centroid by one over the number of
/// points that the centroid has had.
fn run_batches(
    level: Level,
    points: &[f32],
    width: usize,
    mut centroids: Vec<f32>,
    random: &mut SplitMix64,
) -> Vec<f32> {
    let num_points = points.len() / width;
    let count = centroids.len() / width;
    let mut counts = vec![0u32; count];
    for _ in 0..NUM_BATCHES {
        let columns = columns_of(&centroids, width);
        let batch: Vec<(usize, &[f32])> = (0..BATCH_POINTS_PER_CENTROID * count)
            .map(|_| &points[random.below(num_points) * width..][..width])
            .map(|point| (nearest(level, &columns, point).0, point))
            .collect();
        for (owner, point) in batch {
            counts[owner] += 1;
            let rate = 1.0 / counts[owner] as f32;
            let centroid = &mut centroids[owner * width..][..width];
            for (c, x) in centroid.iter_mut().zip(point) {
                *c += rate * (x - *c);
            }
        }
    }
    centroids
}

/// Moves each centroid to the mean of its points; one without points takes over the point that is farthest
/// from its own centroid.
fn update(
    centroids: &mut [f32],
    points: &[f32],
    width: usize,
    owners: &[usize],
    distances: &mut [f32],
) {
    let mut sums = vec![0.0f64; centroids.len()];
    let mut counts = vec![0u32; centroids.len() / width];
    for (point, &owner) in points.chunks_exact(width).zip(owners) {
        counts[owner] += 1;
        for (sum, &x) in sums[owner * width..].iter_mut().zip(point) {
            *sum += f64::from(x);
        }
    }
    let rows = centroids.chunks_exact_mut(width).zip(sums.chunks_exact(width));
    for ((centroid, sum), &count) in rows.zip(&counts) {
        if count > 0 {
            for (c, sum) in centroid.iter_mut().zip(sum) {
                *c = (sum / f64::from(count)) as f32;
            }
            continue;
        }
        let by_distance = |a: &usize, b: &usize| distances[*a].total_cmp(&distances[*b]);
        // Where every point is a centroid already there is nothing to take over.
        let farthest = (0..distances.len()).max_by(by_distance).filter(|&i| distances[i] > 0.0);
        if let Some(farthest) = farthest {
            distances[farthest] = 0.0;
            centroid.copy_from_slice(&points[farthest * width..][..width]);
        }
    }
}

#[cfg(test)]
mod tests;
