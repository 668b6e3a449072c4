//! What a store has done and where its pages are: counters of its own, and the same through the `metrics` facade.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a store holds and has done since it was opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Frames in RAM, those that take rows and those that readers hold included.
    pub ram: Tier,
    /// The most of them at a time.
    pub ram_peak: Tier,
    /// Bytes that RAM takes from the machine: the frames, and those free for the next pages.
    pub slab_bytes: usize,
    /// Pages on disk, whether they are in RAM too or not; their bytes are those that they take in RAM, and a slot of a file
    /// is a multiple of 4,096.
    pub disk: Tier,
    /// Pages in RAM that can leave it at once.
    pub clean_pages: usize,
    /// Full pages in RAM that wait to be written.
    pub dirty_pages: usize,
    /// Transfers that are queued.
    pub queued: Queued,
    /// Pages that readers found in RAM.
    pub hits: u64,
    /// Pages that readers waited for.
    pub misses: u64,
    /// Pages that hints brought to RAM.
    pub prefetched: u64,
    /// Those of them that were then read before they left.
    pub prefetch_hits: u64,
    /// Pages of hints that were not followed: there was no room, or the queue was full.
    pub prefetch_dropped: u64,
    /// Pages that left RAM to make room.
    pub evictions: u64,
    /// Bytes of pages read from disk.
    pub read_bytes: u64,
    /// Calls that read them: neighbours come in one.
    pub reads: u64,
    /// Bytes of pages written to disk.
    pub written_bytes: u64,
    /// Batches in which they were written.
    pub writes: u64,
    /// Pages that came from disk damaged.
    pub damaged_pages: u64,
    /// Reads and writes that failed otherwise.
    pub failures: u64,
    /// How long readers waited for pages, one wait at a time; not those of fetches, for which nobody waits.
    pub read_waits: Waits,
    /// How long writers and reads waited for room in RAM.
    pub room_waits: Waits,
    /// How long transfers were queued.
    pub queue_waits: Waits,
}

/// What one tier holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Pages.
    pub pages: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Transfers that are queued, in the order of their priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Pages that readers wait for.
    pub demand: usize,
    /// Pages of hints and of fetches.
    pub prefetch: usize,
    /// Pages to be written ahead of need.
    pub write_behind: usize,
}

/// Times of waiting, in classes of powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// `counts[i]` are the waits below 2^i microseconds and not below 2^(i-1); the last has all above.
    pub counts: [u64; Self::NUM_CLASSES],
}

impl Waits {
    /// Up to 2^24 microseconds, which are 17 seconds, and beyond.
    pub const NUM_CLASSES: usize = 26;

    /// Waits counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A time that this share of the waits, from 0 to 1, did not exceed: the upper end of a class. Zero
    /// where nobody waited.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Duration {
        let rank = (self.total() as f64 * share).ceil() as u64;
        let mut sum = 0;
        let class = self.counts.iter().position(|count| {
            sum += count;
            sum >= rank.max(1)
        });
        class.map_or(Duration::ZERO, |class| Duration::from_micros(1 << class))
    }
}

/// A count that goes up.
#[derive(Debug)]
pub(crate) struct Meter {
    count: AtomicU64,
    facade: metrics::Counter,
}

impl Meter {
    fn new(name: &'static str) -> Self {
        Self { count: AtomicU64::new(0), facade: metrics::counter!(name) }
    }

    pub(crate) fn add(&self, count: usize) {
        if count > 0 {
            self.count.fetch_add(count as u64, Ordering::Relaxed);
            self.facade.increment(count as u64);
        }
    }

    fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Times that somebody waited.
#[derive(Debug)]
pub(crate) struct Clock {
    counts: [AtomicU64; Waits::NUM_CLASSES],
    facade: metrics::Histogram,
}

impl Clock {
    fn new(name: &'static str) -> Self {
        let counts = [const { AtomicU64::new(0) }; Waits::NUM_CLASSES];
        Self { counts, facade: metrics::histogram!(name) }
    }

