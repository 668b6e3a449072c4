//! Weights from a mapped file to a device, a few rows at a time.

use half::f16;
use heterokv_attn::device::{DeviceError, DeviceMatrix, MatrixRows, WeightForm};
use heterokv_gpu::Gpu;
use heterokv_quant::weights::{ComputeType, StoredWeights, WeightMatrix};

use super::plan::FORMS;
use crate::checkpoint::{Tensor, TensorRole};
use crate::loader::Loader;
use crate::{Error, Result};

/// The form that kernels compute with.
pub(super) fn form_of(compute: ComputeType) -> Result<WeightForm> {
    let found = FORMS.iter().find(|(known, _)| *known == compute);
    found.map(|(_, form)| *form).ok_or(Error::NoDeviceForm { compute })
}

/// Uploads a matrix and its bias.
pub(super) fn upload(
    gpu: &Gpu,
    loader: &Loader<'_>,
    role: TensorRole,
    bias: Option<Vec<f32>>,
) -> Result<DeviceMatrix> {
    let tensor = loader.checkpoint.tensor(role)?;
    let form = form_of(loader.compute)?;
    let shape = [tensor.rows, tensor.cols];
    DeviceMatrix::upload(gpu, form, shape, bias.as_deref(), &mut Rows { tensor, loader })
}

/// Rows of a tensor, decoded as they are asked for.
struct Rows<'a> {
    tensor: Tensor<'a>,
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
        let Self { tensor, loader } = *self;
        let num_rows = scales.len() / tensor.cols.div_ceil(32).max(1);
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
        let rows =
            rows.map_err(|source| Error::Weights { name: tensor.name.to_owned(), source })?;
        match rows.stored() {
            // An empty matrix is held as f32.
            StoredWeights::F32(_) => {}
            StoredWeights::F16(values) => {
                for (word, [low, high]) in codes.iter_mut().zip(values.as_chunks::<2>().0) {
                    *word = pair(*low, *high);
                }
            }
            StoredWeights::Q8 { codes: own, scales: of_blocks, offsets } => {
                for (word, four) in codes.iter_mut().zip(own.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(four.map(|code| code as u8));
                }
                for (block, (word, scale)) in scales.iter_mut().zip(of_blocks).enumerate() {
                    *word = pair(*scale, offsets.get(block).copied().unwrap_or(f16::ZERO));
                }
            }
        }
        Ok(())
    }
}

fn pair(low: f16, high: f16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}
