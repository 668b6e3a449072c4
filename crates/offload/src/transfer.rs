//! What moves pages: taking frames, reads, writes, and the workers that do them.
//!
//! Whoever needs a frame makes the room for it: it lets a clean page go, or else writes dirty ones itself. So a producer
//! is slowed by as much as the disk needs, and progress depends on no other thread: a wait is only ever for somebody who
//! holds frames at that moment and waits for none ([`Memory`]).
//!
//! It writes dirty pages of the sequence for which it needs the frame as long as there are any, and others' in their turn
//! only then ([`Dirty`]): one that floods the store pays for its own pages, and one that fills few waits for one batch,
//! of its own or of another.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::dirty::Dirty;
use crate::disk::{Disk, Header, Place};
use crate::inbox::Arrival;
use crate::memory::{Busy, Frame, Memory, SharedFrame};
use crate::page::Page;
use crate::policy::S3Fifo;
use crate::queue::{Batch, Job, Priority, Queue};
use crate::stats::Counters;
use crate::sync::{Mutex, SharedArc, lock};
use crate::{Error, PageName, Result, StoreShape};

/// Pages of one write at most.
const MAX_WRITE: usize = 16;

/// What a store's sequences, readers and workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) shape: StoreShape,
    /// The store in words, and the same as a number: what lies on disk is of this store only.
    pub(crate) description: String,
    pub(crate) fingerprint: u64,
    pub(crate) memory: Arc<Memory>,
    pub(crate) disk: Option<Disk>,
    pub(crate) queue: Queue<Transfer>,
    pub(crate) policy: Mutex<S3Fifo<Weak<Page>>>,
    /// Pages to be written.
    pub(crate) dirty: Mutex<Dirty>,
    pub(crate) counters: Counters,
    /// The first failure of a write that nobody waited for.
    pub(crate) failed: Mutex<Option<Error>>,
    pub(crate) next_page: AtomicU64,
    pub(crate) next_sequence: AtomicU32,
}

/// What is queued for the workers.
#[derive(Debug)]
pub(crate) enum Transfer {
    /// A page to be read, and where it lies. One that is gone by its turn is not.
    Read { page: Weak<Page>, sequence: u32, place: Option<Place> },
    /// Dirty pages to be written, of whichever sequence's turn it is; the one here is the one that gave the reason.
    Write { sequence: u32 },
}

impl Transfer {
    pub(crate) fn read(page: &Arc<Page>) -> Self {
        let sequence = page.name.sequence;
        Self::Read { page: Arc::downgrade(page), sequence, place: page.place() }
    }

    fn page(&self) -> Option<Arc<Page>> {
        match self {
            Self::Read { page, .. } => page.upgrade(),
            Self::Write { .. } => None,
        }
    }
}

impl Job for Transfer {
    fn sequence(&self) -> u32 {
        match self {
            Self::Read { sequence, .. } | Self::Write { sequence } => *sequence,
        }
    }

    fn is_before(&self, next: &Self) -> bool {
        let (Self::Read { place: Some(place), .. }, Self::Read { place: Some(next), .. }) =
            (self, next)
        else {
            return false;
        };
        place.is_before(next)
    }
}

impl Shared {
    /// Without a disk.
    pub(crate) fn new(shape: StoreShape, memory: Arc<Memory>, queue_len: usize) -> Self {
        Self {
            shape,
            description: String::new(),
            fingerprint: 0,
            disk: None,
            queue: Queue::new(queue_len),
            policy: Mutex::new(S3Fifo::new(memory.max_frames())),
            memory,
            dirty: Mutex::new(Dirty::new()),
            counters: Counters::new(),
            failed: Mutex::default(),
            next_page: AtomicU64::new(0),
            next_sequence: AtomicU32::new(0),
        }
    }

    /// A frame for good, for a page of a sequence; waits for room.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where all frames are held for good, and what a write fails with that was to make room.
    pub(crate) fn take_frame(&self, sequence: u32) -> Result<Frame> {
        self.wait_for_frame(sequence).map(|(frame, _)| frame)
    }

    fn wait_for_frame(&self, sequence: u32) -> Result<(Frame, Busy)> {
        if let Some(taken) = self.try_take_frame()? {
            return Ok(taken);
        }
        if self.disk.is_none() {
            return Err(self.memory.out_of_memory());
        }
        let since = Instant::now();
        let mut waiting = self.memory.waiting();
        loop {
            if let Some(taken) = self.try_take_frame()? {
                self.counters.room_waits.record(since.elapsed());
                return Ok(taken);
            }
            if !self.write_some(0, Some(sequence))? && !waiting.wait() {
                return Err(self.memory.out_of_memory());
            }
        }
    }

