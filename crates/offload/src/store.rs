//! A store: pages of rows in RAM under a budget, and on disk below it.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::disk::{Disk, Files, OsFiles, io_error};
use crate::fetch::Fetcher;
use crate::memory::Memory;
use crate::policy::HINTED_SHARE;
use crate::saved::Saved;
use crate::sequence::{Head, Sequence};
use crate::shape::DryRun;
use crate::stats::{Queued, Stats, Tier};
use crate::sync::{Mutex, lock};
use crate::transfer::Shared;
use crate::{Error, Result, StoreShape};

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Its layers, heads and rows.
    pub shape: StoreShape,
    /// Bytes of pages that RAM holds at a time, those that readers hold included.
    ///
    /// Beside them the store takes at most a slab's alignment and 32 bytes per frame, about 250 bytes for every
    /// page in any tier, and a queue and buffers of transfers that do not grow.
    pub ram_budget_bytes: usize,
    /// Where pages go that RAM has no room for; without, a full budget is an error.
    pub disk: Option<DiskOptions>,
}

/// The disk of a store.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// A folder that is there and that no other store uses at the time.
    pub folder: PathBuf,
    /// The model that the rows are of: what is saved is refused to stores of another.
    pub model: String,
    /// The file system that it is on.
    pub files: Arc<dyn Files>,
    /// Threads that read and write, 1 to 256.
    pub num_workers: usize,
    /// Transfers queued at a time, for each priority, 1 to 65,536.
    pub queue_len: usize,
    /// Bytes of a file, at most; a file holds at least one page. It is removed when none of its pages is used
    /// any more.
    pub file_bytes: u64,
}

impl DiskOptions {
    /// A disk in `folder` for the rows of a model, with 8 workers, 16,384 queued transfers and files of 1 GiB.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, model: impl Into<String>) -> Self {
        Self {
            folder: folder.into(),
            model: model.into(),
            files: Arc::new(OsFiles::default()),
            num_workers: 8,
            queue_len: 1 << 14,
            file_bytes: 1 << 30,
        }
    }
}

/// A store of pages. Clones are the same store.
///
/// It ends with the last of its clones, sequences, readers, pins, tickets and fetches: what is queued by then is not
/// done, since nobody is left to ask for it, and what is [saved](Sequence::save) stays on disk.
#[derive(Clone, Debug)]
pub struct Store(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    saved: Mutex<Saved>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    fetcher: Mutex<Fetcher>,
}

impl Store {
    /// Opens a store. What was saved in its folder can be loaded; other pages that an earlier process left there
    /// are removed.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a shape or option that no store can have, a budget that holds no page among them;
    /// [`Error::Io`] where the folder is not there, cannot be written, or is another store's.
    pub fn open(options: StoreOptions) -> Result<Self> {
        let StoreOptions { shape, ram_budget_bytes, disk } = options;
        shape.check()?;
        let memory = Memory::new(shape.page_bytes(), ram_budget_bytes);
        Error::unless_within(
            "budget in bytes",
            ram_budget_bytes,
            memory.frame_bytes()..=usize::MAX,
        )?;
        let mut shared = Shared::new(shape, memory, disk.as_ref().map_or(1, |disk| disk.queue_len));
        let Some(disk) = disk else {
            return Ok(Self(Arc::new(Owner::new(shared, Saved::default()))));
        };
        Error::unless_within("number of workers", disk.num_workers, 1..=256)?;
        Error::unless_within("queue length", disk.queue_len, 1..=1 << 16)?;
        let saved = Saved::open(&mut shared, &disk)?;
        let owner = Owner::new(shared, saved);
        for _ in 0..disk.num_workers {
            let shared = Arc::clone(&owner.shared);
            let builder = thread::Builder::new().name("heterokv-offload".to_owned());
            let worker = builder.spawn(move || shared.work());
            let worker =
                worker.map_err(|source| io_error("start a worker for", &disk.folder, source))?;
            lock(&owner.workers).push(worker);
        }
        Ok(Self(Arc::new(owner)))
    }

