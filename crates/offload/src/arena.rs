//! Arenas: allocators that count the bytes they have given out.
//!
//! On the CPU path a "device" is an arena too: what a GPU would hold is allocated from it, so the bytes
//! that a cache reports for it are those of real allocations.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Error, Result};

/// Alignment of a block's first byte, for SIMD loads and cache lines.
const ALIGN: usize = 64;

/// A counting allocator. Clones share the counter.
#[derive(Clone, Debug)]
pub struct Arena(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    name: &'static str,
    limit_bytes: usize,
    in_use_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
}

/// Bytes from an arena, zeroed, aligned to 64; they count until the block is dropped.
#[derive(Debug)]
pub struct Block {
    lines: Vec<Line>,
    len: usize,
    charge: Charge,
}

/// Bytes held elsewhere that count as an arena's until this is dropped.
#[derive(Debug)]
pub struct Charge {
    bytes: usize,
    arena: Arena,
}

/// One aligned unit of allocation.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

const _: () = assert!(size_of::<Line>() == ALIGN);

impl Arena {
    /// An arena without a limit of its own.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self::with_limit(name, usize::MAX)
    }

    /// An arena that gives out at most `limit_bytes` at a time.
    #[must_use]
    pub fn with_limit(name: &'static str, limit_bytes: usize) -> Self {
        Self(Arc::new(Counters {
            name,
            limit_bytes,
            in_use_bytes: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
        }))
    }

    /// Bytes given out and not yet returned.
    #[must_use]
    pub fn in_use_bytes(&self) -> usize {
        self.0.in_use_bytes.load(Ordering::Relaxed)
    }

    /// The most that was in use at a time.
    #[must_use]
    pub fn peak_bytes(&self) -> usize {
        self.0.peak_bytes.load(Ordering::Relaxed)
    }

    /// An arena of the same name and limit with counters of its own.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self::with_limit(self.0.name, self.0.limit_bytes)
    }

    /// Bytes that a block of `len` takes: whole lines of 64.
    #[must_use]
    pub const fn allocated_bytes(len: usize) -> usize {
        len.div_ceil(ALIGN) * ALIGN
    }

    /// `len` zeroed bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the limit or the machine's memory is reached.
    pub fn allocate(&self, len: usize) -> Result<Block> {
        let num_lines = len.div_ceil(ALIGN);
        let charge = self.charge(num_lines.saturating_mul(ALIGN))?;
        let mut lines = Vec::new();
        if lines.try_reserve_exact(num_lines).is_err() {
            return Err(self.refusal(charge.bytes));
        }
        lines.resize(num_lines, Line([0; ALIGN]));
        Ok(Block { lines, len, charge })
    }

    /// Counts `bytes` that are held outside blocks, such as fitted tables, as this arena's.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the limit is reached.
    pub fn charge(&self, bytes: usize) -> Result<Charge> {
        let add =
            |in_use: usize| in_use.checked_add(bytes).filter(|&total| total <= self.0.limit_bytes);
        let before = self.0.in_use_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let before = before.map_err(|_| self.refusal(bytes))?;
        self.0.peak_bytes.fetch_max(before + bytes, Ordering::Relaxed);
        Ok(Charge { bytes, arena: self.clone() })
    }

    fn refusal(&self, requested_bytes: usize) -> Error {
        let in_use_bytes = self.in_use_bytes();
        Error::OutOfMemory { arena: self.0.name, requested_bytes, in_use_bytes }
    }
}

impl Block {
    /// Bytes that this block counts for in its arena.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.charge.bytes
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The bytes, to write.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..len]
    }

    /// A copy in `arena`.
    ///
    /// # Errors
    /// As [`Arena::allocate`].
    pub fn copy_to(&self, arena: &Arena) -> Result<Self> {
        let mut copy = arena.allocate(self.len)?;
        copy.bytes_mut().copy_from_slice(self.bytes());
        Ok(copy)
    }
}

impl Charge {
    /// The bytes that count.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts `bytes`, where fewer did.
    ///
    /// # Errors
    /// As [`Arena::charge`]; as many count then as before.
    pub fn grow_to(&mut self, bytes: usize) -> Result<()> {
        let mut more = self.arena.charge(bytes.saturating_sub(self.bytes))?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }

    /// Counts `bytes`, where more did.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.arena.0.in_use_bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.arena.0.in_use_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
