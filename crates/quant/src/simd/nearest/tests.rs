//! The search against the definition in f64, and every level against the first.

use heterokv_testkit::Inputs;
use proptest::prelude::*;

use super::*;

/// `rows [count, width]` coordinate by coordinate.
fn columns_of(rows: &[f32], width: usize) -> Vec<f32> {
    let count = rows.len() / width;
    (0..width * count).map(|i| rows[i % count * width + i / count]).collect()
}

fn distance(row: &[f32], point: &[f32]) -> f64 {
    row.iter().zip(point).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

fn assert_nearest(rows: &[f32], width: usize, point: &[f32]) {
    let columns = columns_of(rows, width);
    let found = nearest(Level::SCALAR, &columns, point);
    let least = rows.chunks(width).map(|row| distance(row, point)).fold(f64::INFINITY, f64::min);
    let own = distance(&rows[found.0 * width..][..width], point);
    let rounding = 1e-6 * least + f64::from(f32::MIN_POSITIVE);
    assert!(own <= least + rounding, "{point:?}: {} at {own}, not {least}", found.0);
    assert!((f64::from(found.1) - own).abs() <= rounding, "{point:?}: {} and {own}", found.1);
    let own = &rows[found.0 * width..][..width];
    assert_eq!(rows.chunks(width).position(|row| row == own), Some(found.0), "the first of equals");
    for level in Level::available() {
        assert_eq!(nearest(level, &columns, point), found, "{level}");
    }
}

#[test]
fn every_point_finds_its_nearest() {
    for width in [2, 4, 8] {
        for count in [16, 48, 256, 1008] {
            let mut inputs = Inputs::new(count as u64);
            for (spread, offset) in [(1.0, 0.0), (1.0, 300.0), (1e-4, 0.0)] {
                let mut rows = inputs.gaussian_rows(count, width, spread);
                rows.iter_mut().for_each(|x| *x += offset);
                for scale in [0.1, 1.0, 30.0] {
                    let mut points = inputs.gaussian_rows(50, width, scale * spread);
                    points.iter_mut().for_each(|x| *x += offset);
                    points.chunks(width).for_each(|point| assert_nearest(&rows, width, point));
                }
            }
        }
    }
}

#[test]
fn halves_are_found_as_the_numbers_that_they_are() {
    let mut inputs = Inputs::new(2);
    for width in [2, 4, 8] {
        let rows = inputs.gaussian_rows(64, width, 1.0);
        let halves: Vec<f16> = columns_of(&rows, width).iter().map(|&x| f16::from_f32(x)).collect();
        let floats: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        for point in inputs.gaussian_rows(100, width, 1.0).chunks(width) {
            for level in Level::available() {
                let found = nearest(level, &halves, point);
                assert_eq!(found, nearest(Level::SCALAR, &floats, point), "{level}");
            }
        }
    }
}

/// `rows [count, 2]` in f16, sorted along an axis.
fn sorted(rows: &[f32], axis: usize) -> Vec<f16> {
    let mut rows: Vec<f16> = rows.iter().map(|&x| f16::from_f32(x)).collect();
    rows.as_chunks_mut::<2>().0.sort_by(|a, b| a[axis].total_cmp(&b[axis]));
    rows
}

/// Of groups `rows [points.len(), count, 2]`.
fn assert_same_sorted(rows: &[f16], points: &[[f32; 2]]) {
    let count = rows.len() / 2 / points.len();
    let pairs = SortedPairs::of(rows, count).expect("they are sorted");
    let floats: Vec<f32> = rows.iter().map(|x| x.to_f32()).collect();
    let groups = floats.chunks_exact(2 * count).zip(points);
    let expected: Vec<(usize, f32)> =
        groups.map(|(rows, point)| nearest(Level::SCALAR, &columns_of(rows, 2), point)).collect();
    let places: Vec<u16> = expected.iter().map(|&(place, _)| place as u16).collect();
    let distance: f32 = expected.iter().fold(0.0, |sum, &(_, distance)| sum + distance);
    for level in Level::available() {
        let mut codes = vec![0; points.len()];
        let found = pairs.nearest(level, points, &mut codes);
        assert_eq!((found, codes), (distance, places.clone()), "{level} {points:?}");
    }
}

#[test]
fn sorted_pairs_are_found_as_without_order() {
    let mut inputs = Inputs::new(6);
    for count in [48, 64, 256, 4096] {
        for axis in [0, 1] {
            // Round, flat along the axis, and flat across it.
            for shape in [[1.0, 1.0], [0.01, 1.0], [1.0, 0.01]] {
                let mut rows = inputs.gaussian_rows(count, 2, 1.0);
                rows.iter_mut().enumerate().for_each(|(i, x)| *x *= shape[i % 2]);
                let rows = sorted(&rows, axis);
                for scale in [0.3, 1.0, 5.0] {
                    for point in inputs.gaussian_rows(100, 2, scale).as_chunks::<2>().0 {
                        assert_same_sorted(&rows, &[*point]);
                    }
                }
            }
        }
    }
    // Many on one spot, of which the first is meant.
    let spots: Vec<f32> = (0..128).flat_map(|i| [(i / 50) as f32, 1.0]).collect();
    for x in [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0] {
        assert_same_sorted(&sorted(&spots, 0), &[[x, 1.0]]);
    }
    // Groups along either axis, side by side.
    for count in [48, 80, 288] {
        let groups = (0..6).flat_map(|i| sorted(&inputs.gaussian_rows(count, 2, 1.0), i % 2));
        let groups: Vec<f16> = groups.collect();
        assert_same_sorted(&groups, inputs.gaussian_rows(6, 2, 1.5).as_chunks::<2>().0);
    }
}

#[test]
fn what_is_not_sorted_or_not_whole_blocks_is_not_taken() {
    let rows = Inputs::new(1).gaussian_rows(64, 2, 1.0);
    let is_taken = |rows: &[f16]| SortedPairs::of(rows, rows.len() / 2).is_some();
    let halves: Vec<f16> = rows.iter().map(|&x| f16::from_f32(x)).collect();
    assert!(!is_taken(&halves));
    let rows = sorted(&rows, 1);
    assert!(is_taken(&rows));
    assert!(is_taken(&rows[..96]));
    assert!(!is_taken(&rows[..64]));
    assert!(!is_taken(&rows[..80]));
}

#[test]
fn of_equals_the_first_is_found_wherever_it_lies() {
    for first in 0..32 {
        let mut rows = vec![5.0; 64];
        for place in [first, 20, 31] {
            rows[2 * place..2 * place + 2].copy_from_slice(&[1.0, 2.0]);
        }
        for level in Level::available() {
            let found = nearest(level, &columns_of(&rows, 2), &[1.0, 2.0]);
            assert_eq!(found, (first.min(20), 0.0), "{level}");
        }
    }
}

proptest! {
    #[test]
    fn any_candidates_and_points_agree_with_the_definition(
        rows in prop::collection::vec(-1e4f32..1e4, 32..400),
        point in prop::collection::vec(-2e4f32..2e4, 8),
    ) {
        for width in [2, 4, 8] {
            let count = rows.len() / width / BLOCK * BLOCK;
            if count > 0 {
                assert_nearest(&rows[..count * width], width, &point[..width]);
            }
        }
        let whole = rows.len() / 32 * 32;
        if whole >= 96 {
            assert_same_sorted(&sorted(&rows[..whole], 0), &[[point[0], point[1]]]);
        }
    }
}
