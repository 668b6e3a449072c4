//! Caches that leave tokens out: what they lose and what they find, what they hold and how fast they are; what a change of
//! topic does to a selection; what selecting takes of a step; and what roles of heads are worth to coded keys.

mod bars;
mod drift;
mod grid;
mod hybrid;
mod latency;
mod quality;
mod subject;
mod table;
mod watch;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use heterokv_quant::Level;

use crate::args::{MAX_MEMORY, MAX_THREADS, at_least_one, from_one_to};
use crate::environment::Environment;
use crate::outcome::{Reach, Table};
use crate::subject::Place;
use crate::suite::Folder;
use crate::{machine, page};
use drift::DriftArgs;
use subject::Opened;

/// Tokens of the contexts of quality and drift.
const CONTEXTS: [usize; 2] = [4096, 7900];

/// What to measure of caches that leave tokens out.
#[derive(Args, Clone, Debug)]
#[group(id = "part", required = true, multiple = true, args = ["quality", "bars", "drift", "latency", "hybrid"])]
pub(crate) struct EvictArgs {
    /// Every preset at every ratio: KL on what follows and on what is said once more, answers, bytes, tokens per second.
    /// A run that was stopped goes on where it was
    #[arg(long)]
    quality: bool,
    /// Hold what --quality has measured to the bars, and fail where one is missed
    #[arg(long, conflicts_with = "test")]
    bars: bool,
    /// A text that changes its topic and comes back: selections made once, on drift and at every step
    #[arg(long)]
    drift: bool,
    /// Where the time of a step goes: scores, selection, rows, and what is noted for later
    #[arg(long)]
    latency: bool,
    /// The bytes of coded keys shared out among heads by their roles and stability, and what selections of each role miss
    #[arg(long)]
    hybrid: bool,
    /// Each part small and on a tiny model, to see that it runs and its answers are right
    #[arg(long, conflicts_with_all = ["splice", "check"])]
    test: bool,
    /// Fail where --drift or --latency misses its bar, too
    #[arg(long)]
    check: bool,
    /// Put the tables into docs/evict.md, those of --hybrid into docs/methods/hybrid.md
    #[arg(long)]
    splice: bool,
    /// These presets only, by name
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    presets: Vec<String>,
    /// Device bytes of the caches, in percent of a full one's
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_values_t = [50.0, 25.0, 12.5, 6.25], value_parser = percent)]
    ratios: Vec<f64>,
    /// A cache by its spec; may be repeated. Alone it takes the place of the presets
    #[arg(long = "cache", value_name = "SPEC")]
    caches: Vec<String>,
    /// Roles and weights of heads (`heterokv profile --heads`), for the presets that go by them
    #[arg(long, value_name = "FILE")]
    heads: Option<PathBuf>,
    /// Tokens in the caches [default: 4096 and 7900; of --latency 131072, of --hybrid 4096]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = at_least_one)]
    contexts: Vec<usize>,
    /// Tokens of the text at which the contexts of --quality and --hybrid begin
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [45_000, 120_000])]
    offsets: Vec<usize>,
    /// What the caches of --quality may take at a time, MiB: the more, the fewer times a context is read
    #[arg(long, value_name = "MIB", default_value_t = 6144, value_parser = from_one_to::<MAX_MEMORY>)]
    memory: usize,
    /// Rows of another build of this program count as measured
    #[arg(long)]
    any_build: bool,
    /// Steps that --latency times: whole cycles of caches that decide every 16 steps and look at pivots every 5
    #[arg(long, value_name = "N", default_value_t = 80, value_parser = at_least_one)]
    rounds: usize,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = from_one_to::<MAX_THREADS>)]
    pub(crate) threads: usize,
    /// The model [default: what `cargo xtask fetch` gets]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The text [default: data/moby-dick.txt in ../shared beside the checkout, or in HETEROKV_SHARED]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Where the rows, the CSV files and the description of the environment go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
    // Last: its heading stands over all options behind it.
    #[command(flatten)]
    drift_terms: DriftArgs,
}

/// A share of a full cache's bytes.
fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|&percent: &f64| percent > 0.0 && percent <= 100.0);
    percent.ok_or_else(|| "a percentage above 0 and up to 100".to_owned())
}

/// What a part came to: its marks in the page, its tables, and its bars.
struct Part {
    name: &'static str,
    tables: Vec<Table>,
    is_held: bool,
}

