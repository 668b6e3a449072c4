//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use heterokv_quant::KeyFormat;

use crate::evict::EvictArgs;
use crate::gpu::GpuArgs;
use crate::load::LoadArgs;
use crate::offload::OffloadArgs;
use crate::scan::MAX_GROUP_SIZE;
use crate::speed::SpeedArgs;
use crate::{end_to_end, instructions, speed};

/// Far more than machines have cores.
pub(crate) const MAX_THREADS: usize = 1024;

/// Far more than any cache holds, MiB.
pub(crate) const MAX_MEMORY: usize = 64 << 10;

/// Measure heterokv; `cargo xtask bench` builds and starts this program
///
/// Without `quant`: what the machine can read, one decode step of one layer, one of the whole model, a prompt from end
/// to end, and instructions of the hot kernels.
#[derive(Clone, Debug, Parser)]
#[command(name = "heterokv-bench", bin_name = "cargo xtask bench")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    pub(crate) suite: Option<Suite>,
    #[command(flatten)]
    pub(crate) steps: StepArgs,
}

/// What has options of its own.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Suite {
    /// Key formats: scan, encode, values and fit; with --quality, what their bits cost
    Quant(QuantArgs),
    /// Caches that leave tokens out: --quality, --bars, --drift, --latency, --hybrid
    Evict(Box<EvictArgs>),
    /// Kernels on a GPU: GB/s of each beside a copy; with --derived, the bytes of each and the times that follow
    Gpu(GpuArgs),
    /// A cache with more rows than RAM may hold: decode steps over rows on a disk, beside the same with all in RAM
    Load(LoadArgs),
    /// The host store: rows gathered from RAM, pages read and written, hints, saves
    Offload(OffloadArgs),
    /// Decode steps and prompts at every context, with --peers beside llama.cpp; a step over 131,072 tokens; memory and
    /// first token of the program
    Speed(Box<SpeedArgs>),
    /// One cache and context, in a process of its own
    #[command(hide = true)]
    EndToEndProcess(end_to_end::ChildArgs),
    /// One context of `speed`, in a process of its own
    #[command(hide = true)]
    SpeedProcess(speed::ChildArgs),
    /// What `speed profile` samples, under perf
    #[command(hide = true)]
    SpeedProfileProcess(speed::ProfileArgs),
    /// One kernel, under valgrind
    #[command(hide = true)]
    InstructionsProcess(instructions::ChildArgs),
}

