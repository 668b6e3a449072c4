//! The host store: rows gathered from RAM, pages written and read, hints and saves, each beside a yardstick of the same
//! run.

mod disk;
mod hints;
mod known;
mod plain;
mod ram;
mod yardstick;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use heterokv_quant::Level;

use crate::args::{MAX_MEMORY, at_least_one, from_one_to};
use crate::environment::Environment;
use crate::outcome::Table;
use crate::sheet::Sheet;
use crate::suite::Folder;
use crate::{bars, page};

/// Length of keys and values.
const HEAD_DIM: usize = 64;

/// The parts of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Rows gathered from RAM and summed
    Ram,
    /// Rows appended through a small RAM
    Write,
    /// Pages read from disk, one here and one there
    Pages,
    /// Hints one step ahead
    Hints,
    /// Sequences saved and loaded
    Saves,
}

/// What measures a part, and the stem of its file.
type Measure = (Part, &'static str, fn(&Run<'_>) -> Result<Sheet>);

/// The parts that need a disk.
const OF_DISK: [Measure; 4] = [
    (Part::Write, "offload-write", disk::write_behind),
    (Part::Pages, "offload-pages", disk::scattered),
    (Part::Hints, "offload-hints", hints::measure),
    (Part::Saves, "offload-saves", disk::saves),
];

/// How to measure the host store.
#[derive(Args, Clone, Debug)]
pub(crate) struct OffloadArgs {
    /// These parts only
    parts: Vec<Part>,
    /// Measure each case once and small, to see that its answer is right
    #[arg(long)]
    test: bool,
    /// Fail where gather and sum from RAM do not reach 70 % of their yardstick
    #[arg(long, conflicts_with = "test")]
    check: bool,
    /// Put the tables into docs/offload.md; all parts are measured
    #[arg(long, conflicts_with_all = ["test", "parts"])]
    splice: bool,
    /// Rows of a head in RAM
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = from_one_to::<{ 1 << 30 }>)]
    context: usize,
    /// Rows in RAM, MiB; they are there four times
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = from_one_to::<MAX_MEMORY>)]
    memory: usize,
    /// Rows on disk, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = from_one_to::<MAX_MEMORY>)]
    disk: usize,
    /// Samples of each case in RAM; on disk 3 at most
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = at_least_one)]
    rounds: usize,
    /// Where the files of the stores go [default: the folder of the results]; they are removed afterwards
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Where the CSV files and the description of the environment go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

/// What the parts measure with.
struct Run<'a> {
    /// Of a head in RAM.
    num_rows: usize,
    memory_bytes: usize,
    disk_bytes: usize,
    num_rounds: usize,
    /// Of the hints.
    num_steps: usize,
    folder: &'a Path,
}

impl<'a> Run<'a> {
    /// Everything once.
    fn small(folder: &'a Path) -> Self {
        let (num_rows, memory_bytes, disk_bytes) = (5000, 1 << 20, 2 << 20);
        Self { num_rows, memory_bytes, disk_bytes, num_rounds: 1, num_steps: 10, folder }
    }

    fn num_disk_rounds(&self) -> usize {
        self.num_rounds.min(3)
    }

    /// A new folder, which goes with that of the run.
    fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(self.folder);
        let context = || format!("cannot make a folder in {}", self.folder.display());
        Ok(folder.with_context(context)?.keep())
    }
}

/// Measures what the options ask for and prints it; true unless a bar is to be kept and is not.
///
/// # Errors
/// A wrong answer, a folder or page that cannot be written, or what the store fails with.
pub(crate) fn run(arguments: &OffloadArgs) -> Result<bool> {
    // Before the work, which would be lost.
    let out = Folder::create(&arguments.out)?;
    let folder = arguments.folder.as_ref().unwrap_or(&arguments.out);
    let folder =
        tempfile::Builder::new().prefix("offload-").tempdir_in(folder).with_context(|| {
            format!("cannot make a folder in {}; name another by --folder", folder.display())
        })?;
    let run = match arguments.test {
        true => Run::small(folder.path()),
        false => Run {
            num_rows: arguments.context,
            memory_bytes: arguments.memory << 20,
            disk_bytes: arguments.disk << 20,
            num_rounds: arguments.rounds,
            num_steps: 200,
            folder: folder.path(),
        },
    };
    // Before the work, during which the tree may change.
    let environment = Environment::detect(Level::detect(), 1);
    let wants = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let mut tables = Vec::new();
    let mut is_held = true;
    if wants(Part::Ram) {
        let gathered = ram::measure(&run)?;
        let bars = ram::bars(&gathered);
        is_held = bars.iter().all(bars::Bar::is_held);
        tables.push(Table::new("offload-ram", ram::sheet(&gathered)));
        tables.push(Table::new("offload-bars", bars::sheet("Bars of rows in RAM", &bars)));
    }
    for (_, stem, measure) in OF_DISK.into_iter().filter(|(part, ..)| wants(*part)) {
        tables.push(Table::new(stem, measure(&run)?));
    }
    if arguments.test {
        for table in tables {
            println!("{}: {} rows, every answer right", table.stem, table.sheet.num_rows());
        }
        return Ok(true);
    }
    for table in &tables {
        println!("{}", table.sheet.aligned());
        out.write(table)?;
    }
    environment.write(&out.path("offload-environment.txt"))?;
    println!("{environment}\n{}: CSV and environment", arguments.out.display());
    if arguments.splice {
        let tables = tables.iter().map(|table| table.sheet.markdown());
        let markdown = std::iter::once(environment.markdown()).chain(tables);
        page::splice(&page_path(), "offload", &markdown.collect::<Vec<_>>().join("\n"))?;
    }
    Ok(!arguments.check || is_held)
}

fn page_path() -> PathBuf {
    page::docs("offload.md")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: OffloadArgs,
    }

    fn parse(words: &[&str]) -> Result<OffloadArgs, clap::Error> {
        Program::try_parse_from([&["bench"], words].concat()).map(|program| program.arguments)
    }

    #[test]
    fn parts_are_chosen_and_contradictions_refused() {
        assert_eq!(
            parse(&["ram", "hints"]).expect("they are parts").parts,
            [Part::Ram, Part::Hints]
        );
        for wrong in [&["disk"][..], &["--test", "--check"], &["ram", "--splice"], &["--memory=0"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_part_answers_right_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().to_str().expect("it is text");
        let arguments = parse(&["--test", "--out", out]).expect("it is valid");
        assert!(run(&arguments).expect("every answer is right"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn other_rows_are_seen() {
        let filled = disk::Filled::new(1 << 18).expect("it is made");
        let store = heterokv_offload::Store::in_ram(filled.shape).expect("it opens");
        let mut sequence = store.sequence();
        filled.known.fill(&mut sequence, filled.num_rows).expect("it fits");
        let rows = sequence.rows(0, 1);
        filled.check(&rows, 1, &[0, 70]).expect("they are those");
        assert!(filled.check(&rows, 2, &[0]).is_err(), "of another head");
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = std::fs::read_to_string(page_path()).expect("it is there");
        assert!(page.contains("<!-- begin: offload -->") && page.contains("<!-- end: offload -->"));
    }
}
