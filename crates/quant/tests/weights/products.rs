//! `gemv` and `gemm` against f64, and against themselves on other threads.

use half::f16;
use heterokv_quant::{
    Level,
    weights::{Activations, ComputeType, TensorType, WeightMatrix, gemv_many},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::inputs::{COMPUTE, MAX_SCALE, build, for_each_case, max_offset, tensor, vector};

/// The first element that is not within its tolerance.
fn first_outside(actual: &[f32], expected: &[(f64, f64)]) -> Option<String> {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).enumerate().find_map(|(i, (&a, &(e, tolerance)))| {
        let within = (f64::from(a) - e).abs() <= tolerance;
        (!within).then(|| format!("element {i} is {a:e}, expected {e:e} within {tolerance:e}"))
    })
}

/// The vector that `gemv` computes with (and `gemm` of up to four vectors, which is the same): in the `q8` forms `x`
/// rounded to 16 bits per block of 32; else `x`.
fn as_seen(compute: ComputeType, x: &[f32]) -> Vec<f64> {
    if !matches!(compute, ComputeType::Q8 | ComputeType::Q8A8) {
        return exact(x);
    }
    x.chunks(32)
        .flat_map(|block| {
            let largest = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            block.iter().map(move |x| {
                let code = (x * (32767.0 / largest)).round_ties_even();
                f64::from(largest / 32767.0) * f64::from(code)
            })
        })
        .collect()
}

fn exact(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// How far the elements of a vector may be from what `gemm` of more than four vectors computes with: in the `q8a8` form
/// half a step of 8 bits, and a hundredth of that, per block of 32. (That some blocks are rounded more finely, and by
/// how much, is tested beside the code.)
fn rounding(compute: ComputeType, x: &[f32]) -> Vec<f64> {
    let half_step = |block: &[f32]| {
        let largest = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let is_rounded = compute == ComputeType::Q8A8;
        vec![if is_rounded { f64::from(largest) * 0.505 / 127.0 } else { 0.0 }; block.len()]
    };
    x.chunks(32).flat_map(half_step).collect()
}

/// `W x` in f64 of the weights that `w` holds, and how far f32 rounding may take a product from it:
/// the standard bound for a sum of products, (terms + 8) * 2⁻²⁴ times the sum of the terms'
/// magnitudes. In the `q8` form a term may be split into scale * code and offset, whose magnitudes
/// are at most |w| + 2 |offset| together.
fn reference(w: &WeightMatrix, max_offset: f64, x: &[f64]) -> Vec<(f64, f64)> {
    let mut row = vec![0.0; w.cols()];
    (0..w.rows())
        .map(|r| {
            w.row(r, &mut row).expect("a row");
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (&w, &x) in row.iter().zip(x) {
                sum += f64::from(w) * x;
                magnitude += (f64::from(w.abs()) + 2.0 * max_offset) * x.abs();
            }
            (sum, (w.cols() + 8) as f64 * 2f64.powi(-24) * magnitude)
        })
        .collect()
}

/// How far a row's product may be off where the elements of its vector are by so much.
fn rounded_away(w: &WeightMatrix, row: usize, rounding: &[f64]) -> f64 {
    let mut weights = vec![0.0; w.cols()];
    w.row(row, &mut weights).expect("a row");
    weights.iter().zip(rounding).map(|(w, rounding)| f64::from(w.abs()) * rounding).sum()
}

#[test]
fn gemv_is_within_its_bound() {
    for_each_case(|name, ty, [rows, cols], compute, level, seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let w = build(ty, &tensor(ty, rows, cols, &mut rng), [rows, cols], compute, level);
        let x = vector(cols, &mut rng);
        let mut y = vec![f32::NAN; rows];
        w.gemv(&x, &mut y).unwrap();
        let expected = reference(&w, max_offset(ty), &as_seen(compute, &x));
        if let Some(message) = first_outside(&y, &expected) {
            panic!("{name}: {message}");
        }
    });
}

/// Products of the `q8` form as bits, whatever the level.
fn q8_bits(ty: TensorType, shape: [usize; 2], bytes: &[u8], x: &[f32], level: Level) -> Vec<u32> {
    let w = build(ty, bytes, shape, ComputeType::Q8, level);
    let mut y = vec![f32::NAN; shape[0]];
    w.gemv(x, &mut y).expect("vectors that fit");
    y.iter().map(|y| y.to_bits()).collect()
}