/// How to measure decode steps and prompts.
#[derive(Args, Clone, Debug)]
pub(crate) struct StepArgs {
    /// A suite (machine, attention, model, end-to-end, instructions), or any part of a case's name
    /// (`hca:25%`, `attention/full@8192`) [default: everything]
    pub(crate) filter: Option<String>,
    /// Measure each case once and small, on a tiny model, to see that its answer is right
    #[arg(long, conflicts_with_all = ["record", "splice", "compare", "measured"])]
    pub(crate) test: bool,
    /// The model [default: what `cargo xtask fetch` gets]
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The text [default: data/moby-dick.txt in ../shared beside the checkout, or in HETEROKV_SHARED]
    #[arg(long, value_name = "PATH")]
    pub(crate) corpus: Option<PathBuf>,
    /// Measure llama.cpp and kvpress beside ours, and nothing else; `cargo xtask fetch --peers` installs them
    #[arg(long, conflicts_with_all = ["test", "measured"])]
    pub(crate) peers: bool,
    /// Where they are installed
    #[arg(long, value_name = "FOLDER", default_value = "target/peers", requires = "peers")]
    pub(crate) peers_folder: PathBuf,
    /// A cache by its spec, beside `full`; may be repeated [default: every preset]
    #[arg(long = "cache", value_name = "SPEC")]
    pub(crate) caches: Vec<String>,
    /// Tokens in the caches [default: of each suite, from 512 up to 1M]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = at_least_one)]
    pub(crate) contexts: Vec<usize>,
    /// Samples of each case; end to end and beside peers 3 at most
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// Tokens decoded end to end
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = from_one_to::<MAX_THREADS>)]
    pub(crate) threads: usize,
    /// What the probes of the machine read from memory and from the disk, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = from_one_to::<MAX_MEMORY>)]
    pub(crate) memory: usize,
    /// Where the record and the file of the disk's probe go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    pub(crate) out: PathBuf,
    /// Put the record into docs/bench/record instead
    #[arg(long)]
    pub(crate) record: bool,
    /// Put the tables into docs/bench/REPORT.md, those of --peers into README.md
    #[arg(long)]
    pub(crate) splice: bool,
    /// Print ratios to an earlier record, and fail where a case became slower beyond the noise, or larger
    #[arg(long, value_name = "OLD.json")]
    pub(crate) compare: Option<PathBuf>,
    /// Take this record for what was measured, and measure nothing
    #[arg(long, value_name = "NEW.json", conflicts_with = "record")]
    pub(crate) measured: Option<PathBuf>,
    /// New time over old up to which the lower end of the 95 % interval may reach, and new resident memory over old
    #[arg(long, value_name = "RATIO", default_value_t = 1.10, value_parser = allowance, requires = "compare")]
    pub(crate) allow: f64,
    /// Keep the counts of `instructions` in crates/bench/instructions.json: what later runs are held to
    #[arg(long, conflicts_with_all = ["test", "peers", "measured"])]
    pub(crate) baseline: bool,
    /// Compare records of different machines, settings or models, too
    #[arg(long, requires = "compare")]
    pub(crate) across: bool,
}

/// How to measure key formats.
#[derive(Args, Clone, Debug)]
pub(crate) struct QuantArgs {
    /// Measure each case once and small, to see that its answer is right
    #[arg(long)]
    pub(crate) test: bool,
    /// Measure what formats cost in quality, instead of their speed
    #[arg(long)]
    pub(crate) quality: bool,
    /// Fail where a bar is missed or not measured, or the run is void. A bar that is measured in two ways is held
    /// where either holds it: scans by exact scores or those that select, encoding by one thread or by all
    #[arg(long, conflicts_with = "test")]
    pub(crate) check: bool,
    /// Put the tables into docs/quant-report.md
    #[arg(long, conflicts_with = "test")]
    pub(crate) splice: bool,
    /// These formats only
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) formats: Vec<KeyFormat>,
    /// Threads, each with its own share of the tokens
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = from_one_to::<MAX_THREADS>)]
    pub(crate) threads: usize,
    /// Where the CSV files and the description of the environment go
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) scan: ScanArgs,
    #[command(flatten)]
    pub(crate) dump: DumpArgs,
}

/// The cases of the scan.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scan and encode")]
pub(crate) struct ScanArgs {
    /// Lengths of keys
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [64, 128], value_parser = head_dim)]
    pub(crate) head_dims: Vec<usize>,
    /// Query heads of a KV head
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 3, 4, 8], value_parser = from_one_to::<MAX_GROUP_SIZE>)]
    pub(crate) group_sizes: Vec<usize>,
    /// Codes of a case that is read from memory, MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = from_one_to::<MAX_MEMORY>)]
    pub(crate) memory: usize,
    /// Samples of each case
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = at_least_one)]
    pub(crate) rounds: usize,
}

/// The keys of the rate–distortion report.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Quality")]
pub(crate) struct DumpArgs {
    /// SmolLM2-135M-Instruct, or another model [default: what `cargo xtask fetch` gets]
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The text [default: data/moby-dick.txt in ../shared beside the checkout, or in HETEROKV_SHARED]
    #[arg(long, value_name = "PATH")]
    pub(crate) corpus: Option<PathBuf>,
    /// Token of the text at which the window begins
    #[arg(long, value_name = "N", default_value_t = 45_000)]
    pub(crate) offset: usize,
    /// Tokens that are coded
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    pub(crate) context: usize,
    /// Tokens behind them whose queries are asked
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub(crate) steps: usize,
    /// Layers, spread over the depth of the model
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub(crate) layers: usize,
    /// Tokens from the beginning of the text that profiles are fitted on; 0 does without profiles
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub(crate) profile_tokens: usize,
}

