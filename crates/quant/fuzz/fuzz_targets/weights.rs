//! Any bytes as a tensor of a checkpoint, of any type and shape: an error, or a matrix that multiplies.

#![no_main]

use heterokv_quant::Level;
use heterokv_quant::weights::{ComputeType, TensorType, WeightMatrix, dequantize};
use heterokv_quant_fuzz::{bytes, floats};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

const COMPUTE: [ComputeType; 4] =
    [ComputeType::F32, ComputeType::F16, ComputeType::Q8, ComputeType::Q8A8];

fuzz_target!(|data: &[u8]| {
    let _ = load_and_multiply(&mut Unstructured::new(data));
});

fn load_and_multiply(input: &mut Unstructured<'_>) -> Result<()> {
    let ty = *input.choose(&TensorType::ALL)?;
    let compute = *input.choose(&COMPUTE)?;
    let [rows, blocks] = [input.int_in_range(0..=5)?, input.int_in_range(0..=3)?];
    // Small float types need not end with a block of ours.
    let columns_per_block = if ty.block_len() == 1 { 21 } else { ty.block_len() };
    let cols = columns_per_block * blocks;
    let num_bytes = ty.bytes_of((rows * cols) as u64).expect("whole blocks") as usize;
    let wrong = input.ratio(1, 16)?;
    let shape = if wrong { [input.arbitrary()?, input.arbitrary()?] } else { [rows, cols] };
    let first = if wrong { input.arbitrary()? } else { 0 };
    let n = input.int_in_range(0..=6)?;
    let tensor = bytes(input, num_bytes)?;

    let mut values = vec![f32::NAN; rows * cols];
    dequantize(ty, &tensor, &mut values).expect("the lengths agree");
    if wrong {
        let mut other = vec![0.0; first % 600];
        let _ = dequantize(ty, &tensor, &mut other);
    }
    let x = floats(input, n * cols)?;
    for level in Level::available() {
        let order = |r: usize| r.wrapping_add(first);
        let Ok(matrix) = WeightMatrix::from_tensor(ty, &tensor, shape, order, compute, level)
        else {
            continue;
        };
        assert_eq!([matrix.rows(), matrix.cols()], shape);
        if rows * cols > 0 {
            assert_eq!(Some(matrix.bytes()), WeightMatrix::bytes_of(ty, shape, compute));
        }
        // Without columns there may be more rows than an output has room for.
        if wrong && shape[0] > rows {
            continue;
        }
        let mut row = vec![0.0; cols];
        for r in 0..=rows {
            assert_eq!(matrix.row(r, &mut row).is_ok(), r < matrix.rows() && cols == matrix.cols());
        }
        let mut y = vec![0.0; n * rows];
        let fits = shape == [rows, cols];
        assert!(matrix.gemm(&x, n, &mut y).is_ok() || !fits);
        if n > 0 {
            assert!(matrix.gemv(&x[..cols], &mut y[..rows]).is_ok() || !fits);
        }
    }
    Ok(())
}
