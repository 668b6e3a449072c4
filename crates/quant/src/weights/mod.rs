//! Block weights: reading the tensor types of checkpoints, and multiplying with them.
//!
//! [`dequantize`] is the plain truth of each type. A [`WeightMatrix`] holds a tensor in the form it
//! is computed in and offers the two products a model needs: `gemv` for one token (bound by memory,
//! straight from the stored form) and `gemm` for many (bound by arithmetic: over panels of f32, or in integers of
//! 8 bits).

mod activations;
mod bands;
mod batch;
mod compute;
mod dequant;
mod encode;
mod gemv;
mod matrix;
mod types;
mod unpack;

pub use activations::Activations;
pub use compute::ComputeType;
pub use dequant::dequantize;
pub use gemv::gemv_many;
pub use matrix::{StoredWeights, WeightMatrix};
pub use types::{TensorType, ggml_name};

pub(crate) use activations::BlockVector;
pub(crate) use bands::{BAND, BandRows, CodeForm, Words, column_at};
pub(crate) use batch::{Batch, QuadBlock};
#[cfg(target_arch = "x86_64")]
pub(crate) use batch::{QUAD, Residual, STEPS, TILE_VECTORS, VectorTile};

/// Columns that share one scale in the `q8` compute form, for weights and activations alike.
pub(crate) const BLOCK: usize = 32;
