//! Rows that are copied while their reader does something else, by a thread of the store.
//!
//! The thread begins with the first fetch and does one after the other. A worker cannot do it: it would wait for pages
//! that other workers are to read, and there may be no other, or none at all where there is no disk. The thread has no
//! hold on the store, which so ends with the last that somebody outside has: each [`Fetch`] has one, and what the thread
//! is at by the end was taken back.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};

use crate::gather::Reader;
use crate::sync::{Mutex, lock};
use crate::{Error, Result, Store};

/// Rows between two looks at whether they are still wanted.
const ROWS_AT_ONCE: usize = 1024;

/// Rows that a thread of the store copies in the background. Dropping it takes it back.
#[derive(Debug)]
#[must_use = "dropping it takes it back"]
pub struct Fetch {
    /// Of its reader alone, but what holds it may be shared.
    result: Mutex<Receiver<Result<Vec<u8>>>>,
    is_taken: bool,
    is_cancelled: Arc<AtomicBool>,
    _store: Store,
}

/// What the thread is to do.
#[derive(Debug)]
pub(crate) struct Job {
    rows: Reader,
    positions: Vec<u32>,
    is_cancelled: Arc<AtomicBool>,
    /// Dropped without a result by a panic.
    result: Sender<Result<Vec<u8>>>,
}

/// The thread.
#[derive(Debug, Default)]
pub(crate) enum Fetcher {
    /// Nobody has asked for it.
    #[default]
    None,
    Running {
        jobs: Sender<Job>,
        thread: JoinHandle<()>,
    },
    Closed,
}

impl Fetch {
    pub(crate) fn new(store: Store, rows: Reader, positions: Vec<u32>) -> Self {
        let (sender, result) = channel();
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let submitted = rows.check_ascending(&positions).and_then(|()| {
            let (is_cancelled, result) = (Arc::clone(&is_cancelled), sender.clone());
            lock(store.fetcher()).submit(Job { rows, positions, is_cancelled, result })
        });
        if let Err(error) = submitted {
            sender.send(Err(error)).expect("the other end is here");
        }
        Self { result: Mutex::new(result), is_taken: false, is_cancelled, _store: store }
    }

    /// The bytes of the rows, one after the other in the order of their positions, if they are there; none where they
    /// are not yet. Never waits.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    ///
    /// # Panics
    /// When it gave the result before.
    pub fn try_take(&mut self) -> Option<Result<Vec<u8>>> {
        assert!(!self.is_taken, "a result is given once");
        let taken = match lock(&self.result).try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(Error::WorkerPanicked { page: None }),
        };
        self.is_taken = true;
        Some(taken)
    }

    /// Waits for the bytes of the rows, one after the other in the order of their positions.
    ///
    /// # Errors
    /// [`Error::NoSuchRow`] and [`Error::RowOrder`] for positions that are none or do not ascend, what the read of a
    /// page fails with, [`Error::OutOfMemory`], [`Error::Closed`] for a store that was shut down, [`Error::NoThread`],
    /// and [`Error::WorkerPanicked`].
    ///
    /// # Panics
    /// When [`try_take`](Self::try_take) gave the result before.
    pub fn wait(self) -> Result<Vec<u8>> {
        assert!(!self.is_taken, "a result is given once");
        let result = lock(&self.result).recv();
        result.unwrap_or(Err(Error::WorkerPanicked { page: None }))
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

impl Fetcher {
    fn submit(&mut self, job: Job) -> Result<()> {
        if let Self::None = self {
            let (jobs, queue) = channel();
            let builder = thread::Builder::new().name("heterokv-fetch".to_owned());
            let thread = builder.spawn(move || work(&queue));
            let thread = thread.map_err(|source| Error::NoThread { source: Arc::new(source) })?;
            *self = Self::Running { jobs, thread };
        }
        match self {
            Self::Running { jobs, .. } => {
                jobs.send(job).map_err(|_| Error::WorkerPanicked { page: None })
            }
            Self::None | Self::Closed => Err(Error::Closed),
        }
    }

    /// Takes no more; the thread, if there is one, does what was asked for, and ends.
    pub(crate) fn close(&mut self) -> Option<JoinHandle<()>> {
        match std::mem::replace(self, Self::Closed) {
            Self::Running { thread, .. } => Some(thread),
            Self::None | Self::Closed => None,
        }
    }
}

/// Does what is asked for until nobody can ask any more.
fn work(queue: &Receiver<Job>) {
    for job in queue {
        // Who waits for it hears of a panic from the other end of the channel.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| job.run()));
    }
}

impl Job {
    fn run(self) {
        if let Some(result) = self.copy().transpose() {
            // Whoever took it back does not listen.
            let _ = self.result.send(result);
        }
    }

    /// The bytes of all rows; none where nobody wants them any more.
    fn copy(&self) -> Result<Option<Vec<u8>>> {
        let row_bytes = self.rows.layout().row_bytes();
        let mut bytes = self.rows.zeros(self.positions.len())?;
        let chunks = bytes.chunks_mut(ROWS_AT_ONCE * row_bytes);
        for (positions, bytes) in self.positions.chunks(ROWS_AT_ONCE).zip(chunks) {
            if self.is_cancelled.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.rows.copy(positions, bytes)?;
        }
        Ok(Some(bytes))
    }
}
