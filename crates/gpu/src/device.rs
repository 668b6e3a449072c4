//! An open device: its limits and features, its memory, and what comes back from it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::Memory;
use crate::choice::{AdapterSummary, DeviceChoice, find, summary};
use crate::kernel::{Kernel, KernelSource};
use crate::link::{Crossed, Link};
use crate::{Bound, Buffer, Commands, Error, Landing, Result};

/// Bytes that one write hands to the queue at a time: what is staged is held twice until it is copied.
const WRITE_BYTES: usize = 16 << 20;

/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Which.
    pub choice: DeviceChoice,
    /// With which limits.
    pub limits: LimitsChoice,
    /// Bytes that its buffers may hold together; none leaves it to the device.
    pub budget_bytes: Option<u64>,
    /// Whether the time of every dispatch is taken.
    pub is_profiled: bool,
}

impl OpenOptions {
    /// All that the adapter has, without a budget.
    #[must_use]
    pub fn new(choice: DeviceChoice) -> Self {
        Self { choice, limits: LimitsChoice::Adapter, budget_bytes: None, is_profiled: false }
    }
}

/// Which limits a device is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitsChoice {
    /// Those of the adapter.
    Adapter,
    /// The smallest that WebGPU allows, which every device has.
    WebGpuMinimum,
}

/// The limits that kernels and their callers look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a buffer that a kernel can see.
    pub binding_bytes: u64,
    /// Workgroups of a dispatch in each dimension.
    pub grid: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Threads of a workgroup.
    pub workgroup_threads: u32,
    /// Buffers of a kernel beside its parameters.
    pub storage_buffers: u32,
    /// A binding begins at a multiple of so many bytes.
    pub binding_alignment: u64,
}

impl Limits {
    /// The smallest that WebGPU allows, which every device has: for plans of devices that are not there.
    pub const WEBGPU_MINIMUM: Self = Self {
        binding_bytes: 128 << 20,
        grid: 65_535,
        workgroup_bytes: 16_384,
        workgroup_threads: 256,
        storage_buffers: 8,
        binding_alignment: 256,
    };
}

/// How many threads the subgroups of a device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubgroupSizes {
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
}

/// A device that is open.
#[derive(Debug)]
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    summary: AdapterSummary,
    limits: Limits,
    subgroup_sizes: Option<SubgroupSizes>,
    has_f16: bool,
    is_profiled: bool,
    budget_bytes: u64,
    memory: Arc<Memory>,
    pub(crate) link: Link,
    faults: Arc<Faults>,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

