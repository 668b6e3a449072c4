//! What the learned rotation begins with.

use heterokv_testkit::Inputs;

use super::*;

/// Keys with a variance of its own along each channel, from 1 down to 2^-14.
fn keys(n: usize) -> Vec<f32> {
    let mut keys = Inputs::new(3).gaussian_rows(500, n, 1.0);
    keys.iter_mut().enumerate().for_each(|(i, x)| *x *= 2f32.powi(-((i % n) as i32)));
    keys
}

#[test]
fn the_products_of_the_variances_of_groups_are_about_the_same() {
    let (n, width) = (8, 2);
    let axes = balanced_axes(&keys(n), n, width);
    let channel = |row: &[f64]| {
        (0..n).max_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs())).expect("there are channels")
    };
    let channels: Vec<usize> = axes.chunks_exact(n).map(channel).collect();
    // The axis of the largest variance comes with that of the least, and so on: the exponents have one sum.
    let sums: Vec<usize> = channels.chunks_exact(width).map(|pair| pair.iter().sum()).collect();
    assert_eq!(sums, [7; 4], "{channels:?}");
}

#[test]
fn the_unit_of_keys_says_nothing() {
    let keys = keys(8);
    let axes = balanced_axes(&keys, 8, 4);
    for exponent in [-30, -9, 9] {
        let scaled: Vec<f32> = keys.iter().map(|x| x * 2f32.powi(exponent)).collect();
        assert_eq!(balanced_axes(&scaled, 8, 4), axes, "2^{exponent}");
    }
    assert!(balanced_axes(&[0.0; 64], 8, 4).iter().all(|x| x.is_finite()));
}
