//! Compute on a GPU, portably: Vulkan, Metal and DX12 through wgpu.
//!
//! - [`DeviceChoice`] names a device, [`Gpu::open`] opens it, [`adapters`] lists what there is.
//! - [`Buffer`] is memory of the device, counted by [`Gpu::in_use_bytes`] and freed when it is dropped.
//! - [`Paged`] is memory in pages of one size, in as many buffers as the limits of the device ask for.
//! - [`Kernel`] is a compiled compute shader with its bindings; a device compiles each once.
//! - [`Commands`] collects dispatches and copies and submits them together; [`Gpu::read`] brings results back, and
//!   a [`Landing`] those of one submission while the device goes on with the next.
//!
//! What goes wrong is an [`Error`]: no device, one that lacks memory or a feature, a shader that does not compile, a
//! device that is lost. Nothing falls back to another device.
//!
//! What wgpu cannot do: there is one queue, in which everything runs in the order of submission. Copies do not overlap
//! with kernels; what overlaps is the host, whose threads work while the device does.
//!
//! This is the only crate of the workspace that names wgpu. It knows no kernel, no model and no cache: shaders come as
//! text. It never starts a thread.

mod buffer;
mod choice;
mod commands;
mod device;
mod error;
mod kernel;
mod landing;
mod link;
mod paged;

pub use buffer::Buffer;
pub use choice::{AdapterSummary, DeviceChoice, DeviceKind, adapters};
pub use commands::{Bound, Commands, KernelTime};
pub use device::{Gpu, Limits, LimitsChoice, OpenOptions, SubgroupSizes};
pub use error::{Error, Result};
pub use kernel::{Access, Kernel, KernelSource};
pub use landing::{Landed, Landing};
pub use link::Crossed;
pub use paged::{Paged, Paging, Place};
