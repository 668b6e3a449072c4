//! Prompts and decode steps at every context, ours and llama.cpp's in turns, and ours on one thread.
//!
//! A sample is what a process of its own measured. In a round each program runs once, and every round begins with
//! another one; a ratio is the median of the ratios of the rounds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use heterokv_eval::{Peer, PeerEngine, PeerLine, PeerRequest, PeerSpeed, PeerSpeedRequest};
use heterokv_model::ComputeType;

use super::ours::{self, ChildArgs, Decode, Report};
use super::{LLAMA_F16, LLAMA_Q8, OURS, SUITE, case_name};
use crate::bootstrap;
use crate::interleave::in_turns;
use crate::machine::{self, Sizes};
use crate::record::{Case, Record};
use crate::samples::Samples;

/// The context at which one thread is held against all.
pub(super) const SCALING_CONTEXT: usize = 4096;

/// Words behind a cache's name where one thread computes.
pub(super) const ONE_THREAD: &str = ", 1 thread";

/// What all programs are given.
pub(super) struct Run<'a> {
    pub(super) model: &'a Path,
    /// The form of its weights, of ours.
    pub(super) compute: ComputeType,
    /// Of the longest context, and what is fed behind it.
    pub(super) tokens: &'a [u32],
    pub(super) contexts: &'a [usize],
    /// Caches whose prompts are timed.
    pub(super) prefills: &'a [&'a str],
    /// Caches whose steps are timed.
    pub(super) decodes: &'a [&'a str],
    pub(super) num_steps: usize,
    pub(super) num_rounds: usize,
    pub(super) num_threads: usize,
    /// Where the peers are installed; none where they are not measured.
    pub(super) venv: Option<&'a Path>,
    /// Whether one thread is measured, too.
    pub(super) with_one_thread: bool,
    /// How reads are measured behind each context.
    pub(super) sizes: Sizes,
    /// Where the tokens are put.
    pub(super) folder: &'a Path,
}

/// Keys and values of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LlamaKv {
    F16,
    Q8,
}

impl LlamaKv {
    /// As llama.cpp calls them.
    fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8 => "q8_0",
        }
    }

    /// As cases call the program with them.
    fn case_name(self) -> &'static str {
        match self {
            Self::F16 => LLAMA_F16,
            Self::Q8 => LLAMA_Q8,
        }
    }
}

/// A program at one context.
#[derive(Clone, Copy, PartialEq)]
enum Program {
    Ours,
    /// Ours on one thread.
    OneThread,
    Llama(LlamaKv),
}

struct Candidate {
    program: Program,
    reports: Vec<Report>,
    speeds: Vec<PeerSpeed>,
    version: String,
}

/// Measures every context; cases go into `record`.
///
/// # Errors
/// A process that fails, a peer that is not installed or fails, and tokens that differ from one run to the next.
pub(super) fn measure(run: &Run<'_>, say: &dyn Fn(&str), record: &mut Record) -> Result<()> {
    let tokens = run.folder.join("tokens.json");
    fs::write(&tokens, serde_json::to_vec(run.tokens)?).context("cannot write the tokens")?;
    let longest = run.contexts.iter().copied().max().unwrap_or(0);
    for &context in run.contexts {
        let mut programs = vec![Program::Ours];
        if run.venv.is_some() {
            programs.push(Program::Llama(LlamaKv::F16));
        }
        if run.venv.is_some() && context == longest {
            programs.push(Program::Llama(LlamaKv::Q8));
        }
        if run.with_one_thread && context == SCALING_CONTEXT {
            programs.push(Program::OneThread);
        }
        say(&format!("{context} tokens, {} rounds of {}", run.num_rounds, programs.len()));
        let mut candidates: Vec<Candidate> = programs.into_iter().map(Candidate::new).collect();
        in_turns(&mut candidates, run.num_rounds, |_, candidate| {
            candidate.sample(run, context, &tokens)
        })
        .with_context(|| format!("{SUITE} at {context} tokens"))?;
        record.cases.extend(cases(&candidates, context)?);
        machine::read_again(run.sizes, run.num_threads, record)?;
    }
    Ok(())
}

impl Candidate {
    fn new(program: Program) -> Self {
        Self { program, reports: Vec::new(), speeds: Vec::new(), version: String::new() }
    }

