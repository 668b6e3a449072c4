//! Prompts and decoding in other programs, in turns with ours: the same GGUF file, prompts and threads.
//!
//! Every sample of a cache is a process of its own, ours too; in a round each cache runs once over all contexts, and
//! every round begins with another one. What caches lose is measured by `heterokv eval --peers`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use heterokv_cache::KvShape;
use heterokv_eval::{Peer, PeerEngine, PeerLine, PeerRequest, PeerSpeedRequest};
use heterokv_model::{Checkpoint, ComputeType};

use crate::bootstrap;
use crate::end_to_end::{Length, Report, run_process};
use crate::interleave::interleaved;
use crate::record::{Case, Record};
use crate::samples::Samples;
use crate::settings::Settings;
use crate::subject::Place;

pub(crate) const SUITE: &str = "peers";

/// From short to nearly all of what the default model was trained for.
const CONTEXTS: [usize; 4] = [512, 2048, 4096, 7900];

/// Rounds: a round of all takes minutes.
pub(crate) const MAX_ROUNDS: usize = 3;

/// Caches of ours beside `full`, where none are named.
pub(crate) const OURS: [&str; 2] = ["hca:12.5%", "hca-rescore:6.25%"];

/// What all others are held against.
const YARDSTICK: &str = "llama.cpp f16";

/// Caches of other programs whose time is taken: every type of llama.cpp, and of kvpress, which computes in f32, the
/// full one and one that is compressed.
const PEERS: [(PeerEngine, &str); 5] = [
    (PeerEngine::LlamaCpp, "f16"),
    (PeerEngine::LlamaCpp, "q8_0"),
    (PeerEngine::LlamaCpp, "q4_0"),
    (PeerEngine::Kvpress, "full"),
    (PeerEngine::Kvpress, "snapkv:25%"),
];

/// Measures ours and theirs at every context.
///
/// # Errors
/// Peers that are not installed or fail, and tokens of ours that differ from one run to the next.
pub(crate) fn measure(
    settings: &Settings<'_>,
    place: &Place,
    length: Length,
    venv: &Path,
    record: &mut Record,
) -> Result<()> {
    let checkpoint = Checkpoint::open(&place.model)?;
    let config = checkpoint.config();
    let shape = KvShape {
        num_layers: config.num_layers,
        heads: heterokv_attn::HeadShape::new(
            config.num_qo_heads,
            config.num_kv_heads,
            config.head_dim,
        )?,
    };
    record.subject = place.name(&shape, ComputeType::Q8);
    let contexts = settings.contexts_or(&CONTEXTS);
    let longest = contexts.iter().copied().max().unwrap_or(0);
    let tokens = place.tokens(&checkpoint, longest + length.num_steps + 1)?;
    let folder = tempfile::tempdir().context("cannot make a folder for the tokens")?;
    for &num_tokens in contexts {
        let text = serde_json::to_vec(&tokens[..num_tokens])?;
        fs::write(tokens_file(folder.path(), num_tokens), text)
            .context("cannot write the tokens")?;
    }
    let run = Run { place, length, venv, contexts, tokens: &tokens, folder: folder.path() };
    let ours = settings.caches.iter().map(|spec| Program::Ours(spec.clone()));
    let theirs = PEERS.iter().map(|&(engine, cache)| Program::Theirs(engine, cache));
    let mut candidates: Vec<Candidate> = ours
        .chain(theirs)
        .map(|program| Candidate { program, speeds: Vec::new(), versions: None })
        .filter(|candidate| settings.selection.wants(&format!("{SUITE}/{}", candidate.name())))
        .collect();
    interleaved(&mut candidates, settings.num_rounds, |candidate| {
        settings.say(&format!("{SUITE}: {}", candidate.name()));
        candidate.sample(&run)
    })?;
    let yardstick = candidates.iter().find(|candidate| candidate.name() == YARDSTICK);
    let yardstick = yardstick.map(|candidate| candidate.speeds.clone());
    for candidate in &candidates {
        for (context_idx, &num_tokens) in contexts.iter().enumerate() {
            record.cases.extend(candidate.cases(num_tokens, context_idx, yardstick.as_deref()));
        }
    }
    Ok(())
}

/// What all candidates share.
struct Run<'a> {
    place: &'a Place,
    length: Length,
    venv: &'a Path,
    contexts: &'a [usize],
    /// Of the longest context, and what is fed behind it.
    tokens: &'a [u32],
    folder: &'a Path,
}

fn tokens_file(folder: &Path, num_tokens: usize) -> std::path::PathBuf {
    folder.join(format!("{num_tokens}.json"))
}

/// Whose cache it is.
enum Program {
    /// Of this spec.
    Ours(String),
    Theirs(PeerEngine, &'static str),
}

/// One cache and what was measured of it: a list of contexts each round.
struct Candidate {
    program: Program,
    speeds: Vec<Vec<Speed>>,
    versions: Option<String>,
}

/// One context once.
#[derive(Clone, Debug)]
struct Speed {
    prefill_ns: f64,
    decode_ns_per_token: f64,
    peak_rss_bytes: u64,
    /// What was generated, where the program says it.
    tokens: Vec<u32>,
}

/// A part of a run, and its time.
struct Phase {
    name: &'static str,
    nanoseconds: fn(&Speed) -> f64,
    /// Whether that is the time of all tokens of the context, or of one.
    is_whole_prompt: bool,
}

const PHASES: [Phase; 2] = [
    Phase { name: "prefill", nanoseconds: |speed| speed.prefill_ns, is_whole_prompt: true },
    Phase {
        name: "decode",
        nanoseconds: |speed| speed.decode_ns_per_token,
        is_whole_prompt: false,
    },
];

impl Candidate {
    fn name(&self) -> String {
        match &self.program {
            Program::Ours(spec) => format!("heterokv {spec}"),
            Program::Theirs(engine, cache) => format!("{engine} {cache}"),
        }
    }

