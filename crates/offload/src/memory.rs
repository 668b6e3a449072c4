//! Host memory under a budget: frames of one size, cut from slabs that are given back when they are empty.
//!
//! The budget counts frames, and so whoever still reads one. All frames of a store have one size, so that every free
//! frame fits every page, and slabs never hold more than the most frames that were in use at a time.
//!
//! Who finds no room may wait for it ([`Memory::waiting`]), but only while somebody is at work with frames that it
//! will give up ([`Busy`]): where all frames are held for good, waiting would not end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::sync::{AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, SharedArc, fence, lock, wait};
use crate::{Error, Result};

/// Alignment of a frame's first byte, for SIMD loads and cache lines.
const ALIGN: usize = 64;

/// A slab is as large as all before it together, up to this.
const SLAB_BYTES: usize = 1 << 20;

/// One entry into [`Busy`], and one that has not left: the two halves of a count that is read at once.
const ENTERED: u64 = (1 << 32) + 1;

/// Frames of one size under a budget.
#[derive(Debug)]
pub(crate) struct Memory {
    frame_bytes: usize,
    max_frames: usize,
    slabs: Mutex<Slabs>,
    /// Entries so far in the upper half, those at work in the lower.
    busy: AtomicU64,
    num_waiting: AtomicUsize,
    /// Counts up whenever something was given up while somebody waits.
    releases: Mutex<u64>,
    released: Condvar,
}

/// The bytes of one page. They are those of whoever had the frame before until they are written.
#[derive(Debug)]
pub(crate) struct Frame {
    part: BytesMut,
    slab: u32,
    memory: Arc<Memory>,
}

/// A frame that a page, its readers and its pins share.
pub(crate) type SharedFrame = SharedArc<Frame>;

/// Somebody holds frames for a moment, and gives them up without waiting for any.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Memory>);

/// A frame handed from thread to thread, busy from end to end.
#[derive(Debug)]
pub(crate) struct Held {
    // Given up before the busy entry, which tells those who wait.
    frame: SharedFrame,
    _busy: Busy,
}

/// Somebody looks for room and may wait for it.
pub(crate) struct Waiting<'a> {
    memory: &'a Memory,
    releases: u64,
    busy: u64,
}

#[derive(Debug, Default)]
struct Slabs {
    slabs: BTreeMap<u32, Slab>,
    /// Slabs with free frames. The first is used first, so that the last ones empty.
    with_free: BTreeSet<u32>,
    num_frames: usize,
    in_use: usize,
    peak: usize,
}

#[derive(Debug)]
struct Slab {
    free: Vec<BytesMut>,
    num_frames: usize,
}

impl Memory {
    /// Memory for at most `budget_bytes` in frames of at least `len` bytes.
    pub(crate) fn new(len: usize, budget_bytes: usize) -> Arc<Self> {
        let frame_bytes = len.next_multiple_of(ALIGN);
        Arc::new(Self {
            frame_bytes,
            max_frames: budget_bytes / frame_bytes,
            slabs: Mutex::default(),
            busy: AtomicU64::new(0),
            num_waiting: AtomicUsize::new(0),
            releases: Mutex::default(),
            released: Condvar::new(),
        })
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    pub(crate) fn max_frames(&self) -> usize {
        self.max_frames
    }

    /// Frames given out and not yet returned.
    pub(crate) fn in_use(&self) -> usize {
        lock(&self.slabs).in_use
    }

    /// The most frames that were in use at a time.
    pub(crate) fn peak(&self) -> usize {
        lock(&self.slabs).peak
    }

    /// Bytes of all slabs.
    pub(crate) fn slab_bytes(&self) -> usize {
        lock(&self.slabs).num_frames * self.frame_bytes
    }

    /// A frame, or none where the budget is used up. Whoever gets one is busy from the moment that it is gone for others,
    /// and says by dropping the entry that it keeps the frame for good, or has given it up.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the machine gives none.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Option<(Frame, Busy)>> {
        let mut slabs = lock(&self.slabs);
        if slabs.in_use >= self.max_frames {
            return Ok(None);
        }
        if slabs.with_free.is_empty() {
            let most = (SLAB_BYTES / self.frame_bytes).min(self.max_frames - slabs.num_frames);
            let num_frames = slabs.num_frames.min(most).max(1);
            if !slabs.grow(num_frames, self.frame_bytes) {
                return Err(self.refusal(self.frame_bytes, slabs.in_use));
            }
        }
        let (slab, part) = slabs.take_part();
        slabs.in_use += 1;
        slabs.peak = slabs.peak.max(slabs.in_use);
        Ok(Some((Frame { part, slab, memory: Arc::clone(self) }, self.enter())))
    }

