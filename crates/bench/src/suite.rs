//! The suites: what is run for which options, what is printed, and what is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use heterokv_quant::{KeyCoder, KeyFormat, Level};
use rayon::ThreadPool;

use crate::args::{Options, QuantArgs, Suite};
use crate::bars::{self, Bar};
use crate::environment::Environment;
use crate::quality::{self, DataSet, Dump, KeyCodec, Origin, OurCodec, Tables};
use crate::scan::{self, Grid, OurFormat, Place, ScanFormat};
use crate::sheet::Sheet;
use crate::{encode, formats, page, train};

/// Programs of others, measured in the same run.
#[derive(Default)]
pub struct Peers {
    /// Whose scan is timed.
    pub scans: Vec<Box<dyn ScanFormat>>,
    /// Whose codes stand in the rate–distortion report.
    pub codecs: Vec<Box<dyn KeyCodec>>,
}

/// Runs what the options ask for; fails where an answer is wrong, and with `--check` where a bar is missed.
#[must_use]
pub fn run(options: &Options, peers: Peers) -> ExitCode {
    let Suite::Quant(arguments) = &options.suite;
    match quant(arguments, peers) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sizes of a run.
struct Size {
    head_dims: Vec<usize>,
    group_sizes: Vec<usize>,
    num_rounds: usize,
    memory_bytes: usize,
    sample_seconds: f64,
}

impl Size {
    fn of(arguments: &QuantArgs) -> Self {
        let scan = &arguments.scan;
        let (head_dims, group_sizes) = (scan.head_dims.clone(), scan.group_sizes.clone());
        if arguments.test {
            let memory_bytes = 4 << 20;
            return Self {
                head_dims,
                group_sizes,
                num_rounds: 1,
                memory_bytes,
                sample_seconds: 0.0,
            };
        }
        Self {
            head_dims,
            group_sizes,
            num_rounds: scan.rounds,
            memory_bytes: scan.memory << 20,
            sample_seconds: 0.1,
        }
    }
}

/// True unless a bar is to be kept and is not.
fn quant(arguments: &QuantArgs, peers: Peers) -> Result<bool> {
    let level = Level::detect();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads)
        .build()
        .context("cannot start threads")?;
    // Before the work, during which the tree may change.
    let environment = Environment::detect(level, arguments.threads);
    let outcome = match arguments.quality {
        true => pool.install(|| rate_distortion(arguments, peers.codecs, level))?,
        false => throughput(arguments, peers.scans, level, &pool)?,
    };
    if arguments.test {
        for table in &outcome.tables {
            println!("{}: {} rows, every answer right", table.stem, table.sheet.num_rows());
        }
        return Ok(true);
    }
    let folder = Folder::create(&arguments.out)?;
    let mut markdown = environment.markdown();
    for table in &outcome.tables {
        println!("\n{}", table.sheet.aligned());
        folder.write(table)?;
    }
    // The page begins with what was aimed at.
    for table in outcome.tables.iter().rev().filter(|table| table.is_on_page) {
        markdown = format!("{markdown}\n{}", table.sheet.markdown());
    }
    let name = if arguments.quality { "quality" } else { "scan" };
    environment.write(&folder.path(&format!("quant-{name}-environment.txt")))?;
    println!("{environment}\n{}: CSV and environment", folder.0.display());
    if outcome.is_void {
        println!(
            "VOID: the f16 scan did not reach its share of the read bandwidth; the ratios say nothing"
        );
    }
    if arguments.splice {
        page::splice(&page::path(), name, &markdown)?;
    }
    Ok(!arguments.check || outcome.is_held)
}

/// A table and where it goes.
struct Table {
    /// Of its file.
    stem: &'static str,
    sheet: Sheet,
    /// Whether it is short enough for the page.
    is_on_page: bool,
}

impl Table {
    fn new(stem: &'static str, sheet: Sheet) -> Self {
        Self { stem, sheet, is_on_page: true }
    }

    fn off_page(self) -> Self {
        Self { is_on_page: false, ..self }
    }
}

/// What a suite gave.
struct Outcome {
    tables: Vec<Table>,
    /// Whether every bar was measured and held.
    is_held: bool,
    /// Whether the yardsticks of the run were too noisy or slow to judge by.
    is_void: bool,
}

