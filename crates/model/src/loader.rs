//! Tensors of a checkpoint, read into the form that a model computes with.

use heterokv_quant::Level;
use heterokv_quant::weights::{ComputeType, WeightMatrix, dequantize};

use crate::checkpoint::TensorRole;
use crate::{Checkpoint, Error, Result};

/// What reads tensors into the form a model computes with.
pub(crate) struct Loader<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) compute: ComputeType,
    pub(crate) level: Level,
}

impl Loader<'_> {
    pub(crate) fn matrix(&self, role: TensorRole) -> Result<WeightMatrix> {
        let tensor = self.checkpoint.tensor(role)?;
        let order = |row| tensor.row_order.stored_row(row);
        let shape = [tensor.rows, tensor.cols];
        WeightMatrix::from_tensor(tensor.ty, tensor.bytes, shape, order, self.compute, self.level)
            .map_err(|source| Error::Weights { name: tensor.name.to_owned(), source })
    }

    pub(crate) fn vector(&self, role: TensorRole) -> Result<Vec<f32>> {
        let tensor = self.checkpoint.tensor(role)?;
        let mut stored = vec![0.0; tensor.rows * tensor.cols];
        dequantize(tensor.ty, tensor.bytes, &mut stored)
            .map_err(|source| Error::Weights { name: tensor.name.to_owned(), source })?;
        // A bias of q or k is permuted like the rows of its matrix.
        Ok((0..stored.len()).map(|i| stored[tensor.row_order.stored_row(i)]).collect())
    }

    pub(crate) fn optional_vector(&self, role: TensorRole) -> Result<Option<Vec<f32>>> {
        match self.checkpoint.optional_tensor(role)? {
            None => Ok(None),
            Some(_) => self.vector(role).map(Some),
        }
    }
}
