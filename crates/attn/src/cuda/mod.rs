//! The kernels of attention, and those that pick a token, on an NVIDIA GPU through CUDA: the feature `cuda`.
//!
//! The operations are those of [`device`](crate::device): each comes to a [`Launch`], and [`CudaDevice::run`] runs the
//! kernel's twin in CUDA C++, which NVRTC compiles for the device when it is first needed. Driver and compiler are loaded
//! at run time; building needs neither. What this path has beyond wgpu's are copies that overlap with kernels, on streams
//! of their own ([`SideStream`]), from and to pinned memory of the host ([`PinnedPages`]).
//!
//! Kernels run in the order in which they are launched, and wait for the copies into buffers that they use; a copy waits
//! for the kernels launched before it that it could meet.
//!
//! Lengths are checked by the operations. Places that lie in buffers (pages, spans, rows of scores) are the caller's to
//! have right: CUDA, unlike wgpu, does not keep a kernel inside of its buffers.

mod error;
mod memory;
mod side;
mod unchecked;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError};
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use heterokv_shaders::{Shader, Variant};

use crate::device::Launch;

pub use error::{CudaError, CudaResult};
pub use memory::{CudaBound, CudaBuffer, PinnedPages};
pub use side::{SideStream, Transfer};

/// A kernel that is compiled and loaded.
#[derive(Debug)]
struct Kernel {
    function: CudaFunction,
    threads: u32,
}

/// A GPU and the kernels that were compiled for it.
#[derive(Debug)]
pub struct CudaDevice {
    context: Arc<CudaContext>,
    /// Where kernels run.
    stream: Arc<CudaStream>,
    name: String,
    /// In the words of the compiler.
    architecture: String,
    kernels: Mutex<HashMap<(&'static str, Variant), Arc<Kernel>>>,
}

impl CudaDevice {
    /// The device of that number.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoCompiler`], [`CudaError::NoDevice`]; what else the driver says.
    pub fn open(ordinal: usize) -> CudaResult<Self> {
        if !unchecked::has_driver() {
            return Err(CudaError::NoDriver);
        }
        if !unchecked::has_compiler() {
            return Err(CudaError::NoCompiler);
        }
        let count = match CudaContext::device_count() {
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            count => count.map_err(|source| CudaError::driver("the search for devices", source))?,
        };
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let opening = |source| CudaError::driver("the opening of the device", source);
        let context = CudaContext::new(ordinal).map_err(opening)?;
        let stream = context.new_stream().map_err(opening)?;
        let (major, minor) = context.compute_capability().map_err(opening)?;
        Ok(Self {
            name: context.name().map_err(opening)?,
            architecture: format!("compute_{major}{minor}"),
            context,
            stream,
            kernels: Mutex::default(),
        })
    }

    /// Its name and what it is compiled for.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{} (CUDA, {})", self.name, self.architecture)
    }

    /// Starts a kernel behind those that were started before, and does not wait for it.
    ///
    /// # Errors
    /// [`CudaError::NoTwin`], [`CudaError::Compile`], [`CudaError::OldDriver`], [`CudaError::BadRange`]; what else the driver says.
    pub fn run(&self, launch: &Launch<CudaBound<'_>>) -> CudaResult<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let kernel = self.kernel(launch.shader, launch.variant)?;
        let views: Vec<_> = launch.buffers.iter().map(CudaBound::view).collect::<Result<_, _>>()?;
        let arguments = unchecked::Arguments { params: &launch.params, views: &views };
        unchecked::launch(&self.stream, &kernel.function, &arguments, launch.grid, kernel.threads)
            .map_err(|source| CudaError::driver(launch.shader.name, source))
    }

    /// Waits for all kernels.
    ///
    /// # Errors
    /// What went wrong in one of them.
    pub fn wait(&self) -> CudaResult<()> {
        self.stream
            .synchronize()
            .map_err(|source| CudaError::driver("the wait for kernels", source))
    }

    /// A stream whose copies overlap with kernels.
    ///
    /// # Errors
    /// What the driver says.
    pub fn side_stream(&self) -> CudaResult<SideStream> {
        SideStream::beside(&self.stream)
    }

    fn kernel(&self, shader: &Shader, variant: Variant) -> CudaResult<Arc<Kernel>> {
        let (name, variant) = (shader.name, shader.narrowed(variant));
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&(name, variant)) {
            return Ok(Arc::clone(kernel));
        }
        let source = shader.cuda(variant).ok_or(CudaError::NoTwin { kernel: name })?;
        let architecture = format!("--gpu-architecture={}", self.architecture);
        let options = CompileOptions {
            options: vec![architecture, "--std=c++17".to_owned()],
            name: Some(format!("{name}.cu")),
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(&source.text, options).map_err(|error| {
            let log = match error {
                CompileError::CompileError { log, .. } => log.to_string_lossy().trim().to_owned(),
                other => other.to_string(),
            };
            CudaError::Compile { kernel: name, architecture: self.architecture.clone(), log }
        })?;
        let loading = |source| CudaError::of_loading(name, source);
        let module = self.context.load_module(ptx).map_err(loading)?;
        let function = module.load_function(source.name).map_err(loading)?;
        let kernel = Arc::new(Kernel { function, threads: source.threads });
        kernels.insert((name, variant), Arc::clone(&kernel));
        Ok(kernel)
    }
}

#[cfg(test)]
mod tests;