    /// A frame that is free, or that a clean page can give up.
    fn try_take_frame(&self) -> Result<Option<(Frame, Busy)>> {
        loop {
            if let Some(taken) = self.memory.take()? {
                return Ok(Some(taken));
            }
            if !lock(&self.policy).evict() {
                return Ok(None);
            }
            self.counters.evictions.add(1);
        }
    }

    /// A new full page, or the last one of a sequence that rests, behind the one before it.
    pub(crate) fn seal(
        &self,
        name: PageName,
        num_rows: u32,
        frame: SharedFrame,
        before: Option<&Arc<Page>>,
    ) -> Arc<Page> {
        let id = self.next_page.fetch_add(1, Ordering::Relaxed);
        let page = Arc::new(Page::dirty(id, name, num_rows, frame, before));
        if self.disk.is_some() {
            let mut dirty = lock(&self.dirty);
            dirty.insert(&page);
            if dirty.len() > self.max_dirty() {
                // Where the queue is full or closed, whoever needs room writes.
                let write = Transfer::Write { sequence: name.sequence };
                let _ = self.queue.try_push(Priority::WriteBehind, write);
            }
        }
        page
    }

    /// Dirty pages.
    pub(crate) fn num_dirty(&self) -> usize {
        lock(&self.dirty).num_pages()
    }

    /// Dirty pages from which on they are written; the other half of RAM is for pages that can leave at once.
    fn max_dirty(&self) -> usize {
        self.memory.max_frames() / 2
    }

    /// Writes dirty pages if there are more than `most`, of the preferred sequence if it has any, else of the one whose
    /// turn it is; false where there are not.
    fn write_some(&self, most: usize, preferred: Option<u32>) -> Result<bool> {
        let mut dirty = lock(&self.dirty);
        if dirty.len() <= most {
            return Ok(false);
        }
        // Busy from the moment that others do not find them.
        let _busy = self.memory.enter();
        let pages = dirty.take(MAX_WRITE, preferred);
        drop(dirty);
        self.write(&pages)?;
        Ok(!pages.is_empty())
    }

    /// Writes those of the pages that have no slot yet and that nobody is writing.
    ///
    /// # Errors
    /// [`Error::WritePage`], or [`Error::Io`] for a new file; what was not written is to be written next.
    pub(crate) fn write(&self, pages: &[Arc<Page>]) -> Result<()> {
        let Some(disk) = &self.disk else { return Err(Error::NoDisk) };
        let _busy = self.memory.enter();
        let mut writing = Writing { shared: self, pages: VecDeque::new() };
        let mut frames = Vec::new();
        for page in pages {
            if let Some(frame) = page.begin_write() {
                writing.pages.push_back(Arc::clone(page));
                frames.push(frame);
            }
        }
        let contents: Vec<_> = writing
            .pages
            .iter()
            .zip(&frames)
            .map(|(page, frame)| (self.header(page), &frame.bytes()[..self.payload_bytes(page)]))
            .collect();
        let (slots, result) = disk.write(&contents);
        self.counters.writes.add(usize::from(!slots.is_empty()));
        drop(frames);
        for slot in slots {
            let page = writing.pages.pop_front().expect("a slot for each page at most");
            self.counters.written_bytes.add(self.payload_bytes(&page));
            page.end_write(Some(slot));
            lock(&self.dirty).remove(&page);
            lock(&self.policy).insert(Arc::downgrade(&page));
        }
        if result.is_err() {
            self.counters.failures.add(1);
        }
        result
    }

