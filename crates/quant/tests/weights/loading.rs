//! What a matrix holds after loading, and what it refuses.

use half::f16;
use heterokv_quant::{
    Error, Level,
    weights::{
        Activations, ComputeType, StoredWeights, TensorType, WeightMatrix, dequantize, gemv_many,
    },
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use crate::inputs::{COMPUTE, build, for_each_case, max_offset, tensor};

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
        (ComputeType::F32, _)
        | (ComputeType::Q8 | ComputeType::Q8A8, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1) => {
            let same = held.iter().zip(truth).all(|(h, t)| h.to_bits() == t.to_bits());
            assert!(same, "{name}: {held:?} is not {truth:?}");
        }
        (ComputeType::F16, _) => {
            let rounded: Vec<f32> = truth.iter().map(|&t| f16::from_f32(t).to_f32()).collect();
            assert_eq!(held, rounded, "{name}");
        }
        (ComputeType::Q8 | ComputeType::Q8A8, Q4K | Q5K) => {
            for (error, t) in errors.zip(truth) {
                let terms = f64::from(t.abs()) + 2.0 * max_offset(ty);
                // The last term is for rounding the sum of product and offset to f32, twice.
                let bound = 2f64.powi(-11) * terms + 2f64.powi(-25) * 32.0 + 2f64.powi(-23) * terms;
                assert!(error <= bound, "{name}: {error:e} {bound:e}");
            }
        }
        (ComputeType::Q8 | ComputeType::Q8A8, F32 | F16 | BF16) => {
            for error in errors {
                assert!(error <= 0.5001 * step, "{name}: {error:e} {step:e}");
            }
        }
        (ComputeType::Q8 | ComputeType::Q8A8, Q6K) => {
            let squares: f64 = errors.map(|e| e * e).sum();
            assert!(squares <= 32.0 * (0.5001 * step).powi(2), "{name}: {squares:e} {step:e}");
        }
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
    // A band of 16 rows, two blocks per row, each 32 codes and a scale.
    assert_eq!(size(ComputeType::Q8), 16 * 2 * 34);
    let bytes = vec![0; 20 * 17];
    let w = build(TensorType::Q4_1, &bytes, [17, 32], ComputeType::Q8, Level::SCALAR);
    assert_eq!((w.bytes(), w.rows(), w.cols()), (2 * 16 * 20, 17, 32));
    let bytes = vec![0; 144 * 16];
    let w = build(TensorType::Q4K, &bytes, [16, 256], ComputeType::Q8, Level::SCALAR);
    assert_eq!(w.bytes(), 16 * 8 * 20);
}

#[test]
fn stored_weights_are_those_of_the_rows() {
    for_each_case(|name, ty, [rows, cols], compute, level, seed| {
        let bytes = tensor(ty, rows, cols, &mut StdRng::seed_from_u64(seed));
        let w = build(ty, &bytes, [rows, cols], compute, level);
        let values: Vec<f32> = match w.stored() {
            StoredWeights::F32(values) => values.to_vec(),
            StoredWeights::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            StoredWeights::Q8 { codes, scales, offsets } => {
                let num_blocks = cols.div_ceil(32);
                assert_eq!(codes.len(), rows * num_blocks * 32, "{name}");
                assert_eq!(scales.len(), rows * num_blocks, "{name}");
                assert!(offsets.is_empty() || offsets.len() == scales.len(), "{name}");
                let value = |row: usize, column: usize| {
                    let block = row * num_blocks + column / 32;
                    let code = codes[32 * block + column % 32];
                    let product = scales[block].to_f32() * f32::from(code);
                    offsets.get(block).map_or(product, |offset| product + offset.to_f32())
                };
                let at = (0..rows).flat_map(|row| (0..cols).map(move |column| (row, column)));
                at.map(|(row, column)| value(row, column)).collect()
            }
        };
        let mut row = vec![f32::NAN; cols];
        for (r, values) in values.chunks(cols).enumerate() {
            w.row(r, &mut row).unwrap();
            assert_eq!(row, values, "{name} row {r}");
        }
    });
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
    gemv_many(&mut Activations::new(&[]), &mut []).unwrap();
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
