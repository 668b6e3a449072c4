//! `profile --heads`: what it prints and keeps, and what it refuses.

use serde_json::Value;

use crate::bad_input::{generate_refuses, refuses};
use crate::fixture::{file, model, other_model, prose, stdout_of};

/// Heads of each role, as the table has them.
fn counts(stdout: &str) -> Vec<(String, usize)> {
    let rows = stdout.lines().skip(1).take_while(|line| !line.is_empty());
    let row = |line: &str| {
        let (name, count) = line.split_once(' ').unwrap();
        (name.to_owned(), count.trim().parse().unwrap())
    };
    rows.map(row).collect()
}

fn kept(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn heads_are_measured_and_kept() {
    let (corpus, out) = (file("heads.txt", &prose(1024)), file("tiny.heads", ""));
    let profile = ["profile", "--heads", "--model", model(), "--corpus", &corpus, "--out", &out];
    let stdout = stdout_of(&profile);
    let roles = ["anchor", "volatile", "pivot", "satellite"];
    assert_eq!(counts(&stdout).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), roles);
    // Of two layers of one KV head, no head is like another.
    let counted: Vec<usize> = counts(&stdout).into_iter().map(|(_, count)| count).collect();
    assert_eq!((counted[0] + counted[1], &counted[2..]), (2, &[0, 0][..]), "{stdout}");
    let last = stdout.lines().last().unwrap();
    let said = format!(
        "{out}: heads of tiny, measured on a prompt of 924 tokens and 100 steps by its 189 heaviest, "
    );
    assert!(last.starts_with(&said), "{last}");
    let made = kept(&out);
    for (field, value) in [
        ("heterokv_heads", 1),
        ("num_layers", 2),
        ("num_kv_heads", 1),
        ("head_dim", 64),
        ("prompt_tokens", 924),
        ("steps", 100),
        ("top_k", 189),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    assert_eq!(stdout_of(&profile), stdout, "the same text gives the same profile");
    assert_eq!(kept(&out), made);

    // Thresholds that every head keeps, and ones that none does.
    let measure = ["--tokens", "400", "--steps", "20", "--top-k", "50", "--tau-stable"];
    let stable = |tau| stdout_of(&[&profile[..], &measure, &[tau]].concat());
    let anchors = stable("1e-9");
    assert_eq!(counts(&anchors)[0].1, 2, "{anchors}");
    assert!(anchors.contains("0 of 2 KV heads keep all tokens: no ratio of 0.0 % or less"));
    let stabilities = kept(&out)["stability"].clone();
    let volatile = stable("1");
    assert_eq!(counts(&volatile)[1].1, 2, "{volatile}");
    let said = "2 of 2 KV heads keep all tokens: no cache by these roles is smaller than full";
    assert!(volatile.contains(said), "{volatile}");
    assert_eq!(kept(&out)["stability"], stabilities, "thresholds are not what is measured");
    assert_eq!(kept(&out)["weights"], serde_json::json!([[0], [0]]));
    for option in [["--token-offset", "77"], ["--similarity", "steps"]] {
        stdout_of(&[&profile[..], &measure, &["0.5"], &option].concat());
        let same = kept(&out)["stability"] == stabilities;
        assert_eq!(same, option[0] == "--similarity", "{option:?}");
    }
    assert_eq!(kept(&out)["similarity"], "steps");
}

#[test]
fn heads_that_cannot_be_measured() {
    let (corpus, out) = (file("heads-short.txt", &prose(500)), file("never.heads", ""));
    let profile = ["profile", "--heads", "--model", model(), "--corpus", &corpus, "--out", &out];
    let with = |options: &[&str], parts: &[&str]| refuses(&[&profile[..], options].concat(), parts);
    with(&[], &["heads-short.txt has 500 tokens, 1,024 from token 0 are asked for"]);
    with(&["--tokens", "450"], &["550 from token 0 are asked for", "or fewer --tokens"]);
    with(&["--tokens", "1000"], &["1000 tokens of context and 100 behind it", "than the 1024"]);
    let short = ["--tokens", "300"];
    for top_k in ["300", "301", "1000000000000"] {
        let parts = [&format!("a top-k of {top_k}"), "less than the tokens of the prompt"];
        with(&[&short[..], &["--top-k", top_k]].concat(), &parts);
    }
    with(&["--tokens", "3"], &["a top-k of 0", "at least 1"]);
    for tau in ["--tau-stable", "--tau-sim"] {
        for value in ["0", "1.01", "-0.5", "NaN"] {
            let parts = [&tau[2..].replace('-', "_"), "must lie in (0, 1]"];
            with(&[&short[..], &[tau, value]].concat(), &parts);
        }
    }
    with(&["--steps", "0"], &["invalid value '0' for '--steps <N>'"]);
    with(&["--steps", "1023"], &["a top-k of 0"]);
    with(&["--similarity", "never"], &["unknown 'never'; known are prompt and steps"]);
    with(&["--piece", "100"], &["cannot be used with", "--piece"]);
    with(&["--cache", "hca:25%"], &["cannot be used with", "--cache"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "", "nothing was written");
    let tables = ["profile", "--model", model(), "--corpus", &corpus, "--out", &out];
    for option in [
        &["--steps", "9"][..],
        &["--top-k", "9"],
        &["--tau-stable", "0.5"],
        &["--tau-sim", "0.5"],
        &["--similarity", "prompt"],
    ] {
        refuses(&[&tables[..], option].concat(), &["required arguments", "--heads"]);
    }
    refuses(&[&profile[..7], &["nowhere/x"]].concat(), &["head profile nowhere/x: No such file"]);
}

#[test]
fn a_head_profile_takes_no_other_place_and_is_told_apart() {
    let (corpus, out) = (file("heads-kind.txt", &prose(500)), file("kind.heads", ""));
    let measure = ["--corpus", &corpus, "--tokens", "300", "--steps", "10", "--out"];
    let profile = [&["profile", "--heads", "--model", other_model()][..], &measure].concat();
    stdout_of(&[&profile[..], &[&out]].concat());
    let parts = ["cannot write the head profile ", "the file there is something else"];
    refuses(&[&profile[..], &[&corpus]].concat(), &parts);
    let tables = ["profile", "--model", model(), "--corpus", &corpus, "--out", &out];
    refuses(&tables, &["cannot write the profile ", "the file there is something else"]);
    generate_refuses(
        &["--cache", "keys=lm2", "--profile", &out],
        &["kind.heads is damaged or not a profile: it is a head profile, which heads=FILE takes"],
    );
    let spec = format!("keys=mix:{out}");
    generate_refuses(&["--cache", &spec], &["not a mix: it is a head profile"]);
}
