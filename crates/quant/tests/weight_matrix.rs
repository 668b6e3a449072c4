//! Weight matrices against f64: what they hold, `gemv`, `gemm`, errors, threads.
//!
//! Tolerances are derived, not tuned; each is explained where it is computed.

use half::f16;
use heterokv_quant::{
    Error, Level,
    weights::{Activations, ComputeType, TensorType, WeightMatrix, dequantize, gemv_many},
};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

const COMPUTE: [ComputeType; 3] = [ComputeType::F32, ComputeType::F16, ComputeType::Q8];

/// Largest magnitude of the f16 scales and minima of generated blocks.
const MAX_SCALE: f32 = 0.02;

/// What a code of 0 can stand for in generated blocks: the minimum, for K types times a 6-bit factor.
fn max_offset(ty: TensorType) -> f64 {
    match ty {
        TensorType::Q4_1 | TensorType::Q5_1 => f64::from(MAX_SCALE),
        TensorType::Q4K | TensorType::Q5K => 63.0 * f64::from(MAX_SCALE),
        _ => 0.0,
    }
}

/// Random bytes of a tensor, with finite weights and scales up to [`MAX_SCALE`].
fn tensor(ty: TensorType, rows: usize, cols: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; ty.bytes_of((rows * cols) as u64).unwrap() as usize];
    rng.fill_bytes(&mut bytes);
    let halves: &[usize] = match ty {
        TensorType::F32 => {
            for b in bytes.chunks_exact_mut(4) {
                b.copy_from_slice(&rng.random_range(-1.0f32..1.0).to_le_bytes());
            }
            &[]
        }
        TensorType::BF16 => {
            for b in bytes.chunks_exact_mut(2) {
                let value = half::bf16::from_f32(rng.random_range(-1.0f32..1.0));
                b.copy_from_slice(&value.to_le_bytes());
            }
            &[]
        }
        TensorType::F16 | TensorType::Q8_0 | TensorType::Q4_0 | TensorType::Q5_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q6K => &[208],
    };
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in halves {
            let value = f16::from_f32(rng.random_range(-MAX_SCALE..MAX_SCALE));
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

fn vector(len: usize, rng: &mut StdRng) -> Vec<f32> {
    // Magnitudes differ from block to block, as those of real activations do.
    (0..len).map(|i| rng.random_range(-1.0f32..1.0) * [1.0, 30.0, 0.01][i / 32 % 3]).collect()
}

fn build(
    ty: TensorType,
    bytes: &[u8],
    shape: [usize; 2],
    compute: ComputeType,
    level: Level,
) -> WeightMatrix {
    WeightMatrix::from_tensor(ty, bytes, shape, |row| row, compute, level).unwrap()
}

/// The first element that is not within its tolerance.
fn first_outside(actual: &[f32], expected: &[(f64, f64)]) -> Option<String> {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).enumerate().find_map(|(i, (&a, &(e, tolerance)))| {
        let within = (f64::from(a) - e).abs() <= tolerance;
        (!within).then(|| format!("element {i} is {a:e}, expected {e:e} within {tolerance:e}"))
    })
}

