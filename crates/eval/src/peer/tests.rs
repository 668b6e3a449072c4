//! A process that plays a peer.

#![cfg(unix)]

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// A request and the lines of an answer, which the tests of the Python package read, too.
const EXAMPLE: &str = include_str!("example.jsonl");

fn example(place: usize) -> &'static str {
    EXAMPLE.lines().nth(place).unwrap()
}

fn engine() -> &'static str {
    example(1)
}

fn quality() -> &'static str {
    example(2)
}

fn speed() -> &'static str {
    example(3)
}

fn request() -> PeerRequest {
    PeerRequest {
        model: PathBuf::from("model.gguf"),
        threads: 2,
        caches: vec!["q8_0".to_owned()],
        windows: vec![PeerWindow { context: vec![1, 2], continuation: vec![3, 4, 5] }],
        speed: Some(PeerSpeedRequest { contexts: vec![2], steps: 1, tokens: vec![1, 2, 3, 4] }),
        seed: 0,
    }
}

/// An environment whose interpreter is this shell script.
fn venv(script: &str) -> TempDir {
    let venv = tempfile::tempdir().unwrap();
    fs::create_dir(venv.path().join("bin")).unwrap();
    let python = venv.path().join("bin/python");
    // Written by another process: had we it open, a child that another test starts just then would inherit it,
    // and what is open for writing cannot be run.
    let write = r#"printf '%s\n' "$2" >"$1" && chmod +x "$1""#;
    let written = Command::new("sh")
        .args(["-c", write, "sh"])
        .arg(&python)
        .arg(format!("#!/bin/sh\n{script}"))
        .status();
    assert!(written.unwrap().success());
    fs::write(venv.path().join(STAMP), "a digest\n").unwrap();
    venv
}

/// A script that takes the request and writes these lines.
fn answering(lines: &[&str]) -> String {
    let echoes: Vec<String> = lines.iter().map(|line| format!("echo '{line}'")).collect();
    format!("cat >/dev/null\n{}", echoes.join("\n"))
}

fn answer(script: &str) -> Vec<Result<PeerLine, PeerError>> {
    let venv = venv(script);
    Peer::start(venv.path(), PeerEngine::LlamaCpp, request(), |_| {}).unwrap().collect()
}

/// The last item, which must be an error, and its words.
fn failure(script: &str) -> (PeerError, String) {
    let error = answer(script).pop().unwrap().unwrap_err();
    let words = error.to_string();
    (error, words)
}

#[test]
fn a_good_run_gives_its_lines_and_ends() {
    let lines: Vec<PeerLine> = answer(&answering(&[engine(), quality(), speed()]))
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let [PeerLine::Engine(info), PeerLine::Quality(quality), PeerLine::Speed(speed)] = &lines[..]
    else {
        panic!("{lines:?}")
    };
    assert_eq!((info.name.as_str(), info.build.as_deref()), ("fake", None));
    assert_eq!(quality.steps.kl, [0.5, 0.0]);
    assert_eq!((quality.kv_bytes, quality.full_f16_bytes), (10, 20));
    assert_eq!((speed.context, speed.prefill_seconds, speed.step_seconds), (2, 0.25, 0.02));
}

#[test]
fn the_process_gets_the_module_the_request_and_its_words_are_heard() {
    let venv = venv(&format!("echo \"$@\" >&2\ncat >&2\necho >&2\n{}", answering(&[engine()])));
    let (sender, heard) = mpsc::channel();
    let progress = move |line: &str| sender.send(line.to_owned()).unwrap();
    let mut peer = Peer::start(venv.path(), PeerEngine::Kvpress, request(), progress).unwrap();
    assert!(matches!(peer.next(), Some(Ok(PeerLine::Engine(_)))));
    assert!(matches!(peer.next(), Some(Err(PeerError::Incomplete { .. }))));
    let heard: Vec<String> = heard.iter().collect();
    assert_eq!(heard[0], "-m heterokv_peers.kvpress");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&heard[1]), json(example(0)));
}