impl Options {
    /// Reads the command line; help and mistakes end the program.
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::parse()
    }

    /// Threads that everything is measured with.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        match &self.suite {
            None => self.steps.threads,
            Some(Suite::Quant(quant)) => quant.threads,
            Some(Suite::Evict(evict)) => evict.threads,
            Some(Suite::Load(load)) => load.threads,
            Some(Suite::Speed(speed)) => speed.threads,
            Some(Suite::EndToEndProcess(child)) => child.threads,
            Some(Suite::SpeedProcess(child)) => child.threads,
            Some(Suite::SpeedProfileProcess(child)) => child.threads,
            Some(Suite::InstructionsProcess(_) | Suite::Gpu(_) | Suite::Offload(_)) => 1,
        }
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a whole number, at least 1".to_owned())
}

pub(crate) fn from_one_to<const MAX: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MAX).contains(n));
    number.ok_or_else(|| format!("a whole number from 1 to {MAX}"))
}

/// A finite ratio of at least 1.
fn allowance(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio: &f64| ratio.is_finite() && *ratio >= 1.0);
    ratio.ok_or_else(|| "a ratio of at least 1, such as 1.2".to_owned())
}

/// A length of keys that coded formats hold.
fn head_dim(text: &str) -> Result<usize, String> {
    let head_dim = at_least_one(text)?;
    let layout = KeyFormat::IntToken { bits: 8 }.layout(head_dim);
    layout.map(|_| head_dim).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn lists_are_split_and_mistakes_are_refused() {
        let parse = |words: &[&str]| Options::try_parse_from([&["bench", "quant"], words].concat());
        let options = parse(&["--formats", "lm2,alloc/1.5", "--head-dims", "80"]);
        let Some(Suite::Quant(quant)) = options.expect("they are known").suite else {
            panic!("it is quant");
        };
        assert_eq!((quant.formats.len(), quant.scan.head_dims), (2, vec![80]));
        for wrong in [
            "--formats=lm9",
            "--threads=0",
            "--threads=1025",
            "--group-sizes=1,x",
            "--group-sizes=3,17",
            "--head-dims=64,7",
            "--head-dims=1032",
            "--memory=65537",
            "--rounds=-1",
        ] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        let most = ["--threads=1024", "--group-sizes=1,16", "--head-dims=8,1024", "--memory=65536"];
        assert!(parse(&most).is_ok());
        assert!(parse(&["--test", "--check"]).is_err(), "a test measures no bar");
    }

    #[test]
    fn a_word_that_is_no_suite_of_its_own_is_a_filter() {
        let parse = |words: &[&str]| Options::try_parse_from([&["bench"], words].concat());
        let filter = |words: &[&str]| parse(words).expect("it is valid").steps.filter;
        assert_eq!(filter(&[]), None);
        assert_eq!(filter(&["attention"]), Some("attention".to_owned()));
        assert_eq!(filter(&["--cache", "hca:25%,min=3", "hca"]), Some("hca".to_owned()));
        let caches = parse(&["--cache", "hca:25%,min=3"]).expect("it is valid").steps.caches;
        assert_eq!(caches, ["hca:25%,min=3"]);
        for wrong in [
            &["--allow=1.2"][..],
            &["--compare=a", "--allow=0.9"],
            &["--compare=a", "--allow=NaN"],
            &["--test", "--splice"],
            &["--contexts=0"],
            &["attention", "model"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(parse(&["--compare=a", "--measured=b", "--allow=1.5", "--splice"]).is_ok());
    }
}
