//! What the host store of a cache holds and has done.

use heterokv_cache::{HostStats, Waits};
use serde::Serialize;

use crate::output::{bytes, count, percent};

/// Figures of a host store since it was opened.
#[derive(Serialize)]
pub(super) struct StoreReport {
    ram_pages: usize,
    ram_bytes: usize,
    /// The most bytes of pages that were in RAM at a time.
    ram_peak_bytes: usize,
    disk_pages: usize,
    disk_bytes: usize,
    /// Pages that readers found in RAM, and those that they waited for.
    hits: u64,
    misses: u64,
    /// Pages that hints brought, those of them that were then read, and those that hints asked for in vain.
    prefetched: u64,
    prefetch_hits: u64,
    prefetch_dropped: u64,
    evictions: u64,
    read_bytes: u64,
    reads: u64,
    written_bytes: u64,
    writes: u64,
    damaged_pages: u64,
    failures: u64,
    /// Transfers that are queued: readers', hints', and pages to be written.
    queued: [usize; 3],
    read_waits: Times,
    room_waits: Times,
    queue_waits: Times,
}

/// A histogram of waits: how many there were, and times that half, 90 % and 99 % of them did not exceed.
#[derive(Serialize)]
struct Times {
    count: u64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    /// `counts[i]` are the waits below 2^i microseconds and not below half of that; the last has all above.
    counts: Vec<u64>,
}

impl Times {
    fn new(waits: &Waits) -> Self {
        let below = |share| waits.percentile(share).as_micros() as u64;
        let [p50_us, p90_us, p99_us] = [0.5, 0.9, 0.99].map(below);
        Self { count: waits.total(), p50_us, p90_us, p99_us, counts: waits.counts.to_vec() }
    }

    /// In words; none where nobody waited.
    fn words(&self) -> String {
        let Self { count: number, p50_us, p90_us, p99_us, .. } = *self;
        let time =
            |us: u64| if us < 1000 { format!("{us} us") } else { format!("{} ms", us / 1000) };
        let [p50, p90, p99] = [p50_us, p90_us, p99_us].map(time);
        match number {
            0 => "none".to_owned(),
            _ => format!("{}, below {p50}, {p90}, {p99}", count(number as usize)),
        }
    }
}

impl StoreReport {
    pub(super) fn new(stats: &HostStats) -> Self {
        let HostStats { ram, ram_peak, disk, queued, .. } = stats;
        Self {
            ram_pages: ram.pages,
            ram_bytes: ram.bytes,
            ram_peak_bytes: ram_peak.bytes,
            disk_pages: disk.pages,
            disk_bytes: disk.bytes,
            hits: stats.hits,
            misses: stats.misses,
            prefetched: stats.prefetched,
            prefetch_hits: stats.prefetch_hits,
            prefetch_dropped: stats.prefetch_dropped,
            evictions: stats.evictions,
            read_bytes: stats.read_bytes,
            reads: stats.reads,
            written_bytes: stats.written_bytes,
            writes: stats.writes,
            damaged_pages: stats.damaged_pages,
            failures: stats.failures,
            queued: [queued.demand, queued.prefetch, queued.write_behind],
            read_waits: Times::new(&stats.read_waits),
            room_waits: Times::new(&stats.room_waits),
            queue_waits: Times::new(&stats.queue_waits),
        }
    }

    /// The figures by name; those of a disk only where one was used.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let tier =
            |pages: usize, size: usize| format!("{} pages, {}", count(pages), bytes(size as u64));
        let number = |n: u64| count(n as usize);
        let asked = self.hits + self.misses;
        let found = if asked == 0 { 0.0 } else { self.hits as f64 / asked as f64 };
        let mut rows = vec![
            ("host store: in RAM", tier(self.ram_pages, self.ram_bytes)),
            (
                "host store: pages read, found in RAM",
                format!("{}, {}", number(asked), percent(found)),
            ),
        ];
        if self.disk_pages == 0 && self.writes == 0 && self.reads == 0 {
            return rows;
        }
        let moved = |size: u64, calls: u64| format!("{} in {} calls", bytes(size), number(calls));
        let [demand, prefetch, write_behind] = self.queued.map(count);
        let hints = format!(
            "{} came, {} of them read, {} not followed",
            number(self.prefetched),
            number(self.prefetch_hits),
            number(self.prefetch_dropped)
        );
        rows.extend([
            ("host store: most in RAM", bytes(self.ram_peak_bytes as u64)),
            ("host store: on disk", tier(self.disk_pages, self.disk_bytes)),
            ("host store: left RAM", format!("{} pages", number(self.evictions))),
            ("host store: pages of hints", hints),
            ("host store: read from disk", moved(self.read_bytes, self.reads)),
            ("host store: written to disk", moved(self.written_bytes, self.writes)),
            (
                "host store: damaged pages, failures",
                format!("{}, {}", number(self.damaged_pages), number(self.failures)),
            ),
            (
                "host store: queued for readers, hints, writes",
                format!("{demand}, {prefetch}, {write_behind}"),
            ),
            ("host store: waits of readers (50, 90, 99 %)", self.read_waits.words()),
            ("host store: waits for room (50, 90, 99 %)", self.room_waits.words()),
            ("host store: waits in the queue (50, 90, 99 %)", self.queue_waits.words()),
        ]);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_a_disk_says_two_things_and_one_with_a_disk_all() {
        let mut stats = HostStats::default();
        stats.hits = 3;
        stats.misses = 1;
        assert_eq!(StoreReport::new(&stats).rows()[1].1, "4, 75.0 %");
        assert_eq!(StoreReport::new(&stats).rows().len(), 2);
        stats.reads = 2;
        stats.read_bytes = 2048;
        stats.read_waits.counts[3] = 9;
        stats.read_waits.counts[12] = 1;
        let report = StoreReport::new(&stats);
        let row = |name: &str| {
            let rows = report.rows();
            rows.into_iter().find(|(row, _)| row.contains(name)).expect("it is there").1
        };
        assert_eq!(row("read from disk"), "2.0 KiB in 2 calls");
        assert_eq!(row("waits of readers"), "10, below 8 us, 8 us, 4 ms");
        assert_eq!(row("waits for room"), "none");
    }
}