    /// Runs the program once, and keeps what it measured.
    fn sample(&mut self, run: &Run<'_>, context: usize, tokens: &Path) -> Result<()> {
        match self.program {
            Program::Ours | Program::OneThread => {
                let is_one = self.program == Program::OneThread;
                let num_threads = if is_one { 1 } else { run.num_threads };
                let report = ours::run_process(&ChildArgs {
                    model: run.model.to_owned(),
                    tokens: tokens.to_owned(),
                    context,
                    steps: run.num_steps,
                    threads: num_threads,
                    compute: run.compute,
                    prefills: run.prefills.iter().map(|&spec| spec.to_owned()).collect(),
                    decodes: run.decodes.iter().map(|&spec| spec.to_owned()).collect(),
                })?;
                self.reports.push(report);
            }
            Program::Llama(kv) => {
                let (version, speed) = llama(kv, run, context)?;
                self.version = version;
                self.speeds.push(speed);
            }
        }
        Ok(())
    }
}

/// One run of llama.cpp at one context.
fn llama(kv: LlamaKv, run: &Run<'_>, context: usize) -> Result<(String, PeerSpeed)> {
    let request = PeerRequest {
        model: run.model.to_owned(),
        threads: run.num_threads,
        caches: vec![kv.name().to_owned()],
        windows: Vec::new(),
        speed: Some(PeerSpeedRequest {
            contexts: vec![context],
            steps: run.num_steps,
            tokens: run.tokens[..context + run.num_steps + 1].to_vec(),
        }),
        seed: 0,
    };
    let venv = run.venv.map_or_else(PathBuf::new, Path::to_owned);
    let (mut version, mut found) = (String::new(), None);
    for line in Peer::start(&venv, PeerEngine::LlamaCpp, request, |_| {})? {
        match line? {
            PeerLine::Engine(info) => version = info.version,
            PeerLine::Speed(speed) => found = Some(speed),
            PeerLine::Quality(_) => {}
        }
    }
    Ok((version, found.context("llama.cpp measured no speed")?))
}

/// The cases of all programs at one context, ours with their ratios to llama.cpp's f16.
fn cases(candidates: &[Candidate], context: usize) -> Result<Vec<Case>> {
    let f16 = candidates
        .iter()
        .find(|candidate| matches!(candidate.program, Program::Llama(LlamaKv::F16)));
    let nanoseconds = |of: fn(&PeerSpeed) -> f64| -> Vec<f64> {
        f16.iter().flat_map(|f16| &f16.speeds).map(|speed| 1e9 * of(speed)).collect()
    };
    let (f16_prefill, f16_decode) =
        (nanoseconds(|speed| speed.prefill_seconds), nanoseconds(|speed| speed.step_seconds));
    let mut cases = Vec::new();
    for candidate in candidates {
        match candidate.program {
            Program::Ours | Program::OneThread => {
                let is_one = candidate.program == Program::OneThread;
                let suffix = if is_one { ONE_THREAD } else { "" };
                cases.extend(ours_cases(candidate, context, suffix, [&f16_prefill, &f16_decode])?);
            }
            Program::Llama(kv) => {
                let phase = |phase: &str, of: fn(&PeerSpeed) -> f64, f16: &[f64]| {
                    let samples: Samples =
                        candidate.speeds.iter().map(|speed| 1e9 * of(speed)).collect();
                    let rss = |speed: &PeerSpeed| speed.peak_rss_bytes as f64;
                    let rss: Samples = candidate.speeds.iter().map(rss).collect();
                    let case = case(phase, kv.case_name(), context, &samples, f16);
                    case.with("rss_peak_bytes", rss.median()).noting(&candidate.version)
                };
                cases.push(phase("prefill", |speed| speed.prefill_seconds, &f16_prefill));
                cases.push(phase("decode", |speed| speed.step_seconds, &f16_decode));
            }
        }
    }
    Ok(cases)
}

fn ours_cases(
    candidate: &Candidate,
    context: usize,
    suffix: &str,
    [f16_prefill, f16_decode]: [&[f64]; 2],
) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let Some(first) = candidate.reports.first() else { return Ok(cases) };
    for (place, prefill) in first.prefills.iter().enumerate() {
        let samples = candidate.reports.iter().map(|report| report.prefills[place].nanoseconds);
        let name = format!("{OURS}{}{suffix}", prefill.cache);
        let case = case("prefill", &name, context, &samples.collect(), f16_prefill);
        cases.push(case.with("operations", prefill.operations));
    }
    for (place, decode) in first.decodes.iter().enumerate() {
        let Decode { cache, device_bytes, host_bytes, rows_read, .. } = decode;
        for report in &candidate.reports {
            let is_same = report.decodes[place].tokens == decode.tokens;
            ensure!(is_same, "{cache}: two runs of one text found different tokens");
        }
        let samples = candidate.reports.iter().map(|report| report.decodes[place].nanoseconds);
        let name = format!("{OURS}{cache}{suffix}");
        let case = case("decode", &name, context, &samples.collect(), f16_decode);
        let case =
            case.with("device_bytes_read", *device_bytes).with("host_bytes_read", *host_bytes);
        cases.push(case.with("rows_read", *rows_read));
    }
    Ok(cases)
}

