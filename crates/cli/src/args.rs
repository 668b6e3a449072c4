//! The command line.

mod eval;
mod host;
mod quantity;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use heterokv_cache::{CacheSpec, KeyFormat, SPEC_GRAMMAR, SimilarityAt};
use heterokv_gpu::DeviceChoice;
use heterokv_model::text::StopMatcher;
use heterokv_model::{ComputeType, SamplerSettings};

pub(crate) use eval::{EvalArgs, ReportArgs, SampleArgs};
pub(crate) use host::HostArgs;
use quantity::{
    parse_bits, parse_bytes, parse_count, parse_ratio, parse_seed, parse_threads, parse_tokens,
};

/// Answer from contexts that do not fit the GPU: keys stay on the device as a few bits each, values live
/// in host memory
#[derive(Parser)]
#[command(name = "heterokv", version, after_long_help = cache_help())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Threads to compute with [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<usize>,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Continue a text, or answer a question about one
    #[command(after_long_help = cache_help())]
    Generate(GenerateArgs),
    /// Read a text once and answer questions about it
    ///
    /// Control tokens of the model written in files or questions, such as <|im_end|>, are read as such.
    #[command(after_long_help = cache_help())]
    Chat(ChatArgs),
    /// Put caches to the test against the full one
    ///
    /// Tasks make contexts and what is asked behind them. Each context is read once and forked into every cache; with
    /// --out, results go to a file from which a run that was stopped goes on.
    #[command(after_long_help = eval::help())]
    Eval(EvalArgs),
    /// Make a page, or tables in Markdown, of results of `heterokv eval --out`
    Report(ReportArgs),
    /// Say what fits: bytes by component for a model, a context and a cache
    #[command(after_long_help = cache_help())]
    Plan(PlanArgs),
    /// Show what a model file holds
    Inspect(InspectArgs),
    /// Fit a key format's tables on a text, once for all contexts; or measure what each KV head attends to
    ///
    /// The text may be longer than any context: it is read in pieces. Memory goes to the residual stream of all
    /// tokens and to the keys of one layer.
    ///
    /// With --heads, the text is one prompt and what follows it: heads whose attention stays where it was at the end
    /// of the prompt, or goes where another head's goes, can do with a part of the tokens.
    #[command(after_long_help = cache_help())]
    Profile(ProfileArgs),
    /// Choose a key format for each head by what it costs on a text, for caches with keys=mix:FILE
    ///
    /// The keys of one head at a time are coded in each format, and the error of its attention is followed
    /// into the residual stream; then each head gets the format with which all of them together lose least
    /// at the size asked for. The text should be like those to come, and none of them.
    #[command(after_long_help = cache_help())]
    Mix(MixArgs),
}

/// Which model, and in what form.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// A GGUF file, or a Hugging Face folder with config.json, tokenizer.json and safetensors files
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Form of the weights in memory: f32, f16, q8, or q8a8: as q8, with products of prompts in 8 bits, faster and
    /// rougher
    #[arg(long, value_name = "FORM", default_value = "q8")]
    pub(crate) compute: ComputeType,
}

/// Which cache, and how strictly.
#[derive(Args)]
pub(crate) struct CacheArgs {
    /// How the cache is made; --help shows the grammar
    #[arg(long, value_name = "SPEC", default_value = "hca:12.5%")]
    pub(crate) cache: CacheSpec,
    #[command(flatten)]
    pub(crate) terms: CacheTerms,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// Where it is computed.
#[derive(Args)]
pub(crate) struct PlaceArgs {
    /// cpu; gpu, the first that is no software; gpu:N, number N of those that an error lists; gpu:software, one that
    /// the CPU plays
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Place,
    /// The most memory of a GPU to use: 6GiB, 6GB, or plain bytes [default: what there is]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_negative_numbers = true)]
    pub(crate) device_memory: Option<u64>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The CPU, whose "device" is an arena in RAM.
    Cpu,
    /// A GPU.
    Gpu(DeviceChoice),
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let choice = name.parse().map(Self::Gpu);
        choice.map_err(|_| "expected cpu, gpu, gpu:N or gpu:software".to_owned())
    }
}

/// What holds for one cache or several.
#[derive(Args)]
pub(crate) struct CacheTerms {
    /// Tables of the key format made by `heterokv profile` for this model, instead of ones fitted on the prompt
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<PathBuf>,
    /// Fail where the context is too short for the cache to keep the ratio that its preset names
    #[arg(long)]
    pub(crate) strict_ratio: bool,
    /// Go on where the context is longer than what the model was trained for
    #[arg(long)]
    pub(crate) allow_beyond_trained: bool,
}

