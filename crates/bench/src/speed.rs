//! Decode steps and prompts beside llama.cpp, of the same file, tokens and threads; a step over a context that no prompt
//! reaches; what the program takes of memory, and when it begins to answer.
//!
//! All figures of a run are of the same model and machine, and bars compare figures of the same run alone.

mod bars;
mod checkpoint;
mod contexts;
mod long;
mod ours;
mod profile;
mod program;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use heterokv_eval::InstalledPeers;
use heterokv_model::{Checkpoint, ComputeType};
use heterokv_quant::Level;
use rayon::ThreadPool;

pub(crate) use ours::{ChildArgs, run_child};
pub(crate) use profile::{ChildArgs as ProfileArgs, run_child as run_profile};

use crate::args::{MAX_MEMORY, MAX_THREADS, at_least_one, from_one_to};
use crate::bars::Bar;
use crate::caches::TINY;
use crate::environment::Environment;
use crate::instructions;
use crate::machine::{self, Sizes};
use crate::outcome::Table;
use crate::record::Record;
use crate::selection::Selection;
use crate::subject::Place;
use crate::suite::Folder;
use crate::{bars as verdicts, page};
use long::{Long, Tiling};

/// Of all cases but those of the machine.
const SUITE: &str = "speed";

/// Before the specs of our caches.
const OURS: &str = "heterokv ";

/// The yardsticks.
const LLAMA_F16: &str = "llama.cpp f16";
const LLAMA_Q8: &str = "llama.cpp q8_0";

/// From short to nearly all of what the default model was trained for.
const CONTEXTS: [usize; 3] = [512, 4096, 7900];

/// Caches whose steps are timed.
const DECODES: [&str; 5] =
    ["full", "hca:25%", "hca:12.5%", "hca-rescore:6.25%", "hca-rescore:12.5%"];

/// Caches whose prompts are timed.
const PREFILLS: [&str; 3] = ["hca:12.5%", "full", "hca:12.5%,prefill=anchor:512:512"];

/// Caches beside `full` over a long context.
const LONG: [&str; 2] = ["hca:12.5%", "hca-rescore:6.25%"];

/// The name of a case.
fn case_name(phase: &str, name: &str, context: usize) -> String {
    format!("{SUITE}/{phase}/{name}@{context}")
}

/// The parts of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Prompts and decode steps at every context, beside llama.cpp with --peers, and at 4096 tokens on one thread
    Contexts,
    /// One decode step over a context that no prompt reaches
    Long,
    /// Peak memory of `heterokv generate`, and the time to its first token
    Program,
    /// The functions with the most time, as perf samples it; only where it is named
    Profile,
}

/// A model of another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OtherShape {
    /// Two layers of Llama 3 8B's shapes with random weights in Q4_K and Q6_K, made where the results go
    #[value(name = "llama3-8b")]
    Llama3,
}

/// How to measure speed.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SpeedArgs {
    /// These parts only [default: contexts, program and long; with --shape, contexts]
    parts: Vec<Part>,
    /// Measure each case once and small, on a tiny model, to see that its answer is right
    #[arg(long, conflicts_with_all = ["peers", "shape", "parts"])]
    test: bool,
    /// Fail where a bar is missed or not measured, and print which
    #[arg(long, conflicts_with = "test")]
    check: bool,
    /// Put the tables into docs/performance.md: of all parts, or of `profile` alone
    #[arg(long, conflicts_with = "test")]
    splice: bool,
    /// Measure llama.cpp, too; `cargo xtask fetch --peers` installs it
    #[arg(long)]
    peers: bool,
    /// Where it is installed
    #[arg(long, value_name = "FOLDER", default_value = "target/peers", requires = "peers")]
    peers_folder: PathBuf,
    /// A model of another shape in the place of --model
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "corpus", "program", "long", "tiles"])]
    shape: Option<OtherShape>,
    /// Form of our weights: q8, f16, f32, or q8a8, with products of prompts in 8 bits; of `contexts` alone
    #[arg(long, value_name = "FORM", default_value = "q8")]
    compute: ComputeType,
    /// Tokens of the prompts
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = CONTEXTS, value_parser = at_least_one)]
    contexts: Vec<usize>,
    /// Processes of each program at each context; runs for the first token
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    rounds: usize,
    /// Decode steps of a cache that are timed in a process
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    steps: usize,
    /// Tokens of the long context
    #[arg(long, value_name = "N", default_value_t = bars::LONG.0, value_parser = at_least_one)]
    long: usize,
    /// How a prompt is repeated for it; bars are set for near tiles
    #[arg(long, value_name = "TILES,…", value_delimiter = ',', default_values = ["near", "plain"])]
    tiles: Vec<Tiling>,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = from_one_to::<MAX_THREADS>)]
    pub(crate) threads: usize,
    /// What the probes of the machine read, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = from_one_to::<MAX_MEMORY>)]
    memory: usize,
    /// The program `heterokv` [default: built by `cargo xtask bench`]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// The model [default: what `cargo xtask fetch` gets]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The text [default: data/moby-dick.txt in ../shared beside the checkout, or in HETEROKV_SHARED]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Where the record, the CSV files and the model of --shape go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    out: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench --peers speed --check          everything beside llama.cpp, held to the bars
  cargo xtask bench speed contexts --contexts 4096 ours alone at one context
  cargo xtask bench speed long --tiles near        one step over 131,072 tokens
  cargo xtask bench speed profile                  where the time goes, function by function
  cargo xtask bench --peers speed --shape llama3-8b --compute q8a8";