/// Scan, encode and fit.
fn throughput(
    arguments: &QuantArgs,
    peers: Vec<Box<dyn ScanFormat>>,
    level: Level,
    pool: &ThreadPool,
) -> Result<Outcome> {
    let say = |message: &str| eprintln!("{message}");
    let size = Size::of(arguments);
    let ours: Vec<KeyFormat> = match &arguments.formats[..] {
        [] => formats::parse(formats::TIMED)?,
        some => some.to_vec(),
    };
    let mut formats = peers;
    formats.extend(ours.iter().map(|&format| Box::new(OurFormat(format)) as Box<dyn ScanFormat>));
    let result = scan::measure(
        &Grid {
            formats: &formats,
            head_dims: &size.head_dims,
            group_sizes: &size.group_sizes,
            num_rounds: size.num_rounds,
            memory_bytes: size.memory_bytes,
            sample_seconds: size.sample_seconds,
            level,
            pool,
        },
        &say,
    )?;
    let encoded = encode::measure(
        &encode::Settings {
            formats: &ours,
            head_dims: &size.head_dims,
            num_rounds: size.num_rounds,
            sample_seconds: size.sample_seconds,
            pool,
        },
        &say,
    )?;
    let fitted = train::measure(
        &match arguments.test {
            true => train::Settings { num_heads: 2, num_tokens: 1024, pool },
            false => train::Settings::full(pool),
        },
        &say,
    )?;
    let mut tables = vec![
        Table::new("quant-scan", scan::scan_sheet(&result)).off_page(),
        Table::new("quant-scan-cache", scan::shapes_sheet(&result, Place::Cache)),
        Table::new("quant-scan-memory", scan::shapes_sheet(&result, Place::Memory)),
        Table::new("quant-encode", encoded),
        Table::new("quant-bandwidth", scan::bandwidth_sheet(&result)),
    ];
    let judgement = scan::judge(&result);
    let mut all: Vec<Bar> = Vec::new();
    if judgement.is_none() {
        say("the bars of the scan need head_dim 64, G = 3 and a format of every class");
    }
    if let Some(judgement) = &judgement {
        all.push(judgement.yardstick.clone());
        all.extend(judgement.classes.iter().flatten().cloned());
    }
    // One of the ways of encoding a token is enough.
    let fit_is_held = fitted[0].is_held() && fitted[1..].iter().any(Bar::is_held);
    all.extend(fitted);
    tables.push(Table::new("quant-bars", bars::sheet("Bars", &all)));
    Ok(Outcome {
        tables,
        is_held: fit_is_held && judgement.as_ref().is_some_and(scan::Judgement::is_held),
        is_void: judgement.is_some_and(|judgement| !judgement.yardstick.is_held()),
    })
}

/// What the bits of formats cost, on keys of a model and on synthetic ones.
fn rate_distortion(
    arguments: &QuantArgs,
    peers: Vec<Box<dyn KeyCodec>>,
    level: Level,
) -> Result<Outcome> {
    let say = |message: &str| eprintln!("{message}");
    let ours: Vec<KeyFormat> = match &arguments.formats[..] {
        [] => formats::parse(formats::COMPARED)?,
        some => some.to_vec(),
    };
    let mut codecs: Vec<(Origin, Box<dyn KeyCodec>)> = Vec::new();
    for format in ours {
        for tables in [Tables::Own, Tables::Profile] {
            // A format without tables has nothing to take from a profile.
            if tables == Tables::Own || !KeyCoder::table_names(format).is_empty() {
                codecs.push((Origin::Ours, Box::new(OurCodec { format, tables, level })));
            }
        }
    }
    let others = quality::published().into_iter().chain(peers);
    codecs.extend(others.map(|codec| (Origin::Peer, codec)));
    let wanted = &arguments.dump;
    // The page shows tables from the last to the first: the model's keys come last.
    let mut data = match arguments.test {
        true => vec![DataSet::synthetic(2, 512, 4)?],
        false => vec![DataSet::synthetic(8, wanted.context, wanted.steps)?],
    };
    if !arguments.test {
        let model = wanted.model.as_deref();
        data.insert(
            0,
            quality::dump(
                &Dump {
                    model: model.context("pass a model by --model PATH")?,
                    corpus: &wanted.corpus.clone().unwrap_or_else(quality::default_corpus),
                    offset: wanted.offset,
                    num_coded: wanted.context,
                    num_steps: wanted.steps,
                    num_layers: wanted.layers,
                    profile_tokens: wanted.profile_tokens,
                    level,
                },
                &say,
            )?,
        );
    }
    let (mut tables, mut is_held) = (Vec::new(), true);
    for data in &data {
        let rows = quality::measure(data, &codecs, &say)?;
        let [all, front] = data.files;
        tables.push(Table::new(all, quality::quality_sheet(data, &rows)));
        tables.push(Table::new(front, quality::front_sheet(&data.name, &rows)));
        // Keys that no model made are shown and judge nothing.
        is_held &= !data.is_dumped || quality::is_ahead(&rows);
    }
    Ok(Outcome { tables, is_held, is_void: false })
}

/// Where files go.
struct Folder(PathBuf);

impl Folder {
    fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, table: &Table) -> Result<()> {
        table.sheet.write_csv(&self.path(&format!("{}.csv", table.stem)))
    }
}
