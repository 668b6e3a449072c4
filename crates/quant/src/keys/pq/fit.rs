//! Fitting of frames and codebooks.

use half::f16;
use rayon::prelude::*;

use super::frame::weights_of;
use super::kmeans::{columns_of, kmeans, lloyd};
use super::orthogonal::{NotOrthonormal, eigen, procrustes};
use super::{EXACT_BLOCK_TOKENS, PqShape, PqTables};
use crate::Level;
use crate::keys::FitInput;
use crate::rotation::SplitMix64;
use crate::saturate::{in_f16_range, to_f16};
use crate::simd::nearest::nearest;

/// Tokens on which a rotation is learned.
const ROTATION_TOKENS: usize = 4096;

/// Rounds in which codebooks follow the rotation and the rotation the codebooks, and the iterations of each.
const ROTATION_ROUNDS: usize = 8;
const ROUND_ITERATIONS: usize = 2;

/// Fits all tables of `shape`.
///
/// # Errors
/// [`NotOrthonormal`], of a learned rotation whose rounding to f16 left it none.
pub(super) fn fit(shape: PqShape, input: &FitInput<'_>) -> Result<PqTables, NotOrthonormal> {
    let weights = weights_of(input.query_energy);
    let mut random = SplitMix64(input.seed);
    let rotation = shape.is_rotated.then(|| {
        let rotation = learn_rotation(shape, input, &weights, random.next());
        rotation.iter().map(|&x| to_f16(x as f32)).collect::<Vec<_>>()
    });
    let frame = shape.frame(&weights, rotation.as_deref())?;
    let head_dim = input.head_dim;
    let mut rows = vec![0.0; input.keys.len()];
    let keys = input.keys.par_chunks_exact(head_dim);
    rows.par_chunks_exact_mut(head_dim).zip(keys).for_each(|(row, key)| frame.of_key(key, row));
    let seed = random.next();
    let mut codebooks = fit_codebooks(shape, input.level, &rows, head_dim, seed);
    if shape.num_exact > 0 {
        let kept = without_outliers(shape, input.level, &codebooks, &rows, head_dim);
        codebooks = fit_codebooks(shape, input.level, &kept, head_dim, seed);
    }
    let codebooks = codebooks.iter().flat_map(|rows| in_order(rows, shape.width)).collect();
    Ok(PqTables { codebooks, weights, rotation })
}

/// The points of a group among coordinates `[n, head_dim]`.
fn points_of(rows: &[f32], head_dim: usize, width: usize, group: usize) -> Vec<f32> {
    rows.chunks_exact(head_dim).flat_map(|row| &row[group * width..][..width]).copied().collect()
}

/// The centroids of every group.
fn fit_codebooks(
    shape: PqShape,
    level: Level,
    rows: &[f32],
    head_dim: usize,
    seed: u64,
) -> Vec<Vec<f32>> {
    let mut random = SplitMix64(seed);
    let seeds: Vec<u64> = (0..head_dim / shape.width).map(|_| random.next()).collect();
    let groups = seeds.into_par_iter().enumerate().map(|(group, seed)| {
        let points = points_of(rows, head_dim, shape.width, group);
        kmeans(level, &points, shape.width, shape.num_centroids(), seed)
    });
    groups.collect()
}

/// Centroids `[num_centroids, width]` as they are stored, in rising order along the coordinate that spreads most, by
/// which searches find them sooner. What a code is called says nothing.
fn in_order(centroids: &[f32], width: usize) -> Vec<f16> {
    let mut rows: Vec<Vec<f16>> =
        centroids.chunks_exact(width).map(|row| row.iter().map(|&x| to_f16(x)).collect()).collect();
    let spread = |e: usize| {
        let values = rows.iter().map(|row| row[e].to_f32());
        let (low, high) = values.fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(x), h.max(x)));
        high - low
    };
    let axis = (0..width).max_by(|&a, &b| spread(a).total_cmp(&spread(b))).unwrap_or(0);
    rows.sort_by(|a, b| a[axis].total_cmp(&b[axis]));
    rows.concat()
}

/// The rows without those that blocks will keep exactly: the share of them with the largest errors.
fn without_outliers(
    shape: PqShape,
    level: Level,
    codebooks: &[Vec<f32>],
    rows: &[f32],
    head_dim: usize,
) -> Vec<f32> {
    let columns: Vec<Vec<f32>> =
        codebooks.iter().map(|rows| columns_of(rows, shape.width)).collect();
    let error = |row: &[f32]| -> f32 {
        row.chunks_exact(shape.width)
            .zip(&columns)
            .map(|(x, columns)| nearest(level, columns, x).1)
            .sum()
    };
    let errors: Vec<f32> = rows.par_chunks_exact(head_dim).map(error).collect();
    let num_exact = errors.len() * shape.num_exact / EXACT_BLOCK_TOKENS;
    let mut order: Vec<usize> = (0..errors.len()).collect();
    order.sort_by(|&a, &b| errors[b].total_cmp(&errors[a]));
    let mut kept = order.split_off(num_exact);
    kept.sort_unstable();
    kept.iter().flat_map(|&t| &rows[t * head_dim..][..head_dim]).copied().collect()
}