impl SpeedArgs {
    fn is_profile(&self) -> bool {
        self.parts == [Part::Profile]
    }

    /// The page's section with such a run, and the record's name.
    fn section(&self) -> String {
        let shape = if self.shape.is_some() { "-llama3-8b" } else { "" };
        match self.compute {
            ComputeType::Q8 => format!("{SUITE}{shape}"),
            compute => format!("{SUITE}{shape}-{compute}"),
        }
    }

    /// Whether a run is one that the page has: every context beside llama.cpp, and all that its bars are set for.
    fn is_whole(&self) -> bool {
        let parts = match (self.shape, self.compute) {
            (None, ComputeType::Q8A8) => self.parts == [Part::Contexts],
            (_, ComputeType::Q8 | ComputeType::Q8A8) => self.parts.is_empty(),
            _ => false,
        };
        let program =
            self.shape.is_some() || self.compute != ComputeType::Q8 || self.program.is_some();
        parts
            && program
            && self.peers
            && self.contexts == CONTEXTS
            && self.tiles.len() == 2
            && (self.long, self.threads) == (bars::LONG.0, 2)
            && self.rounds > 1
            && self.steps >= 32
            && self.memory >= 256
    }
}

/// Measures what the options ask for and prints it; true unless a bar is to be kept and is not.
///
/// # Errors
/// A model, text, folder or peer that cannot be had, too little memory, and a wrong answer.
pub(crate) fn run(arguments: &SpeedArgs) -> Result<bool> {
    // Before the work, which would be lost.
    check(arguments)?;
    let out = (!arguments.test).then(|| Folder::create(&arguments.out)).transpose()?;
    let speed = Speed::new(arguments)?;
    if arguments.is_profile() {
        return speed.profile().map(|()| true);
    }
    let environment = Environment::detect(speed.level, arguments.threads);
    let mut record = Record::new(&environment);
    let name = arguments.section();
    let keep = |record: &Record| match &out {
        Some(out) => record.write(&out.path(&format!("{name}.json"))),
        None => Ok(()),
    };
    speed.measure(&mut record, &keep)?;
    let Some(out) = &out else {
        println!("speed: {} cases, every answer right", record.cases.len());
        return Ok(true);
    };
    let bars = bars::of_parts(&record, |part| speed.wants(part));
    let tables = all_tables(&record, &bars);
    for table in &tables {
        println!("{}", table.sheet.aligned());
        out.write(table)?;
    }
    keep(&record)?;
    let kept = out.path(&format!("{name}.json"));
    println!("{environment}\n{}: every sample; CSV beside it", kept.display());
    if arguments.splice {
        let on = format!("- date: {}\n- on: {}\n", record.date, record.subject);
        let sheets = tables.iter().map(|table| table.sheet.markdown());
        let markdown: Vec<String> =
            [format!("{}{on}", environment.markdown())].into_iter().chain(sheets).collect();
        page::splice(&page_path(), &name, &markdown.join("\n"))?;
    }
    let missed = tables::missed(&bars);
    if arguments.check {
        missed.iter().for_each(|bar| println!("MISSED: {bar}"));
    }
    Ok(!arguments.check || missed.is_empty())
}

