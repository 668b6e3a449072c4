//! Dispatches and copies that are submitted together.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::{Buffer, Error, Gpu, Kernel, Landed, Landing, Result};

/// Where the parameters of a dispatch may begin: a multiple that every device allows.
const PARAMS_ALIGNMENT: usize = 256;

/// Dispatches whose times are kept of one submission at most; each takes two of what a device can note.
const MAX_TIMED: usize = 2048;

/// Part of a buffer, as a kernel sees it.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    buffer: &'a Buffer,
    start: u64,
    num_bytes: u64,
}

impl<'a> Bound<'a> {
    /// Its size.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// All of it.
    #[must_use]
    pub fn all(buffer: &'a Buffer) -> Self {
        Self { buffer, start: 0, num_bytes: buffer.num_bytes() }
    }

    /// A part of it. The start is a multiple of [`Limits::binding_alignment`](crate::Limits::binding_alignment).
    #[must_use]
    pub fn part(buffer: &'a Buffer, start: u64, num_bytes: u64) -> Self {
        Self { buffer, start, num_bytes }
    }
}

impl<'a> From<&'a Buffer> for Bound<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::all(buffer)
    }
}

/// How long a dispatch took, as the device measured it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelTime {
    /// The kernel.
    pub name: &'static str,
    /// Nanoseconds.
    pub nanoseconds: f64,
}

/// Work that a device will do in order, once it is submitted.
#[derive(Debug)]
pub struct Commands<'a> {
    gpu: &'a Gpu,
    steps: Vec<Step>,
    /// Of all dispatches, each at a multiple of [`PARAMS_ALIGNMENT`].
    params: Vec<u8>,
}

#[derive(Debug)]
enum Step {
    Dispatch {
        kernel: Arc<Kernel>,
        /// Made when it is recorded, so that buffers live as long as they are needed.
        buffers: Vec<(wgpu::Buffer, u64, u64)>,
        params_start: u32,
        grid: [u32; 3],
    },
    Copy {
        from: wgpu::Buffer,
        from_start: u64,
        to: wgpu::Buffer,
        to_start: u64,
        num_bytes: u64,
    },
}

