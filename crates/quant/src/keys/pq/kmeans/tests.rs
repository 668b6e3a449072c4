//! Clusters that are there are found, every centroid is used, and a seed says everything.

use heterokv_testkit::Inputs;

use super::*;

/// The mean squared distance of points from their nearest centroids.
fn error(points: &[f32], centroids: &[f32], width: usize) -> f64 {
    let columns = columns_of(centroids, width);
    let distance = |point| f64::from(nearest(Level::SCALAR, &columns, point).1);
    let distances = points.chunks(width).map(distance);
    distances.sum::<f64>() / (points.len() / width) as f64
}

/// `count` clusters of `each` points about whole numbers.
fn clusters(width: usize, count: usize, each: usize) -> Vec<f32> {
    let mut inputs = Inputs::new(5);
    let mut points = inputs.gaussian_rows(count * each, width, 0.01);
    for (i, point) in points.chunks_mut(width).enumerate() {
        point.iter_mut().enumerate().for_each(|(e, x)| *x += (i % count) as f32 * (e + 1) as f32);
    }
    points
}

#[test]
fn separate_clusters_are_all_found() {
    for width in [2, 4, 8] {
        let points = clusters(width, 16, 50);
        let found = error(&points, &kmeans(Level::detect(), &points, width, 16, 1), width);
        assert!(found < 1.1 * 1e-4 * width as f64, "{width}: {found}");
    }
}

#[test]
fn mini_batches_end_near_where_all_points_do() {
    let points = Inputs::new(9).gaussian_rows(BATCH_FROM, 4, 1.0);
    let in_batches = error(&points, &kmeans(Level::detect(), &points, 4, 64, 1), 4);
    let seeds = seed_centroids(&points, 4, 64, &mut SplitMix64(1));
    let with_all =
        error(&points, &lloyd(Level::detect(), &points, 4, seeds.clone(), MAX_ITERATIONS), 4);
    assert!(in_batches < 1.02 * with_all, "{in_batches} and {with_all}");
    assert!(with_all < 0.95 * error(&points, &seeds, 4), "the iterations help");
}

#[test]
fn an_empty_cluster_takes_over_the_point_that_is_farthest_from_its_own() {
    // Sixteen centroids on one spot, of which all but the first get no point; as many points, and one far away.
    let mut points: Vec<f32> = (0..16).flat_map(|i| [(i % 4) as f32, (i / 4) as f32]).collect();
    points.extend([50.0, 50.0]);
    let found = lloyd(Level::detect(), &points, 2, vec![0.3; 32], 20);
    assert!(found.chunks(2).any(|c| c == [50.0, 50.0]), "{found:?}");
    assert!(error(&points, &found, 2) < 0.5);
}

#[test]
fn points_fewer_than_centroids_are_all_met() {
    let points = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let found = kmeans(Level::detect(), &points, 2, 16, 3);
    assert_eq!(found.len(), 32);
    assert_eq!(error(&points, &found, 2), 0.0);
}

#[test]
fn a_seed_says_everything() {
    let points = Inputs::new(2).gaussian_rows(500, 4, 1.0);
    assert_eq!(
        kmeans(Level::detect(), &points, 4, 32, 7),
        kmeans(Level::detect(), &points, 4, 32, 7)
    );
    assert_ne!(
        kmeans(Level::detect(), &points, 4, 32, 7),
        kmeans(Level::detect(), &points, 4, 32, 8)
    );
}

#[test]
fn what_is_drawn_follows_the_weights() {
    let weights: Vec<f32> = (0..200).map(|i| if i % 50 == 49 { 1.0 } else { 0.0 }).collect();
    let mut random = SplitMix64(4);
    let mut counts = [0; 200];
    for _ in 0..4000 {
        counts[draw(&weights, &mut random)] += 1;
    }
    for (i, &count) in counts.iter().enumerate() {
        let expected = if i % 50 == 49 { 850..1150 } else { 0..1 };
        assert!(expected.contains(&count), "{i}: {count}");
    }
    // Nothing to go by: any.
    assert!(draw(&[0.0; 3], &mut random) < 3);
}
