//! Results on their way to the host.

use std::sync::mpsc;

use crate::{Error, Gpu, Result};

/// Memory of the host that results of a device are copied into, time after time.
#[derive(Debug)]
pub struct Landing {
    pub(crate) raw: wgpu::Buffer,
    pub(crate) label: &'static str,
}

/// Results that will have landed when what was submitted with them is done. Dropped without a wait, the memory is of
/// no further use.
#[derive(Debug)]
#[must_use = "the landing is blocked until this is waited for"]
pub struct Landed<'a> {
    gpu: &'a Gpu,
    landing: &'a Landing,
    num_bytes: u64,
    submission: wgpu::SubmissionIndex,
    mapped: mpsc::Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
}

impl Landing {
    /// Its size.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.raw.size()
    }
}

impl<'a> Landed<'a> {
    pub(crate) fn new(
        gpu: &'a Gpu,
        landing: &'a Landing,
        num_bytes: u64,
        submission: wgpu::SubmissionIndex,
    ) -> Self {
        let (sender, mapped) = mpsc::channel();
        landing.raw.map_async(wgpu::MapMode::Read, ..num_bytes, move |result| {
            // Nobody waits for it any more where the wait has failed.
            let _ = sender.send(result);
        });
        Self { gpu, landing, num_bytes, submission, mapped }
    }

    /// Waits for what was submitted with it, but not for what was submitted after it, and gives the bytes.
    ///
    /// # Errors
    /// [`Error::Lost`], and whatever went wrong on the way.
    pub fn wait(self) -> Result<Vec<u8>> {
        let Self { gpu, landing, num_bytes, submission, mapped } = self;
        gpu.wait_for(Some(submission))?;
        let invalid = |reason: String| {
            gpu.check().err().unwrap_or(Error::Invalid { what: landing.label.to_owned(), reason })
        };
        mapped
            .recv()
            .map_err(|_| invalid("it was not mapped".to_owned()))?
            .map_err(|error| invalid(error.to_string()))?;
        let view = landing.raw.get_mapped_range(..num_bytes);
        let bytes = view.map_err(|error| invalid(error.to_string()))?.to_vec();
        landing.raw.unmap();
        gpu.link.count_down(num_bytes);
        Ok(bytes)
    }
}