/// A rotation `[head_dim, head_dim]` of weighted keys (OPQ: Ge, He, Ke and Sun, CVPR 2013): principal axes dealt out
/// so that the groups' variances have about the same product, then codebooks and rotation in turns.
fn learn_rotation(shape: PqShape, input: &FitInput<'_>, weights: &[f16], seed: u64) -> Vec<f64> {
    let n = input.head_dim;
    let stride = (input.keys.len() / n).div_ceil(ROTATION_TOKENS).max(1);
    let weighted = |(&x, w): (&f32, &f16)| in_f16_range(x) * w.to_f32();
    let keys: Vec<f32> = input
        .keys
        .chunks_exact(n)
        .step_by(stride)
        .flat_map(|key| key.iter().zip(weights).map(weighted))
        .collect();
    let mut rotation = balanced_axes(&keys, n, shape.width);
    let rows = rotated(&rotation, &keys, n);
    let mut codebooks = fit_codebooks(shape, input.level, &rows, n, seed);
    for _ in 0..ROTATION_ROUNDS {
        let rows = rotated(&rotation, &keys, n);
        let follow = |(group, centroids): (usize, &mut Vec<f32>)| {
            let points = points_of(&rows, n, shape.width, group);
            let before = std::mem::take(centroids);
            *centroids = lloyd(input.level, &points, shape.width, before, ROUND_ITERATIONS);
            let columns = columns_of(centroids, shape.width);
            let code = |x| nearest(input.level, &columns, x).0;
            points.chunks_exact(shape.width).map(code).collect()
        };
        let codes: Vec<Vec<usize>> = codebooks.par_iter_mut().enumerate().map(follow).collect();
        let mut products = vec![0.0f64; n * n];
        for (token, key) in keys.chunks_exact(n).enumerate() {
            for (group, (centroids, codes)) in codebooks.iter().zip(&codes).enumerate() {
                let centroid = &centroids[codes[token] * shape.width..][..shape.width];
                for (e, &y) in centroid.iter().enumerate() {
                    let products = &mut products[(group * shape.width + e) * n..][..n];
                    products.iter_mut().zip(key).for_each(|(sum, &x)| *sum += f64::from(y * x));
                }
            }
        }
        match procrustes(&products, n) {
            Some(better) => rotation = better,
            // Keys that leave a direction open have no better rotation than one that leaves it where it is.
            None => break,
        }
    }
    rotation
}

/// Keys `[num_tokens, n]` under a rotation `[n, n]`, a row of which gives a coordinate.
fn rotated(rotation: &[f64], keys: &[f32], n: usize) -> Vec<f32> {
    let columns: Vec<f32> = (0..n * n).map(|i| rotation[i % n * n + i / n] as f32).collect();
    let mut rows = vec![0.0; keys.len()];
    let keys = keys.par_chunks_exact(n);
    rows.par_chunks_exact_mut(n).zip(keys).for_each(|(row, key)| {
        for (column, x) in columns.chunks_exact(n).zip(key) {
            row.iter_mut().zip(column).for_each(|(sum, c)| *sum += x * c);
        }
    });
    rows
}

/// Principal axes of the keys as rows, those of each group of `width` together: the axis with the next largest
/// variance goes to the group whose variances, each over the least of all, have the smallest product so far and that
/// has room.
fn balanced_axes(keys: &[f32], n: usize, width: usize) -> Vec<f64> {
    let count = (keys.len() / n).max(1) as f64;
    let mut mean = vec![0.0f64; n];
    for key in keys.chunks_exact(n) {
        mean.iter_mut().zip(key).for_each(|(sum, &x)| *sum += f64::from(x) / count);
    }
    let mut covariance = vec![0.0f64; n * n];
    for key in keys.chunks_exact(n) {
        let centred: Vec<f64> = key.iter().zip(&mean).map(|(&x, m)| f64::from(x) - m).collect();
        for (row, x) in covariance.chunks_exact_mut(n).zip(&centred) {
            row.iter_mut().zip(&centred).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let (values, vectors) = eigen(covariance, n);
    let floor = (1e-12 * values[0]).max(f64::MIN_POSITIVE);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min).max(floor);
    let mut groups: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new()); n / width];
    for (axis, value) in values.iter().enumerate() {
        let open = groups.iter_mut().filter(|(_, axes)| axes.len() < width);
        if let Some((log, axes)) = open.min_by(|a, b| a.0.total_cmp(&b.0)) {
            *log += (value.max(least) / least).ln();
            axes.push(axis);
        }
    }
    let axes = groups.iter().flat_map(|(_, axes)| axes);
    axes.flat_map(|&axis| vectors[axis * n..][..n].to_vec()).collect()
}

#[cfg(test)]
mod tests;