    /// The error of a budget that is used up.
    pub(crate) fn out_of_memory(&self) -> Error {
        self.refusal(self.frame_bytes, self.in_use())
    }

    /// The error of a machine that does not give so many bytes, beside the frames in use.
    pub(crate) fn refusal(&self, requested_bytes: usize, in_use: usize) -> Error {
        let in_use_bytes = in_use * self.frame_bytes;
        Error::OutOfMemory { arena: "host", requested_bytes, in_use_bytes }
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(ENTERED, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    /// Tells those who wait that something was given up.
    pub(crate) fn nudge(&self) {
        if self.num_waiting.load(Ordering::SeqCst) > 0 {
            *lock(&self.releases) += 1;
            self.released.notify_all();
        }
    }

    /// Begins to look for room: whatever is given up from now on is noticed.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.num_waiting.fetch_add(1, Ordering::SeqCst);
        // Either this sees that somebody has left, or who left sees this.
        fence(Ordering::SeqCst);
        let mut waiting = Waiting { memory: self, releases: 0, busy: 0 };
        waiting.note();
        waiting
    }
}

impl Waiting<'_> {
    /// After a look that found no room: waits until something is given up. False, at once, where nobody is at work who
    /// could.
    pub(crate) fn wait(&mut self) -> bool {
        let memory = self.memory;
        let mut releases = lock(&memory.releases);
        while *releases == self.releases {
            let busy = memory.busy.load(Ordering::SeqCst);
            if busy as u32 > 0 {
                releases = wait(&memory.released, releases);
            } else if busy == self.busy {
                // Nobody was at work when the look began, and nobody has begun since.
                return false;
            } else {
                break;
            }
        }
        drop(releases);
        self.note();
        true
    }

    fn note(&mut self) {
        self.releases = *lock(&self.memory.releases);
        self.busy = self.memory.busy.load(Ordering::SeqCst);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.memory.num_waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.0.nudge();
    }
}

impl Held {
    pub(crate) fn new(frame: SharedFrame) -> Self {
        let busy = frame.memory.enter();
        Self { frame, _busy: busy }
    }

    pub(crate) fn frame(&self) -> &SharedFrame {
        &self.frame
    }
}

impl Frame {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.part
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.part
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let part = std::mem::take(&mut self.part);
        lock(&self.memory.slabs).give_back(self.slab, part);
        self.memory.nudge();
    }
}

impl Slabs {
    /// Another slab; false when the machine gives none.
    fn grow(&mut self, num_frames: usize, frame_bytes: usize) -> bool {
        let len = num_frames * frame_bytes + ALIGN;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len).is_err() {
            return false;
        }
        bytes.resize(len, 0);
        let mut rest = BytesMut::from(Bytes::from(bytes));
        let unaligned = rest.as_ptr().align_offset(ALIGN);
        drop(rest.split_to(unaligned));
        let free = (0..num_frames).map(|_| rest.split_to(frame_bytes)).collect();
        let idx = self.slabs.last_key_value().map_or(0, |(last, _)| last + 1);
        self.slabs.insert(idx, Slab { free, num_frames });
        self.with_free.insert(idx);
        self.num_frames += num_frames;
        true
    }

    fn take_part(&mut self) -> (u32, BytesMut) {
        let idx = *self.with_free.first().expect("a free frame was just made sure of");
        let slab = self.slabs.get_mut(&idx).expect("the list is of slabs that are there");
        let part = slab.free.pop().expect("the list is of slabs with free frames");
        if slab.free.is_empty() {
            self.with_free.remove(&idx);
        }
        (idx, part)
    }

    fn give_back(&mut self, idx: u32, part: BytesMut) {
        let slab = self.slabs.get_mut(&idx).expect("a slab stays while its frames are out");
        slab.free.push(part);
        let is_empty = slab.free.len() == slab.num_frames;
        self.with_free.insert(idx);
        self.in_use -= 1;
        if self.in_use == 0 {
            *self = Self { peak: self.peak, ..Self::default() };
        } else if is_empty && self.with_free.len() > 1 {
            // Another one has free frames: the next page does not ask the machine for what this one gives back.
            self.num_frames -= slab.num_frames;
            self.slabs.remove(&idx);
            self.with_free.remove(&idx);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