#[test]
fn all_levels_have_the_same_bits() {
    let mut num_seen = 0;
    for rows in [1, 2, 15, 16, 17, 31, 33, 48, 70] {
        for cols in [1usize, 31, 32, 33, 64, 96, 100, 256, 257, 544, 576, 599, 768] {
            for ty in TensorType::ALL {
                if !cols.is_multiple_of(ty.block_len()) {
                    continue;
                }
                let mut rng = StdRng::seed_from_u64((rows * 1000 + cols) as u64);
                let bytes = tensor(ty, rows, cols, &mut rng);
                let mut x = vector(cols, &mut rng);
                let expected = q8_bits(ty, [rows, cols], &bytes, &x, Level::SCALAR);
                for level in Level::available() {
                    let actual = q8_bits(ty, [rows, cols], &bytes, &x, level);
                    assert_eq!(actual, expected, "{ty} [{rows}, {cols}] {level}");
                }
                // Of a vector that differs in its last element, they are others.
                x[cols - 1] += 0.25;
                let other = q8_bits(ty, [rows, cols], &bytes, &x, Level::detect());
                num_seen += usize::from(other != expected);
            }
        }
    }
    assert!(num_seen > 450, "{num_seen}");
}

#[test]
fn the_largest_codes_do_not_overflow() {
    // Every code at either end of its range, every activation at the largest code of either sign.
    for (ty, least, most) in [
        (TensorType::Q8_0, -128.0, 127.0),
        (TensorType::Q4_0, -8.0, 7.0),
        (TensorType::Q4_1, 0.0, 15.0),
        (TensorType::Q5_0, -16.0, 15.0),
        (TensorType::Q5_1, 0.0, 31.0),
    ] {
        let (rows, cols) = (19, 64);
        for (fill, code) in [(0u8, least), (0xff, most)] {
            let mut block = vec![fill; ty.block_bytes()];
            if ty == TensorType::Q8_0 {
                block.fill(if fill == 0 { 0x80 } else { 0x7f });
            }
            block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
            if max_offset(ty) > 0.0 {
                block[2..4].copy_from_slice(&f16::ZERO.to_le_bytes());
            }
            let bytes = block.repeat(rows * cols / ty.block_len());
            for sign in [1.0f32, -1.0] {
                for level in Level::available() {
                    let w = build(ty, &bytes, [rows, cols], ComputeType::Q8A8, level);
                    let mut y = vec![f32::NAN; 6 * rows];
                    let (one, several) = y.split_at_mut(rows);
                    w.gemv(&vec![sign; cols], one).unwrap();
                    w.gemm(&vec![sign; 5 * cols], 5, several).unwrap();
                    let expected = sign * code * cols as f32;
                    for y in y {
                        let error = (y - expected).abs();
                        assert!(error <= 1e-5 * expected.abs(), "{ty} {code} {level}: {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn gemm_is_within_its_bound() {
    let cases: [([usize; 2], usize); 10] = [
        ([1, 1], 1),
        ([3, 7], 9),
        ([33, 64], 4),
        ([33, 64], 5),
        ([95, 32], 6),
        ([96, 32], 257),
        ([97, 256], 255),
        ([97, 256], 256),
        ([192, 576], 33),
        ([49, 16384], 7),
    ];
    for (seed, (shape, n)) in cases.into_iter().enumerate() {
        let [rows, cols] = shape;
        for ty in [TensorType::F32, TensorType::Q4_1, TensorType::Q4K] {
            if !cols.is_multiple_of(ty.block_len()) {
                continue;
            }
            let mut rng = StdRng::seed_from_u64(seed as u64);
            let bytes = tensor(ty, rows, cols, &mut rng);
            let x = vector(n * cols, &mut rng);
            for compute in COMPUTE {
                for level in Level::available() {
                    let w = build(ty, &bytes, shape, compute, level);
                    let mut y = vec![f32::NAN; n * rows];
                    w.gemm(&x, n, &mut y).unwrap();
                    for (t, (x, y)) in x.chunks(cols).zip(y.chunks(rows)).enumerate() {
                        let seen = if n > 4 { exact(x) } else { as_seen(compute, x) };
                        let mut expected = reference(&w, max_offset(ty), &seen);
                        if n > 4 {
                            for (row, (_, tolerance)) in expected.iter_mut().enumerate() {
                                *tolerance += rounded_away(&w, row, &rounding(compute, x));
                            }
                        }
                        if let Some(message) = first_outside(y, &expected) {
                            panic!("{ty} {shape:?} {compute} {level} vector {t}/{n}: {message}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_comparer_sees_errors_and_nan() {
    assert_eq!(first_outside(&[1.0, -2.0], &[(1.0, 0.0), (-2.0, 0.0)]), None);
    assert!(first_outside(&[1.0, 2.1], &[(1.0, 0.0), (2.0, 0.09)]).is_some());
    assert!(first_outside(&[f32::NAN], &[(1.0, 1e9)]).is_some());
    assert!(first_outside(&[f32::INFINITY], &[(1.0, 1e9)]).is_some());

    // A single weight changed by one code is seen through a whole product.
    let mut rng = StdRng::seed_from_u64(5);
    let shape = [4, 576];
    let mut bytes = tensor(TensorType::Q8_0, 4, 576, &mut rng);
    let x: Vec<f32> = (0..576).map(|_| rng.random_range(0.5f32..1.0)).collect();
    let level = Level::detect();
    // Block 20 is the third of row 1.
    bytes[34 * 20..][..2].copy_from_slice(&f16::from_f32(MAX_SCALE).to_le_bytes());
    let truth = build(TensorType::Q8_0, &bytes, shape, ComputeType::Q8, level);
    let expected = reference(&truth, 0.0, &as_seen(ComputeType::Q8, &x));
    bytes[34 * 20 + 2] ^= 1;
    let damaged = build(TensorType::Q8_0, &bytes, shape, ComputeType::Q8, level);
    let mut y = [0.0; 4];
    damaged.gemv(&x, &mut y).unwrap();
    assert!(first_outside(&y, &expected).is_some_and(|message| message.contains("element 1 ")));
}

#[test]
fn results_do_not_depend_on_threads_or_company() {
    let mut rng = StdRng::seed_from_u64(11);
    let shapes = [[576, 576], [192, 576], [1536, 576], [1, 576]];
    let tensors = shapes.map(|[rows, cols]| tensor(TensorType::Q4_1, rows, cols, &mut rng));
    let (num_vectors, cols) = (300, 576);
    let x = vector(num_vectors * cols, &mut rng);
    for compute in COMPUTE {
        let matrices: Vec<WeightMatrix> = shapes
            .iter()
            .zip(&tensors)
            .map(|(&shape, bytes)| build(TensorType::Q4_1, bytes, shape, compute, Level::detect()))
            .collect();
        let run = |num_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            pool.install(|| {
                let mut alone: Vec<Vec<f32>> =
                    shapes.iter().map(|[rows, _]| vec![f32::NAN; *rows]).collect();
                let mut together = alone.clone();
                for (w, y) in matrices.iter().zip(&mut alone) {
                    w.gemv(&x[..cols], y).unwrap();
                }
                let mut products: Vec<(&WeightMatrix, &mut [f32])> =
                    matrices.iter().zip(&mut together).map(|(w, y)| (w, &mut y[..])).collect();
                gemv_many(&mut Activations::new(&x[..cols]), &mut products).unwrap();
                assert_eq!(alone, together, "{compute}, {num_threads} threads");
                let mut many = vec![f32::NAN; num_vectors * 1536];
                matrices[2].gemm(&x, num_vectors, &mut many).unwrap();
                (alone, many)
            })
        };
        let one = run(1);
        for num_threads in [2, 3, 8] {
            assert_eq!(run(num_threads), one, "{compute}, {num_threads} threads");
        }
    }
}

#[test]
fn few_vectors_have_the_bits_of_gemv() {
    let mut rng = StdRng::seed_from_u64(12);
    let bytes = tensor(TensorType::Q5K, 40, 512, &mut rng);
    let w = build(TensorType::Q5K, &bytes, [40, 512], ComputeType::Q8, Level::detect());
    let x = vector(4 * 512, &mut rng);
    let mut y = vec![f32::NAN; 4 * 40];
    w.gemm(&x, 4, &mut y).unwrap();
    for (x, y) in x.chunks(512).zip(y.chunks(40)) {
        let mut single = vec![f32::NAN; 40];
        w.gemv(x, &mut single).unwrap();
        assert_eq!(y, single);
    }
}
