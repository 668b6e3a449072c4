//! What can go wrong with a device.

/// What can go wrong with a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no device.
    #[error(
        "`{name}` is no device; write gpu, gpu:N with the number of an adapter, or gpu:software"
    )]
    BadChoice {
        /// What was written.
        name: String,
    },
    /// No adapter of the kind that was asked for.
    #[error("no {wanted} was found; adapters here: {found}. {remedy}")]
    NoAdapter {
        /// What was asked for, in words.
        wanted: String,
        /// The adapters that there are, in words.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The adapter refuses a device.
    #[error("{adapter} gives no device with the limits asked for")]
    NoDevice {
        /// Its name.
        adapter: String,
        /// What wgpu says.
        source: Box<wgpu::RequestDeviceError>,
    },
    /// The adapter lacks what was asked for.
    #[error("{adapter} has no {feature}")]
    NoFeature {
        /// Its name.
        adapter: String,
        /// What is missing.
        feature: &'static str,
    },
    /// A buffer beyond what a binding or a buffer can hold.
    #[error(
        "{label} needs {num_bytes} bytes, and a buffer of this device holds {limit_bytes}; split it"
    )]
    BufferTooLarge {
        /// What it is for.
        label: String,
        /// Its size.
        num_bytes: u64,
        /// The most that a binding holds.
        limit_bytes: u64,
    },
    /// More than the budget of device memory.
    #[error(
        "{label} needs {num_bytes} bytes, and {in_use_bytes} of the budget of {budget_bytes} are in use; \
         raise the budget or make the cache smaller"
    )]
    OverBudget {
        /// What it is for.
        label: String,
        /// Its size.
        num_bytes: u64,
        /// What is in use already.
        in_use_bytes: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// The device has no more memory.
    #[error(
        "the device is out of memory: {num_bytes} bytes for {label}, with {in_use_bytes} in use; \
         make the cache smaller, or end what else uses the device"
    )]
    OutOfMemory {
        /// What it is for.
        label: String,
        /// Its size.
        num_bytes: u64,
        /// What is in use already.
        in_use_bytes: u64,
    },
    /// The device is gone.
    #[error("the device is lost: {reason}")]
    Lost {
        /// What wgpu says.
        reason: String,
    },
    /// A shader does not compile, or a dispatch does not fit it.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// The kernel, or what was asked of the device.
        what: String,
        /// What wgpu says.
        reason: String,
    },
    /// A range outside of a buffer, or not of whole words.
    #[error(
        "bytes {start}..{end} of {label}, which has {num_bytes}: a range is in whole words of 4 and inside"
    )]
    BadRange {
        /// What the buffer is for.
        label: String,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
        /// The buffer's size.
        num_bytes: u64,
    },
    /// More workgroups than a dispatch can have.
    #[error("{kernel}: {grid:?} workgroups, and this device has {limit} a dimension at most")]
    GridTooLarge {
        /// The kernel.
        kernel: &'static str,
        /// Workgroups asked for.
        grid: [u32; 3],
        /// The most in a dimension.
        limit: u32,
    },
    /// Buffers that are not those that a kernel binds.
    #[error("{kernel} binds {expected} buffers, not {actual}")]
    Bindings {
        /// The kernel.
        kernel: &'static str,
        /// As many as it has bindings.
        expected: usize,
        /// As many as were given.
        actual: usize,
    },
}

/// What every fallible call here gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;
