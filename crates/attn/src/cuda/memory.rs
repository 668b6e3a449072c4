//! Memory of a CUDA device, and pinned memory of the host.

use cudarc::driver::{CudaSlice, CudaView, PinnedHostSlice};

use super::{CudaDevice, CudaError, CudaResult, unchecked};
use crate::device::Operand;

/// Memory of a device, in words of 4 bytes; freed when it is dropped and what uses it is done.
#[derive(Debug)]
pub struct CudaBuffer {
    pub(super) slice: CudaSlice<u32>,
    pub(super) label: &'static str,
}

/// Part of a buffer, as a kernel sees it.
#[derive(Clone, Copy, Debug)]
pub struct CudaBound<'a> {
    buffer: &'a CudaBuffer,
    start: u64,
    num_bytes: u64,
}

/// Memory of the host that devices copy from and to by themselves.
#[derive(Debug)]
pub struct PinnedPages {
    pub(super) slice: PinnedHostSlice<u32>,
}

impl CudaDevice {
    /// Memory of zeros, in whole words.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; what else the driver says.
    pub fn buffer(&self, label: &'static str, num_bytes: u64) -> CudaResult<CudaBuffer> {
        // No memory of no bytes: a word, which nothing reads.
        let num_words = num_bytes.div_ceil(4).max(1) as usize;
        let slice = self.stream.alloc_zeros(num_words);
        let slice = slice.map_err(|source| CudaError::of_memory(label, num_bytes, source))?;
        Ok(CudaBuffer { slice, label })
    }

    /// Memory that holds these words.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; what else the driver says.
    pub fn upload(&self, label: &'static str, words: &[u32]) -> CudaResult<CudaBuffer> {
        let words = if words.is_empty() { &[0] } else { words };
        let num_bytes = 4 * words.len() as u64;
        let slice = self.stream.clone_htod(words);
        let slice = slice.map_err(|source| CudaError::of_memory(label, num_bytes, source))?;
        Ok(CudaBuffer { slice, label })
    }

    /// What is in it when all kernels are done that were started.
    ///
    /// # Errors
    /// What the driver says.
    pub fn read(&self, buffer: &CudaBuffer) -> CudaResult<Vec<u32>> {
        let words = self.stream.clone_dtoh(&buffer.slice);
        words.map_err(|source| CudaError::driver(buffer.label, source))
    }

    /// Pinned memory of the host, of zeros.
    ///
    /// # Errors
    /// What the driver says.
    pub fn pinned(&self, num_words: usize) -> CudaResult<PinnedPages> {
        let slice = unchecked::pinned_zeros(&self.context, num_words);
        let slice = slice.map_err(|source| CudaError::driver("pinned memory", source))?;
        Ok(PinnedPages { slice })
    }
}

impl CudaBuffer {
    /// Its size.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        4 * self.slice.len() as u64
    }

    /// The words from one to before another.
    pub(super) fn view(&self, start: u64, num_bytes: u64) -> CudaResult<CudaView<'_, u32>> {
        let end = start.saturating_add(num_bytes);
        let is_whole = start.is_multiple_of(4) && num_bytes.is_multiple_of(4);
        let view = self.slice.try_slice(start as usize / 4..end as usize / 4);
        view.filter(|_| is_whole).ok_or(CudaError::BadRange {
            label: self.label,
            start,
            end,
            num_bytes: self.num_bytes(),
        })
    }
}

impl<'a> CudaBound<'a> {
    /// All of it.
    #[must_use]
    pub fn all(buffer: &'a CudaBuffer) -> Self {
        Self { buffer, start: 0, num_bytes: buffer.num_bytes() }
    }

    /// A part of it, in bytes; kernels that read vectors need a start at a multiple of 16.
    #[must_use]
    pub fn part(buffer: &'a CudaBuffer, start: u64, num_bytes: u64) -> Self {
        Self { buffer, start, num_bytes }
    }

    pub(super) fn view(&self) -> CudaResult<CudaView<'a, u32>> {
        self.buffer.view(self.start, self.num_bytes)
    }
}

impl<'a> From<&'a CudaBuffer> for CudaBound<'a> {
    fn from(buffer: &'a CudaBuffer) -> Self {
        Self::all(buffer)
    }
}

impl Operand for CudaBound<'_> {
    fn num_bytes(&self) -> u64 {
        self.num_bytes
    }
}

impl PinnedPages {
    /// How many words there are.
    #[must_use]
    pub fn num_words(&self) -> usize {
        self.slice.len()
    }

    /// What is in them, when the copies are done that they are in.
    ///
    /// # Errors
    /// What went wrong in one of these.
    pub fn words(&self) -> CudaResult<&[u32]> {
        self.slice.as_slice().map_err(|source| CudaError::driver("pinned memory", source))
    }

    /// The same, to be written.
    ///
    /// # Errors
    /// What went wrong in a copy that they are in.
    pub fn words_mut(&mut self) -> CudaResult<&mut [u32]> {
        self.slice.as_mut_slice().map_err(|source| CudaError::driver("pinned memory", source))
    }
}
