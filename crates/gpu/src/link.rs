//! What crosses between a device and its host.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that have crossed: what was written to buffers, parameters of kernels, and results that landed. Commands
/// themselves are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossed {
    /// From the device to the host.
    pub to_host: u64,
    /// From the host to the device.
    pub to_device: u64,
}

/// Counts of one device.
#[derive(Debug, Default)]
pub(crate) struct Link {
    to_host: AtomicU64,
    to_device: AtomicU64,
}

impl Crossed {
    /// What has crossed since it was `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            to_host: self.to_host - before.to_host,
            to_device: self.to_device - before.to_device,
        }
    }
}

impl Link {
    pub(crate) fn count_up(&self, num_bytes: usize) {
        self.to_device.fetch_add(num_bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_down(&self, num_bytes: u64) {
        self.to_host.fetch_add(num_bytes, Ordering::Relaxed);
    }

    pub(crate) fn crossed(&self) -> Crossed {
        Crossed {
            to_host: self.to_host.load(Ordering::Relaxed),
            to_device: self.to_device.load(Ordering::Relaxed),
        }
    }
}