impl<'a> Commands<'a> {
    /// None yet.
    #[must_use]
    pub fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, steps: Vec::new(), params: Vec::new() }
    }

    /// The device that they are for.
    #[must_use]
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// Runs `grid` workgroups of a kernel. `params` is what its uniform holds; no workgroups, no work.
    ///
    /// # Errors
    /// [`Error::Bindings`], [`Error::GridTooLarge`].
    pub fn dispatch<P: bytemuck::NoUninit>(
        &mut self,
        kernel: &Arc<Kernel>,
        params: &P,
        buffers: &[Bound<'_>],
        grid: [u32; 3],
    ) -> Result<()> {
        self.dispatch_bytes(kernel, bytemuck::bytes_of(params), buffers, grid)
    }

    /// The same with the bytes of the uniform.
    ///
    /// # Errors
    /// As [`Commands::dispatch`].
    pub fn dispatch_bytes(
        &mut self,
        kernel: &Arc<Kernel>,
        params: &[u8],
        buffers: &[Bound<'_>],
        grid: [u32; 3],
    ) -> Result<()> {
        let (name, expected, limit) = (kernel.name, kernel.num_buffers, self.gpu.limits().grid);
        if buffers.len() != expected {
            return Err(Error::Bindings { kernel: name, expected, actual: buffers.len() });
        }
        if grid.iter().any(|&count| count > limit) {
            return Err(Error::GridTooLarge { kernel: name, grid, limit });
        }
        if grid.contains(&0) {
            return Ok(());
        }
        let params_start = self.params.len() as u32;
        self.params.extend_from_slice(params);
        self.params.resize(self.params.len().next_multiple_of(PARAMS_ALIGNMENT), 0);
        let buffers =
            buffers.iter().map(|bound| (bound.buffer.raw.clone(), bound.start, bound.num_bytes));
        let (kernel, buffers) = (Arc::clone(kernel), buffers.collect());
        self.steps.push(Step::Dispatch { kernel, buffers, params_start, grid });
        Ok(())
    }

    /// Copies whole words from one buffer to another.
    ///
    /// # Errors
    /// [`Error::BadRange`] of either.
    pub fn copy(
        &mut self,
        (from, from_start): (&Buffer, u64),
        (to, to_start): (&Buffer, u64),
        num_bytes: u64,
    ) -> Result<()> {
        crate::device::check_range(from, from_start, num_bytes)?;
        crate::device::check_range(to, to_start, num_bytes)?;
        let (from, to) = (from.raw.clone(), to.raw.clone());
        self.steps.push(Step::Copy { from, from_start, to, to_start, num_bytes });
        Ok(())
    }

    /// Copies whole words of a buffer to where the host will read them.
    ///
    /// # Errors
    /// [`Error::BadRange`] of either.
    pub fn land(&mut self, from: Bound<'_>, (to, to_start): (&Landing, u64)) -> Result<()> {
        let Bound { buffer: from, start: from_start, num_bytes } = from;
        crate::device::check_range(from, from_start, num_bytes)?;
        let end = to_start.saturating_add(num_bytes);
        if !to_start.is_multiple_of(4) || end > to.num_bytes() {
            let label = to.label.to_owned();
            return Err(Error::BadRange { label, start: to_start, end, num_bytes: to.num_bytes() });
        }
        let (from, to) = (from.raw.clone(), to.raw.clone());
        self.steps.push(Step::Copy { from, from_start, to, to_start, num_bytes });
        Ok(())
    }

    /// Hands all of it to the device and does not wait.
    ///
    /// # Errors
    /// [`Error::Lost`], and [`Error::Invalid`] for buffers that a kernel cannot take.
    pub fn submit(self) -> Result<()> {
        self.run(None).map(drop)
    }

    /// Hands all of it to the device; the first `num_bytes` of `landing` will have landed when it is done. More can be
    /// submitted before they are waited for.
    ///
    /// # Errors
    /// As [`Commands::submit`].
    pub fn submit_to_land(self, landing: &'a Landing, num_bytes: u64) -> Result<Landed<'a>> {
        let gpu = self.gpu;
        let submission = self.run(None)?;
        Ok(Landed::new(gpu, landing, num_bytes, submission))
    }

    /// Hands all of it to the device, waits, and gives the time of each dispatch in order.
    ///
    /// # Errors
    /// As [`Commands::submit`]; [`Error::NoFeature`] of a device that was not opened for it.
    pub fn submit_timed(self) -> Result<Vec<KernelTime>> {
        let gpu = self.gpu;
        if !gpu.is_profiled() {
            let adapter = gpu.summary().name.clone();
            return Err(Error::NoFeature { adapter, feature: "times, as it was opened" });
        }
        let names: Vec<&'static str> =
            self.steps.iter().filter_map(Step::name).take(MAX_TIMED).collect();
        if names.is_empty() {
            self.submit()?;
            return Ok(Vec::new());
        }
        let count = 2 * names.len() as u32;
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("times"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        self.run(Some(&queries))?;
        let raw = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("times"),
            size: u64::from(count) * 8,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let times = gpu.buffer("times", u64::from(count) * 8)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        encoder.resolve_query_set(&queries, 0..count, &raw, 0);
        encoder.copy_buffer_to_buffer(&raw, 0, &times.raw, 0, u64::from(count) * 8);
        gpu.queue.submit([encoder.finish()]);
        let bytes = gpu.read(&times, 0, u64::from(count) * 8)?;
        let ticks: Vec<u64> =
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let period = f64::from(gpu.queue.get_timestamp_period());
        let spans = ticks.as_chunks::<2>().0.iter();
        let times = names.into_iter().zip(spans).map(|(name, [begin, end])| KernelTime {
            name,
            nanoseconds: end.wrapping_sub(*begin) as f64 * period,
        });
        Ok(times.collect())
    }

    fn run(self, queries: Option<&wgpu::QuerySet>) -> Result<wgpu::SubmissionIndex> {
        let Self { gpu, steps, params } = self;
        gpu.check()?;
        let device = &gpu.device;
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let uniform = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: (params.len() as u64).max(PARAMS_ALIGNMENT as u64),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue.write_buffer(&uniform, 0, &params);
        gpu.link.count_up(params.len());
        let mut encoder = device.create_command_encoder(&Default::default());
        let mut num_timed = 0;
        let mut pass: Option<wgpu::ComputePass<'static>> = None;
        for step in &steps {
            match step {
                Step::Copy { from, from_start, to, to_start, num_bytes } => {
                    pass = None;
                    encoder.copy_buffer_to_buffer(from, *from_start, to, *to_start, *num_bytes);
                }
                Step::Dispatch { kernel, buffers, params_start, grid } => {
                    let timestamps = queries.filter(|_| num_timed < MAX_TIMED as u32);
                    if timestamps.is_some() || pass.is_none() {
                        drop(pass.take());
                        let writes = timestamps.map(|query_set| wgpu::ComputePassTimestampWrites {
                            query_set,
                            beginning_of_pass_write_index: Some(2 * num_timed),
                            end_of_pass_write_index: Some(2 * num_timed + 1),
                        });
                        num_timed += 1;
                        let descriptor =
                            wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes };
                        pass = Some(encoder.begin_compute_pass(&descriptor).forget_lifetime());
                    }
                    let Some(pass) = &mut pass else { continue };
                    let group = bind(device, kernel, &uniform, buffers);
                    pass.set_pipeline(&kernel.pipeline);
                    pass.set_bind_group(0, &group, &[*params_start]);
                    pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
                }
            }
        }
        drop(pass);
        let submission = gpu.queue.submit([encoder.finish()]);
        if let Some(error) = pollster::block_on(validation.pop()) {
            gpu.check()?;
            let names: Vec<&str> = steps.iter().filter_map(Step::name).collect();
            let what = format!("the submission of {}", names.join(", "));
            return Err(Error::Invalid { what, reason: error.to_string() });
        }
        gpu.check()?;
        Ok(submission)
    }
}

impl Step {
    /// The kernel's.
    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Dispatch { kernel, .. } => Some(kernel.name),
            Self::Copy { .. } => None,
        }
    }
}

fn bind(
    device: &wgpu::Device,
    kernel: &Kernel,
    uniform: &wgpu::Buffer,
    buffers: &[(wgpu::Buffer, u64, u64)],
) -> wgpu::BindGroup {
    let entry = |binding: usize, buffer, offset, size| wgpu::BindGroupEntry {
        binding: binding as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: NonZeroU64::new(size),
        }),
    };
    let mut entries = vec![entry(0, uniform, 0, PARAMS_ALIGNMENT as u64)];
    let numbered = buffers.iter().enumerate();
    entries.extend(
        numbered.map(|(index, (buffer, start, size))| entry(index + 1, buffer, *start, *size)),
    );
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(kernel.name),
        layout: &kernel.layout,
        entries: &entries,
    })
}
