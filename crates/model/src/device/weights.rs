//! Weights from a mapped file to a device, a few rows at a time.

use half::f16;
use heterokv_attn::device::{DeviceError, DeviceMatrix, MatrixRows, WeightForm};
use heterokv_gpu::Gpu;
use heterokv_quant::Error as QuantError;
use heterokv_quant::weights::{ComputeType, StoredWeights, TensorType, WeightMatrix};

use crate::checkpoint::{Tensor, TensorRole};
use crate::loader::Loader;
use crate::{Error, Result};

/// What is added to codes around 0.
const Q4_MIDDLE: i8 = 8;

/// The form that kernels compute with, of a tensor of that type where it is known: what is stored in 4 bits stays so where
/// the model computes in 8, and is the same numbers.
pub(super) fn form_of(compute: ComputeType, stored: Option<TensorType>) -> Result<WeightForm> {
    use TensorType::{Q4_0, Q4_1, Q4K};
    match (compute, stored) {
        (ComputeType::F32 | ComputeType::Q8A8, _) => Err(Error::NoDeviceForm { compute }),
        (ComputeType::F16, _) => Ok(WeightForm::F16),
        (ComputeType::Q8, Some(Q4_0 | Q4_1 | Q4K)) => Ok(WeightForm::Q4),
        (ComputeType::Q8, _) => Ok(WeightForm::Q8),
    }
}

/// Uploads a matrix and its bias.
pub(super) fn upload(
    gpu: &Gpu,
    loader: &Loader<'_>,
    role: TensorRole,
    bias: Option<Vec<f32>>,
) -> Result<DeviceMatrix> {
    let tensor = loader.checkpoint.tensor(role)?;
    let form = form_of(loader.compute, Some(tensor.ty))?;
    let shape = [tensor.rows, tensor.cols];
    DeviceMatrix::upload(gpu, form, shape, bias.as_deref(), &mut Rows { tensor, form, loader })
}

/// Rows of a tensor, decoded as they are asked for.
struct Rows<'a> {
    tensor: Tensor<'a>,
    form: WeightForm,
    loader: &'a Loader<'a>,
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Self::Cache(error.into())
    }
}

impl MatrixRows for Rows<'_> {
    type Error = Error;

    fn write(&mut self, first_row: usize, codes: &mut [u32], scales: &mut [u32]) -> Result<()> {
        let Self { tensor, form, loader } = *self;
        let row_words = tensor.cols / DeviceMatrix::BLOCK * form.code_words();
        let num_rows = codes.len() / row_words.max(1);
        let row_bytes = tensor.bytes.len() / tensor.rows.max(1);
        let mut bytes = Vec::with_capacity(num_rows * row_bytes);
        for row in first_row..first_row + num_rows {
            let stored = tensor.row_order.stored_row(row);
            bytes.extend_from_slice(&tensor.bytes[stored * row_bytes..][..row_bytes]);
        }
        let shape = [num_rows, tensor.cols];
        let rows = WeightMatrix::from_tensor(
            tensor.ty,
            &bytes,
            shape,
            |row| row,
            loader.compute,
            loader.level,
        );
        let of_tensor = |source| Error::Weights { name: tensor.name.to_owned(), source };
        let rows = rows.map_err(of_tensor)?;
        write_words(&rows.stored(), form, codes, scales).map_err(|(block, value)| {
            let row = first_row + block / (tensor.cols / DeviceMatrix::BLOCK);
            of_tensor(QuantError::WeightOverflow { row, value, compute: loader.compute })
        })
    }
}

