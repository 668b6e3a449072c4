//! Pages that go to disk and come from there: written behind a stream, read one here and one there, saved and loaded.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use heterokv_offload::{
    DiskOptions, Files, HeadRows, OsFiles, Reads, Sequence, Store, StoreOptions, StoreShape,
};
use heterokv_quant::{RowFormat, RowLayout, RowSource};
use heterokv_testkit::Inputs;

use super::known::Known;
use super::{HEAD_DIM, Run, yardstick};
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// KV heads of the store.
pub(super) const NUM_HEADS: usize = 4;

/// Of what is appended, the part that RAM holds.
const BUDGET_SHARE: usize = 16;

/// The name under which sequences are saved.
pub(super) const NAME: &str = "rows";

/// One page in so many is read.
const SCATTER: usize = 4;

/// Rows as caches of the default preset hold them, and how many of them a head has.
pub(super) struct Filled {
    pub(super) known: Known,
    pub(super) shape: StoreShape,
    pub(super) num_rows: usize,
}

impl Filled {
    /// Of about so many bytes.
    pub(super) fn new(num_bytes: usize) -> Result<Self> {
        let layout = RowLayout { key: None, value: RowFormat::Int8, head_dim: HEAD_DIM };
        let page_size = StoreShape::page_size_of(&layout);
        let shape = StoreShape { num_layers: 1, num_kv_heads: NUM_HEADS, page_size, layout };
        let rows_of_pages = num_bytes / shape.bytes(1) * page_size;
        Ok(Self { known: Known::new(layout)?, shape, num_rows: rows_of_pages.max(page_size) })
    }

    /// Of the rows.
    pub(super) fn num_bytes(&self) -> usize {
        NUM_HEADS * self.num_rows * self.shape.layout.row_bytes()
    }

    pub(super) fn open(&self, folder: &Path, budget_share: usize, reads: Reads) -> Result<Store> {
        let files = Arc::new(OsFiles { reads });
        let disk = DiskOptions { files, ..DiskOptions::new(folder, "bench") };
        let ram_budget_bytes = (self.shape.bytes(self.num_rows) / budget_share).max(1 << 18);
        Ok(Store::open(StoreOptions { shape: self.shape, ram_budget_bytes, disk: Some(disk) })?)
    }

    /// Fills a folder with a saved sequence.
    pub(super) fn save_into(&self, folder: &Path) -> Result<()> {
        let mut sequence = self.open(folder, BUDGET_SHARE, Reads::Pread)?.sequence();
        self.known.fill(&mut sequence, self.num_rows)?;
        Ok(sequence.save(NAME)?)
    }

    /// Reads rows of a head and holds each to what was appended.
    pub(super) fn check(&self, rows: &HeadRows, head: usize, positions: &[u32]) -> Result<()> {
        let (mut num_rows, mut checked) = (0, Ok(()));
        rows.visit_rows(positions, &mut |page| {
            num_rows += page.rows.len();
            if checked.is_ok() {
                checked = self.known.check(head, page);
            }
        })?;
        checked?;
        ensure!(num_rows == positions.len(), "{num_rows} rows came of {}", positions.len());
        Ok(())
    }

    fn check_all(&self, sequence: &Sequence) -> Result<()> {
        let all: Vec<u32> = (0..self.num_rows as u32).collect();
        (0..NUM_HEADS).try_for_each(|head| self.check(&sequence.rows(0, head), head, &all))
    }
}

/// Rows appended through a small RAM, until all of them are durable.
///
/// # Errors
/// A wrong answer, or what the store or the yardstick fails with.
pub(super) fn write_behind(run: &Run<'_>) -> Result<Sheet> {
    let filled = Filled::new(run.disk_bytes)?;
    let num_bytes = filled.num_bytes();
    let (mut to_disk, mut to_ram, mut plain) =
        (Samples::default(), Samples::default(), Some(Samples::default()));
    for _ in 0..run.num_disk_rounds() {
        let folder = run.subfolder("write")?;
        let store = filled.open(&folder, BUDGET_SHARE, Reads::Pread)?;
        let mut sequence = store.sequence();
        let start = Instant::now();
        filled.known.fill(&mut sequence, filled.num_rows)?;
        sequence.save(NAME)?;
        to_disk.push(start.elapsed().as_secs_f64());
        filled.check_all(&sequence)?;
        drop((sequence, store));
        fs::remove_dir_all(&folder)?;
        let mut in_ram = Store::in_ram(filled.shape)?.sequence();
        let start = Instant::now();
        filled.known.fill(&mut in_ram, filled.num_rows)?;
        to_ram.push(start.elapsed().as_secs_f64());
        let path = run.folder.join("dd");
        match (yardstick::write(yardstick::PROGRAM, &path, num_bytes)?, &mut plain) {
            (Some(seconds), Some(plain)) => {
                plain.push(seconds);
                fs::remove_file(&path)?;
            }
            _ => plain = None,
        }
    }
    let title = format!(
        "Write-behind: {:.0} MB appended through RAM for a {BUDGET_SHARE}th of them until all are durable; {} writes \
         zeros and ends with fsync",
        1e-6 * num_bytes as f64,
        yardstick::PROGRAM
    );
    let mut sheet = Sheet::new(title, &["what", "MB/s", "MAD %"]);
    for (what, samples) in [("appended and saved", &to_disk), ("appended to RAM alone", &to_ram)] {
        sheet.push(row(what, samples, num_bytes));
    }
    let dd = format!("{}, in order", yardstick::PROGRAM);
    sheet.push(match &plain {
        Some(plain) => row(&dd, plain, num_bytes),
        None => vec![Cell::text(dd), Cell::text("not there"), Cell::text("")],
    });
    Ok(sheet)
}