/// Measures what the options ask for and prints it; true unless a bar is missed that is to be kept, or a cache failed.
///
/// # Errors
/// A model, text or folder that cannot be had, too little memory, options that do not fit the model, and a wrong answer.
pub(crate) fn run(arguments: &EvictArgs) -> Result<bool> {
    // Before the work, which would be lost.
    let out = Folder::create(&arguments.out)?;
    check_once("presets", &arguments.presets)?;
    check_once("cache", &arguments.caches)?;
    check_once("contexts", &arguments.contexts)?;
    check_once("offsets", &arguments.offsets)?;
    check_once("ratios", &arguments.ratios)?;
    let level = Level::detect();
    // Before the work, during which the tree may change.
    let environment = Environment::detect(level, arguments.threads);
    let place = Place::asked(arguments.test, &arguments.model, &arguments.corpus)?;
    let opened = Opened::new(&place)?;
    let pool = machine::threads(arguments.threads)?;
    let suite = Suite { arguments, opened: &opened, environment: &environment, level, out: &out };
    let parts = pool.install(|| suite.run())?;
    let mut is_held = true;
    for part in &parts {
        is_held &= part.is_held;
        if arguments.test {
            let rows: usize = part.tables.iter().map(|table| table.sheet.num_rows()).sum();
            let verdict = if part.is_held { "every answer right" } else { "FAILED" };
            println!("evict {}: {rows} rows, {verdict}", part.name);
            continue;
        }
        for table in &part.tables {
            println!("{}", table.sheet.aligned());
            out.write(table)?;
        }
        if arguments.splice {
            let on_page = part.tables.iter().filter(|table| table.reach == Reach::Page);
            let sheets = on_page.map(|table| table.sheet.markdown());
            let markdown: Vec<String> =
                std::iter::once(environment.markdown()).chain(sheets).collect();
            page::splice(&page_path(part.name), part.name, &markdown.join("\n"))?;
        }
    }
    if !arguments.test {
        environment.write(&out.path("evict-environment.txt"))?;
        println!("{environment}\n{}: rows, CSV and environment", arguments.out.display());
    }
    Ok(is_held)
}

/// The page of a part.
fn page_path(part: &str) -> PathBuf {
    page::docs(if part == "hybrid" { "methods/hybrid.md" } else { "evict.md" })
}

/// Refuses what is named twice: a row has one name.
fn check_once<T: PartialEq + std::fmt::Display>(option: &str, values: &[T]) -> Result<()> {
    for (place, value) in values.iter().enumerate() {
        let is_new = !values[..place].contains(value);
        ensure!(is_new, "--{option} has {value} twice; once is enough");
    }
    Ok(())
}

/// A run of the suite.
struct Suite<'a> {
    arguments: &'a EvictArgs,
    opened: &'a Opened,
    environment: &'a Environment,
    level: Level,
    out: &'a Folder,
}

impl Suite<'_> {
    fn run(&self) -> Result<Vec<Part>> {
        let EvictArgs { quality, bars, drift, latency, hybrid, .. } = *self.arguments;
        let mut parts = Vec::new();
        if quality || bars {
            parts.extend(quality::run(self)?);
        }
        if drift {
            parts.push(drift::run(self)?);
        }
        if latency {
            parts.push(latency::run(self)?);
        }
        if hybrid {
            parts.push(hybrid::run(self)?);
        }
        Ok(parts)
    }

    /// The contexts asked for, or `usual`; of a test `small`.
    fn contexts(&self, usual: &[usize], small: &[usize]) -> Vec<usize> {
        match (self.arguments.test, &self.arguments.contexts[..]) {
            (true, _) => small.to_vec(),
            (false, []) => usual.to_vec(),
            (false, asked) => asked.to_vec(),
        }
    }

    /// Says where the run is.
    fn say(&self, what: &str) {
        if !self.arguments.test {
            eprintln!("evict: {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: EvictArgs,
    }

    fn parse(words: &[&str]) -> Result<EvictArgs, clap::Error> {
        Program::try_parse_from([&["bench"], words].concat()).map(|program| program.arguments)
    }

    #[test]
    fn a_part_is_named_and_contradictions_are_refused() {
        let both = parse(&["--quality", "--bars", "--ratios", "50,6.25"]).expect("it is valid");
        assert!(both.quality && both.bars && !both.drift && both.ratios == [50.0, 6.25]);
        for wrong in [
            &[][..],
            &["--test"],
            &["--bars", "--test"],
            &["--quality", "--test", "--splice"],
            &["--quality", "--ratios=0"],
            &["--quality", "--ratios=101"],
            &["--quality", "--contexts=0"],
            &["--drift", "--chapters=3"],
            &["--drift", "--within=0.5"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_named_twice_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().to_str().expect("it is text");
        let words = ["--quality", "--presets", "hca,hca", "--model", "x", "--out", out];
        let told = run(&parse(&words).expect("it is valid")).expect_err("hca is there twice");
        assert!(told.to_string().contains("--presets has hca twice"), "{told}");
    }

    #[test]
    fn every_part_runs_small_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().to_str().expect("it is text");
        let words = ["--quality", "--drift", "--latency", "--hybrid", "--test", "--out", out];
        assert!(run(&parse(&words).expect("it is valid")).expect("every answer is right"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn every_section_of_the_pages_has_figures() {
        for name in ["quality", "bars", "drift", "latency", "hybrid"] {
            let page = std::fs::read_to_string(page_path(name)).expect("it is there");
            let [begin, end] = ["begin", "end"].map(|end| format!("<!-- {end}: {name} -->"));
            let section = page.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
            let (section, _) = section.unwrap_or_else(|| panic!("{name} has no marks"));
            assert!(section.contains("cargo xtask bench evict --"), "nothing was put into {name}");
        }
    }
}
