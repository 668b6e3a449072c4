//! Memory in pages of one size, which may exceed what a buffer can hold.

use crate::{Buffer, Commands, Error, Gpu, Result};

/// A buffer holds pages in multiples of this, so that lists of 16 bytes a page can be bound from any buffer's first
/// page on.
const SLAB_STEP: u64 = 16;

/// How pages of one size lie in buffers: `slab_pages` in each, the last with fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    page_bytes: u64,
    slab_pages: u64,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of its buffer.
    pub slab: usize,
    /// Where it begins there, in words of 4 bytes.
    pub word: u32,
}

impl Paging {
    /// Pages of `page_bytes`, rounded up to whole words, in buffers of at most `binding_bytes`.
    ///
    /// # Errors
    /// [`Error::BufferTooLarge`] for a page that no buffer holds.
    pub fn new(label: &'static str, page_bytes: u64, binding_bytes: u64) -> Result<Self> {
        let page_bytes = page_bytes.next_multiple_of(4).max(4);
        // Words of a buffer are counted in 32 bits.
        let limit_bytes = binding_bytes.min(4 * u64::from(u32::MAX));
        if page_bytes > limit_bytes {
            let label = label.to_owned();
            return Err(Error::BufferTooLarge { label, num_bytes: page_bytes, limit_bytes });
        }
        let most = limit_bytes / page_bytes;
        let slab_pages = if most < SLAB_STEP { most } else { most / SLAB_STEP * SLAB_STEP };
        Ok(Self { page_bytes, slab_pages })
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Pages of a full buffer.
    #[must_use]
    pub fn slab_pages(&self) -> u64 {
        self.slab_pages
    }

    /// Where a page is.
    #[must_use]
    pub fn place(&self, page: u64) -> Place {
        let (slab, within) = (page / self.slab_pages, page % self.slab_pages);
        // A buffer's words are counted in 32 bits, by construction.
        Place { slab: slab as usize, word: (within * self.page_bytes / 4) as u32 }
    }

    /// Bytes of `num_pages` pages.
    #[must_use]
    pub fn bytes(&self, num_pages: u64) -> u64 {
        num_pages * self.page_bytes
    }
}

/// Pages of one size on a device.
#[derive(Debug)]
pub struct Paged {
    label: &'static str,
    paging: Paging,
    num_pages: u64,
    slabs: Vec<Buffer>,
}

impl Paged {
    /// No pages yet.
    #[must_use]
    pub fn new(label: &'static str, paging: Paging) -> Self {
        Self { label, paging, num_pages: 0, slabs: Vec::new() }
    }

    /// How they lie.
    #[must_use]
    pub fn paging(&self) -> Paging {
        self.paging
    }

    /// As many as there are.
    #[must_use]
    pub fn num_pages(&self) -> u64 {
        self.num_pages
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.slabs.iter().map(Buffer::num_bytes).sum()
    }

    /// The buffers.
    #[must_use]
    pub fn slabs(&self) -> &[Buffer] {
        &self.slabs
    }

    /// Makes sure that there are `num_pages`. Those that are there keep what they hold and their places; a last buffer
    /// that is not full is copied into a larger one at once, and both exist for as long as that takes: commands that are
    /// recorded and not submitted still write to the old one.
    ///
    /// # Errors
    /// As [`Gpu::buffer`]; pages that were made before the one that failed are there.
    pub fn reserve(&mut self, gpu: &Gpu, num_pages: u64) -> Result<()> {
        let Paging { page_bytes, slab_pages } = self.paging;
        while self.num_pages < num_pages {
            let in_last = self.num_pages % slab_pages;
            let pages = (num_pages - (self.num_pages - in_last)).min(slab_pages);
            let slab = gpu.buffer(self.label, pages * page_bytes)?;
            if in_last > 0 {
                let Some(old) = self.slabs.pop() else { break };
                let mut commands = Commands::new(gpu);
                let copied = commands.copy((&old, 0), (&slab, 0), in_last * page_bytes);
                if let Err(error) = copied.and_then(|()| commands.submit()) {
                    self.slabs.push(old);
                    return Err(error);
                }
            }
            self.slabs.push(slab);
            self.num_pages += pages - in_last;
        }
        Ok(())
    }

    /// Writes whole words from byte `start` of a page on, before whatever is submitted next.
    ///
    /// # Errors
    /// [`Error::BadRange`] for what is not in a page that there is, [`Error::Lost`].
    pub fn write(&self, gpu: &Gpu, page: u64, start: u64, bytes: &[u8]) -> Result<()> {
        let place = self.paging.place(page);
        let end = start + bytes.len() as u64;
        let slab = self
            .slabs
            .get(place.slab)
            .filter(|_| page < self.num_pages && end <= self.paging.page_bytes);
        let Some(slab) = slab else {
            let label = self.label.to_owned();
            return Err(Error::BadRange { label, start, end, num_bytes: self.paging.page_bytes });
        };
        gpu.write(slab, 4 * u64::from(place.word) + start, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every page lies where 128-bit arithmetic says, inside of its buffer and behind the page before it.
    #[test]
    fn pages_lie_side_by_side() {
        for (page_bytes, binding_bytes, num_pages) in
            [(4, 4, 9), (12, 100, 40), (4096, 128 << 20, 100_000), (1 << 20, 4 << 30, 9000)]
        {
            let paging = Paging::new("pages", page_bytes, binding_bytes).unwrap();
            assert!(paging.slab_pages() * page_bytes <= binding_bytes);
            let slab_bytes = u128::from(paging.slab_pages()) * u128::from(page_bytes);
            for page in 0..num_pages {
                let place = paging.place(page);
                let at = place.slab as u128 * slab_bytes + 4 * u128::from(place.word);
                assert_eq!(at, u128::from(page) * u128::from(page_bytes));
                let end = 4 * u64::from(place.word) + page_bytes;
                assert!(end <= paging.slab_pages() * page_bytes, "page {page} leaves its buffer");
            }
        }
    }

    #[test]
    fn a_page_that_no_buffer_holds_is_refused() {
        assert!(Paging::new("pages", 16, 16).is_ok());
        let error = Paging::new("pages", 20, 16).unwrap_err();
        assert!(matches!(error, Error::BufferTooLarge { num_bytes: 20, limit_bytes: 16, .. }));
    }
}