/// The case of a phase, with how many times as fast as llama.cpp it is.
fn case(phase: &str, name: &str, context: usize, samples: &Samples, f16: &[f64]) -> Case {
    let mut case = Case::new(SUITE, case_name(phase, name, context)).timed(samples);
    case.cache = Some(name.to_owned());
    case.context = Some(context);
    let tokens = if phase == "prefill" { context as f64 } else { 1.0 };
    case.set("tokens_per_second", 1e9 * tokens / samples.median());
    if !f16.is_empty() {
        let ratio = bootstrap::of_pairs(f16, samples.as_slice());
        case.set("times_f16", ratio.median);
        case.set("times_f16_low", ratio.low);
        case.set("times_f16_high", ratio.high);
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speed::ours::Prefill;

    fn ours(rounds: &[f64], token: u32) -> Candidate {
        let report = |&ns: &f64| Report {
            prefills: vec![Prefill {
                cache: "hca:12.5%".to_owned(),
                nanoseconds: 100.0 * ns,
                operations: 1e3,
            }],
            decodes: vec![Decode {
                cache: "full".to_owned(),
                context: 1000,
                nanoseconds: ns,
                device_bytes: 10.0,
                host_bytes: 0.0,
                rows_read: 0.0,
                tokens: vec![1, token],
            }],
        };
        Candidate { reports: rounds.iter().map(report).collect(), ..Candidate::new(Program::Ours) }
    }

    fn llama(kv: LlamaKv, rounds: &[f64]) -> Candidate {
        let speed = |&ns: &f64| PeerSpeed {
            cache: kv.name().to_owned(),
            context: 1000,
            prefill_seconds: 1e-7 * ns,
            step_seconds: 1e-9 * ns,
            peak_rss_bytes: 7,
        };
        let speeds = rounds.iter().map(speed).collect();
        Candidate { speeds, ..Candidate::new(Program::Llama(kv)) }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_of_rounds() {
        let candidates = [
            ours(&[10.0, 20.0, 30.0], 2),
            llama(LlamaKv::F16, &[20.0, 60.0, 30.0]),
            ours(&[40.0; 3], 2),
        ];
        let cases = cases(&candidates, 1000).expect("all tokens are the same");
        let find = |name: &str| cases.iter().find(|case| case.name == name).expect(name);
        let full = find("speed/decode/heterokv full@1000");
        // 2, 3 and 1; the ratio of the medians would be 1.5.
        assert!((full.figure("times_f16") - 2.0).abs() < 1e-9);
        assert_eq!((full.context, full.figure("device_bytes_read")), (Some(1000), 10.0));
        let prefill = find("speed/prefill/heterokv hca:12.5%@1000");
        assert!((prefill.figure("times_f16") - 2.0).abs() < 1e-9);
        assert!((prefill.figure("tokens_per_second") - 1e9 * 1000.0 / 2000.0).abs() < 1e-3);
        let theirs = find("speed/decode/llama.cpp f16@1000");
        assert_eq!((theirs.figure("times_f16"), theirs.figure("rss_peak_bytes")), (1.0, 7.0));
    }

    #[test]
    fn other_tokens_in_a_later_round_end_the_run() {
        let mut candidates = [ours(&[10.0, 20.0], 2)];
        assert!(cases(&candidates, 1000).is_ok());
        candidates[0].reports[1].decodes[0].tokens[1] = 3;
        let told = cases(&candidates, 1000).expect_err("a token differs").to_string();
        assert!(told.contains("full: two runs"), "{told}");
    }

    #[test]
    fn without_llama_there_are_no_ratios() {
        let cases = cases(&[ours(&[10.0], 2)], 1000).expect("it is one round");
        assert!(cases.iter().all(|case| case.figure("times_f16").is_nan()));
    }
}
