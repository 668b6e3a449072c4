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
        for count in [8, 16, 24, 256, 1000] {
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

/// `rows [count, 2]` sorted along an axis.
fn sorted(mut rows: Vec<f32>, axis: usize) -> Vec<f32> {
    let (pairs, _) = rows.as_chunks_mut::<2>();
    pairs.sort_by(|a, b| a[axis].total_cmp(&b[axis]));
    rows
}

fn assert_same_in_order(rows: &[f32], point: [f32; 2]) {
    let columns = columns_of(rows, 2);
    let orders = Orders::of(&columns, 2, rows.len() / 2).expect("they are in order");
    let order = orders.iter().next().expect("there is one group");
    let first = order.around(point);
    let expected = nearest(Level::SCALAR, &columns, &point);
    for level in Level::available() {
        assert_eq!(
            nearest_in_order(level, &columns, order, first, point),
            expected,
            "{level} {point:?}"
        );
    }
}

#[test]
fn candidates_in_order_are_found_as_without() {
    let mut inputs = Inputs::new(6);
    for count in [32, 64, 256, 4096] {
        for axis in [0, 1] {
            // Round, flat along the axis, and flat across it.
            for shape in [[1.0, 1.0], [0.01, 1.0], [1.0, 0.01]] {
                let mut rows = inputs.gaussian_rows(count, 2, 1.0);
                rows.iter_mut().enumerate().for_each(|(i, x)| *x *= shape[i % 2]);
                let rows = sorted(rows, axis);
                for scale in [0.3, 1.0, 5.0] {
                    for point in inputs.gaussian_rows(100, 2, scale).as_chunks::<2>().0 {
                        assert_same_in_order(&rows, *point);
                    }
                }
            }
        }
    }
    // Many on one spot, of which the first is meant.
    let spots: Vec<f32> = (0..128).flat_map(|i| [(i / 50) as f32, 1.0]).collect();
    for x in [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0] {
        assert_same_in_order(&spots, [x, 1.0]);
    }
}

#[test]
fn what_is_not_in_order_or_not_whole_blocks_has_none() {
    let orders = |rows: &[f32]| Orders::of(&columns_of(rows, 2), 2, rows.len() / 2);
    let rows = Inputs::new(1).gaussian_rows(64, 2, 1.0);
    assert!(orders(&rows).is_none());
    let rows = sorted(rows, 1);
    assert!(orders(&rows).is_some_and(|orders| orders.axes == [1]));
    assert!(orders(&rows[..32]).is_none());
    assert!(orders(&rows[..80]).is_none());
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
        rows in prop::collection::vec(-1e4f32..1e4, 16..200),
        point in prop::collection::vec(-2e4f32..2e4, 8),
    ) {
        for width in [2, 4, 8] {
            let count = rows.len() / width / LANES * LANES;
            if count > 0 {
                assert_nearest(&rows[..count * width], width, &point[..width]);
            }
        }
        let whole = rows.len() / (2 * BLOCK) * 2 * BLOCK;
        if whole >= 4 * BLOCK {
            assert_same_in_order(&sorted(rows[..whole].to_vec(), 0), [point[0], point[1]]);
        }
    }
}
