//! Memory of a device, counted for as long as it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that buffers of one device hold.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    in_use_bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

impl Memory {
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.in_use_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes, unless that would be more than the budget: then as many as are in use.
    pub(crate) fn take(&self, num_bytes: u64, budget_bytes: u64) -> Result<(), u64> {
        let take = |in_use: u64| in_use.checked_add(num_bytes).filter(|sum| *sum <= budget_bytes);
        let before = self.in_use_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)?;
        self.peak_bytes.fetch_max(before + num_bytes, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn give_back(&self, num_bytes: u64) {
        self.in_use_bytes.fetch_sub(num_bytes, Ordering::Relaxed);
    }
}

/// Memory of a device, in whole words of 4 bytes. Zeros at first; freed when it is dropped and the device has done
/// what it was told to do with it.
#[derive(Debug)]
pub struct Buffer {
    pub(crate) raw: wgpu::Buffer,
    pub(crate) label: &'static str,
    memory: Arc<Memory>,
}

impl Buffer {
    /// What was counted becomes a buffer's.
    pub(crate) fn counted(raw: wgpu::Buffer, label: &'static str, memory: Arc<Memory>) -> Self {
        Self { raw, label, memory }
    }

    /// Its size.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.raw.size()
    }

    /// What it is for.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.label
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.give_back(self.raw.size());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_up_to_the_budget() {
        let memory = Memory::default();
        memory.take(60, 100).expect("it fits");
        assert_eq!(memory.take(41, 100), Err(60));
        assert_eq!(memory.take(u64::MAX, u64::MAX), Err(60));
        memory.take(40, 100).expect("it fits to the byte");
        memory.give_back(60);
        assert_eq!((memory.in_use_bytes(), memory.peak_bytes()), (40, 100));
    }
}
