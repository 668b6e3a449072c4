//! The suites: what is run for which options, what is printed, and what is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use heterokv_quant::{KeyFormat, Level};
use rayon::ThreadPool;

use crate::args::{Options, QuantArgs, Suite};
use crate::bars::{self, Bar};
use crate::environment::Environment;
use crate::scan::{self, Grid, OurFormat, ScanFormat};
use crate::sheet::Sheet;
use crate::{encode, formats, page, train};

/// Programs of others, measured in the same run.
#[derive(Default)]
pub struct Peers {
    /// Whose scan is timed.
    pub scans: Vec<Box<dyn ScanFormat>>,
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
    let outcome = throughput(arguments, peers, level, &pool)?;
    if arguments.test {
        for (stem, sheet) in &outcome.sheets {
            println!("{stem}: {} cases, every answer right", sheet.num_rows());
        }
        return Ok(true);
    }
    let environment = Environment::detect(level, arguments.threads);
    let folder = Folder::create(&arguments.out)?;
    let mut markdown = environment.markdown();
    for (stem, sheet) in &outcome.sheets {
        println!("\n{}", sheet.aligned());
        folder.write(stem, sheet)?;
        markdown = format!("{markdown}\n{}", sheet.markdown());
    }
    environment.write(&folder.path("quant-environment.txt"))?;
    println!("{environment}\n{}: CSV and environment", folder.0.display());
    if outcome.is_void {
        println!(
            "VOID: the f16 scan did not reach its share of the read bandwidth; the ratios say nothing"
        );
    }
    if arguments.splice {
        page::splice(&page::path(), "scan", &markdown)?;
    }
    Ok(!arguments.check || outcome.is_held)
}

/// What a suite gave.
struct Outcome {
    /// Tables and the stems of their files.
    sheets: Vec<(&'static str, Sheet)>,
    /// Whether every bar was measured and held.
    is_held: bool,
    /// Whether the yardsticks of the run were too noisy or slow to judge by.
    is_void: bool,
}

/// Scan, encode and fit.
fn throughput(
    arguments: &QuantArgs,
    peers: Peers,
    level: Level,
    pool: &ThreadPool,
) -> Result<Outcome> {
    let say = |message: &str| eprintln!("{message}");
    let size = Size::of(arguments);
    let ours: Vec<KeyFormat> = match &arguments.formats[..] {
        [] => formats::parse(formats::TIMED)?,
        some => some.to_vec(),
    };
    let mut formats: Vec<Box<dyn ScanFormat>> = peers.scans;
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
    let mut sheets = vec![
        ("quant-scan", scan::scan_sheet(&result)),
        ("quant-bandwidth", scan::bandwidth_sheet(&result)),
        ("quant-encode", encoded),
    ];
    let judgement = scan::judge(&result);
    let mut all: Vec<Bar> = Vec::new();
    if let Some(judgement) = &judgement {
        all.push(judgement.yardstick.clone());
        all.extend(judgement.bars.iter().cloned());
    }
    // One of the ways of encoding a token is enough.
    let fit_is_held = fitted[0].is_held() && fitted[1..].iter().any(Bar::is_held);
    all.extend(fitted);
    sheets.push(("quant-bars", bars::sheet("Bars", &all)));
    Ok(Outcome {
        sheets,
        is_held: fit_is_held && judgement.as_ref().is_some_and(scan::Judgement::is_held),
        is_void: judgement.is_some_and(|judgement| !judgement.yardstick.is_held()),
    })
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

    fn write(&self, stem: &str, sheet: &Sheet) -> Result<()> {
        sheet.write_csv(&self.path(&format!("{stem}.csv")))
    }
}