/// The vector that a product computes with: for `gemv` in the `q8` form (and `gemm` of up to four
/// vectors, which is the same), `x` rounded to 16 bits per block of 32; else `x`.
fn as_seen(compute: ComputeType, num_vectors: usize, x: &[f32]) -> Vec<f64> {
    if compute != ComputeType::Q8 || num_vectors > 4 {
        return x.iter().map(|&x| f64::from(x)).collect();
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

/// `W x` in f64 of the weights that `w` holds, and how far f32 rounding may take a product from it:
/// the standard bound for a sum of products, (terms + 8) * 2⁻²⁴ times the sum of the terms'
/// magnitudes. In the `q8` form a term may be split into scale * code and offset, whose magnitudes
/// are at most |w| + 2 |offset| together.
fn reference(w: &WeightMatrix, max_offset: f64, x: &[f64]) -> Vec<(f64, f64)> {
    let mut row = vec![0.0; w.cols()];
    (0..w.rows())
        .map(|r| {
            w.row(r, &mut row).unwrap();
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (&w, &x) in row.iter().zip(x) {
                sum += f64::from(w) * x;
                magnitude += (f64::from(w.abs()) + 2.0 * max_offset) * x.abs();
            }
            (sum, (w.cols() + 8) as f64 * 2f64.powi(-24) * magnitude)
        })
        .collect()
}

const SHAPES: [[usize; 2]; 14] = [
    [1, 1],
    [3, 7],
    [1, 31],
    [2, 32],
    [31, 33],
    [33, 64],
    [5, 255],
    [32, 256],
    [97, 257],
    [7, 288],
    [64, 576],
    [576, 576],
    [192, 1536],
    [49, 2048],
];

fn for_each_case(mut check: impl FnMut(&str, TensorType, [usize; 2], ComputeType, Level, u64)) {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for ty in TensorType::ALL {
            if !shape[1].is_multiple_of(ty.block_len()) {
                continue;
            }
            for compute in COMPUTE {
                for level in Level::available() {
                    let name = format!("{ty} {shape:?} {compute} {level} seed {seed}");
                    check(&name, ty, shape, compute, level, seed as u64);
                }
            }
        }
    }
}

#[test]
fn gemv_is_within_its_bound() {
    for_each_case(|name, ty, [rows, cols], compute, level, seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let w = build(ty, &tensor(ty, rows, cols, &mut rng), [rows, cols], compute, level);
        let x = vector(cols, &mut rng);
        let mut y = vec![f32::NAN; rows];
        w.gemv(&x, &mut y).unwrap();
        let expected = reference(&w, max_offset(ty), &as_seen(compute, 1, &x));
        if let Some(message) = first_outside(&y, &expected) {
            panic!("{name}: {message}");
        }
    });
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
                        let expected = reference(&w, max_offset(ty), &as_seen(compute, n, x));
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
fn rows_are_as_exact_as_promised() {
    for_each_case(|name, ty, [rows, cols], compute, level, seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let bytes = tensor(ty, rows, cols, &mut rng);
        let w = build(ty, &bytes, [rows, cols], compute, level);
        let mut truth = vec![0.0; rows * cols];
        dequantize(ty, &bytes, &mut truth).unwrap();
        let mut row = vec![f32::NAN; cols];
        for (r, truth) in truth.chunks(cols).enumerate() {
            w.row(r, &mut row).unwrap();
            for (block, (held, truth)) in row.chunks(32).zip(truth.chunks(32)).enumerate() {
                check_block(&format!("{name} row {r} block {block}"), ty, compute, held, truth);
            }
        }
    });
}

