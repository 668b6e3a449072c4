//! What cudarc cannot check for its callers: launches, memory that begins unset, and whether a library is there.
//!
//! The only unsafe code of the CUDA path. Everything else goes through cudarc's checked interface.

#![expect(unsafe_code, reason = "a launch is unsafe in every interface to CUDA")]

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, CudaView, DriverError, LaunchConfig, PinnedHostSlice,
    PushKernelArg as _,
};

/// Words of the largest `Params`.
const MAX_PARAMS: usize = 16;

/// What a kernel takes.
pub(super) struct Arguments<'a> {
    /// `Params`, in words.
    pub(super) params: &'a [u32],
    /// Its buffers.
    pub(super) views: &'a [CudaView<'a, u32>],
}

/// Whether the library of the driver can be loaded.
pub(super) fn has_driver() -> bool {
    // SAFETY: loading a library runs its initialisers; those of NVIDIA's driver may run at any time.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Whether the library of the compiler can be loaded.
pub(super) fn has_compiler() -> bool {
    // SAFETY: as above, of NVRTC.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// Starts a kernel on a stream.
///
/// # Panics
/// If `Params` have more than 16 words, which those of no kernel have.
pub(super) fn launch(
    stream: &CudaStream,
    function: &CudaFunction,
    arguments: &Arguments<'_>,
    grid: [u32; 3],
    threads: u32,
) -> Result<(), DriverError> {
    // As many as the kernel may read, whatever its `Params` have.
    let mut params = [0u32; MAX_PARAMS];
    params[..arguments.params.len()].copy_from_slice(arguments.params);
    let mut builder = stream.launch_builder(function);
    builder.arg(&params);
    for view in arguments.views {
        builder.arg(view);
    }
    let config =
        LaunchConfig { grid_dim: grid.into(), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
    // SAFETY:
    // - The arguments are those of the kernel, in number, order and type: `Params` by value, then a pointer for each
    //   binding; tests of `heterokv-shaders` hold every kernel's text to that, and the emulation the size of `Params`.
    // - The views outlive the launch: what drops a buffer waits for the events that are recorded here.
    // - A kernel stays inside its buffers where what it is told lies there: lengths are checked by the operation that
    //   made the launch, places in buffers are its caller's to have right, which the module says.
    // - What a kernel writes, others see in the order of the stream; a copy on another stream waits for an event of it.
    unsafe { builder.launch(config) }?;
    Ok(())
}

/// Pinned memory of zeros.
pub(super) fn pinned_zeros(
    context: &Arc<CudaContext>,
    num_words: usize,
) -> Result<PinnedHostSlice<u32>, DriverError> {
    // No flags: the host reads these pages as well as it writes them.
    // SAFETY: the memory is unset, and nothing reads it before it is set below.
    let mut slice = unsafe { context.alloc_pinned_with_flags::<u32>(num_words.max(1), 0) }?;
    slice.as_mut_slice()?.fill(0);
    Ok(slice)
}
