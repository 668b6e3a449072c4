//! A cache with more rows than RAM may hold: decode steps whose rows come from a disk, beside the same with all in RAM.
//!
//! Keys and values are those of a text, over and over; what a step reads is what the selector takes of them. Two floors
//! bound a step: what it takes with all rows in RAM, and what the disk takes for the bytes that were read, at the rate
//! at which it gave the same files to as many threads that did nothing else. Where both go on at the same time, a step
//! takes as long as the larger one.

mod disk;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use heterokv_cache::{DiskOptions, HostStats, KvCache, OsFiles, Reads, Store, StoreOptions};
use heterokv_model::Model;
use heterokv_quant::Level;

use crate::args::{MAX_MEMORY, MAX_THREADS, at_least_one, from_one_to};
use crate::caches::Planned;
use crate::environment::Environment;
use crate::interleave::interleaved;
use crate::prompt_rows::PromptRows;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};
use crate::subject::{Place, Subject};
use crate::suite::Folder;
use crate::{machine, memory, page};

/// Tokens of the text that pass through the model; a longer context repeats them.
const REAL_TOKENS: usize = 8192;

/// How to measure a cache with more rows than RAM may hold.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Tokens in the cache
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = at_least_one)]
    context: usize,
    /// The cache, one that keeps rows on the host
    #[arg(long, value_name = "SPEC", default_value = "hca:12.5%")]
    cache: String,
    /// RAM for these rows, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = from_one_to::<MAX_MEMORY>)]
    host_memory: usize,
    /// How the disk is read
    #[arg(long, value_name = "WAY", default_value = "direct")]
    reads: Way,
    /// Steps that are timed, of each store
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    rounds: usize,
    /// Threads that compute
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = from_one_to::<MAX_THREADS>)]
    pub(crate) threads: usize,
    /// Threads that read and write
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = from_one_to::<256>)]
    workers: usize,
    /// The model [default: what `cargo xtask fetch` gets]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The text [default: data/moby-dick.txt in ../shared beside the checkout, or in HETEROKV_SHARED]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Where the files of the store and the table go; the former are removed at the end
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    /// Measure small, on a tiny model, to see that the answers are right
    #[arg(long, conflicts_with = "splice")]
    test: bool,
    /// Put the table into docs/offload.md
    #[arg(long)]
    splice: bool,
}

/// How pages come from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Past the system's cache, so that what is read comes from the disk
    Direct,
    /// Through the system's cache, which has a share in what is measured
    Pread,
    /// The same, out of mapped memory
    Mapped,
}

impl Way {
    fn reads(self) -> Reads {
        match self {
            Self::Direct => Reads::Direct,
            Self::Pread => Reads::Pread,
            Self::Mapped => Reads::Mapped,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Direct => "past the system's cache (O_DIRECT)",
            Self::Pread => "by pread, page cache included",
            Self::Mapped => "mapped, page cache included",
        }
    }
}

/// Builds both caches, measures, and prints.
///
/// # Errors
/// A model, text or folder that cannot be had, too little memory, what a cache refuses, and an answer that differs.
pub(crate) fn run(arguments: &LoadArgs) -> Result<()> {
    // Before the work, which would be lost.
    let folder = Folder::create(&arguments.out)?;
    let level = Level::detect();
    let environment = Environment::detect(level, arguments.threads);
    let small = LoadArgs { context: 4_000, rounds: 2, ..arguments.clone() };
    let arguments = if arguments.test { &small } else { arguments };
    let place = Place::asked(arguments.test, &arguments.model, &arguments.corpus)?;
    let subject = place.load(arguments.context.min(REAL_TOKENS) + 64, level)?;
    let files =
        tempfile::tempdir_in(&arguments.out).context("cannot make a folder for the store")?;
    let pool = machine::threads(arguments.threads)?;
    let measured =
        pool.install(|| Load { arguments, subject: &subject, level }.run(files.path()))?;
    let sheet = measured.sheet(arguments, &subject);
    if arguments.test {
        println!("load: {} steps over a disk, every answer right", measured.on_disk.len());
        return Ok(());
    }
    println!("{environment}\n{}", sheet.aligned());
    sheet.write_csv(&folder.path("load.csv"))?;
    if arguments.splice {
        let markdown = format!("{}\n{}", environment.markdown(), sheet.markdown());
        page::splice(&page::docs("offload.md"), "load", &markdown)?;
    }
    Ok(())
}