/// How tokens are chosen and what ends a reply.
#[derive(Args)]
pub(crate) struct SamplerArgs {
    /// Most tokens of a reply [default: 256, or what the trained context leaves]
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<usize>,
    /// 0 always takes the most probable token; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among the N most probable tokens only
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Choose among the fewest tokens whose probabilities reach P only
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Choose among tokens with at least P times the highest probability only
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Divide the logits of tokens that have occurred by X; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Beginning of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_seed, allow_negative_numbers = true)]
    seed: u64,
    /// End the reply before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

impl SamplerArgs {
    /// Refuses settings that are out of range before anything is loaded.
    ///
    /// # Errors
    /// The first of them.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.settings().check()?;
        StopMatcher::new(self.stop.iter().map(String::as_str))?;
        Ok(())
    }

    /// The settings of the sampler.
    pub(crate) fn settings(&self) -> SamplerSettings {
        SamplerSettings {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }
}

/// `heterokv generate`.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text file that comes before the prompt; may be repeated, in order
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// The prompt; without --chat the text simply goes on behind it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) prompt: String,
    /// Make files and prompt the user's message by the model's chat template; control tokens written in them,
    /// such as <|im_end|>, are read as such then
    #[arg(long)]
    pub(crate) chat: bool,
    /// The system message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// A folder that keeps what was read: the next run with the same text, model and cache goes on from there, and reads
    /// only what is new
    #[arg(long, value_name = "FOLDER", conflicts_with = "disk")]
    pub(crate) session: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) sampler: SamplerArgs,
    /// Show where every byte of the cache is, and how long things took
    #[arg(long)]
    pub(crate) stats: bool,
    /// Print one JSON object at the end instead of the text
    #[arg(long, conflicts_with = "stats")]
    pub(crate) json: bool,
}

/// `heterokv chat`.
#[derive(Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text file to ask about, read once; may be repeated, in order
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) sampler: SamplerArgs,
    /// Show the same figures as `generate --stats` after every reply
    #[arg(long)]
    pub(crate) stats: bool,
}

/// `heterokv plan`.
#[derive(Args)]
pub(crate) struct PlanArgs {
    /// A GGUF file, a Hugging Face folder, a config.json, or the name of a built-in shape: llama-3-8b
    #[arg(long, value_name = "PATH|NAME")]
    pub(crate) model: String,
    /// Form of the weights in memory, where a checkpoint is given: f32, f16, q8 or q8a8
    #[arg(long, value_name = "FORM", default_value = "q8")]
    pub(crate) compute: ComputeType,
    /// Tokens of context: 4096, 4_096, 4k and 4M (thousands and millions), 4Ki and 4Mi (times 1024)
    /// [default: the trained context]
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) context: Option<usize>,
    /// A cache to plan for; may be repeated
    #[arg(long, value_name = "SPEC", default_values = ["full", "hca:12.5%"])]
    pub(crate) cache: Vec<CacheSpec>,
    /// Memory of the device: 80GiB, 80GB, or plain bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_negative_numbers = true)]
    pub(crate) device_memory: Option<u64>,
    /// RAM for the rows on the host: says what of them would be on a disk
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_negative_numbers = true)]
    pub(crate) host_memory: Option<u64>,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// `heterokv inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A GGUF file or a Hugging Face folder
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `heterokv profile`.
#[derive(Args)]
pub(crate) struct ProfileArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text file to fit or measure on
    #[arg(long, value_name = "FILE")]
    pub(crate) corpus: PathBuf,
    /// Tokens of it to use: in all pieces together [default: 4096], or of the prompt with --heads [default: 5000, or
    /// what the trained context leaves before the steps]
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) tokens: Option<usize>,
    /// Tokens of a piece, which is read by itself, with positions from 0 on [default: 4096, or the trained context
    /// where that is shorter]
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, allow_negative_numbers = true, conflicts_with = "heads")]
    pub(crate) piece: Option<usize>,
    /// First of these tokens in the corpus
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) token_offset: usize,
    /// The cache that will use the profile; its key format is what is fitted
    #[arg(long, value_name = "SPEC", default_value = "hca:12.5%", conflicts_with = "heads")]
    pub(crate) cache: CacheSpec,
    /// Where to write the profile
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Go on where a piece, or prompt and steps, are longer than what the model was trained for
    #[arg(long)]
    pub(crate) allow_beyond_trained: bool,
    /// Measure the roles of KV heads (HeteroCache), instead of fitting tables
    #[arg(long)]
    pub(crate) heads: bool,
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
}

