//! Blocks: which of some neighbouring pages are in RAM, so that a reader takes hold of all of them at once.
//!
//! The frames of a block are a list that does not change while a reader has it: who brings a page meanwhile puts
//! another list in its place. So a reader takes one lock and counts one hold for as many pages as the block has, and
//! what it holds stays as it is, with no lock held while it reads. A frame is given up only from a list that no reader
//! has, under the lock under which readers take it, and only where nobody else holds the frame.

use std::sync::Arc;

use heterokv_quant::rows::prefetch;

use crate::memory::{Held, SharedFrame};
use crate::policy::MAX_HEAT;
use crate::sync::{AtomicBool, AtomicU8, AtomicUsize, Mutex, Ordering, SharedArc, lock};

/// Pages of a block.
const BLOCK: usize = 16;

/// The frames of a block's pages, those that are in RAM.
pub(crate) type Frames = [Option<SharedFrame>; BLOCK];

/// Up to [`BLOCK`] pages.
#[derive(Debug)]
struct Block {
    frames: Mutex<SharedArc<Frames>>,
    /// How often each was read, as the policy counts.
    heat: [AtomicU8; BLOCK],
    /// A hint brought it, and nobody has read it since.
    is_hinted: [AtomicBool; BLOCK],
    /// A hint that brought it stands.
    is_awaited: [AtomicBool; BLOCK],
    /// Seats given out.
    num_seats: AtomicUsize,
}

/// The place of one page in a block, for as long as the page is there.
#[derive(Debug)]
pub(crate) struct Seat {
    block: Arc<Block>,
    idx: usize,
}

impl Seat {
    /// A seat in the same block as this one, or in a new one where that is full or there is none.
    pub(crate) fn beside(neighbour: Option<&Self>) -> Self {
        let of_block = |block: &Arc<Block>| {
            let idx = block.num_seats.fetch_add(1, Ordering::Relaxed);
            (idx < BLOCK).then(|| Self { block: Arc::clone(block), idx })
        };
        let seat = neighbour.and_then(|seat| of_block(&seat.block));
        seat.unwrap_or_else(|| Self {
            block: Arc::new(Block {
                frames: Mutex::new(SharedArc::new(Frames::default())),
                heat: std::array::from_fn(|_| AtomicU8::new(0)),
                is_hinted: std::array::from_fn(|_| AtomicBool::new(false)),
                is_awaited: std::array::from_fn(|_| AtomicBool::new(false)),
                num_seats: AtomicUsize::new(1),
            }),
            idx: 0,
        })
    }

    /// Its place in the list of the block's frames.
    pub(crate) fn idx(&self) -> usize {
        self.idx
    }

    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.block, &other.block)
    }

    /// Asks the memory for what [`frames`](Self::frames) looks at.
    pub(crate) fn prefetch(&self) {
        prefetch(&self.block.frames);
        prefetch(&self.block.heat);
    }

    /// All frames of the block, to read.
    pub(crate) fn frames(&self) -> SharedArc<Frames> {
        SharedArc::clone(&lock(&self.block.frames))
    }

    /// Whether the page is not in RAM.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.block.frames)[self.idx].is_none()
    }

    /// The page's own frame, if it is in RAM.
    pub(crate) fn frame(&self) -> Option<SharedFrame> {
        lock(&self.block.frames)[self.idx].as_ref().map(SharedArc::clone)
    }

    /// The same, handed on: busy before the lock is left, so that nobody who looks for room takes the hold for one for
    /// good.
    pub(crate) fn held(&self) -> Option<Held> {
        let frames = lock(&self.block.frames);
        frames[self.idx].as_ref().map(|frame| Held::new(SharedArc::clone(frame)))
    }

    /// Puts the page's frame in its place; whether only hints asked for it, and whether one that did stands.
    pub(crate) fn put(&self, frame: SharedFrame, is_hinted: bool, is_awaited: bool) {
        self.block.is_hinted[self.idx].store(is_hinted, Ordering::Relaxed);
        self.block.is_awaited[self.idx].store(is_awaited, Ordering::Relaxed);
        self.set(Some(frame));
    }

    fn set(&self, frame: Option<SharedFrame>) {
        let mut frames = lock(&self.block.frames);
        if SharedArc::get_mut(&mut frames).is_none() {
            let copy = frames.each_ref().map(|frame| frame.as_ref().map(SharedArc::clone));
            *frames = SharedArc::new(copy);
        }
        let own = SharedArc::get_mut(&mut frames).expect("a new list, or one that no reader has");
        let before = std::mem::replace(&mut own[self.idx], frame);
        drop(frames);
        drop(before);
    }

    /// Gives up the page's frame; false where somebody reads the block or holds the frame, or there is none.
    pub(crate) fn release(&self) -> bool {
        let mut frames = lock(&self.block.frames);
        let Some(own) = SharedArc::get_mut(&mut frames) else { return false };
        let is_free = |frame: &mut SharedFrame| SharedArc::strong_count(frame) == 1;
        let frame = own[self.idx].take_if(is_free);
        drop(frames);
        frame.is_some()
    }

    /// Counts a read of the page; true where a hint brought it and this is the first reader.
    pub(crate) fn note_read(&self) -> bool {
        let heat = &self.block.heat[self.idx];
        let before = heat.load(Ordering::Relaxed);
        if before < MAX_HEAT {
            heat.store(before + 1, Ordering::Relaxed);
        }
        let is_hinted = &self.block.is_hinted[self.idx];
        is_hinted.load(Ordering::Relaxed) && is_hinted.swap(false, Ordering::Relaxed)
    }

    /// No hint that brought the page stands any more.
    pub(crate) fn give_up(&self) {
        self.block.is_awaited[self.idx].store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.block.is_awaited[self.idx].load(Ordering::Relaxed)
    }

    pub(crate) fn heat(&self) -> u8 {
        self.block.heat[self.idx].load(Ordering::Relaxed)
    }

    pub(crate) fn cool(&self, heat: u8) {
        self.block.heat[self.idx].store(heat, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.set(None);
    }
}