/// Writes weights as words of a form; an offset that f16 does not hold, with its block, is refused.
fn write_words(
    stored: &StoredWeights<'_>,
    form: WeightForm,
    codes: &mut [u32],
    scales: &mut [u32],
) -> std::result::Result<(), (usize, f32)> {
    match stored {
        // An empty matrix is held as f32.
        StoredWeights::F32(_) => {}
        StoredWeights::F16(values) => {
            for (word, [low, high]) in codes.iter_mut().zip(values.as_chunks::<2>().0) {
                *word = pair(*low, *high);
            }
        }
        StoredWeights::Q8 { codes: own, scales: of_blocks, offsets } => {
            let is_centred = form == WeightForm::Q4 && offsets.is_empty();
            match form {
                WeightForm::Q4 => {
                    // Codes around 0 become codes from 0 on, and the offset is that much below.
                    let middle = if is_centred { Q4_MIDDLE } else { 0 };
                    for (word, eight) in codes.iter_mut().zip(own.as_chunks::<8>().0) {
                        let nibble = |code: &i8| u32::from(code.wrapping_add(middle) as u8 & 15);
                        *word = eight.iter().rev().fold(0, |word, code| word << 4 | nibble(code));
                    }
                }
                _ => {
                    for (word, four) in codes.iter_mut().zip(own.as_chunks::<4>().0) {
                        *word = u32::from_le_bytes(four.map(|code| code as u8));
                    }
                }
            }
            for (block, (word, scale)) in scales.iter_mut().zip(of_blocks).enumerate() {
                let below = if is_centred { -f32::from(Q4_MIDDLE) * scale.to_f32() } else { 0.0 };
                let offset = offsets.get(block).copied().unwrap_or(f16::from_f32(below));
                if is_centred && offset.is_infinite() && below.is_finite() {
                    return Err((block, below));
                }
                *word = pair(*scale, offset);
            }
        }
    }
    Ok(())
}

fn pair(low: f16, high: f16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;
    use heterokv_quant::weights::dequantize;

    use super::*;

    const BLOCK: usize = DeviceMatrix::BLOCK;

    /// What the kernels make of words of the form of 4 bits.
    fn decoded(codes: &[u32], scales: &[u32]) -> Vec<f32> {
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        let weight = |i: usize| {
            let code = codes[i / 8] >> (i % 8 * 4) & 15;
            let word = scales[i / BLOCK];
            half(word) * code as f32 + half(word >> 16)
        };
        (0..8 * codes.len()).map(weight).collect()
    }

    #[test]
    fn weights_of_4_bits_are_the_same_numbers() {
        for ty in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q4K] {
            assert_eq!(form_of(ComputeType::Q8, Some(ty)).unwrap(), WeightForm::Q4);
            let cols = 256;
            let mut bytes: Vec<u8> = (0..2 * cols / ty.block_len() * ty.block_bytes())
                .map(|i| (i * 37 + i / 11 * 101) as u8)
                .collect();
            // Scales, and minima where there are any, are ordinary numbers.
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                block[..2].copy_from_slice(&f16::from_f32(0.013).to_le_bytes());
                if ty != TensorType::Q4_0 {
                    block[2..4].copy_from_slice(&f16::from_f32(-0.21).to_le_bytes());
                }
            }
            let shape = [2, cols];
            let compute = ComputeType::Q8;
            let rows =
                WeightMatrix::from_tensor(ty, &bytes, shape, |row| row, compute, Level::detect());
            let rows = rows.unwrap();
            let (mut codes, mut scales) = (vec![0; 2 * cols / 8], vec![0; 2 * cols / BLOCK]);
            write_words(&rows.stored(), WeightForm::Q4, &mut codes, &mut scales).unwrap();
            let actual = decoded(&codes, &scales);
            let mut held = vec![0.0; 2 * cols];
            held.chunks_exact_mut(cols).enumerate().for_each(|(i, out)| rows.row(i, out).unwrap());
            let off = |other: &[f32]| {
                actual.iter().zip(other).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
            };
            assert!(off(&held) < 1e-6, "{ty}: {} from what the host holds", off(&held));
            let mut stored = vec![0.0; 2 * cols];
            dequantize(ty, &bytes, &mut stored).unwrap();
            let largest = stored.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(off(&stored) < 2e-3 * largest, "{ty}: {} from the file", off(&stored));
            // A column off by one is far away.
            held.rotate_left(1);
            assert!(off(&held) > 0.1 * largest, "{ty}");
        }
    }

    #[test]
    fn an_offset_beyond_f16_is_refused() {
        let scale = f16::from_f32(10_000.0);
        let stored =
            StoredWeights::Q8 { codes: vec![1; BLOCK], scales: vec![scale], offsets: Vec::new() };
        let (mut codes, mut scales) = ([0; 4], [0; 1]);
        let refused = write_words(&stored, WeightForm::Q4, &mut codes, &mut scales);
        assert_eq!(refused, Err((0, -8.0 * scale.to_f32())));
        write_words(&stored, WeightForm::Q8, &mut [0; 8], &mut scales).unwrap();
    }
}
