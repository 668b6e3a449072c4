//! The rotation is orthonormal, undone by its inverse, and mixes whole blocks.

use heterokv_testkit::{Inputs, Tolerance, assert_close};

use super::*;

const HEAD_DIMS: [usize; 9] = [8, 16, 24, 64, 80, 96, 112, 128, 256];

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[test]
fn norms_and_inner_products_survive_and_the_inverse_undoes() {
    for (seed, &head_dim) in HEAD_DIMS.iter().enumerate() {
        let seed = seed as u64;
        let mut inputs = Inputs::new(seed);
        let rotation = Rotation::new(head_dim, seed).unwrap();
        let (x, y) =
            (inputs.gaussian_rows(1, head_dim, 3.0), inputs.gaussian_rows(1, head_dim, 1.0));
        let (mut rx, mut ry) = (x.clone(), y.clone());
        rotation.forward(&mut rx);
        rotation.forward(&mut ry);
        // log2(block) additions and one product per coordinate, each rounded.
        let rounding = 16.0 * f64::from(f32::EPSILON);
        let sizes = (dot(&x, &x) * dot(&y, &y)).sqrt();
        assert!((dot(&rx, &rx) - dot(&x, &x)).abs() <= rounding * dot(&x, &x), "{head_dim}");
        assert!((dot(&rx, &ry) - dot(&x, &y)).abs() <= rounding * sizes, "{head_dim}");
        assert!(
            rx.iter().zip(&x).any(|(a, b)| (a - b).abs() > 0.1),
            "{head_dim} is rotated at all"
        );
        rotation.inverse(&mut rx);
        let expected: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let tolerance = Tolerance { absolute: rounding * dot(&x, &x).sqrt(), relative: 0.0 };
        assert_close("inverse", seed, &rx, &expected, tolerance);
        let mut other_order = x.clone();
        rotation.inverse(&mut other_order);
        rotation.forward(&mut other_order);
        assert_close("forward after inverse", seed, &other_order, &expected, tolerance);
    }
}

#[test]
fn a_coordinate_is_spread_evenly_over_its_block_and_nowhere_else() {
    for (head_dim, block) in [(8, 8), (64, 64), (80, 16), (96, 32), (112, 16), (128, 128)] {
        let rotation = Rotation::new(head_dim, 5).unwrap();
        for hot in 0..head_dim {
            let mut x = vec![0.0; head_dim];
            x[hot] = 1.0;
            rotation.forward(&mut x);
            let even = 1.0 / (block as f32).sqrt();
            for (i, &x) in x.iter().enumerate() {
                let expected = if i / block == hot / block { even } else { 0.0 };
                assert!((x.abs() - expected).abs() < 1e-6, "{head_dim}: {hot} to {i} is {x}");
            }
        }
    }
}

#[test]
fn the_seed_decides_and_is_all_that_decides() {
    let signs = |seed| Rotation::new(128, seed).unwrap();
    assert_eq!(signs(3), signs(3));
    assert_ne!(signs(3), signs(4));
    // The first numbers of SplitMix64 of seed 0, as its authors publish them: the stream is part of
    // the stored format.
    let mut stream = SplitMix64(0);
    assert_eq!(
        [stream.next(), stream.next(), stream.next()],
        [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]
    );
}

#[test]
fn lengths_that_cannot_be_rotated_are_refused() {
    for head_dim in [0, 1, 2, 4, 7, 12, 20, 100, 127] {
        let refused = Rotation::new(head_dim, 0);
        let named = matches!(refused, Err(Error::HeadDim { head_dim: h, multiple_of: 8, .. }) if h == head_dim);
        assert!(named, "{head_dim}: {refused:?}");
    }
}

#[test]
fn draws_stay_in_their_range() {
    let mut random = SplitMix64(9);
    for bound in [1, 2, 3, 1000, usize::MAX] {
        assert!((0..200).all(|_| random.below(bound) < bound));
    }
    assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
}
