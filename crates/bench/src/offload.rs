//! The host store: rows gathered from RAM, pages written and read, hints and saves, each beside a yardstick of the same
//! run.

mod known;
mod plain;
mod ram;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::args::{MAX_MEMORY, at_least_one, from_one_to};

/// Length of keys and values.
const HEAD_DIM: usize = 64;

/// Rows of a page, as caches have them.
const PAGE_SIZE: usize = 64;

/// How to measure the host store.
#[derive(Args, Clone, Debug)]
pub(crate) struct OffloadArgs {
    /// Rows of a head
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = at_least_one)]
    context: usize,
    /// Rows in RAM, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = from_one_to::<MAX_MEMORY>)]
    memory: usize,
    /// Samples of each case
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = at_least_one)]
    rounds: usize,
    /// Where the files go [default: the folder of the results]; they are removed afterwards
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Where the CSV files and the description of the environment go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// What the parts measure with.
struct Run<'a> {
    num_rows: usize,
    memory_bytes: usize,
    num_rounds: usize,
    folder: &'a Path,
}

impl Run<'_> {
    /// A folder of this name, which is not there yet.
    fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let path = tempfile::Builder::new().prefix(name).tempdir_in(self.folder);
        path.map(|folder| folder.keep())
            .with_context(|| format!("cannot make a folder in {}", self.folder.display()))
    }
}

pub(crate) fn run(arguments: &OffloadArgs) -> Result<bool> {
    let folder = tempfile::tempdir_in("/tmp")?;
    let run = Run {
        num_rows: arguments.context,
        memory_bytes: arguments.memory << 20,
        num_rounds: arguments.rounds,
        folder: folder.path(),
    };
    println!("{}", ram::sheet(&ram::measure(&run)?).aligned());
    Ok(true)
}
