//! `generate --session`: what was read is there for the next run, and what is of another text, model or cache is
//! refused.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bad_input::refuses;
use crate::fixture::{file, folder, json_of, model, other_model, prose, run};

/// Codes the keys of a prompt of this length.
const SPEC: &str = "keys=alloc/2,values=int8@host,rescore=int8@host,select=top-p:0.9,recent=20";

/// A path at which nothing is.
fn fresh(name: &str) -> String {
    let path = folder().join(name);
    let _ = fs::remove_dir_all(&path);
    let _ = fs::remove_file(&path);
    path.to_str().unwrap().to_owned()
}

fn arguments<'a>(session: &'a str, text: &'a str, spec: &'a str) -> Vec<&'a str> {
    let args = ["generate", "--model", model(), "--max-tokens", "9", "--json"];
    [&args[..], &["--session", session, "--prompt", text, "--cache", spec]].concat()
}

fn generate(session: &str, text: &str, spec: &str) -> Value {
    json_of(&arguments(session, text, spec)).remove(0)
}

/// Names and bytes of the files in a folder.
fn contents(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

fn copy(from: &str, to: &str) {
    fs::create_dir_all(to).unwrap();
    for (path, bytes) in contents(from) {
        fs::write(Path::new(to).join(path.file_name().unwrap()), bytes).unwrap();
    }
}

#[test]
fn the_same_text_again_is_read_no_more_and_answered_to_the_bit() {
    let text = prose(600);
    for (name, spec) in [("again-full", "full"), ("again-hca", SPEC), ("again-pq", "keys=pq/4x16")]
    {
        let session = fresh(name);
        let without = json_of(&[
            "generate",
            "--model",
            model(),
            "--max-tokens",
            "9",
            "--json",
            "--prompt",
            &text,
            "--cache",
            spec,
        ])
        .remove(0);
        assert_eq!(without["session_tokens"], Value::Null);
        let first = generate(&session, &text, spec);
        let saved = contents(&session);
        let second = generate(&session, &text, spec);
        for (found, object) in [(0, &first), (600, &second)] {
            assert_eq!(object["session_tokens"], found, "{spec}");
            assert_eq!(object["prompt_tokens"], 600);
            for same in ["tokens", "text", "device", "host_bytes", "cached_tokens", "rows_read"] {
                assert_eq!(object[same], without[same], "{spec}: {same}");
            }
        }
        assert!(first["prefill_tok_s"].as_f64().unwrap() > 0.0);
        assert_eq!(second["prefill_tok_s"], 0.0, "nothing was read");
        assert_eq!(contents(&session), saved, "and nothing written");
        // In words.
        let mut args = arguments(&session, &text, spec);
        args.retain(|arg| *arg != "--json");
        let output = run(&[&args[..], &["--stats"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        let line = format!("session {session}: 600 of 600 tokens found, 0 to read");
        assert!(stderr.lines().any(|found| found == line), "{stderr}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(
            stdout.contains("found in the session") && stdout.contains("600 tokens"),
            "{stdout}"
        );
    }
}

#[test]
fn a_text_that_grew_and_another_question_behind_it_read_only_what_is_new() {
    let text = prose(600);
    for (name, spec) in
        [("grown-full", "full"), ("grown-hca", SPEC), ("grown-int4", "keys=int4-channel/32")]
    {
        let session = fresh(name);
        generate(&session, &format!("{text} Who?"), spec);
        let grown = format!("{text} Who? And then");
        let first = generate(&session, &grown, spec);
        assert_eq!((&first["session_tokens"], &first["prompt_tokens"]), (&605.into(), &614.into()));
        let again = generate(&session, &grown, spec);
        assert_eq!(again["session_tokens"], 614, "{spec}");
        assert_eq!(again["tokens"], first["tokens"], "{spec}");
        assert_eq!(again["device"], first["device"], "{spec}");
        // Another question: the window gives its tokens back one by one.
        let other = generate(&session, &format!("{text} Where?"), spec);
        assert_eq!(other["session_tokens"], 603, "{spec}");
        assert_eq!(other["cached_tokens"].as_u64().unwrap() / 600, 1);
        // A beginning of what was read: its last token is read again.
        let shorter = generate(&session, &format!("{text} W"), spec);
        assert_eq!(shorter["session_tokens"], 601, "{spec}");
        // Further back than the window, by whole groups.
        let back = generate(&session, &text[..500], spec);
        let found = back["session_tokens"].as_u64().unwrap();
        assert!((499 - 31..=499).contains(&found), "{spec}: {found}");
        assert_eq!(back["cached_tokens"].as_u64().unwrap() / 500, 1);
        assert_eq!(generate(&session, &text[..500], spec)["tokens"], back["tokens"], "{spec}");
    }
}

#[test]
fn a_conversation_is_a_session_too() {
    let session = fresh("chatting");
    let chat = |question: &str| {
        let args = arguments(&session, question, "full");
        json_of(&[&args[..], &["--chat", "--system", "Be brief about whales"]].concat()).remove(0)
    };
    let first = chat("Who?");
    let again = chat("Who?");
    assert_eq!(again["session_tokens"], first["prompt_tokens"]);
    assert_eq!(again["tokens"], first["tokens"]);
    let other = chat("Whose?");
    assert!(other["session_tokens"].as_u64().unwrap() > 30);
}

#[test]
fn what_is_of_another_text_model_or_cache_is_refused_and_stays() {
    let text = prose(600);
    let session = fresh("refusals");
    generate(&session, &text, SPEC);
    let saved = contents(&session);
    let with = |text: &str, spec: &str, parts: &[&str]| {
        refuses(&arguments(&session, text, spec), &[&["session", "refusals"], parts].concat());
    };
    with(
        "Call me",
        SPEC,
        &["holds another text: of its 600 tokens only 0", "give another path, or remove it"],
    );
    with(&text[..200], SPEC, &["of its 600 tokens only 200 begin this prompt"]);
    with(&text, "full", &["is of a cache values=int8@host", "not full"]);
    with(
        &text,
        "keys=alloc/3,values=int8@host,rescore=int8@host,select=top-p:0.9,recent=20",
        &["is of keys alloc/2, not alloc/3"],
    );
    let swap = |path: &str, parts: &[&str]| {
        let mut args = arguments(&session, &text, SPEC);
        args[2] = path;
        refuses(&args, parts);
    };
    swap(other_model(), &["refusals: what is saved is of a model ", ", not "]);
    // The same weights under another RoPE.
    let folder = folder().join("model-theta");
    fs::create_dir_all(&folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(Path::new(model()).join(file), folder.join(file)).unwrap();
    }
    let config = fs::read_to_string(Path::new(model()).join("config.json")).unwrap();
    let changed = config.replace("10000.0", "50000.0");
    assert_ne!(changed, config);
    fs::write(folder.join("config.json"), changed).unwrap();
    swap(folder.to_str().unwrap(), &["is of RoPE theta 10000, not theta 50000"]);
    assert_eq!(contents(&session), saved, "nothing is lost by a refusal");
    assert_eq!(generate(&session, &text, SPEC)["session_tokens"], 600);
}

#[test]
fn paths_that_cannot_be_a_session() {
    let text = file("no-session.txt", "Call me Ishmael.");
    refuses(
        &arguments(&text, "Call me", "full"),
        &["no-session.txt cannot be a session's folder: it is not a folder; give another path"],
    );
    let missing = format!("{}/further", fresh("no-such-folder"));
    refuses(
        &arguments(&missing, "Call me", "full"),
        &["cannot make the folder", "give a path in a folder that is there", "No such file"],
    );
    let foreign = fresh("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(Path::new(&foreign).join("pages-00000001"), "ours").unwrap();
    fs::write(Path::new(&foreign).join("notes.txt"), "theirs").unwrap();
    refuses(
        &arguments(&foreign, "Call me", "full"),
        &["it holds other files and no session; give the path of a session, or a new one"],
    );
    assert_eq!(contents(&foreign).len(), 2, "they are as they were");
    let never = fresh("never-saved");
    refuses(
        &arguments(&never, "Call me", "snapkv:200,keys=int8-token"),
        &["has rows of values on the device is not saved; use values=...@host for sessions"],
    );
    assert!(!Path::new(&never).exists(), "nothing was begun");
    if cfg!(target_os = "linux") {
        refuses(&arguments("/proc", "Call me", "full"), &["/proc"]);
        refuses(
            &arguments("/proc/none", "Call me", "full"),
            &["cannot make the folder /proc/none"],
        );
    }
    // Somebody else is at it.
    let taken = fresh("taken");
    generate(&taken, "Call me", "full");
    let lock = fs::File::open(Path::new(&taken).join("lock")).unwrap();
    lock.lock().unwrap();
    refuses(&arguments(&taken, "Call me", "full"), &["another process uses it; wait for its end"]);
    lock.unlock().unwrap();
    assert_eq!(generate(&taken, "Call me", "full")["session_tokens"], 7);
}

#[test]
fn a_session_that_is_cut_or_changed_is_one_line_and_no_panic() {
    let text = prose(300);
    let session = fresh("damaged");
    generate(&session, &text, "keys=lm2,recent=9");
    let names: Vec<String> = contents(&session)
        .iter()
        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["attached-00000001", "lock", "pages-00000001", "session.saved"]);
    for (name, header, step) in [("session.saved", usize::MAX, 9), ("attached-00000001", 400, 37)] {
        let whole = fs::read(Path::new(&session).join(name)).unwrap();
        let copied = fresh("damaged-copy");
        copy(&session, &copied);
        let path = Path::new(&copied).join(name);
        for len in (0..whole.len().min(header)).step_by(step).chain([whole.len() - 1]) {
            fs::write(&path, &whole[..len]).unwrap();
            refuses(&arguments(&copied, &text, "keys=lm2,recent=9"), &["damaged"]);
            let mut changed = whole.clone();
            changed[len] ^= 0x11;
            fs::write(&path, &changed).unwrap();
            refuses(&arguments(&copied, &text, "keys=lm2,recent=9"), &["damaged"]);
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(generate(&copied, &text, "keys=lm2,recent=9")["session_tokens"], 300);
    }
    // The version is behind the mark.
    let copied = fresh("damaged-copy");
    copy(&session, &copied);
    let path = Path::new(&copied).join("session.saved");
    let mut table = fs::read(&path).unwrap();
    table[8] += 1;
    fs::write(&path, &table).unwrap();
    refuses(&arguments(&copied, &text, "keys=lm2,recent=9"), &["another version of the format"]);
    // A page of rows shows only when it is read.
    let copied = fresh("damaged-copy");
    copy(&session, &copied);
    let path = Path::new(&copied).join("pages-00000001");
    let mut pages = fs::read(&path).unwrap();
    for byte in pages.iter_mut().skip(64).step_by(64) {
        *byte ^= 1;
    }
    fs::write(&path, &pages).unwrap();
    let output = run(&arguments(&copied, &text, "keys=lm2,recent=9"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("is damaged on disk") && !stderr.contains("panicked"), "{stderr}");
}

#[test]
fn the_beginning_of_a_session_leaves_it_as_it_is() {
    let text = prose(600);
    let session = fresh("beginning");
    let first = generate(&session, &text, SPEC);
    let before = contents(&session);
    generate(&session, &text[..500], SPEC);
    assert_eq!(contents(&session), before);
    let again = generate(&session, &text, SPEC);
    assert_eq!(again["session_tokens"], again["prompt_tokens"]);
    assert_eq!(again["tokens"], first["tokens"]);
}

#[test]
fn files_that_a_store_could_have_made_are_not_removed_from_a_folder_of_something_else() {
    let folder = fresh("scans");
    fs::create_dir_all(&folder).unwrap();
    let page = PathBuf::from(&folder).join("pages-00000001");
    fs::write(&page, "a scan").unwrap();
    let text = prose(300);
    refuses(&arguments(&folder, &text, SPEC), &["it holds other files and no session"]);
    assert_eq!(fs::read(page).unwrap(), b"a scan");
}