    /// A store of this shape in RAM alone, bounded by what the machine gives.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn in_ram(shape: StoreShape) -> Result<Self> {
        Self::open(StoreOptions { shape, ram_budget_bytes: usize::MAX, disk: None })
    }

    /// Whether the two are clones of one store.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> &StoreShape {
        &self.0.shared.shape
    }

    /// The most pages that hints should ask for ahead of their readers, a quarter of RAM: more leave too little of it to
    /// what is read again and again. 0 without a disk, where no page needs a hint.
    #[must_use]
    pub fn hint_pages(&self) -> usize {
        let Shared { disk, memory, .. } = &**self.shared();
        if disk.is_none() { 0 } else { memory.max_frames() / HINTED_SHARE }
    }

    /// A new sequence without rows.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::new(self.clone(), vec![Head::default(); self.shape().num_heads()])
    }

    /// What it holds and has done; passes the former to the `metrics` facade.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Shared { memory, disk, queue, .. } = &*self.0.shared;
        let tier = |pages| Tier { pages, bytes: pages * memory.frame_bytes() };
        let [demand, prefetch, write_behind] = queue.depths();
        let stats = Stats {
            ram: tier(memory.in_use()),
            ram_peak: tier(memory.peak()),
            slab_bytes: memory.slab_bytes(),
            disk: tier(disk.as_ref().map_or(0, Disk::num_slots)),
            clean_pages: lock(&self.0.shared.policy).len(),
            dirty_pages: self.0.shared.num_dirty(),
            queued: Queued { demand, prefetch, write_behind },
            ..self.0.shared.counters.stats()
        };
        stats.publish();
        stats
    }

    /// What a budget would hold in RAM of the pages that there are now, and what would be on disk only; a page that is
    /// being written at the time may count in both.
    #[must_use]
    pub fn dry_run(&self, ram_budget_bytes: usize) -> DryRun {
        let stats = self.stats();
        let num_pages = stats.ram.pages - stats.clean_pages.min(stats.ram.pages) + stats.disk.pages;
        let num_open = stats.ram.pages.saturating_sub(stats.clean_pages + stats.dirty_pages);
        DryRun::new(num_pages, num_open, self.0.shared.memory.frame_bytes(), ram_budget_bytes)
    }

    /// Does what is queued, and ends the workers. Rows in RAM can still be read; whatever needs the queue is
    /// [`Error::Closed`] from now on. Nothing is to be done for a store that was shut down before.
    ///
    /// # Errors
    /// The first failure of a write that nobody waited for. What it was to write is still in RAM.
    pub fn shutdown(&self) -> Result<()> {
        self.0.end_fetcher();
        self.0.end_workers();
        lock(&self.0.shared.failed).take().map_or(Ok(()), Err)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn fetcher(&self) -> &Mutex<Fetcher> {
        &self.0.fetcher
    }

    pub(crate) fn saved(&self) -> &Mutex<Saved> {
        &self.0.saved
    }
}

impl Owner {
    fn new(shared: Shared, saved: Saved) -> Self {
        Self {
            shared: Arc::new(shared),
            saved: Mutex::new(saved),
            workers: Mutex::default(),
            fetcher: Mutex::default(),
        }
    }

    /// Whether this is a worker: one can be the one to drop what wakes up with a page's arrival, and the store with it.
    fn is_worker(&self) -> bool {
        let current = thread::current().id();
        lock(&self.workers).iter().any(|worker| worker.thread().id() == current)
    }

    /// Ends the fetcher, for which the workers read. False where it may wait for this very thread, and goes on by itself.
    fn end_fetcher(&self) -> bool {
        let may_wait = !self.is_worker();
        let fetcher = lock(&self.fetcher).close();
        if may_wait && let Some(fetcher) = fetcher {
            // It catches the panics of what it does.
            let _ = fetcher.join();
        }
        may_wait
    }

    fn end_workers(&self) {
        self.shared.queue.close();
        let workers = std::mem::take(&mut *lock(&self.workers));
        let others =
            workers.into_iter().filter(|worker| worker.thread().id() != thread::current().id());
        for worker in others {
            // A worker catches the panics of what it does.
            let _ = worker.join();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // All that was to be fetched was taken back.
        if self.end_fetcher() {
            self.shared.queue.clear();
        }
        self.end_workers();
    }
}