/// What is to be measured.
struct Load<'a> {
    arguments: &'a LoadArgs,
    subject: &'a Subject,
    level: Level,
}

/// A cache that takes the tokens behind the context.
struct Candidate<'a> {
    cache: KvCache,
    model: &'a Model,
    tokens: &'a [u32],
    num_fed: usize,
    /// The last hidden state.
    hidden: Vec<f32>,
}

/// What was found.
struct Measured {
    planned: Planned,
    budget_bytes: usize,
    /// Nanoseconds.
    in_ram: Samples,
    on_disk: Samples,
    /// Of the store with a disk, before the first step that was timed and behind the last.
    before: HostStats,
    after: HostStats,
    build_seconds: f64,
    /// Bytes per second that the disk gave to threads that did nothing else.
    disk_rate: f64,
}

impl Candidate<'_> {
    /// Nanoseconds of the next token.
    fn sample(&mut self) -> Result<f64> {
        let token = self.tokens[self.num_fed % self.tokens.len()];
        let start = Instant::now();
        self.hidden = self.model.extend(&[token], &mut self.cache)?;
        self.num_fed += 1;
        Ok(1e9 * start.elapsed().as_secs_f64())
    }

    fn stats(&self) -> Result<HostStats> {
        self.cache
            .host_stats()
            .context("this cache keeps no rows on the host; name another by --cache")
    }
}

impl Load<'_> {
    fn run(&self, folder: &std::path::Path) -> Result<Measured> {
        let LoadArgs { context, cache, host_memory, reads, rounds, workers, test, .. } =
            self.arguments;
        let shape = self.subject.model.kv_shape();
        let spec =
            if *test { "hca,keys=int8-token,select=top-p:0.9,sinks=2,recent=8" } else { cache };
        let planned = Planned::new(spec, &shape, *context)?;
        // Of the test less than the rows take, and more than the pages that take rows.
        let budget_bytes = if *test { planned.plan.host_bytes / 3 } else { host_memory << 20 };
        ensure!(
            planned.plan.host_dry_run(budget_bytes).disk_pages > 0,
            "{spec} has {} MiB of rows at {context} tokens, which a budget of {host_memory} MiB holds; give it less",
            planned.plan.host_bytes >> 20
        );
        self.check_memory(&planned, budget_bytes)?;
        let disk = DiskOptions {
            files: Arc::new(OsFiles { reads: reads.reads() }),
            num_workers: *workers,
            ..DiskOptions::new(folder, &self.subject.name)
        };
        let config = || planned.config.clone();
        let store = Store::open(StoreOptions {
            shape: planned.config.store_shape(&shape),
            ram_budget_bytes: budget_bytes,
            disk: Some(disk),
        })?;
        let mut caches = [
            KvCache::new(shape, config(), self.level, None)?,
            KvCache::in_store(shape, config(), self.level, None, &store)?,
        ];
        self.say("the text's keys and values");
        let real = &self.subject.tokens[..self.subject.tokens.len() - 64];
        let rows = PromptRows::of_model(&self.subject.model, real)?;
        let start = Instant::now();
        for layer in 0..shape.num_layers {
            self.say(&format!("layer {} of {}", layer + 1, shape.num_layers));
            rows.context(layer, *context).store(&mut caches, layer, self.level)?;
        }
        let build_seconds = start.elapsed().as_secs_f64();
        let behind = &self.subject.tokens[self.subject.tokens.len() - 64..];
        let mut candidates = caches.map(|cache| Candidate {
            cache,
            model: &self.subject.model,
            tokens: behind,
            num_fed: 0,
            hidden: Vec::new(),
        });
        // The first steps fill what is kept from step to step.
        self.say("steps");
        for _ in 0..2 {
            for candidate in &mut candidates {
                candidate.sample()?;
            }
            check(&candidates)?;
        }
        let before = candidates[1].stats()?;
        let mut samples = interleaved(&mut candidates, *rounds, Candidate::sample)?;
        let after = candidates[1].stats()?;
        check(&candidates)?;
        ensure!(
            after.ram_peak.bytes <= budget_bytes,
            "{} bytes of rows were in RAM, {budget_bytes} are allowed",
            after.ram_peak.bytes
        );
        let disk_rate = disk::read_rate(folder, reads.reads(), *workers)?;
        let (on_disk, in_ram) = (samples.remove(1), samples.remove(0));
        Ok(Measured {
            planned,
            budget_bytes,
            in_ram,
            on_disk,
            before,
            after,
            build_seconds,
            disk_rate,
        })
    }

    fn check_memory(&self, planned: &Planned, budget_bytes: usize) -> Result<()> {
        // Keys and values of a layer in f32, once as they come and once by head.
        let kv_row_len = self.subject.model.kv_shape().heads.kv_row_len() as u64;
        let of_layer = (4 * 4 * kv_row_len).saturating_mul(self.arguments.context as u64);
        let in_ram = planned.total_bytes();
        let on_disk = in_ram - planned.plan.host_bytes as u64 + budget_bytes as u64;
        let needed = of_layer.saturating_add(in_ram).saturating_add(on_disk);
        match memory::lack(needed) {
            Some(lack) => anyhow::bail!("{lack}; give a shorter --context"),
            None => Ok(()),
        }
    }

    fn say(&self, what: &str) {
        if !self.arguments.test {
            eprintln!("load: {what}");
        }
    }
}