/// Refuses options that would lose work, or a page that is not whole.
fn check(arguments: &SpeedArgs) -> Result<()> {
    let is_profile = arguments.is_profile();
    ensure!(
        is_profile || !arguments.parts.contains(&Part::Profile),
        "`profile` goes alone; name no other part beside it"
    );
    ensure!(
        !arguments.splice || is_profile || arguments.is_whole(),
        "--splice puts in whole runs: --peers, all parts (of --compute q8a8 `contexts`), and no less than the options' \
         own figures; two rounds at least"
    );
    ensure!(!(arguments.check && is_profile), "`profile` is held to no bar; leave --check out");
    ensure!(
        arguments.compute == ComputeType::Q8
            || arguments.test
            || arguments.shape.is_some()
            || arguments.parts == [Part::Contexts],
        "--compute is for prompts and steps at every context; name `contexts` alone"
    );
    ensure!(
        arguments.long >= long::REAL_TOKENS,
        "--long {} is less than the {} tokens that are repeated",
        arguments.long,
        long::REAL_TOKENS
    );
    if let Some(program) = arguments.program.as_ref().filter(|program| !program.is_file()) {
        bail!("there is no program {}; name another by --program", program.display());
    }
    Ok(())
}

fn all_tables(record: &Record, bars: &[Bar]) -> Vec<Table> {
    let stems = ["speed-decode", "speed-prefill"];
    let mut tables: Vec<Table> = tables::beside(record)
        .into_iter()
        .zip(stems)
        .map(|(sheet, stem)| Table::new(stem, sheet))
        .collect();
    tables.extend(tables::long(record).map(|sheet| Table::new("speed-long", sheet)));
    tables.push(Table::new("speed-machine", tables::machine(record)));
    tables.push(Table::new("speed-bars", verdicts::sheet("Bars", bars)));
    tables
}

fn page_path() -> PathBuf {
    page::docs("performance.md")
}

/// A run.
struct Speed<'a> {
    arguments: &'a SpeedArgs,
    place: Place,
    level: Level,
    pool: ThreadPool,
}

impl<'a> Speed<'a> {
    fn new(arguments: &'a SpeedArgs) -> Result<Self> {
        if arguments.peers {
            InstalledPeers::at(&arguments.peers_folder)?;
        }
        ensure!(
            arguments.shape.is_none() || arguments.parts.iter().all(|&part| part == Part::Contexts),
            "--shape has no weights that a text could be read by; leave out every part but `contexts`"
        );
        let place = match arguments.shape {
            Some(OtherShape::Llama3) => {
                let model = checkpoint::obtain(&checkpoint::LLAMA3_8B, &arguments.out)?;
                Place { model, corpus: None }
            }
            None => Place::asked(arguments.test, &arguments.model, &arguments.corpus)?,
        };
        let pool = machine::threads(arguments.threads)?;
        Ok(Self { arguments, place, level: Level::detect(), pool })
    }

    fn wants(&self, part: Part) -> bool {
        match &self.arguments.parts[..] {
            [] => self.arguments.shape.is_none() || part == Part::Contexts,
            some => some.contains(&part),
        }
    }

    fn say(&self, what: &str) {
        if !self.arguments.test {
            eprintln!("speed: {what}");
        }
    }

    /// Measures the parts; after each, `keep` is given all that there is.
    fn measure(&self, record: &mut Record, keep: &dyn Fn(&Record) -> Result<()>) -> Result<()> {
        let scratch = tempfile::tempdir().context("cannot make a folder for the tokens")?;
        let num_rounds = if self.arguments.test { 1 } else { self.arguments.rounds };
        self.say("machine");
        let sizes = match self.arguments.test {
            true => Sizes::small(3),
            false => Sizes::of_memory(self.arguments.memory, 3 * num_rounds),
        };
        let selection = Selection::new(Some("machine/read".to_owned()));
        machine::measure(&selection, sizes, &self.pool, scratch.path(), record)?;
        let most = self.arguments.threads;
        record.cases.extend(machine::multiply_add_cases(most, sizes)?);
        if self.wants(Part::Contexts) {
            self.contexts(num_rounds, sizes, scratch.path(), record)?;
            keep(record)?;
        }
        if self.wants(Part::Program) {
            self.program(num_rounds, scratch.path(), record)?;
            keep(record)?;
        }
        if self.wants(Part::Long) {
            self.pool.install(|| self.long(record))?;
        }
        Ok(())
    }

