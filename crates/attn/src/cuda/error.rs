//! What can go wrong with CUDA.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::device::DeviceError;

/// What can go wrong with CUDA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver is installed.
    #[error(
        "the library of the CUDA driver (libcuda) was not found; install NVIDIA's driver, or take a device through wgpu"
    )]
    NoDriver,
    /// No compiler is installed.
    #[error(
        "NVRTC (libnvrtc), which compiles kernels, was not found; install the CUDA toolkit, or the Python package \
         nvidia-cuda-nvrtc-cu12 and name the folder of its library in LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// A number beyond that of the last device.
    #[error("there is no CUDA device {ordinal}: the driver finds {count}; number them from 0")]
    NoDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// Devices that there are.
        count: usize,
    },
    /// A kernel that is only there in WGSL.
    #[error("{kernel} has no twin in CUDA C++; take a device through wgpu for it")]
    NoTwin {
        /// The kernel.
        kernel: &'static str,
    },
    /// NVRTC refuses a kernel.
    #[error("{kernel} does not compile for {architecture}: {log}")]
    Compile {
        /// The kernel.
        kernel: &'static str,
        /// What it was compiled for.
        architecture: String,
        /// What NVRTC says.
        log: String,
    },
    /// What NVRTC makes is beyond the driver.
    #[error(
        "the CUDA driver is older than NVRTC and does not read what that makes of {kernel}; install a newer driver or an \
         older NVRTC"
    )]
    OldDriver {
        /// The kernel.
        kernel: &'static str,
    },
    /// The device has no more memory.
    #[error("the device is out of memory: {num_bytes} bytes for {label}")]
    OutOfMemory {
        /// What it is for.
        label: &'static str,
        /// Its size.
        num_bytes: u64,
    },
    /// A range outside of a buffer, or not of whole words.
    #[error(
        "bytes {start}..{end} of {label}, which has {num_bytes}: a range is in whole words of 4 and inside"
    )]
    BadRange {
        /// What the buffer is for.
        label: &'static str,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
        /// The buffer's size.
        num_bytes: u64,
    },
    /// An operation that cannot be done with what it is given.
    #[error(transparent)]
    Operation(#[from] DeviceError),
    /// The driver.
    #[error("{what} failed; the CUDA driver says {source}")]
    Driver {
        /// What was done.
        what: &'static str,
        /// What it says.
        source: DriverError,
    },
}

/// What fallible calls here give.
pub type CudaResult<T> = Result<T, CudaError>;

impl CudaError {
    pub(super) fn driver(what: &'static str, source: DriverError) -> Self {
        Self::Driver { what, source }
    }

    pub(super) fn of_loading(kernel: &'static str, source: DriverError) -> Self {
        match source {
            DriverError(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION) => Self::OldDriver { kernel },
            source => Self::driver(kernel, source),
        }
    }

    pub(super) fn of_memory(label: &'static str, num_bytes: u64, source: DriverError) -> Self {
        match source {
            DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                Self::OutOfMemory { label, num_bytes }
            }
            source => Self::driver(label, source),
        }
    }
}
