//! Decompositions against what they decompose.

use heterokv_testkit::Inputs;

use super::*;

fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let entry = |i: usize| (0..n).map(|k| a[i / n * n + k] * b[k * n + i % n]).sum();
    (0..n * n).map(entry).collect()
}

fn transposed(a: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|i| a[i % n * n + i / n]).collect()
}

fn assert_same(a: &[f64], b: &[f64], tolerance: f64) {
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance, "{i}: {x} and {y}");
    }
}

fn random(n: usize, seed: u64) -> Vec<f64> {
    Inputs::new(seed).gaussian_rows(n, n, 1.0).iter().map(|&x| x.into()).collect()
}

#[test]
fn eigenvectors_are_orthonormal_and_give_the_matrix_back() {
    for n in [1, 2, 8, 33] {
        let a = random(n, n as u64);
        let symmetric: Vec<f64> = a.iter().zip(transposed(&a, n)).map(|(x, y)| x + y).collect();
        let (values, vectors) = eigen(symmetric.clone(), n);
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        assert_same(&product(&vectors, &transposed(&vectors, n), n), &identity(n), 1e-12);
        let scaled: Vec<f64> = vectors.iter().enumerate().map(|(i, x)| x * values[i / n]).collect();
        assert_same(&product(&transposed(&vectors, n), &scaled, n), &symmetric, 1e-10);
    }
    let (values, vectors) = eigen(vec![0.0; 16], 4);
    assert_eq!((values, vectors), (vec![0.0; 4], identity(4)));
}

#[test]
fn the_closest_rotation_is_found_and_open_directions_are_refused() {
    let n = 12;
    let mut rotation = random(n, 4);
    orthonormalise(&mut rotation, n).expect("its rows are independent");
    assert_same(&product(&rotation, &transposed(&rotation, n), n), &identity(n), 1e-12);
    // Of y = R x with vectors x that fill the space, the sum of y xᵀ is R times a positive matrix.
    let x = random(n, 5);
    let gram = product(&x, &transposed(&x, n), n);
    let found = procrustes(&product(&rotation, &gram, n), n).expect("they fill the space");
    assert_same(&found, &rotation, 1e-6);
    assert_eq!(procrustes(&vec![0.0; n * n], n), None);
    let mut flat = random(n, 6);
    flat.chunks_mut(n).for_each(|row| row[0] = 0.0);
    assert_eq!(procrustes(&flat, n), None);
}

#[test]
fn directions_of_little_weight_are_turned_as_well() {
    let n = 7;
    let orthonormal = |seed| {
        let mut matrix = random(n, seed);
        orthonormalise(&mut matrix, n).expect("its rows are independent");
        matrix
    };
    let (rotation, axes) = (orthonormal(7), orthonormal(8));
    // A positive matrix with singular values from 1 down to 1e-6.
    let scaled: Vec<f64> =
        axes.iter().enumerate().map(|(i, x)| x * 10f64.powi(-((i / n) as i32))).collect();
    let positive = product(&transposed(&axes, n), &scaled, n);
    let found = procrustes(&product(&rotation, &positive, n), n).expect("they fill the space");
    assert_same(&found, &rotation, 1e-3);
}

#[test]
fn a_row_that_depends_on_others_is_named() {
    let mut matrix = random(6, 1);
    let sum: Vec<f64> = (0..6).map(|i| matrix[i] - 2.0 * matrix[6 + i]).collect();
    matrix[18..24].copy_from_slice(&sum);
    assert_eq!(orthonormalise(&mut matrix, 6), Err(NotOrthonormal { row: 3 }));
    assert_eq!(orthonormalise(&mut [f64::NAN; 9], 3), Err(NotOrthonormal { row: 0 }));
    assert_eq!(orthonormalise(&mut [0.0; 9], 3), Err(NotOrthonormal { row: 0 }));
}