/// Holds 32 decoded columns to the promise of `WeightMatrix::from_tensor`.
fn check_block(name: &str, ty: TensorType, compute: ComputeType, held: &[f32], truth: &[f32]) {
    use TensorType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let errors = held.iter().zip(truth).map(|(h, t)| (f64::from(*h) - f64::from(*t)).abs());
    let largest = truth.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let step = largest / 127.0 * (1.0 + 2f64.powi(-10)) + 2f64.powi(-24);
    match (compute, ty) {
        (ComputeType::F32, _) | (ComputeType::Q8, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1) => {
            let same = held.iter().zip(truth).all(|(h, t)| h.to_bits() == t.to_bits());
            assert!(same, "{name}: {held:?} is not {truth:?}");
        }
        (ComputeType::F16, _) => {
            let rounded: Vec<f32> = truth.iter().map(|&t| f16::from_f32(t).to_f32()).collect();
            assert_eq!(held, rounded, "{name}");
        }
        (ComputeType::Q8, Q4K | Q5K) => {
            for (error, t) in errors.zip(truth) {
                let terms = f64::from(t.abs()) + 2.0 * max_offset(ty);
                // The last term is for rounding the sum of product and offset to f32, twice.
                let bound = 2f64.powi(-11) * terms + 2f64.powi(-25) * 32.0 + 2f64.powi(-23) * terms;
                assert!(error <= bound, "{name}: {error:e} {bound:e}");
            }
        }
        (ComputeType::Q8, F32 | F16 | BF16) => {
            for error in errors {
                assert!(error <= 0.5001 * step, "{name}: {error:e} {step:e}");
            }
        }
        (ComputeType::Q8, Q6K) => {
            let squares: f64 = errors.map(|e| e * e).sum();
            assert!(squares <= 32.0 * (0.5001 * step).powi(2), "{name}: {squares:e} {step:e}");
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
    let expected = reference(&truth, 0.0, &as_seen(ComputeType::Q8, 1, &x));
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
                gemv_many(&Activations::new(&x[..cols]), &mut products).unwrap();
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

#[test]
fn rows_can_be_reordered() {
    let mut rng = StdRng::seed_from_u64(13);
    let [rows, cols] = [70, 64];
    for compute in COMPUTE {
        let bytes = tensor(TensorType::Q4_1, rows, cols, &mut rng);
        let plain = build(TensorType::Q4_1, &bytes, [rows, cols], compute, Level::detect());
        let order = |row: usize| (row * 3 + 5) % rows;
        let moved = WeightMatrix::from_tensor(
            TensorType::Q4_1,
            &bytes,
            [rows, cols],
            order,
            compute,
            Level::detect(),
        )
        .unwrap();
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            moved.row(row, &mut a).unwrap();
            plain.row(order(row), &mut b).unwrap();
            assert_eq!(a, b);
        }
    }
}

#[test]
fn bytes_are_those_of_the_form() {
    let bytes = vec![0; 4 * 10 * 33];
    let size = |compute| build(TensorType::F32, &bytes, [10, 33], compute, Level::SCALAR).bytes();
    assert_eq!(size(ComputeType::F32), 4 * 330);
    assert_eq!(size(ComputeType::F16), 2 * 330);
    // Two blocks per row, each 32 codes and a scale.
    assert_eq!(size(ComputeType::Q8), 10 * 2 * 34);
    let bytes = vec![0; 20 * 3];
    let w = build(TensorType::Q4_1, &bytes, [3, 32], ComputeType::Q8, Level::SCALAR);
    assert_eq!((w.bytes(), w.rows(), w.cols()), (3 * 36, 3, 32));
}

#[test]
fn empty_shapes_work() {
    for compute in COMPUTE {
        let none = build(TensorType::F32, &[], [0, 8], compute, Level::detect());
        none.gemv(&[1.0; 8], &mut []).unwrap();
        none.gemm(&[1.0; 80], 10, &mut []).unwrap();
        let narrow = build(TensorType::F32, &[], [3, 0], compute, Level::detect());
        let mut y = [f32::NAN; 3];
        narrow.gemv(&[], &mut y).unwrap();
        assert_eq!(y, [0.0; 3]);
        for n in [0, 2, 7] {
            let mut y = vec![f32::NAN; 3 * n];
            narrow.gemm(&[], n, &mut y).unwrap();
            assert_eq!(y, vec![0.0; 3 * n]);
        }
        narrow.row(2, &mut []).unwrap();
        assert_eq!(narrow.bytes() + none.bytes(), 0);
    }
    gemv_many(&Activations::new(&[]), &mut []).unwrap();
}

#[test]
fn bad_calls_are_errors() {
    let level = Level::detect();
    let from = |ty, bytes: &[u8], shape, compute| {
        WeightMatrix::from_tensor(ty, bytes, shape, |row| row, compute, level).map(|_| ())
    };
    let q8 = ComputeType::Q8;
    assert!(matches!(
        from(TensorType::Q4_0, &[0; 18], [1, 33], q8),
        Err(Error::PartialBlock { num_elements: 33, .. })
    ));
    assert!(matches!(
        from(TensorType::Q4_0, &[0; 18], [2, 32], q8),
        Err(Error::LengthMismatch { expected: 36, actual: 18, .. })
    ));
    for [rows, cols] in [[usize::MAX, 32], [1 << 40, 1 << 40], [1, usize::MAX]] {
        for compute in COMPUTE {
            let result = from(TensorType::F32, &[0; 64], [rows, cols], compute);
            assert!(matches!(result, Err(Error::TooLarge { .. } | Error::LengthMismatch { .. })));
        }
    }
    let outside =
        WeightMatrix::from_tensor(TensorType::F32, &[0; 32], [2, 4], |row| row + 1, q8, level);
    assert!(matches!(outside, Err(Error::RowOutOfRange { row: 2, rows: 2 })));

    let w = build(TensorType::F32, &[0; 32], [2, 4], q8, level);
    let mut y = [7.0; 8];
    assert!(matches!(w.row(2, &mut y[..4]), Err(Error::RowOutOfRange { row: 2, rows: 2 })));
    assert!(matches!(w.row(0, &mut y[..3]), Err(Error::LengthMismatch { .. })));
    assert!(matches!(w.gemv(&[0.0; 3], &mut y[..2]), Err(Error::LengthMismatch { .. })));
    assert!(matches!(w.gemv(&[0.0; 4], &mut y[..3]), Err(Error::LengthMismatch { .. })));
    assert!(matches!(w.gemm(&[0.0; 8], 2, &mut y[..3]), Err(Error::LengthMismatch { .. })));
    assert!(matches!(w.gemm(&[0.0; 8], 1, &mut y[..4]), Err(Error::LengthMismatch { .. })));
    assert!(matches!(w.gemm(&[], usize::MAX, &mut []), Err(Error::TooLarge { .. })));
    assert_eq!(y, [7.0; 8]);
}

#[test]
fn overflow_is_an_error_and_nan_stays_visible() {
    let one = |value: f32| {
        let mut bytes = vec![0; 4 * 64];
        bytes[4 * 40..][..4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let level = Level::detect();
    for (compute, large) in [(ComputeType::F16, 1e5), (ComputeType::Q8, 1e7)] {
        let bytes = one(large);
        let result =
            WeightMatrix::from_tensor(TensorType::F32, &bytes, [2, 32], |r| r, compute, level);
        assert!(matches!(result, Err(Error::WeightOverflow { row: 1, .. })), "{compute}");
    }
    // d * sc of a Q4_K block: 2000 * 63 is finite, but not in f16.
    let mut k = vec![0xff; 144];
    k[..2].copy_from_slice(&f16::from_f32(2000.0).to_le_bytes());
    k[2..4].copy_from_slice(&f16::from_f32(1.0).to_le_bytes());
    let q8 = ComputeType::Q8;
    let result = WeightMatrix::from_tensor(TensorType::Q4K, &k, [1, 256], |r| r, q8, level);
    assert!(matches!(result, Err(Error::WeightOverflow { row: 0, .. })));

    for compute in COMPUTE {
        for level in Level::available() {
            let w = build(TensorType::F32, &one(f32::NAN), [2, 32], compute, level);
            let mut y = [0.0; 2];
            w.gemv(&[1.0; 32], &mut y).unwrap();
            assert!(y[0] == 0.0 && y[1].is_nan(), "{compute} {level}: {y:?}");

            let w = build(TensorType::F32, &one(1.0), [2, 32], compute, level);
            let mut x = [1.0; 32];
            x[9] = f32::NAN;
            w.gemv(&x, &mut y).unwrap();
            assert!(y.iter().all(|y| y.is_nan()), "{compute} {level}: {y:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the bytes are, loading and multiplying neither panics nor makes up finite values
    /// where the source has none.
    #[test]
    fn any_bytes_load(bytes in prop::collection::vec(any::<u8>(), 1056), compute in 0usize..3) {
        for ty in TensorType::ALL {
            let cols = 256;
            let rows = bytes.len() / (cols / ty.block_len() * ty.block_bytes());
            let bytes = &bytes[..ty.bytes_of((rows * cols) as u64).unwrap() as usize];
            let level = Level::detect();
            let built =
                WeightMatrix::from_tensor(ty, bytes, [rows, cols], |r| r, COMPUTE[compute], level);
            let w = match built {
                Ok(w) => w,
                Err(Error::WeightOverflow { .. }) => continue,
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            let mut truth = vec![0.0; rows * cols];
            dequantize(ty, bytes, &mut truth).unwrap();
            let (mut row, mut y) = (vec![0.0; cols], vec![0.0; rows]);
            w.gemv(&vec![1.0; cols], &mut y).unwrap();
            for (r, truth) in truth.chunks(cols).enumerate() {
                w.row(r, &mut row).unwrap();
                for (held, truth) in row.iter().zip(truth) {
                    prop_assert!(truth.is_finite() || !held.is_finite(), "{ty} {r}");
                }
                if truth.iter().any(|v| v.is_nan()) {
                    prop_assert!(!y[r].is_finite(), "{ty} {r}");
                }
            }
        }
    }
}
