//! `heterokv eval` and `heterokv report`: tasks, results files, gates, pages.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::bad_input::refuses;
use crate::fixture::{file, json_of, model, other_model, program, prose, run, stdout_of};

/// A run of three tasks on the tiny model, two contexts and two caches.
fn eval<'a>(corpus: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = [
        "eval",
        "--model",
        model(),
        "--corpus",
        corpus,
        "--task",
        "kl,recall,passkey",
        "--context",
        "700",
        "--depth",
        "0,100",
        "--continuation",
        "10",
        "--cache",
        "hca:25%",
        "--token-offset",
        "0,50",
    ];
    [&args, more].concat()
}

/// What does not depend on the clock.
fn outcomes(rows: &[Value]) -> Vec<String> {
    let fields = ["task", "sample", "cache", "inputs", "outcome", "memory", "rows_read"];
    rows.iter().map(|row| fields.map(|field| row[field].to_string()).join(" ")).collect()
}

fn rows(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn new_file(name: &str) -> String {
    let path = file(name, "");
    std::fs::remove_file(&path).unwrap();
    path
}

#[test]
fn a_run_that_is_killed_goes_on() {
    let corpus = file("killed.txt", &prose(900));
    let whole = new_file("whole.jsonl");
    stdout_of(&eval(&corpus, &["--out", &whole]));
    let whole = rows(&whole);
    assert_eq!(whole.len(), 2 * (2 + 2 + 2), "caches times samples");
    let path = new_file("killed.jsonl");
    let mut num_cut = 0;
    for milliseconds in [5, 40, 80, 120, 160, 200] {
        let mut child = program(&eval(&corpus, &["--out", &path]));
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        num_cut += usize::from(!child.wait().unwrap().success());
    }
    assert!(num_cut > 0, "the first of them at least was cut off");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let before: Vec<&str> =
        before.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
    let table = stdout_of(&eval(&corpus, &["--out", &path]));
    let after = std::fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&before.concat()), "what was finished is left as it is");
    assert_eq!(outcomes(&rows(&path)), outcomes(&whole));
    // Nothing is left to do: the same tables, and not a byte more.
    assert_eq!(stdout_of(&eval(&corpus, &["--out", &path])), table);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
    // Another cache is measured beside those that are there.
    stdout_of(&eval(&corpus, &["--out", &path, "--cache", "keys=lm4"]));
    assert_eq!(rows(&path).len(), 3 * 6);
}

#[test]
fn tables_count_every_sample_once() {
    let corpus = file("counted.txt", &prose(900));
    let args = ["eval", "--model", model(), "--corpus", &corpus, "--cache", "hca:25%", "--task"];
    let lengths =
        ["kl,passkey", "--context", "500,600", "--continuation", "10", "--depth", "33.3,33.4"];
    let table = stdout_of(&[&args[..], &lengths].concat());
    for heading in [
        "kl, 500 tokens: 1 sample, 10 steps",
        "kl, 600 tokens: 1 sample, 10 steps",
        "passkey, 500 tokens: 2 samples, 2 answers",
        "passkey, 600 tokens: 2 samples, 2 answers",
    ] {
        assert!(table.contains(heading), "{heading:?} is not in\n{table}");
    }
    for twice in [["--context", "500,500"], ["--token-offset", "1,1"], ["--depth", "5,5"]] {
        refuses(&[&args[..], &["kl"], &twice].concat(), &[twice[0], "is given twice"]);
    }
    // Files that overlap are put together once.
    let results = new_file("counted.jsonl");
    stdout_of(&eval(&corpus, &["--out", &results]));
    assert_eq!(stdout_of(&["report", &results, &results]), stdout_of(&["report", &results]));
}

#[test]
fn results_of_something_else_are_left_alone() {
    let corpus = file("alone.txt", &prose(900));
    let letter = file("letter.txt", "Dear Ishmael,\n");
    refuses(&eval(&corpus, &["--out", &letter]), &["letter.txt line 1: ", "expected value"]);
    assert_eq!(std::fs::read_to_string(&letter).unwrap(), "Dear Ishmael,\n");
    refuses(&["report", &letter], &["letter.txt line 1: "]);
    let empty = file("empty.jsonl", "");
    refuses(&["report", &empty], &["empty.jsonl holds no results yet"]);
    refuses(&["report", "nowhere.jsonl"], &["nowhere.jsonl: No such file"]);
    let folder = model();
    refuses(&eval(&corpus, &["--out", folder]), &["is not a regular file"]);
    refuses(&eval(&corpus, &["--write-gate", &letter]), &["letter.txt is no file of figures"]);
    assert_eq!(std::fs::read_to_string(&letter).unwrap(), "Dear Ishmael,\n");
}

#[test]
fn what_a_task_lacks() {
    let eval = ["eval", "--model", model(), "--context", "700", "--task"];
    for task in ["kl", "recall", "longgen"] {
        let parts = [task, " needs a text; give one with --corpus FILE"];
        refuses(&[&eval[..], &[task]].concat(), &parts);
    }
    refuses(&[&eval[..], &["longbench"]].concat(), &["longbench needs", "--longbench"]);
    let parts = ["there is no task `klm`", "niah_multikey_2", "longbench"];
    refuses(&[&eval[..], &["kl,klm"]].concat(), &parts);
    let short = file("short-hay.txt", "Call me Ishmael. Some years ago.");
    let parts = ["short-hay.txt", "the haystack has about", "needle needs 700"];
    refuses(&[&eval[..], &["needle", "--haystack", &short]].concat(), &parts);
    let parts = ["a context of 90 tokens is too short for passkey, which needs "];
    let args = ["eval", "--model", model(), "--context", "90", "--task", "passkey"];
    refuses(&args, &parts);
    let records = file("qasper.jsonl", "{\"input\": \"a\"}\n");
    let parts = ["qasper.jsonl line 1: ", "missing field"];
    refuses(&[&eval[..], &["longbench", "--longbench", &records]].concat(), &parts);
    let corpus = file("twice.txt", &prose(900));
    let twice = ["--cache", "hca:25%", "--cache", "hca:25%", "--corpus", &corpus];
    refuses(&[&eval[..], &["kl"], &twice].concat(), &["--cache hca:25% is given twice"]);
    refuses(&[&eval[..], &["kl,kl", "--corpus", &corpus]].concat(), &["--task kl is given twice"]);
}