    /// Runs it over all contexts; the sample is the time per decoded token at the last.
    fn sample(&mut self, run: &Run<'_>) -> Result<f64> {
        let speeds = match &self.program {
            Program::Ours(spec) => ours(spec, run)?,
            Program::Theirs(engine, cache) => {
                let (versions, speeds) = theirs(*engine, cache, run)?;
                self.versions = Some(versions);
                speeds
            }
        };
        for (first, again) in self.speeds.first().iter().flat_map(|first| first.iter().zip(&speeds))
        {
            let name = self.name();
            ensure!(
                first.tokens == again.tokens,
                "{name}: two runs of one prompt gave different tokens"
            );
        }
        let last = speeds.last().context("there is no context")?.decode_ns_per_token;
        self.speeds.push(speeds);
        Ok(last)
    }

    /// Prefill and decoding at one context.
    fn cases(
        &self,
        num_tokens: usize,
        context_idx: usize,
        yardstick: Option<&[Vec<Speed>]>,
    ) -> Vec<Case> {
        let at = |rounds: &[Vec<Speed>], of: fn(&Speed) -> f64| -> Samples {
            rounds.iter().map(|speeds| of(&speeds[context_idx])).collect()
        };
        let case = |phase: &Phase| {
            let samples = at(&self.speeds, phase.nanoseconds);
            let name = format!("{SUITE}/{}/{}@{num_tokens}", phase.name, self.name());
            let mut case = Case::new(SUITE, name).timed(&samples);
            case.cache = Some(self.name());
            case.context = Some(num_tokens);
            let tokens = if phase.is_whole_prompt { num_tokens as f64 } else { 1.0 };
            case.set("tokens_per_second", 1e9 * tokens / samples.median());
            let rss = at(&self.speeds, |speed| speed.peak_rss_bytes as f64);
            case.set("rss_peak_bytes", rss.median());
            if let Some(yardstick) = yardstick {
                let yardstick = at(yardstick, phase.nanoseconds);
                let ratio = bootstrap::of_pairs(samples.as_slice(), yardstick.as_slice());
                case.set("ratio_to_yardstick", ratio.median);
                case.set("ratio_to_yardstick_low", ratio.low);
                case.set("ratio_to_yardstick_high", ratio.high);
            }
            case.notes.extend(self.versions.clone());
            case
        };
        PHASES.iter().map(case).collect()
    }
}

/// A process for each context.
fn ours(spec: &str, run: &Run<'_>) -> Result<Vec<Speed>> {
    let speed = |&num_tokens: &usize| {
        let tokens = tokens_file(run.folder, num_tokens);
        let report: Report = run_process(spec, &run.place.model, &tokens, run.length)?;
        Ok(Speed {
            prefill_ns: report.prefill_ns,
            decode_ns_per_token: report.decode_ns_per_token,
            peak_rss_bytes: report.prefill_peak_rss.max(report.decode_peak_rss),
            tokens: report.tokens,
        })
    };
    run.contexts.iter().map(speed).collect()
}

/// One process for all contexts; its versions, and its speeds.
fn theirs(engine: PeerEngine, cache: &str, run: &Run<'_>) -> Result<(String, Vec<Speed>)> {
    let request = PeerRequest {
        model: run.place.model.clone(),
        threads: run.length.num_threads,
        caches: vec![cache.to_owned()],
        windows: Vec::new(),
        speed: Some(PeerSpeedRequest {
            contexts: run.contexts.to_vec(),
            steps: run.length.num_steps,
            tokens: run.tokens.to_vec(),
        }),
        seed: 0,
    };
    let (mut versions, mut found) = (String::new(), Vec::new());
    for line in Peer::start(run.venv, engine, request, |_| {})? {
        match line? {
            PeerLine::Engine(info) => versions = info.version,
            PeerLine::Speed(speed) => found.push(speed),
            PeerLine::Quality(_) => bail!("{engine} answers what nobody asked"),
        }
    }
    let speed = |&num_tokens: &usize| {
        let speed = found.iter().find(|speed| speed.context == num_tokens);
        let speed =
            speed.with_context(|| format!("{engine} {cache} left out {num_tokens} tokens"))?;
        Ok(Speed {
            prefill_ns: 1e9 * speed.prefill_seconds,
            decode_ns_per_token: 1e9 * speed.step_seconds,
            peak_rss_bytes: speed.peak_rss_bytes,
            tokens: Vec::new(),
        })
    };
    let speeds: Result<Vec<Speed>> = run.contexts.iter().map(speed).collect();
    Ok((versions, speeds?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_hold_a_cache_against_the_yardstick_of_the_same_round() {
        let of = |factor: f64| {
            let at = |round: f64| {
                vec![Speed {
                    prefill_ns: 1e9 * factor * round,
                    decode_ns_per_token: 1e7 * factor * round,
                    peak_rss_bytes: 1 << 20,
                    tokens: Vec::new(),
                }]
            };
            vec![at(1.0), at(2.0), at(1.5)]
        };
        let program = Program::Ours("full".to_owned());
        let candidate = Candidate { program, speeds: of(0.5), versions: None };
        let cases = candidate.cases(1000, 0, Some(&of(1.0)));
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["peers/prefill/heterokv full@1000", "peers/decode/heterokv full@1000"]);
        for case in &cases {
            assert_eq!(case.figure("ratio_to_yardstick"), 0.5, "{}", case.name);
        }
        assert!((cases[0].figure("tokens_per_second") - 1e3 / 0.75).abs() < 1e-9);
    }
}