/// How heads are measured.
#[derive(Args)]
pub(crate) struct MeasureArgs {
    /// Tokens behind the prompt whose attention is held against that of its last one
    #[arg(long, value_name = "N", default_value = "100", value_parser = parse_count, allow_negative_numbers = true, requires = "heads")]
    pub(crate) steps: usize,
    /// Positions of the prompt that a query attends to [default: 1024, of a prompt of less than 5,000 tokens in
    /// proportion]
    #[arg(long, value_name = "N", value_parser = parse_count, allow_negative_numbers = true, requires = "heads")]
    pub(crate) top_k: Option<usize>,
    /// Share of these positions that must stay the same for a head to be an anchor, the median over the steps
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.55,
        allow_negative_numbers = true,
        requires = "heads"
    )]
    pub(crate) tau_stable: f64,
    /// Share of these positions that two heads must have in common to be pivot and satellite
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.8,
        allow_negative_numbers = true,
        requires = "heads"
    )]
    pub(crate) tau_sim: f64,
    /// Where two heads are held against each other: prompt, at its last token; steps, the median over all of them
    #[arg(long, value_name = "WHERE", default_value = "prompt", requires = "heads")]
    pub(crate) similarity: SimilarityAt,
    /// Search for budgets by the importance of heads too (BaKlaVa): those with which the text behind the prompt diverges
    /// least from what a full cache says
    #[arg(long, requires = "heads")]
    pub(crate) budgets: bool,
    /// What the caches keep with which budgets are tried, in percent of the bytes of a full one
    #[arg(
        long,
        value_name = "R",
        default_value = "25",
        value_parser = parse_ratio,
        allow_negative_numbers = true,
        requires = "budgets"
    )]
    pub(crate) ratio: f64,
}

/// `heterokv mix`.
#[derive(Args)]
pub(crate) struct MixArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text file to measure on
    #[arg(long, value_name = "FILE")]
    pub(crate) corpus: PathBuf,
    /// Bits of an element of the keys, the mean over all heads, scales and tables included
    #[arg(long, value_name = "BITS", value_parser = parse_bits, allow_negative_numbers = true)]
    pub(crate) bits: f64,
    /// Tokens of context, for which tables are counted
    #[arg(long, value_name = "TOKENS", default_value = "4096", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) context: usize,
    /// Tokens behind the context whose queries are asked
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse_count, allow_negative_numbers = true)]
    pub(crate) steps: usize,
    /// First token of the context in the corpus
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_tokens, allow_negative_numbers = true)]
    pub(crate) token_offset: usize,
    /// Key formats to choose among
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_values_t = mix_formats())]
    pub(crate) formats: Vec<KeyFormat>,
    /// Measure what the choice of tokens costs, for hca-rescore, where coded keys only select
    #[arg(long)]
    pub(crate) rescore: bool,
    /// Where to write the mix; a path without commas
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Go on where the context is longer than what the model was trained for
    #[arg(long)]
    pub(crate) allow_beyond_trained: bool,
}

/// `alloc` from its least bits on, in steps that grow as the curves get flat.
fn mix_formats() -> Vec<KeyFormat> {
    let quarters = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 32];
    quarters.map(|quarters| KeyFormat::Alloc { centibits: 25 * quarters }).to_vec()
}

fn cache_help() -> String {
    format!(
        "Cache specs:\n{SPEC_GRAMMAR}\n\n\
         A percentage is of the bytes of a full f16 cache; it is kept from some length on (4,096 tokens, \
         32,768 for\nhca below 10 %), and shorter contexts print the ratio that they reach."
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn logits_of_tokens_take_no_option_that_would_be_passed_over() {
        let mut command = Cli::command();
        command.build();
        let eval = command.find_subcommand("eval").expect("it is a command");
        let tokens =
            eval.get_arguments().find(|one| one.get_id() == "tokens").expect("it is there");
        let refused: Vec<&str> =
            eval.get_arg_conflicts_with(tokens).iter().map(|one| one.get_id().as_str()).collect();
        let taken: Vec<&str> = eval
            .get_arguments()
            .map(|one| one.get_id().as_str())
            .filter(|name| !refused.contains(name))
            .collect();
        assert_eq!(taken, TAKEN_WITH_TOKENS);
    }

    /// The output is JSON already, and `--peers-folder` asks for `--peers`, which is refused.
    const TAKEN_WITH_TOKENS: [&str; 10] = [
        "model",
        "compute",
        "allow_beyond_trained",
        "peers_folder",
        "json",
        "tokens",
        "logits",
        "rows",
        "threads",
        "help",
    ];
}
