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
fn budgets_are_searched_for_and_kept() {
    let (corpus, out) = (file("budgets.txt", &prose(1024)), file("budgets.heads", ""));
    let profile = ["profile", "--heads", "--model", model(), "--corpus", &corpus, "--out", &out];
    let measure = ["--tokens", "900", "--steps", "60"];
    let with_budgets = [&profile[..], &measure, &["--budgets"]].concat();
    let stdout = stdout_of(&with_budgets);
    let line = stdout.lines().rev().nth(1).unwrap();
    assert!(line.contains("; baklava:25% behind 900 tokens, mean over 60 steps"), "{line}");
    assert!(line.ends_with("the best of 5 on this text"), "{line}");
    let weights: Vec<Vec<f64>> =
        serde_json::from_value(kept(&out)["budget_weights"].clone()).unwrap();
    let weights = weights.concat();
    assert!((weights.iter().sum::<f64>() - 2.0).abs() < 1e-9, "{weights:?}");
    // What is printed is what caches do: the same divergence comes of the file by `eval`.
    let number = |word: &str| -> f64 {
        let rest = line.split(word).nth(1).unwrap();
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        rest[..end].parse().unwrap()
    };
    let eval = |cache: &str| -> f64 {
        let rows = crate::fixture::json_of(&[
            "eval",
            "--model",
            model(),
            "--task",
            "kl",
            "--corpus",
            &corpus,
            "--context",
            "900",
            "--continuation",
            "60",
            "--cache",
            cache,
            "--json",
        ]);
        let row = rows.iter().find(|row| row["cache"] == cache).unwrap();
        row["outcome"]["summary"]["kl_mean"].as_f64().unwrap()
    };
    let found = number("a KL of ");
    let by_file = eval(&format!("baklava:25%,heads={out}"));
    assert!((found - by_file).abs() < 1e-5, "{line} {by_file}");
    let equal = eval("snapkv:25%");
    if line.starts_with("by importance") {
        assert!(found < equal && (number("equal budgets ") - equal).abs() < 1e-5, "{line} {equal}");
        assert!(weights.iter().any(|&weight| weight != 1.0), "{weights:?}");
    } else {
        assert!((found - equal).abs() < 1e-5, "{line} {equal}");
        assert_eq!(weights, [1.0, 1.0]);
    }
    assert_eq!(stdout_of(&with_budgets), stdout, "the same text gives the same budgets");

    // Roles are the same without, and no budgets are there.
    stdout_of(&[&profile[..], &measure].concat());
    generate_refuses(
        &["--cache", &format!("baklava:25%,heads={out}")],
        &["which this profile of heads has not", "`heterokv profile --heads --budgets`"],
    );
    let with = |options: &[&str], parts: &[&str]| refuses(&[&profile[..], options].concat(), parts);
    with(&["--ratio", "50"], &["required arguments", "--budgets"]);
    with(&["--budgets", "--ratio", "0"], &["above 0 and up to 100"]);
    with(&["--budgets", "--ratio", "0.1"], &["cannot keep 0.10 %"]);
    refuses(
        &["profile", "--budgets", "--model", model(), "--corpus", &corpus, "--out", &out],
        &["required arguments", "--heads"],
    );
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
