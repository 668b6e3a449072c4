//! A real prompt from end to end: prefill, the first token, decoding, and the memory that the system sees.
//!
//! Every (cache, context) runs in a process of its own, so that its memory is that of nothing else. The processes take
//! turns; each generates greedily, and has to give the same tokens every time.

mod child;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heterokv_attn::HeadShape;
use heterokv_cache::KvShape;
use heterokv_model::{Checkpoint, ComputeType};

pub(crate) use child::{ChildArgs, Greedy, Report, run_child};

use crate::bootstrap;
use crate::caches::{FULL, Planned};
use crate::interleave::interleaved;
use crate::record::{Case, Record};
use crate::samples::Samples;
use crate::settings::Settings;
use crate::subject::Place;

pub(crate) const SUITE: &str = "end-to-end";

/// A half and nearly all of what the default model was trained for, room for an answer left.
const CONTEXTS: [usize; 2] = [4096, 7900];

/// Runs of each: a run takes many seconds and has many tokens.
const MAX_ROUNDS: usize = 3;

/// Tokens that are decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) num_steps: usize,
    /// Threads of a process.
    pub(crate) num_threads: usize,
}

/// Measures every cache at every context.
///
/// # Errors
/// A process that fails, or tokens that differ from one run to the next.
pub(crate) fn measure(
    settings: &Settings<'_>,
    place: &Place,
    length: Length,
    record: &mut Record,
) -> Result<()> {
    let checkpoint = Checkpoint::open(&place.model)?;
    let config = checkpoint.config();
    let heads = HeadShape::new(config.num_qo_heads, config.num_kv_heads, config.head_dim)?;
    let shape = KvShape { num_layers: config.num_layers, heads };
    record.subject = place.name(&shape, ComputeType::Q8);
    let folder = tempfile::tempdir().context("cannot make a folder for the tokens")?;
    for &num_tokens in settings.contexts_or(&CONTEXTS) {
        let prompt = Prompt { model: &place.model, tokens: folder.path().join("tokens.json") };
        let mut candidates = plan(settings, &prompt, &shape, num_tokens, length, record);
        if candidates.is_empty() {
            continue;
        }
        let tokens = serde_json::to_vec(&place.tokens(&checkpoint, num_tokens)?)?;
        fs::write(&prompt.tokens, tokens).context("cannot write the tokens")?;
        settings.say(&format!("{SUITE}: {num_tokens} tokens, {} caches", candidates.len()));
        let num_rounds = settings.num_rounds.min(MAX_ROUNDS);
        interleaved(&mut candidates, num_rounds, Candidate::sample)
            .with_context(|| format!("{SUITE} at {num_tokens} tokens"))?;
        let full = candidates.iter().find(|candidate| candidate.planned.spec == FULL);
        let full = full.map(|full| full.reports.clone());
        for candidate in &candidates {
            candidate.check()?;
            record.cases.extend(candidate.cases(full.as_deref()));
        }
    }
    Ok(())
}

/// A part of a run, and its time.
struct Phase {
    name: &'static str,
    nanoseconds: fn(&Report) -> f64,
}

const PHASES: [Phase; 3] = [
    Phase { name: "prefill", nanoseconds: |report| report.prefill_ns },
    Phase { name: "first-token", nanoseconds: |report| report.first_token_ns },
    Phase { name: "decode", nanoseconds: |report| report.decode_ns_per_token },
];

fn case_name(phase: &str, spec: &str, num_tokens: usize) -> String {
    format!("{SUITE}/{phase}/{spec}@{num_tokens}")
}

/// What every process is given.
struct Prompt<'a> {
    model: &'a Path,
    /// A file with a JSON list.
    tokens: PathBuf,
}

fn plan<'a>(
    settings: &Settings<'_>,
    prompt: &'a Prompt<'a>,
    shape: &KvShape,
    num_tokens: usize,
    length: Length,
    record: &mut Record,
) -> Vec<Candidate<'a>> {
    let is_wanted = |spec: &str| {
        PHASES
            .iter()
            .any(|phase| settings.selection.wants(&case_name(phase.name, spec, num_tokens)))
    };
    let is_any_wanted = settings.caches.iter().any(|spec| is_wanted(spec));
    let mut candidates = Vec::new();
    for spec in settings.caches.iter().filter(|_| is_any_wanted) {
        if spec != FULL && !is_wanted(spec) {
            continue;
        }
        match Planned::new(spec, shape, num_tokens) {
            Ok(planned) => candidates.push(Candidate { prompt, length, planned, reports: vec![] }),
            Err(error) => {
                record.leave_out(case_name("decode", spec, num_tokens), format!("{error:#}"));
            }
        }
    }
    candidates
}

