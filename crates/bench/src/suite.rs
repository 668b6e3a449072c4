//! The suites: what is run for which options, what is printed, and what is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::{Context, Result};
use heterokv_quant::Level;

use crate::args::{Options, QuantArgs, Suite};
use crate::environment::Environment;
use crate::outcome::{Reach, Table};
use crate::page;
use crate::quality::KeyCodec;
use crate::rate_distortion::rate_distortion;
use crate::scan::ScanFormat;
use crate::throughput::throughput;
use crate::{end_to_end, evict, gpu, instructions, load, offload, speed, steps};

/// Programs of others, measured in the same run.
#[derive(Default)]
pub struct Peers {
    /// Whose scan is timed.
    pub scans: Vec<Box<dyn ScanFormat>>,
    /// Whose codes stand in the rate–distortion report.
    pub codecs: Vec<Box<dyn KeyCodec>>,
}

/// Runs what the options ask for; fails where an answer is wrong, with `--check` where a bar is missed, and with
/// `--compare` where a case became slower.
#[must_use]
pub fn run(options: &Options, peers: Peers) -> ExitCode {
    let done = match &options.suite {
        None => steps::run(&options.steps),
        Some(Suite::Quant(arguments)) => quant(arguments, peers),
        Some(Suite::Evict(arguments)) => evict::run(arguments),
        Some(Suite::Gpu(arguments)) => gpu::run(arguments).map(|()| true),
        Some(Suite::Load(arguments)) => load::run(arguments).map(|()| true),
        Some(Suite::Offload(arguments)) => offload::run(arguments),
        Some(Suite::Speed(arguments)) => speed::run(arguments),
        Some(Suite::SpeedProcess(arguments)) => speed::run_child(arguments).map(|()| true),
        Some(Suite::SpeedProfileProcess(arguments)) => speed::run_profile(arguments).map(|()| true),
        Some(Suite::EndToEndProcess(arguments)) => end_to_end::run_child(arguments).map(|()| true),
        Some(Suite::InstructionsProcess(arguments)) => {
            instructions::run_child(arguments).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True unless a bar is to be kept and is not.
fn quant(arguments: &QuantArgs, peers: Peers) -> Result<bool> {
    // Before the work, which would be lost.
    let folder = (!arguments.test).then(|| Folder::create(&arguments.out)).transpose()?;
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
    let Some(folder) = folder else {
        for table in &outcome.tables {
            println!("{}: {} rows, every answer right", table.stem, table.sheet.num_rows());
        }
        return Ok(true);
    };
    let mut markdown = environment.markdown();
    for table in &outcome.tables {
        if table.reach >= Reach::Terminal {
            println!("\n{}", table.sheet.aligned());
        }
        folder.write(table)?;
    }
    // The page begins with what was aimed at.
    for table in outcome.tables.iter().rev().filter(|table| table.reach == Reach::Page) {
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
        page::splice(&page::quant_path(), name, &markdown)?;
    }
    Ok(!arguments.check || outcome.is_held)
}

/// Where files go.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes it, where it is not there, and sees that files can be written to it.
    ///
    /// # Errors
    /// If it cannot be made or written to.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let probe = path.join(format!(".writable-{}", process::id()));
        let written = fs::create_dir_all(path)
            .and_then(|()| File::create_new(&probe))
            .and_then(|_| fs::remove_file(&probe));
        written.with_context(|| {
            format!("cannot write to {}; name another folder by --out", path.display())
        })?;
        Ok(Self(path.to_owned()))
    }

    /// Where it is.
    pub(crate) fn into_path(self) -> PathBuf {
        self.0
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, table: &Table) -> Result<()> {
        table.sheet.write_csv(&self.path(&format!("{}.csv", table.stem)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_a_file_in_its_place_is_refused() {
        let path = std::env::temp_dir().join(format!("heterokv-suite-{}", process::id()));
        let inner = path.join("a/b");
        Folder::create(&inner).expect("it can be made");
        Folder::create(&inner).expect("it is there");
        assert_eq!(fs::read_dir(&inner).expect("it is there").count(), 0, "nothing is left in it");
        let file = inner.join("file");
        fs::write(&file, "").expect("it can be written");
        assert!(Folder::create(&file).is_err());
        fs::remove_dir_all(&path).expect("it is ours");
    }
}