/// What went wrong without a call to give it back by.
#[derive(Debug, Default)]
struct Faults {
    lost: Mutex<Option<String>>,
    uncaptured: Mutex<Option<String>>,
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], which names what to install; [`Error::NoDevice`]; [`Error::NoFeature`] where times are
    /// asked for and the device takes none.
    pub fn open(options: OpenOptions) -> Result<Self> {
        let adapter = find(options.choice)?;
        let info = adapter.get_info();
        let name = info.name.clone();
        let timed = wgpu::Features::TIMESTAMP_QUERY;
        let wished = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
        let mut features = adapter.features() & wished;
        if options.is_profiled {
            if !adapter.features().contains(timed) {
                return Err(Error::NoFeature { adapter: name, feature: "timestamps" });
            }
            features |= timed;
        }
        let required_limits = match options.limits {
            LimitsChoice::Adapter => adapter.limits(),
            LimitsChoice::WebGpuMinimum => wgpu::Limits::default(),
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("heterokv"),
            required_features: features,
            required_limits,
            ..Default::default()
        };
        let opened = pollster::block_on(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|source| {
            let source = Box::new(source);
            Error::NoDevice { adapter: name, source }
        })?;
        let faults = Arc::new(Faults::default());
        let seen = Arc::clone(&faults);
        device.set_device_lost_callback(move |_, reason| {
            held(&seen.lost).get_or_insert(reason);
        });
        let seen = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            held(&seen.uncaptured).get_or_insert(error.to_string());
        }));
        let limits = device.limits();
        Ok(Self {
            limits: Limits {
                binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
                    / 4
                    * 4,
                grid: limits.max_compute_workgroups_per_dimension,
                workgroup_bytes: limits.max_compute_workgroup_storage_size,
                workgroup_threads: limits.max_compute_invocations_per_workgroup,
                storage_buffers: limits.max_storage_buffers_per_shader_stage,
                binding_alignment: limits.min_storage_buffer_offset_alignment.into(),
            },
            subgroup_sizes: features.contains(wgpu::Features::SUBGROUP).then_some(SubgroupSizes {
                min: info.subgroup_min_size,
                max: info.subgroup_max_size,
            }),
            has_f16: features.contains(wgpu::Features::SHADER_F16),
            is_profiled: options.is_profiled,
            summary: summary(&info),
            budget_bytes: options.budget_bytes.unwrap_or(u64::MAX),
            memory: Arc::default(),
            link: Link::default(),
            kernels: Mutex::default(),
            device,
            queue,
            faults,
        })
    }

    /// What it is.
    #[must_use]
    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    /// What its kernels and buffers are held to.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The sizes of its subgroups; none where it has no operations of subgroups.
    #[must_use]
    pub fn subgroup_sizes(&self) -> Option<SubgroupSizes> {
        self.subgroup_sizes
    }

    /// Whether kernels can compute in half precision.
    #[must_use]
    pub fn has_f16(&self) -> bool {
        self.has_f16
    }

    /// Whether the time of every dispatch is taken.
    #[must_use]
    pub fn is_profiled(&self) -> bool {
        self.is_profiled
    }

    /// Bytes that its buffers hold now.
    #[must_use]
    pub fn in_use_bytes(&self) -> u64 {
        self.memory.in_use_bytes()
    }

    /// The most bytes that its buffers have held together.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.memory.peak_bytes()
    }

    /// What has crossed so far between the device and its host.
    #[must_use]
    pub fn crossed(&self) -> Crossed {
        self.link.crossed()
    }

    /// A buffer of zeros, of at least `num_bytes` rounded up to whole words, and at least one word.
    ///
    /// # Errors
    /// [`Error::BufferTooLarge`], [`Error::OverBudget`], [`Error::OutOfMemory`], [`Error::Lost`].
    pub fn buffer(&self, label: &'static str, num_bytes: u64) -> Result<Buffer> {
        let limit_bytes = self.limits.binding_bytes;
        if num_bytes > limit_bytes {
            return Err(Error::BufferTooLarge { label: label.to_owned(), num_bytes, limit_bytes });
        }
        let num_bytes = num_bytes.next_multiple_of(4).max(4);
        self.check()?;
        self.memory.take(num_bytes, self.budget_bytes).map_err(|in_use_bytes| {
            Error::OverBudget {
                label: label.to_owned(),
                num_bytes,
                in_use_bytes,
                budget_bytes: self.budget_bytes,
            }
        })?;
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST;
        let Some(raw) = self.allocate(label, num_bytes, usage) else {
            self.memory.give_back(num_bytes);
            return Err(self.out_of_memory(label, num_bytes));
        };
        let buffer = Buffer::counted(raw, label, Arc::clone(&self.memory));
        self.check()?;
        Ok(buffer)
    }

    /// Memory of the device that nobody counts; none where the driver has no more.
    fn allocate(
        &self,
        label: &str,
        num_bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Option<wgpu::Buffer> {
        let out_of_memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: num_bytes,
            usage,
            mapped_at_creation: false,
        });
        pollster::block_on(out_of_memory.pop()).is_none().then_some(raw)
    }

    fn out_of_memory(&self, label: &str, num_bytes: u64) -> Error {
        let (label, in_use_bytes) = (label.to_owned(), self.memory.in_use_bytes());
        Error::OutOfMemory { label, num_bytes, in_use_bytes }
    }

    /// A buffer that holds `bytes`, padded with zeros to whole words.
    ///
    /// # Errors
    /// As [`Gpu::buffer`].
    pub fn upload(&self, label: &'static str, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.buffer(label, bytes.len() as u64)?;
        let whole = bytes.len() / 4 * 4;
        self.write(&buffer, 0, &bytes[..whole])?;
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.write(&buffer, whole as u64, &last)?;
        }
        Ok(buffer)
    }

    /// Writes whole words from byte `start` of a buffer on, before whatever is submitted next.
    ///
    /// # Errors
    /// [`Error::BadRange`], [`Error::Lost`].
    pub fn write(&self, buffer: &Buffer, start: u64, bytes: &[u8]) -> Result<()> {
        check_range(buffer, start, bytes.len() as u64)?;
        let mut before = None;
        for (index, part) in bytes.chunks(WRITE_BYTES).enumerate() {
            self.queue.write_buffer(&buffer.raw, start + (index * WRITE_BYTES) as u64, part);
            self.link.count_up(part.len());
            if part.len() == WRITE_BYTES {
                // Hands it over, or all of a large matrix would be staged at once; one part is copied while the next is
                // staged.
                let submission = self.queue.submit([]);
                if let Some(before) = before.replace(submission) {
                    self.wait_for(Some(before))?;
                }
            }
        }
        self.check()
    }

    /// The bytes `start .. start + num_bytes` of a buffer, whole words, once all that was submitted is done.
    ///
    /// # Errors
    /// [`Error::BadRange`], [`Error::OutOfMemory`] for what it is read through, [`Error::Lost`], and whatever went wrong
    /// on the way.
    pub fn read(&self, buffer: &Buffer, start: u64, num_bytes: u64) -> Result<Vec<u8>> {
        check_range(buffer, start, num_bytes)?;
        if num_bytes == 0 {
            return Ok(Vec::new());
        }
        let landing = self.landing(buffer.label, num_bytes)?;
        let mut commands = Commands::new(self);
        commands.land(Bound::part(buffer, start, num_bytes), (&landing, 0))?;
        commands.submit_to_land(&landing, num_bytes)?.wait()
    }

    /// Memory of the host for `num_bytes` of results, rounded up to whole words; it is in no budget.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn landing(&self, label: &'static str, num_bytes: u64) -> Result<Landing> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let num_bytes = num_bytes.next_multiple_of(4).max(4);
        let raw = self.allocate(label, num_bytes, usage);
        let raw = raw.ok_or_else(|| self.out_of_memory(label, num_bytes))?;
        Ok(Landing { raw, label })
    }

    /// The kernel of that name and source, compiled the first time that it is asked for.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the compiler's words, [`Error::Lost`].
    pub fn kernel(&self, source: &KernelSource<'_>) -> Result<Arc<Kernel>> {
        let key = source.key();
        if let Some(kernel) = held(&self.kernels).get(&key) {
            return Ok(Arc::clone(kernel));
        }
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let kernel = Kernel::compile(&self.device, source);
        if let Some(error) = pollster::block_on(validation.pop()) {
            let what = source.name.to_owned();
            return Err(Error::Invalid { what, reason: error.to_string() });
        }
        self.check()?;
        let kernel = Arc::new(kernel);
        held(&self.kernels).insert(key, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Waits until all that was submitted is done.
    ///
    /// # Errors
    /// [`Error::Lost`], and whatever went wrong on the way.
    pub fn wait(&self) -> Result<()> {
        self.wait_for(None)
    }

    /// Waits until a submission is done, or all of them.
    pub(crate) fn wait_for(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        match self.device.poll(wgpu::PollType::Wait { submission_index: submission, timeout: None })
        {
            Ok(_) => self.check(),
            Err(error) => Err(self.fault().unwrap_or_else(|| Error::Invalid {
                what: "the wait for the device".to_owned(),
                reason: error.to_string(),
            })),
        }
    }

    /// Loses the device on purpose, for tests of what comes of it.
    pub fn lose(&self) {
        self.device.destroy();
        held(&self.faults.lost).get_or_insert("it was given up on purpose".to_owned());
    }

    /// What has gone wrong since the last look.
    pub(crate) fn check(&self) -> Result<()> {
        self.fault().map_or(Ok(()), Err)
    }

    fn fault(&self) -> Option<Error> {
        if let Some(reason) = held(&self.faults.lost).clone() {
            return Some(Error::Lost { reason });
        }
        let reason = held(&self.faults.uncaptured).take()?;
        Some(Error::Invalid { what: "a command".to_owned(), reason })
    }
}

/// What a panic elsewhere cannot spoil: a text or a table.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn check_range(buffer: &Buffer, start: u64, num_bytes: u64) -> Result<()> {
    let end = start.saturating_add(num_bytes);
    if start.is_multiple_of(4) && num_bytes.is_multiple_of(4) && end <= buffer.num_bytes() {
        return Ok(());
    }
    let label = buffer.label.to_owned();
    Err(Error::BadRange { label, start, end, num_bytes: buffer.num_bytes() })
}