    pub(crate) fn record(&self, waited: Duration) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        let class = (u64::BITS - micros.leading_zeros()) as usize;
        self.counts[class.min(Waits::NUM_CLASSES - 1)].fetch_add(1, Ordering::Relaxed);
        self.facade.record(waited.as_secs_f64());
    }

    fn get(&self) -> Waits {
        Waits { counts: self.counts.each_ref().map(|count| count.load(Ordering::Relaxed)) }
    }
}

/// All counters of a store.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) hits: Meter,
    pub(crate) misses: Meter,
    pub(crate) prefetched: Meter,
    pub(crate) prefetch_hits: Meter,
    pub(crate) prefetch_dropped: Meter,
    pub(crate) evictions: Meter,
    pub(crate) read_bytes: Meter,
    pub(crate) reads: Meter,
    pub(crate) written_bytes: Meter,
    pub(crate) writes: Meter,
    pub(crate) damaged_pages: Meter,
    pub(crate) failures: Meter,
    pub(crate) read_waits: Clock,
    pub(crate) room_waits: Clock,
    pub(crate) queue_waits: Clock,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            hits: Meter::new("heterokv_offload_hits"),
            misses: Meter::new("heterokv_offload_misses"),
            prefetched: Meter::new("heterokv_offload_prefetched"),
            prefetch_hits: Meter::new("heterokv_offload_prefetch_hits"),
            prefetch_dropped: Meter::new("heterokv_offload_prefetch_dropped"),
            evictions: Meter::new("heterokv_offload_evictions"),
            read_bytes: Meter::new("heterokv_offload_read_bytes"),
            reads: Meter::new("heterokv_offload_reads"),
            written_bytes: Meter::new("heterokv_offload_written_bytes"),
            writes: Meter::new("heterokv_offload_writes"),
            damaged_pages: Meter::new("heterokv_offload_damaged_pages"),
            failures: Meter::new("heterokv_offload_failures"),
            read_waits: Clock::new("heterokv_offload_read_wait_seconds"),
            room_waits: Clock::new("heterokv_offload_room_wait_seconds"),
            queue_waits: Clock::new("heterokv_offload_queue_wait_seconds"),
        }
    }

    /// The counts; what is held now is left to the caller.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            hits: self.hits.get(),
            misses: self.misses.get(),
            prefetched: self.prefetched.get(),
            prefetch_hits: self.prefetch_hits.get(),
            prefetch_dropped: self.prefetch_dropped.get(),
            evictions: self.evictions.get(),
            read_bytes: self.read_bytes.get(),
            reads: self.reads.get(),
            written_bytes: self.written_bytes.get(),
            writes: self.writes.get(),
            damaged_pages: self.damaged_pages.get(),
            failures: self.failures.get(),
            read_waits: self.read_waits.get(),
            room_waits: self.room_waits.get(),
            queue_waits: self.queue_waits.get(),
            ..Stats::default()
        }
    }
}

impl Stats {
    /// Passes what is held now to the `metrics` facade.
    pub(crate) fn publish(&self) {
        let gauges = [
            ("heterokv_offload_ram_pages", self.ram.pages),
            ("heterokv_offload_ram_bytes", self.ram.bytes),
            ("heterokv_offload_slab_bytes", self.slab_bytes),
            ("heterokv_offload_disk_pages", self.disk.pages),
            ("heterokv_offload_disk_bytes", self.disk.bytes),
            ("heterokv_offload_dirty_pages", self.dirty_pages),
            ("heterokv_offload_queued_demand", self.queued.demand),
            ("heterokv_offload_queued_prefetch", self.queued.prefetch),
            ("heterokv_offload_queued_write_behind", self.queued.write_behind),
        ];
        for (name, value) in gauges {
            metrics::gauge!(name).set(value as f64);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