/// Starts a process for one cache on the prompt in the file `tokens`, and waits for its report.
///
/// # Errors
/// A process that cannot be started, or fails.
pub(crate) fn run_process(
    spec: &str,
    model: &Path,
    tokens: &Path,
    length: Length,
) -> Result<Report> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg(child::COMMAND).args(["--cache", spec]).arg("--tokens").arg(tokens);
    command.args(["--steps", &length.num_steps.to_string()]);
    command.args(["--threads", &length.num_threads.to_string()]);
    command.arg("--model").arg(model);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start the process for {spec}"))?;
    ensure!(output.status.success(), "the process for {spec} failed: {}", output.status);
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the process for {spec} did not report"))
}

/// One cache and the runs that it has had.
struct Candidate<'a> {
    prompt: &'a Prompt<'a>,
    length: Length,
    planned: Planned,
    reports: Vec<Report>,
}

impl Candidate<'_> {
    /// The sample is the time per decoded token of a process of its own.
    fn sample(&mut self) -> Result<f64> {
        let Prompt { model, tokens } = self.prompt;
        let report = run_process(&self.planned.spec, model, tokens, self.length)?;
        let nanoseconds = report.decode_ns_per_token;
        self.reports.push(report);
        Ok(nanoseconds)
    }

    /// Every run gave the same tokens, and held the bytes that were predicted.
    fn check(&self) -> Result<()> {
        let spec = &self.planned.spec;
        let planned = (self.planned.plan.device.total(), self.planned.plan.host_bytes);
        for report in &self.reports {
            let is_same = report.tokens == self.reports[0].tokens;
            ensure!(is_same, "{spec}: two runs of the same prompt gave different tokens");
            let counted = (report.device_bytes, report.host_bytes);
            ensure!(
                counted == planned,
                "{spec}: {counted:?} device and host bytes are counted, {planned:?} were predicted"
            );
        }
        Ok(())
    }

    /// A case for each phase; the memory is told with the phase that it belongs to.
    fn cases(&self, full: Option<&[Report]>) -> Vec<Case> {
        let num_tokens = self.planned.plan.num_tokens;
        let cases = PHASES.iter().map(|&Phase { name: phase, nanoseconds: of }| {
            let samples: Samples = self.reports.iter().map(of).collect();
            let name = case_name(phase, &self.planned.spec, num_tokens);
            let mut case = Case::new(SUITE, name).timed(&samples);
            case.cache = Some(self.planned.spec.clone());
            case.context = Some(num_tokens);
            if let Some(full) = full {
                let full: Vec<f64> = full.iter().map(of).collect();
                let ratio = bootstrap::of_pairs(samples.as_slice(), &full);
                case.set("ratio_to_full", ratio.median);
                case.set("ratio_to_full_low", ratio.low);
                case.set("ratio_to_full_high", ratio.high);
            }
            let median =
                |of: fn(&Report) -> f64| self.reports.iter().map(of).collect::<Samples>().median();
            match phase {
                "prefill" => {
                    case.set("tokens_per_second", 1e9 * num_tokens as f64 / samples.median());
                    case.set("rss_loaded_bytes", median(|report| report.loaded_rss as f64));
                    case.set("rss_peak_bytes", median(|report| report.prefill_peak_rss as f64));
                    case.set("rss_steady_bytes", median(|report| report.prefill_rss as f64));
                }
                "decode" => {
                    case.set("tokens_per_second", 1e9 / samples.median());
                    case.set("rss_peak_bytes", median(|report| report.decode_peak_rss as f64));
                    case.set("rss_steady_bytes", median(|report| report.decode_rss as f64));
                    case.set("device_bytes_predicted", self.planned.plan.device.total() as f64);
                    case.set("device_bytes_counted", median(|report| report.device_bytes as f64));
                    case.set("host_bytes_predicted", self.planned.plan.host_bytes as f64);
                    case.set("host_bytes_counted", median(|report| report.host_bytes as f64));
                    case.set("full_bytes", self.planned.plan.full_bytes as f64);
                    if let Some(full) = full {
                        case.set("tokens_as_full", self.tokens_as_full(full) as f64);
                        case.set("num_steps", self.length.num_steps as f64);
                    }
                }
                _ => {}
            }
            if let Some(note) = self.reports.iter().find_map(|report| report.note.clone()) {
                case.notes.push(note);
            }
            case
        });
        cases.collect()
    }

    /// Tokens from the first on that `full` generated, too.
    fn tokens_as_full(&self, full: &[Report]) -> usize {
        let (Some(ours), Some(full)) = (self.reports.first(), full.first()) else { return 0 };
        ours.tokens.iter().zip(&full.tokens).take_while(|(ours, full)| ours == full).count()
    }
}