    /// Writes all of the pages that are dirty, and waits for others who write some of them.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) fn write_all(&self, pages: &[Arc<Page>]) -> Result<()> {
        let is_dirty = |page: &&Arc<Page>| page.place().is_none();
        let mut waiting = self.memory.waiting();
        loop {
            let dirty: Vec<_> = pages.iter().filter(is_dirty).cloned().collect();
            for pages in dirty.chunks(MAX_WRITE) {
                self.write(pages)?;
            }
            if !dirty.iter().any(|page| is_dirty(&page)) {
                return Ok(());
            }
            waiting.wait();
        }
    }

    fn header(&self, page: &Page) -> Header {
        Header { fingerprint: self.fingerprint, name: page.name, num_rows: page.num_rows }
    }

    fn payload_bytes(&self, page: &Page) -> usize {
        page.num_rows as usize * self.shape.layout.row_bytes()
    }

    /// Reads those of the pages that are still wanted.
    fn read(&self, pages: Vec<Arc<Page>>) {
        let mut reading = ReadingPages { pages: VecDeque::new() };
        let mut places = VecDeque::new();
        for page in pages {
            if let Some(place) = page.begin_read() {
                reading.pages.push_back(page);
                places.push_back(place);
            }
        }
        while let Some(page) = reading.pages.front() {
            let taken = if page.is_demanded() {
                self.wait_for_frame(page.name.sequence).map(Some)
            } else if lock(&self.policy).has_room_for_hints() {
                self.try_take_frame()
            } else {
                Ok(None)
            };
            match taken {
                Ok(Some((frame, busy))) => {
                    self.read_run(&mut reading, &mut places, frame);
                    drop(busy);
                    continue;
                }
                Ok(None) => page.miss(|| Arrival::Dropped),
                Err(error) => page.miss(|| Arrival::Failed(error.clone())),
            }
            reading.pages.pop_front();
            places.pop_front();
        }
    }

    /// Reads the first page, and those that lie behind it as far as there are frames.
    fn read_run(&self, reading: &mut ReadingPages, places: &mut VecDeque<Place>, frame: Frame) {
        let Some(disk) = &self.disk else { return };
        let mut frames = vec![frame];
        while places.len() > frames.len()
            && places[frames.len() - 1].is_before(&places[frames.len()])
            && let Ok(Some((frame, _))) = self.try_take_frame()
        {
            frames.push(frame);
        }
        let places: Vec<_> = places.drain(..frames.len()).collect();
        let mut contents: Vec<_> = reading
            .pages
            .iter()
            .zip(&mut frames)
            .map(|(page, frame)| {
                (self.header(page), &mut frame.bytes_mut()[..self.payload_bytes(page)])
            })
            .collect();
        let results = disk.read(&places, &mut contents);
        self.counters.reads.add(1);
        for (result, frame) in results.into_iter().zip(frames) {
            let page = reading.pages.pop_front().expect("a result for each page");
            match result {
                Ok(()) => {
                    self.counters.read_bytes.add(self.payload_bytes(&page));
                    self.counters.prefetched.add(usize::from(page.arrive(SharedArc::new(frame))));
                    lock(&self.policy).insert(Arc::downgrade(&page));
                }
                Err(error) => {
                    match error {
                        Error::DamagedPage { .. } => self.counters.damaged_pages.add(1),
                        _ => self.counters.failures.add(1),
                    }
                    page.miss(|| Arrival::Failed(error.clone()));
                }
            }
        }
    }

    /// A worker: does what is queued until the queue is closed and empty.
    pub(crate) fn work(&self) {
        while let Some(Batch { priority, jobs, waited }) = self.queue.pop() {
            self.counters.queue_waits.record(waited);
            let name = jobs.iter().find_map(|job| job.page()).map(|page| page.name);
            let run = AssertUnwindSafe(|| match priority {
                Priority::WriteBehind => self.write_some(self.max_dirty(), None).map(drop),
                Priority::Demand | Priority::Prefetch => {
                    self.read(jobs.iter().filter_map(Transfer::page).collect());
                    Ok(())
                }
            });
            // A panic has told whoever waits for a page (`ReadingPages`, `Writing`), and the next batch is another.
            let result = panic::catch_unwind(run).unwrap_or_else(|_| {
                self.counters.failures.add(1);
                Err(Error::WorkerPanicked { page: name })
            });
            if let Err(error) = result {
                lock(&self.failed).get_or_insert(error);
            }
        }
    }
}

/// Pages whose read has begun. Those left at the end were left by a panic.
struct ReadingPages {
    pages: VecDeque<Arc<Page>>,
}

impl Drop for ReadingPages {
    fn drop(&mut self) {
        for page in &self.pages {
            page.miss(|| Arrival::Failed(Error::WorkerPanicked { page: Some(page.name) }));
        }
    }
}

/// Pages whose write has begun. Those left at the end were not written, and are dirty as before.
struct Writing<'a> {
    shared: &'a Shared,
    pages: VecDeque<Arc<Page>>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        for page in &self.pages {
            page.end_write(None);
            lock(&self.shared.dirty).insert(page);
        }
    }
}
