//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use heterokv_quant::KeyFormat;

use crate::scan::MAX_GROUP_SIZE;

/// Far more than machines have cores.
const MAX_THREADS: usize = 1024;

/// Far more than any cache holds, MiB.
const MAX_MEMORY: usize = 64 << 10;

/// Measure heterokv; `cargo xtask bench` builds and starts this program
#[derive(Clone, Debug, Parser)]
#[command(name = "heterokv-bench", bin_name = "cargo xtask bench")]
pub struct Options {
    #[command(subcommand)]
    pub(crate) suite: Suite,
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Suite {
    /// Key formats: scan, encode, values and fit; with --quality, what their bits cost
    Quant(QuantArgs),
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
        let Suite::Quant(quant) = &self.suite;
        quant.threads
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a whole number, at least 1".to_owned())
}

fn from_one_to<const MAX: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MAX).contains(n));
    number.ok_or_else(|| format!("a whole number from 1 to {MAX}"))
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
        let Suite::Quant(quant) = parse(&["--formats", "lm2,alloc/1.5", "--head-dims", "80"])
            .expect("they are known")
            .suite;
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
}