fn row(what: &str, seconds: &Samples, num_bytes: usize) -> Vec<Cell> {
    let median = seconds.median();
    vec![
        Cell::text(what),
        Cell::Number(1e-6 * num_bytes as f64 / median, 0),
        Cell::Number(100.0 * seconds.mad() / median, 0),
    ]
}

/// Pages here and there, by positioned reads and out of a mapping, from the page cache and from the disk.
///
/// # Errors
/// A wrong answer, or what the store fails with.
pub(super) fn scattered(run: &Run<'_>) -> Result<Sheet> {
    let filled = Filled::new(run.disk_bytes)?;
    let folder = run.subfolder("pages")?;
    filled.save_into(&folder)?;
    let title = format!("Reads of one page in {SCATTER}, in the order of their positions");
    let columns =
        ["reads", "pages from", "pages", "µs a page", "MAD %", "MB/s", "MB the disk gave"];
    let mut sheet = Sheet::new(title, &columns);
    let mut inputs = Inputs::new(23);
    let page_size = filled.shape.page_size;
    let mut ways = vec![("pread", Reads::Pread), ("mapped", Reads::Mapped)];
    // Not every file system has it.
    if (OsFiles { reads: Reads::Direct }).create(&folder.join("probe")).is_ok() {
        ways.push(("direct", Reads::Direct));
    }
    for (name, reads) in ways {
        for is_cold in [false, true] {
            if reads == Reads::Direct && !is_cold {
                continue;
            }
            let (mut samples, mut from_disk, mut num_pages) = (Samples::default(), 0, 0);
            let mut is_forgotten = is_cold;
            for _ in 0..run.num_disk_rounds() {
                let pages = (0..filled.num_rows / page_size).filter(|_| inputs.below(SCATTER) == 0);
                let positions: Vec<u32> = pages.map(|page| (page * page_size) as u32).collect();
                // With nothing in RAM.
                let sequence = filled.open(&folder, 1, reads)?.load(NAME)?;
                if is_cold {
                    is_forgotten &= yardstick::forget(&folder)?;
                }
                let before = yardstick::bytes_from_disk();
                let start = Instant::now();
                for head in 0..NUM_HEADS {
                    filled.check(&sequence.rows(0, head), head, &positions)?;
                }
                samples.push(1e6 * start.elapsed().as_secs_f64());
                let given = yardstick::bytes_from_disk().zip(before);
                from_disk = given.map_or(0, |(after, before)| after - before);
                num_pages = NUM_HEADS * positions.len();
                ensure!(sequence.store().stats().misses as usize == num_pages, "a page was in RAM");
            }
            let num_bytes = num_pages * page_size * filled.shape.layout.row_bytes();
            // What it has given says whether it was asked.
            let is_from_disk = is_forgotten && from_disk as usize >= num_bytes;
            let median = samples.median();
            sheet.push(vec![
                Cell::text(name),
                Cell::text(if is_from_disk { "the disk" } else { "the page cache" }),
                Cell::Number(num_pages as f64, 0),
                Cell::Number(median / num_pages as f64, 2),
                Cell::Number(100.0 * samples.mad() / median, 0),
                Cell::Number(num_bytes as f64 / median, 0),
                Cell::Number(1e-6 * from_disk as f64, 0),
            ]);
        }
    }
    fs::remove_dir_all(&folder)?;
    Ok(sheet)
}

/// A sequence saved, loaded in another store and read from end to end.
///
/// # Errors
/// A wrong answer, or what the store or the yardstick fails with.
pub(super) fn saves(run: &Run<'_>) -> Result<Sheet> {
    let filled = Filled::new(run.disk_bytes)?;
    let num_bytes = filled.num_bytes();
    let title = format!("{:.0} MB saved, loaded and read", 1e-6 * num_bytes as f64);
    let dd = format!("{}, MB/s", yardstick::PROGRAM);
    let mut sheet = Sheet::new(title, &["what", "MB/s", "MAD %", &dd]);
    let (mut saved, mut loaded) = (Samples::default(), Samples::default());
    let (mut written, mut read) = (None, None);
    for _ in 0..run.num_disk_rounds() {
        let folder = run.subfolder("saves")?;
        // All in RAM, and nothing of it on disk.
        let mut sequence = filled.open(&folder, 1, Reads::Pread)?.sequence();
        filled.known.fill(&mut sequence, filled.num_rows)?;
        let start = Instant::now();
        sequence.save(NAME)?;
        saved.push(start.elapsed().as_secs_f64());
        drop(sequence);
        yardstick::forget(&folder)?;
        let start = Instant::now();
        let sequence = filled.open(&folder, BUDGET_SHARE, Reads::Pread)?.load(NAME)?;
        filled.check_all(&sequence)?;
        loaded.push(start.elapsed().as_secs_f64());
        drop(sequence);
        fs::remove_dir_all(&folder)?;
        let folder = run.subfolder("dd")?;
        let path = folder.join("dd");
        written = yardstick::write(yardstick::PROGRAM, &path, num_bytes)?;
        if written.is_some() {
            yardstick::forget(&folder)?;
            read = yardstick::read(yardstick::PROGRAM, &path)?;
        }
        fs::remove_dir_all(&folder)?;
    }
    for (what, samples, yardstick) in [
        ("`Sequence::save`, durable", &saved, written),
        ("`Store::open`, `load` and every row, checked", &loaded, read),
    ] {
        let mut cells = row(what, samples, num_bytes);
        cells.push(yardstick::cell(yardstick, num_bytes));
        sheet.push(cells);
    }
    Ok(sheet)
}
