//! The command line of `heterokv eval` and `heterokv report`.

use std::path::PathBuf;

use clap::Args;
use heterokv_cache::CacheSpec;
use heterokv_eval::Task;

use super::quantity::{parse_depth, parse_samples, parse_seed, parse_tokens};
use super::{CacheTerms, ModelArgs, cache_help};

/// `heterokv eval`.
#[derive(Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to measure: kl, recall, passkey, needle, multikey, multiturn, longgen, longbench, or a task of RULER;
    /// --help lists them
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "kl", value_parser = parse_task)]
    pub(crate) task: Vec<&'static str>,
    #[command(flatten)]
    pub(crate) samples: SampleArgs,
    /// A cache to hold against the full one; may be repeated
    #[arg(long, value_name = "SPEC", default_value = "hca:12.5%")]
    pub(crate) cache: Vec<CacheSpec>,
    #[command(flatten)]
    pub(crate) terms: CacheTerms,
    /// Results file, one JSON object a line: rows are added as they come, and what it holds already is not measured
    /// again
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Write a report of the samples asked for: a page where the name ends in .html, Markdown where it ends in .md
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Fail where a figure is worse than in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) gate: Option<PathBuf>,
    /// Write the figures to this file, for --gate of runs to come
    #[arg(long, value_name = "FILE", conflicts_with = "gate")]
    pub(crate) write_gate: Option<PathBuf>,
    /// Also measure caches of llama.cpp and kvpress, on the samples of kl and recall, in turns with ours
    #[arg(long)]
    pub(crate) peers: bool,
    /// Where `cargo xtask fetch --peers` has installed them
    #[arg(long, value_name = "FOLDER", default_value = "target/peers", requires = "peers")]
    pub(crate) peers_folder: PathBuf,
    /// Print one JSON object a row instead of tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Token ids as JSON, `[ids]` or `{"ids": [ids]}`, to run through the model for their logits
    #[arg(
        long,
        value_name = "FILE",
        requires = "logits",
        conflicts_with_all = [
            "task", "corpus", "cache", "context", "continuation", "token_offset", "profile", "strict_ratio",
            "haystack", "longbench", "longbench_prompts", "depth", "samples", "seed", "chat", "out", "report", "gate", "write_gate", "peers",
        ]
    )]
    pub(crate) tokens: Option<PathBuf>,
    /// Print mean likelihood and logits of --tokens as JSON
    #[arg(long, requires = "tokens")]
    pub(crate) logits: bool,
    /// Tokens whose logits are printed, negative ones counted from the end
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "-1",
        allow_hyphen_values = true
    )]
    pub(crate) rows: Vec<i64>,
}

/// What samples are made of.
#[derive(Args)]
pub(crate) struct SampleArgs {
    /// A text file that windows are cut from, for kl, recall and longgen
    #[arg(long, value_name = "FILE")]
    pub(crate) corpus: Option<PathBuf>,
    /// Tokens of context: lengths to measure at
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', default_value = "4096", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) context: Vec<usize>,
    /// Tokens fed behind a context [default: 128, for longgen 2,000]
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) continuation: Option<usize>,
    /// Tokens of the corpus at which windows begin
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) token_offset: Vec<usize>,
    /// A text file to hide things in [default: generated text]
    #[arg(long, value_name = "FILE")]
    pub(crate) haystack: Option<PathBuf>,
    /// A JSONL file of LongBench, or a folder of them
    #[arg(long, value_name = "PATH")]
    pub(crate) longbench: Option<PathBuf>,
    /// LongBench's own prompts, its dataset2prompt.json, instead of ours
    #[arg(long, value_name = "FILE", requires = "longbench")]
    pub(crate) longbench_prompts: Option<PathBuf>,
    /// Where passkey and needle hide things, in percent of the text
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_values_t = [0.0, 25.0, 50.0, 75.0, 100.0], value_parser = parse_depth, allow_negative_numbers = true)]
    pub(crate) depth: Vec<f64>,
    /// Samples of a task at a length, and at a depth where it has depths; kl, recall and longgen have one for each
    /// --token-offset
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_samples, allow_negative_numbers = true)]
    pub(crate) samples: usize,
    /// Beginning of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_seed, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Ask by the model's chat template, instead of letting the text go on
    #[arg(long)]
    pub(crate) chat: bool,
}

/// `heterokv report`.
#[derive(Args)]
pub(crate) struct ReportArgs {
    /// Results of `heterokv eval --out`; several are put together
    #[arg(value_name = "RESULTS", required = true)]
    pub(crate) results: Vec<PathBuf>,
    /// Where to write it: a page where the name ends in .html, Markdown where it ends in .md [default: Markdown to
    /// stdout]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

fn parse_task(name: &str) -> Result<&'static str, String> {
    heterokv_eval::task(name).map(Task::name).map_err(|error| error.to_string())
}

/// What `heterokv eval --help` ends with.
pub(super) fn help() -> String {
    let tasks = heterokv_eval::tasks();
    let lines: Vec<String> =
        tasks.iter().map(|task| format!("  {:<16} {}", task.name(), task.about())).collect();
    format!("Tasks:\n{}\n\n{}", lines.join("\n"), cache_help())
}
