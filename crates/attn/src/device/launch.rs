//! One dispatch of a kernel, before any device has it.

use bytemuck::NoUninit;
use heterokv_gpu::{Bound, Commands};
use heterokv_shaders::{Shader, Variant};

use super::{Device, DeviceResult};

/// What stands for memory in an operation: a part of a buffer of some device.
pub trait Operand: Copy {
    /// Its size.
    fn num_bytes(&self) -> u64;
}

impl Operand for Bound<'_> {
    fn num_bytes(&self) -> u64 {
        Bound::num_bytes(self)
    }
}

/// A kernel with its numbers, checked, and spread over workgroups: what an operation comes to on every kind of device.
#[derive(Clone, Debug)]
pub struct Launch<B> {
    /// The kernel.
    pub shader: &'static Shader,
    /// What is chosen of what it leaves open; how a workgroup adds up is the device's to say.
    pub variant: Variant,
    /// What its `Params` hold, as words of 4 bytes.
    pub params: Vec<u32>,
    /// Its buffers, in the order of [`Shader::bindings`].
    pub buffers: Vec<B>,
    /// Workgroups; none where one of them is 0.
    pub grid: [u32; 3],
}

impl<B> Launch<B> {
    pub(super) fn new<P: NoUninit>(
        shader: &'static Shader,
        params: &P,
        buffers: impl Into<Vec<B>>,
        grid: [u32; 3],
    ) -> Self {
        let params = bytemuck::pod_collect_to_vec(bytemuck::bytes_of(params));
        Self { shader, variant: Variant::default(), params, buffers: buffers.into(), grid }
    }
}

impl Device {
    /// Adds a launch to `commands`.
    ///
    /// # Errors
    /// A kernel that does not compile, and a grid beyond what the device has.
    pub fn launch(
        &self,
        commands: &mut Commands<'_>,
        launch: &Launch<Bound<'_>>,
    ) -> DeviceResult<()> {
        let kernel = self.kernel(launch.shader, launch.variant)?;
        let params = bytemuck::cast_slice(&launch.params);
        commands.dispatch_bytes(&kernel, params, &launch.buffers, launch.grid)?;
        Ok(())
    }

    /// The same of workgroups that count in the first dimension and, beyond what a device has there, in another as well:
    /// some beyond them find nothing to do.
    pub(super) fn launch_spread(
        &self,
        commands: &mut Commands<'_>,
        mut launch: Launch<Bound<'_>>,
        other: usize,
    ) -> DeviceResult<()> {
        let count = launch.grid[0];
        let wide = count.clamp(1, self.gpu.limits().grid);
        (launch.grid[0], launch.grid[other]) = (wide, count.div_ceil(wide));
        self.launch(commands, &launch)
    }
}