/// Holds the hidden states to each other: rows on the disk are summed as those in RAM are, to the bit.
///
/// # Errors
/// Where they differ, or are not finite.
fn check(candidates: &[Candidate<'_>; 2]) -> Result<()> {
    let [in_ram, on_disk] = candidates.each_ref().map(|candidate| &candidate.hidden);
    let is_same =
        in_ram.iter().zip(on_disk).all(|(a, b)| a.is_finite() && a.to_bits() == b.to_bits());
    ensure!(
        is_same && in_ram.len() == on_disk.len(),
        "the hidden state over rows on the disk is not that over rows in RAM"
    );
    Ok(())
}

impl Measured {
    fn sheet(&self, arguments: &LoadArgs, subject: &Subject) -> Sheet {
        let Self { before, after, .. } = self;
        let plan = &self.planned.plan;
        let steps = self.on_disk.len() as f64;
        let per_step = |of: fn(&HostStats) -> u64| (of(after) - of(before)) as f64 / steps;
        let title = format!(
            "{}: {} tokens of {}, steps over rows in RAM and over rows on a disk",
            self.planned.spec, arguments.context, subject.name
        );
        let mut sheet = Sheet::new(title, &["what", "figure", "unit"]);
        let mut push = |what: &str, figure: f64, digits: usize, unit: &str| {
            sheet.push(vec![Cell::text(what), Cell::Number(figure, digits), Cell::text(unit)]);
        };
        let gb = |bytes: f64| 1e-9 * bytes;
        push("rows on the host", gb(plan.host_bytes as f64), 2, "GB");
        push("RAM that they may take", gb(self.budget_bytes as f64), 2, "GB");
        push("the most that they took", gb(after.ram_peak.bytes as f64), 2, "GB");
        push("pages on disk", after.disk.pages as f64, 0, "");
        push("building both caches", self.build_seconds, 1, "s");
        let [pages, hits] = [per_step(|s| s.hits + s.misses), per_step(|s| s.hits)];
        push("pages touched by a step", pages, 0, "");
        push("of these in RAM when their reader came", 100.0 * hits / pages, 1, "%");
        let [hinted, used] = [per_step(|s| s.prefetched), per_step(|s| s.prefetch_hits)];
        push("pages that hints brought", hinted, 0, "");
        push("of these read", 100.0 * used / hinted, 1, "%");
        let bytes = per_step(|s| s.read_bytes);
        push(
            "read from the disk by a step",
            gb(bytes),
            3,
            &format!("GB, {}", arguments.reads.words()),
        );
        push("in so many reads", per_step(|s| s.reads), 0, "");
        let [in_ram, on_disk] =
            [&self.in_ram, &self.on_disk].map(|samples| 1e-9 * samples.median());
        push("a step, all rows in RAM (median)", in_ram, 3, "s");
        push("a step, rows on the disk (median)", on_disk, 3, "s");
        push("its deviation (MAD)", 1e-9 * self.on_disk.mad(), 3, "s");
        push("the disk alone gives", gb(self.disk_rate), 2, "GB/s");
        let disk_floor = bytes / self.disk_rate;
        push("floor of the disk", disk_floor, 3, "s");
        push("overlap: the larger floor over the step", disk_floor.max(in_ram) / on_disk, 2, "");
        push(
            "both floors, one after the other, over the step",
            (disk_floor + in_ram) / on_disk,
            2,
            "",
        );
        sheet
    }
}
