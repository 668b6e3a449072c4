//! Hints one step ahead, with a time of computing in between, as decode steps give them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use heterokv_offload::{Reads, Stats};
use heterokv_testkit::Inputs;

use super::disk::{Filled, NAME};
use super::{Run, yardstick};
use crate::sheet::{Cell, Sheet};

/// What a step computes before it reads.
const COMPUTE: Duration = Duration::from_millis(2);

/// Pages that a step reads.
const STEP_PAGES: usize = 64;

/// Of the rows, the part that RAM holds: many steps.
const BUDGET_SHARE: usize = 8;

/// Reads with and without hints.
///
/// # Errors
/// A wrong answer, or what the store fails with.
pub(super) fn measure(run: &Run<'_>) -> Result<Sheet> {
    let filled = Filled::new(run.disk_bytes)?;
    let folder = run.subfolder("hints")?;
    filled.save_into(&folder)?;
    let title = format!(
        "Hints one step ahead: {} steps of {STEP_PAGES} scattered pages each, {} ms of computing before each",
        run.num_steps,
        COMPUTE.as_millis()
    );
    let columns = [
        "hints",
        "pages hinted",
        "of them read",
        "reads that found their page",
        "step p50, µs",
        "p90",
        "p99",
        "waits",
        "wait p50, below µs",
        "p90",
        "p99",
    ];
    let mut sheet = Sheet::new(title, &columns);
    for is_hinting in [false, true] {
        sheet.push(steps(&filled, &folder, is_hinting, run.num_steps)?);
    }
    fs::remove_dir_all(&folder)?;
    Ok(sheet)
}

fn steps(filled: &Filled, folder: &Path, is_hinting: bool, num_steps: usize) -> Result<Vec<Cell>> {
    let sequence = filled.open(folder, BUDGET_SHARE, Reads::Pread)?.load(NAME)?;
    yardstick::forget(folder)?;
    let rows = sequence.rows(0, 0);
    // The same pages with hints and without.
    let mut inputs = Inputs::new(31);
    let mut draw = || {
        let page_size = filled.shape.page_size;
        let num_pages = filled.num_rows / page_size;
        let mut pages: Vec<usize> = (0..STEP_PAGES).map(|_| inputs.below(num_pages)).collect();
        pages.sort_unstable();
        pages.dedup();
        pages.iter().map(|page| (page * page_size) as u32).collect::<Vec<_>>()
    };
    let mut times = Vec::with_capacity(num_steps);
    let mut next = draw();
    for _ in 0..num_steps {
        let positions = std::mem::replace(&mut next, draw());
        let _under_way = is_hinting.then(|| rows.prefetch(&positions)).transpose()?;
        let start = Instant::now();
        while start.elapsed() < COMPUTE {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        filled.check(&rows, 0, &positions)?;
        times.push(1e6 * start.elapsed().as_secs_f64());
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(row(is_hinting, &times, &sequence.store().stats()))
}

fn row(is_hinting: bool, sorted: &[f64], stats: &Stats) -> Vec<Cell> {
    let percentile = |share: f64| {
        let rank = (share * sorted.len() as f64).ceil() as usize;
        Cell::Number(sorted[rank.clamp(1, sorted.len()) - 1], 0)
    };
    let wait = |share| Cell::Number(1e6 * stats.read_waits.percentile(share).as_secs_f64(), 0);
    let share = |part: u64, whole: u64| match whole {
        0 => Cell::text(""),
        whole => Cell::text(format!("{:.1} %", 100.0 * part as f64 / whole as f64)),
    };
    vec![
        Cell::text(if is_hinting { "one step ahead" } else { "none" }),
        Cell::Number(stats.prefetched as f64, 0),
        share(stats.prefetch_hits, stats.prefetched),
        share(stats.hits, stats.hits + stats.misses),
        percentile(0.5),
        percentile(0.9),
        percentile(0.99),
        Cell::Number(stats.read_waits.total() as f64, 0),
        wait(0.5),
        wait(0.9),
        wait(0.99),
    ]
}