#[test]
fn questions_are_asked_and_scored() {
    let args = [
        "eval",
        "--model",
        model(),
        "--context",
        "900",
        "--depth",
        "50",
        "--allow-beyond-trained",
        "--json",
        "--cache",
        "hca:25%",
        "--seed",
        "3",
        "--task",
    ];
    let all = "passkey,needle,multiturn,niah_single_1,niah_multikey_2,niah_multivalue,vt,fwe";
    for chat in [&[][..], &["--chat"]] {
        let rows = json_of(&[&args[..], &[all], chat].concat());
        assert_eq!(rows.len(), 2 * 8);
        for row in &rows {
            let num_tokens = row["num_tokens"].as_u64().unwrap();
            assert!(num_tokens <= 900, "{row}");
            let answers = row["outcome"]["answers"].as_array().unwrap();
            assert_eq!(answers.len(), if row["task"] == "multiturn" { 4 } else { 1 });
            for answer in answers {
                let reply = answer["reply"].as_str().unwrap().to_lowercase();
                let references = answer["references"].as_array().unwrap();
                let found = references.iter().filter(|one| reply.contains(one.as_str().unwrap()));
                let score = found.count() as f64 / references.len() as f64;
                assert_eq!(answer["score"], score, "{answer}");
            }
        }
        assert_eq!(rows[0]["depth"], 0.5);
        let other_seed = json_of(&[&args[..11], &["--seed", "4", "--task", all], chat].concat());
        assert_ne!(rows[0]["inputs"], other_seed[0]["inputs"], "the seed changes nothing");
    }
}

#[test]
fn a_gate_fails_where_a_figure_is_worse() {
    let corpus = file("gate.txt", &prose(900));
    let gate = new_file("gate.json");
    let written = run(&eval(&corpus, &["--write-gate", &gate]));
    assert!(written.status.success());
    assert!(String::from_utf8(written.stderr).unwrap().contains(" figures written to "));
    let held = run(&eval(&corpus, &["--gate", &gate]));
    assert_eq!(held.status.code(), Some(0), "{}", String::from_utf8_lossy(&held.stderr));
    assert!(String::from_utf8(held.stderr).unwrap().ends_with(" figures hold\n"));

    let mut figures: Value =
        serde_json::from_str(&std::fs::read_to_string(&gate).unwrap()).unwrap();
    let all = figures["figures"].as_array_mut().unwrap();
    let is_it = |one: &&mut Value| {
        one["task"] == "recall" && one["cache"] == "hca:25%" && one["figure"] == "kl_mean"
    };
    let one = all.iter_mut().find(is_it).unwrap();
    one["value"] = (one["value"].as_f64().unwrap() / 2.0).into();
    let stricter = file("stricter.json", &figures.to_string());
    let worse = run(&eval(&corpus, &["--gate", &stricter]));
    assert_eq!(worse.status.code(), Some(1));
    let stderr = String::from_utf8(worse.stderr).unwrap();
    assert!(stderr.contains("worse: kl_mean of hca:25% on recall at 700 is "), "{stderr}");
    assert!(stderr.contains("error: 1 of "), "{stderr}");
    // A figure that was not measured does not hold either.
    let fewer =
        ["eval", "--model", model(), "--corpus", &corpus, "--context", "700", "--cache", "hca:25%"];
    let fewer = run(&[&fewer[..], &["--continuation", "10", "--gate", &gate]].concat());
    assert_eq!(fewer.status.code(), Some(1));
    assert!(String::from_utf8(fewer.stderr).unwrap().contains("was not measured"));

    let mut other = eval(&corpus, &["--gate", &gate]);
    other[2] = other_model();
    refuses(&other, &["gate.json are of another model"]);
    refuses(&eval(&corpus, &["--gate", "nowhere.json"]), &["nowhere.json: No such file"]);
    refuses(&eval(&corpus, &["--gate", &corpus]), &["gate.txt is no file of figures"]);
}

#[test]
fn a_report_shows_the_rows() {
    let corpus = file("report.txt", &prose(900));
    let results = new_file("report.jsonl");
    stdout_of(&eval(&corpus, &["--out", &results]));
    let markdown = stdout_of(&["report", &results]);
    for part in ["| hca:25% |", "recall", "passkey"] {
        assert!(markdown.contains(part), "{part:?} is not in\n{markdown}");
    }
    let out = file("report.md", "");
    let output = run(&["report", &results, "--out", &out]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("12 rows in {out}\n"));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), markdown);
    let page = file("report.html", "");
    stdout_of(&["report", &results, "-o", &page]);
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(
        text.to_lowercase().starts_with("<!doctype html>") && text.contains("hca:25%"),
        "{page}"
    );
    refuses(&["report", &results, "-o", &results], &["report.jsonl should end in .html"]);
    refuses(&["report", &results, "-o", "x.pdf"], &["x.pdf should end in .html", ".md"]);
    refuses(&["report", &results, "-o", "no/where.md"], &["cannot write no/where.md"]);
}
