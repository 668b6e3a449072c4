//! The search against trying every centroid in f64.

use heterokv_testkit::Inputs;
use proptest::prelude::*;

use super::*;

/// The least squared distance.
fn least(rows: &[f32], width: usize, point: &[f32]) -> f64 {
    let distance = |row: &[f32]| -> f64 {
        row.iter().zip(point).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
    };
    rows.chunks(width).map(distance).fold(f64::INFINITY, f64::min)
}

fn assert_nearest(nearest: &Nearest, point: &[f32]) {
    let (place, distance) = nearest.of(point);
    let row = &nearest.rows[place * nearest.width..][..nearest.width];
    let expected = least(&nearest.rows, nearest.width, point);
    let own = least(row, nearest.width, point);
    let rounding = 1e-6 * expected + f64::from(f32::MIN_POSITIVE);
    assert!(own <= expected + rounding, "{point:?}: {place} at {own}, not {expected}");
    assert!((f64::from(distance) - own).abs() <= rounding, "{point:?}: {distance} and {own}");
    // The first of equals.
    let earlier = nearest.rows.chunks(nearest.width).position(|other| other == row);
    assert_eq!(earlier, Some(place));
}

#[test]
fn every_point_finds_its_nearest_centroid() {
    for width in [2, 4, 8] {
        for count in [16, 37, 256, 1000] {
            let mut inputs = Inputs::new(count as u64);
            for (spread, offset) in [(1.0, 0.0), (1.0, 300.0), (1e-4, 0.0)] {
                let mut rows = inputs.gaussian_rows(count, width, spread);
                rows.iter_mut().for_each(|x| *x += offset);
                let nearest = Nearest::new(rows, width);
                // In the grid, at its edges and far outside.
                for scale in [0.1, 1.0, 2.0, 30.0] {
                    for mut point in
                        inputs.gaussian_rows(200, width, spread).chunks(width).map(<[f32]>::to_vec)
                    {
                        point.iter_mut().for_each(|x| *x = *x * scale + offset);
                        assert_nearest(&nearest, &point);
                    }
                }
            }
        }
    }
}

#[test]
fn centroids_on_a_ring_a_line_and_one_spot_are_found() {
    let ring = |i: usize| {
        let t = i as f32 * 0.02454;
        [5.0 * t.cos(), 5.0 * t.sin()]
    };
    let line = |i: usize| [i as f32, 3.0];
    let spot = |_: usize| [1.5, -2.5];
    let two = |i: usize| if i == 0 { [0.0, 0.0] } else { [1e4, 1e4] };
    let shapes: [&dyn Fn(usize) -> [f32; 2]; 4] = [&ring, &line, &spot, &two];
    for shape in shapes {
        let nearest = Nearest::new((0..256).flat_map(shape).collect(), 2);
        let mut inputs = Inputs::new(3);
        for point in inputs.gaussian_rows(500, 2, 4.0).chunks(2) {
            assert_nearest(&nearest, point);
        }
        for i in 0..256 {
            assert_nearest(&nearest, &shape(i));
        }
    }
}

#[test]
fn groups_together_find_what_each_finds_alone() {
    for width in [2, 4] {
        let mut inputs = Inputs::new(8);
        let groups: Vec<Nearest> =
            (0..70).map(|_| Nearest::new(inputs.gaussian_rows(100, width, 1.0), width)).collect();
        for scale in [1.0, 4.0] {
            let points = inputs.gaussian_rows(70, width, scale);
            let mut codes = vec![0; 70];
            let sum = nearest_of_each(&groups, &points, &mut codes);
            let alone: Vec<(usize, f32)> =
                groups.iter().zip(points.chunks(width)).map(|(group, x)| group.of(x)).collect();
            assert!(
                codes.iter().zip(&alone).all(|(&code, (place, _))| usize::from(code) == *place)
            );
            assert_eq!(sum, alone.iter().fold(0.0, |sum, (_, distance)| sum + distance));
        }
    }
}

#[test]
fn a_cell_holds_few_candidates_wherever_the_centroids_are() {
    let mut rows = Inputs::new(1).gaussian_rows(256, 2, 1.0);
    for is_far in [false, true] {
        if is_far {
            // A few centroids for outliers, beside which all others are one spot.
            rows[..4].iter_mut().for_each(|x| *x *= 100.0);
        }
        let grid = Nearest::new(rows.clone(), 2).grid.expect("two dimensions have a grid");
        let found = rows.as_chunks::<2>().0.iter().filter(|&&x| grid.candidates(x) != CROWDED);
        let found = found.count();
        assert!(found >= 245, "{found} of 256 are found in the grid");
    }
}

proptest! {
    #[test]
    fn any_centroids_and_points_agree_with_trying_all(
        rows in prop::collection::vec(-1e4f32..1e4, 2..80),
        points in prop::collection::vec(-2e4f32..2e4, 2..20),
    ) {
        let nearest = Nearest::new(rows[..rows.len() / 2 * 2].to_vec(), 2);
        for point in points.chunks_exact(2) {
            assert_nearest(&nearest, point);
        }
    }
}
