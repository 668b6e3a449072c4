//! Copies beside the kernels: streams of their own, ordered by events where they meet.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::{CudaBuffer, CudaError, CudaResult, PinnedPages};

/// A stream of copies. Those of one stream run one after the other, those of several and the kernels at once.
#[derive(Debug)]
pub struct SideStream {
    stream: Arc<CudaStream>,
    kernels: Arc<CudaStream>,
}

/// A copy that was started.
#[derive(Debug)]
pub struct Transfer {
    done: CudaEvent,
}

fn copying(source: DriverError) -> CudaError {
    CudaError::driver("a copy beside kernels", source)
}

impl SideStream {
    pub(super) fn beside(kernels: &Arc<CudaStream>) -> CudaResult<Self> {
        let stream = kernels.context().new_stream().map_err(copying)?;
        Ok(Self { stream, kernels: Arc::clone(kernels) })
    }

    /// Starts to copy all pages to `buffer` from byte `start` on. It begins when the kernels that were started are done
    /// with the buffer; kernels that are started later and use it wait for the copy.
    ///
    /// # Errors
    /// [`CudaError::BadRange`]; what else the driver says.
    pub fn upload(
        &self,
        pages: &PinnedPages,
        buffer: &mut CudaBuffer,
        start: u64,
    ) -> CudaResult<Transfer> {
        let num_words = pages.num_words();
        buffer.view(start, 4 * num_words as u64)?;
        let first = start as usize / 4;
        let mut view = buffer.slice.slice_mut(first..first + num_words);
        self.stream.memcpy_htod(&pages.slice, &mut view).map_err(copying)?;
        self.transfer()
    }

    /// Starts to fill all pages from `buffer` from byte `start` on. It begins when the kernels are done that were started
    /// before it.
    ///
    /// # Errors
    /// [`CudaError::BadRange`]; what else the driver says.
    pub fn download(
        &self,
        buffer: &CudaBuffer,
        start: u64,
        pages: &mut PinnedPages,
    ) -> CudaResult<Transfer> {
        let view = buffer.view(start, 4 * pages.num_words() as u64)?;
        self.stream.join(&self.kernels).map_err(copying)?;
        self.stream.memcpy_dtoh(&view, &mut pages.slice).map_err(copying)?;
        self.transfer()
    }

    fn transfer(&self) -> CudaResult<Transfer> {
        Ok(Transfer { done: self.stream.record_event(None).map_err(copying)? })
    }
}

impl Transfer {
    /// Whether it is done; does not wait.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn is_done(&self) -> CudaResult<bool> {
        self.done.try_is_complete().map_err(copying)
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn wait(&self) -> CudaResult<()> {
        self.done.synchronize().map_err(copying)
    }
}