    /// Time by function, and instructions of the kernels as they are kept.
    fn profile(&self) -> Result<()> {
        let scratch = tempfile::tempdir().context("cannot make a folder for the samples")?;
        let checkpoint = Checkpoint::open(&self.place.model)?;
        let tokens = self.place.tokens(&checkpoint, profile::TOKENS)?;
        let say = |what: &str| self.say(what);
        let num_threads = self.arguments.threads;
        let model = &self.place.model;
        let by_function = profile::measure(model, &tokens, num_threads, scratch.path(), &say)?;
        let sheets = [by_function, instructions::kept()?];
        sheets.iter().for_each(|sheet| println!("{}", sheet.aligned()));
        if self.arguments.splice {
            let environment = Environment::detect(self.level, num_threads).markdown();
            let [by_function, of_kernels] = sheets.map(|sheet| sheet.markdown());
            let markdown = [environment, by_function, of_kernels].join("\n");
            page::splice(&page_path(), "speed-profile", &markdown)?;
        }
        Ok(())
    }

    fn contexts(
        &self,
        num_rounds: usize,
        sizes: Sizes,
        folder: &Path,
        record: &mut Record,
    ) -> Result<()> {
        let is_test = self.arguments.test;
        let contexts: &[usize] = if is_test { &[96] } else { &self.arguments.contexts };
        let num_steps = if is_test { 4 } else { self.arguments.steps };
        let longest = contexts.iter().copied().max().unwrap_or(0);
        let checkpoint = Checkpoint::open(&self.place.model)?;
        let num_fed = ours::fed_tokens(num_steps).max(num_steps + 1);
        let tokens = self.place.tokens(&checkpoint, longest.saturating_add(num_fed))?;
        record.subject = self.place.name(&shape(&checkpoint)?, self.arguments.compute);
        drop(checkpoint);
        let run = contexts::Run {
            model: &self.place.model,
            compute: self.arguments.compute,
            tokens: &tokens,
            contexts,
            prefills: if is_test { &TINY[1..2] } else { &PREFILLS },
            decodes: if is_test { &TINY } else { &DECODES },
            num_steps,
            num_rounds,
            num_threads: self.arguments.threads,
            venv: self.arguments.peers.then_some(&*self.arguments.peers_folder),
            with_one_thread: self.arguments.threads > 1,
            sizes,
            folder,
        };
        contexts::measure(&run, &|what| self.say(what), record)
    }

    fn program(&self, num_rounds: usize, folder: &Path, record: &mut Record) -> Result<()> {
        let Some(path) = &self.arguments.program else {
            record.leave_out("speed/program", "no program is named by --program");
            self.say("the program is left out: --program names none");
            return Ok(());
        };
        self.say("the program");
        let (model, num_threads) = (&*self.place.model, self.arguments.threads);
        let program = program::Program { path, model, num_threads };
        let tokens = self.place.tokens(&Checkpoint::open(model)?, bars::MEMORY_CONTEXT)?;
        program.memory(&tokens, folder, record)?;
        program.first_token(num_rounds, record)
    }

    fn long(&self, record: &mut Record) -> Result<()> {
        let (num_real, context, num_steps) = match self.arguments.test {
            true => (300, 700, 4),
            false => (long::REAL_TOKENS, self.arguments.long, self.arguments.steps),
        };
        let subject = self.place.load(num_real + ours::fed_tokens(num_steps), self.level)?;
        record.subject.clone_from(&subject.name);
        let long = Long {
            model: &subject.model,
            tokens: &subject.tokens,
            num_real,
            context,
            specs: if self.arguments.test { &TINY[1..] } else { &LONG },
            num_steps,
            level: self.level,
        };
        long.measure(&self.arguments.tiles, &|what| self.say(what), record)
    }
}

fn shape(checkpoint: &Checkpoint) -> Result<heterokv_cache::KvShape> {
    let config = checkpoint.config();
    let heads =
        heterokv_attn::HeadShape::new(config.num_qo_heads, config.num_kv_heads, config.head_dim)?;
    Ok(heterokv_cache::KvShape { num_layers: config.num_layers, heads })
}