#[test]
fn a_malformed_line_is_an_error_with_its_number_and_reason() {
    let renamed = quality().replace("q8_0", "q2_k");
    let elsewhere = quality().replace(r#""window": 0"#, r#""window": 1"#);
    let too_few = quality().replace("[0.5, 0]", "[0.5]");
    let no_number = quality().replace("[0.5, 0]", "[0.5, null]");
    let other_depth = speed().replace(r#""context": 2"#, r#""context": 1024"#);
    let no_time = speed().replace("0.02", "0.0");
    let cases = [
        ("Loading checkpoint", "expected value"),
        (r#"{"cache": "q8_0"}"#, "missing field"),
        (engine(), "the engine must be the first line"),
        (&renamed, "nobody asked for the cache `q2_k`"),
        (&elsewhere, "there is no window 1"),
        (&too_few, "instead of 2"),
        (&no_number, "null"),
        (&other_depth, "no speed was asked for at 1024"),
        (&no_time, "are no times"),
    ];
    for (line, reason) in cases {
        let (error, words) = failure(&answering(&[engine(), line, speed()]));
        assert!(matches!(error, PeerError::Malformed { line: 2, .. }), "{words}");
        assert!(words.contains("line 2 from llama.cpp") && words.contains(reason), "{words}");
    }
    let (_, words) = failure(&answering(&[quality()]));
    assert!(words.contains("line 1 ") && words.contains("the engine must be the first"), "{words}");
}

#[test]
fn a_refusal_is_an_error_in_the_peers_words() {
    let refusal = r#"{"error": "llama.cpp has no cache q2_k"}"#;
    let (error, words) = failure(&format!("{}\nexit 2", answering(&[refusal])));
    assert!(matches!(error, PeerError::Refused { .. }), "{words}");
    assert_eq!(words, "llama.cpp refuses: llama.cpp has no cache q2_k");
}

#[test]
fn a_failure_is_an_error_with_its_last_words() {
    let noise = "i=0; while [ $i -lt 50 ]; do echo \"word $i\" >&2; i=$((i+1)); done; exit 3";
    let (error, words) = failure(&format!("{}\n{noise}", answering(&[engine(), quality()])));
    assert!(matches!(error, PeerError::Failed { .. }), "{words}");
    assert!(words.contains("exit status: 3") && words.contains("word 49"), "{words}");
    assert!(words.contains("word 30") && !words.contains("word 29"), "{words}");
}

#[test]
fn a_process_that_reads_nothing_is_told_by_its_end() {
    let mut large = request();
    large.windows[0].context = vec![12345; 100_000];
    let venv = venv("exec 0<&-; echo 'No module named heterokv_peers' >&2; exit 1");
    let mut peer = Peer::start(venv.path(), PeerEngine::LlamaCpp, large, |_| {}).unwrap();
    let words = peer.next().unwrap().unwrap_err().to_string();
    assert!(words.contains("No module named heterokv_peers"), "{words}");
    assert!(peer.next().is_none());
}

#[test]
fn an_answer_that_ends_early_is_an_error() {
    let (error, words) = failure(&answering(&[engine(), quality()]));
    assert!(matches!(error, PeerError::Incomplete { received: 2, expected: 3, .. }), "{words}");
}

#[test]
fn without_an_environment_the_error_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let venv = folder.path().join("peers");
    let started = Peer::start(&venv, PeerEngine::LlamaCpp, request(), |_| {});
    let words = started.unwrap_err().to_string();
    assert!(words.contains("run `cargo xtask fetch --peers`"), "{words}");
    assert!(words.contains(&venv.display().to_string()), "{words}");
}

#[test]
fn an_installation_that_did_not_come_to_its_end_is_none() {
    let venv = venv("exit 0");
    let installed = InstalledPeers::at(venv.path()).unwrap();
    assert_eq!(installed.build, "a digest");
    fs::remove_file(venv.path().join(STAMP)).unwrap();
    assert!(matches!(InstalledPeers::at(venv.path()), Err(PeerError::NotInstalled { .. })));
}

#[test]
fn a_peer_that_is_dropped_is_killed() {
    let venv = venv(&format!("{}\nexec sleep 60", answering(&[engine()])));
    let start = Instant::now();
    let mut peer = Peer::start(venv.path(), PeerEngine::LlamaCpp, request(), |_| {}).unwrap();
    assert!(matches!(peer.next(), Some(Ok(_))));
    drop(peer);
    assert!(start.elapsed() < Duration::from_secs(30));
}
