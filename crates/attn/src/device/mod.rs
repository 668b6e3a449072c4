//! The kernels of `heterokv-shaders` on a device: what each takes, checked, and how it is spread over workgroups.
//!
//! A [`Device`] is a [`Gpu`] with the variant of the kernels that suits it. Each operation is a method that adds one
//! dispatch to [`Commands`](heterokv_gpu::Commands); a struct beside it says what its numbers mean, and is what the
//! shader's `Params` are made of. Lengths are checked here, before anything is recorded: a shader checks nothing but its
//! bounds.
//!
//! An operation is a [`Launch`] first, or several; those of attention and those that pick a token over whatever stands for
//! memory ([`Operand`]): kernels in CUDA take the same.

mod attention;
mod encode;
mod groups;
mod key_scores;
mod launch;
mod layers;
mod matrix;
#[cfg(test)]
mod reflection;
mod sample;
mod scores;
mod select;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use heterokv_gpu::{Gpu, Kernel, KernelSource};
use heterokv_quant::KeyFormat;
pub use heterokv_shaders::WeightForm;
use heterokv_shaders::{Access, Reduction, Shader, Variant};

pub use attention::{AttendRows, MergeStates, Prefill, QueryEnergy, RowPart, RowSlot, StoreRows};
pub use encode::{DeviceCoders, EncodeKeys, KeyRows, KeySpan};
pub use groups::{Coordinate, GroupTables};
pub use key_scores::{ScoreGroups, ScoreKeys};
pub use launch::{Launch, Operand};
pub use layers::{Embed, Linear, RmsNorm, Rope, SwiGlu};
pub use matrix::{DeviceMatrix, MatrixRows};
pub use sample::{Argmax, Picked, Sample};
pub use scores::{Channel, FrameQueries, ScorePlanes, Span};
pub use select::{ScoreRow, Select, SelectScratch};

/// Channels of a head at most: what the workgroup memory of the kernels is cut for.
const MAX_HEAD_DIM: usize = 256;

/// What can go wrong with an operation on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device.
    #[error(transparent)]
    Gpu(#[from] heterokv_gpu::Error),
    /// A buffer that does not hold what an operation reads or writes.
    #[error("{operation}: {tensor} has {actual} elements, and {expected} are needed")]
    Length {
        /// The operation.
        operation: &'static str,
        /// The buffer.
        tensor: &'static str,
        /// Elements needed.
        expected: u64,
        /// Elements there.
        actual: u64,
    },
    /// Numbers that an operation is not made for.
    #[error("{operation} cannot do with {what} of {value}; {remedy}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// What is wrong.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it can do with.
        remedy: &'static str,
    },
    /// A setting out of its range.
    #[error("{operation} cannot do with {what} of {value}; {remedy}")]
    Setting {
        /// The operation.
        operation: &'static str,
        /// The setting.
        what: &'static str,
        /// Its value.
        value: f32,
        /// What it can do with.
        remedy: &'static str,
    },
    /// A key format that an operation has no kernel for.
    #[error("{operation} has no kernel for keys of {format}; {remedy}")]
    Format {
        /// The operation.
        operation: &'static str,
        /// The format.
        format: KeyFormat,
        /// What to do instead.
        remedy: &'static str,
    },
    /// Arithmetic that the device does not have.
    #[error(
        "{operation} in half precision: {adapter} does not compute in it; use single precision"
    )]
    NoHalf {
        /// The operation.
        operation: &'static str,
        /// The device.
        adapter: String,
    },
}

/// What operations give.
pub type DeviceResult<T> = Result<T, DeviceError>;

/// A device and its kernels.
#[derive(Debug)]
pub struct Device {
    gpu: Arc<Gpu>,
    reduction: Reduction,
    kernels: Mutex<HashMap<(&'static str, Variant), Arc<Kernel>>>,
}

impl Device {
    /// Channels of a head at most.
    pub const MAX_HEAD_DIM: usize = MAX_HEAD_DIM;

    /// With the fastest sums that the device has.
    #[must_use]
    pub fn new(gpu: Arc<Gpu>) -> Self {
        let has_subgroups = gpu.subgroup_sizes().is_some_and(|sizes| sizes.min >= 4);
        let reduction = if has_subgroups { Reduction::Subgroup } else { Reduction::Workgroup };
        Self::with_reduction(gpu, reduction)
    }

    /// With sums of that kind, which the device must have.
    #[must_use]
    pub fn with_reduction(gpu: Arc<Gpu>, reduction: Reduction) -> Self {
        Self { gpu, reduction, kernels: Mutex::default() }
    }

    /// What it runs on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// In a variant, but with this device's sums.
    fn kernel(&self, shader: &Shader, variant: Variant) -> DeviceResult<Arc<Kernel>> {
        let variant = shader.narrowed(Variant { reduction: self.reduction, ..variant });
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&(shader.name, variant)) {
            return Ok(Arc::clone(kernel));
        }
        let bindings: Vec<heterokv_gpu::Access> = shader
            .bindings
            .iter()
            .map(|access| match access {
                Access::Read => heterokv_gpu::Access::Read,
                Access::Write => heterokv_gpu::Access::Write,
            })
            .collect();
        let kernel = self.gpu.kernel(&KernelSource {
            name: shader.name,
            wgsl: &shader.wgsl(variant),
            bindings: &bindings,
            constants: &shader.constants(variant),
        })?;
        kernels.insert((shader.name, variant), Arc::clone(&kernel));
        Ok(kernel)
    }
}

/// Elements of 4 bytes, of which there must be as many as are used.
fn check_len(
    operation: &'static str,
    tensor: &'static str,
    operand: &impl Operand,
    expected: u64,
) -> DeviceResult<()> {
    let actual = operand.num_bytes() / 4;
    if actual >= expected {
        return Ok(());
    }
    Err(DeviceError::Length { operation, tensor, expected, actual })
}

/// A number that a shader holds in 32 bits.
fn word(operation: &'static str, what: &'static str, value: u64) -> DeviceResult<u32> {
    u32::try_from(value).map_err(|_| DeviceError::Shape {
        operation,
        what,
        value,
        remedy: "indices of a kernel have 32 bits; split it",
    })
}
