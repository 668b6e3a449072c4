//! What the commands print where all is well.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::fixture::{file, json_of, model, program, prose, run, stdout_of};

#[test]
fn generate_is_repeatable_and_counts() {
    let args = [
        "generate",
        "--model",
        model(),
        "--prompt",
        "Call me",
        "--max-tokens",
        "12",
        "--cache",
        "full",
        "--temperature",
        "0.9",
        "--top-k",
        "40",
        "--json",
    ];
    let objects = [json_of(&args), json_of(&args)];
    assert_eq!(objects[0][0]["tokens"], objects[1][0]["tokens"]);
    let object = &objects[0][0];
    let num_tokens = object["tokens"].as_array().unwrap().len();
    assert_eq!(object["generated_tokens"], num_tokens);
    assert!(
        object["finish"] == "max_tokens" && num_tokens == 12 || object["finish"] == "end_token"
    );
    assert_eq!(object["prompt_tokens"], 7);
    assert_eq!(object["host_bytes"], 0);
    assert_eq!(object["device_bytes"], object["device"]["resident"]);
    let seeded = json_of(&[&args[..], &["--seed", "5"]].concat());
    assert_ne!(seeded[0]["tokens"], object["tokens"], "the seed changes nothing");
    assert_eq!(stdout_of(&args[..13]), format!("{}\n", object["text"].as_str().unwrap()));
}

#[test]
fn a_stop_string_ends_the_text() {
    let args =
        ["generate", "--model", model(), "--prompt", "Call me", "--max-tokens", "20", "--json"];
    let whole = json_of(&args).remove(0);
    let text = whole["text"].as_str().unwrap();
    // Any character that is written whole does; the first one would leave nothing to see.
    let (at, stop) = text.char_indices().nth(3).unwrap();
    let at = text.find(stop).unwrap_or(at);
    let stopped = json_of(&[&args[..], &["--stop", &stop.to_string()]].concat()).remove(0);
    assert_eq!(stopped["finish"], "stop_string");
    assert_eq!(stopped["text"], text[..at]);
}

#[test]
fn files_come_before_the_prompt() {
    let (one, two) = (file("one.txt", "Call "), file("two.txt", "me Ish"));
    let generate = ["generate", "--model", model(), "--json", "--max-tokens", "8"];
    let joined = json_of(&[&generate[..], &["--prompt", "Call me Ishmael"]].concat());
    let args = ["--file", &one, "--file", &two, "--prompt", "mael"];
    let apart = json_of(&[&generate[..], &args].concat());
    assert_eq!(apart[0]["prompt_tokens"], 15);
    assert_eq!(apart[0]["tokens"], joined[0]["tokens"]);
    // Control tokens written in a text are letters of it, but part of a conversation.
    let control = json_of(&[&generate[..], &["--prompt", "<|end|>"]].concat());
    assert_eq!(control[0]["prompt_tokens"], 7);
    let chat = json_of(&[&generate[..], &["--prompt", "Hi", "--chat", "--system", "Be"]].concat());
    let rendered = "^system\nBe^\n^user\nHi^\n^assistant\n";
    assert_eq!(chat[0]["prompt_tokens"], rendered.len());
}

#[test]
fn stats_say_where_every_byte_is() {
    let book = file("stats.txt", &prose(900));
    let args = ["generate", "--model", model(), "--file", &book, "--max-tokens", "4", "--cache"];
    let output = run(&[&args[..], &["hca-rescore:25%", "--stats"]].concat());
    let stdout = String::from_utf8(output.stdout).unwrap();
    for line in [
        "device: first tokens, exact",
        "device: recent tokens, exact",
        "device: key codes",
        "device: key tables",
        "device: all",
        "host: values and exact keys",
        "rows read",
        "read from the host",
        "time to first token",
    ] {
        assert!(stdout.contains(line), "{line:?} is not in\n{stdout}");
    }
    assert!(stdout.contains(" %, 25 % from 4,096 tokens"), "{stdout}");
    let first = String::from_utf8(output.stderr).unwrap();
    assert!(first.starts_with("tiny: q8 weights, "), "{first}");
    assert!(first.contains("900 tokens of prompt, cache hca-rescore:25%: "), "{first}");
    let object = json_of(&[&args[..], &["hca-rescore:25%", "--json"]].concat()).remove(0);
    let part = |name: &str| object["device"][name].as_u64().unwrap();
    let sum = part("resident") + part("window") + part("codes") + part("tables");
    assert_eq!(object["device_bytes"], sum);
    assert!(part("codes") > 0 && object["host_bytes"].as_u64().unwrap() > 0);
    assert!(object["rows_read"].as_f64().unwrap() > 0.0);
}

#[test]
fn eval_holds_caches_against_the_full_one() {
    let corpus = file("eval.txt", &prose(1000));
    let profile = file("eval.profile", "");
    let eval = [
        "eval",
        "--model",
        model(),
        "--corpus",
        &corpus,
        "--context",
        "800",
        "--continuation",
        "10",
        "--cache",
        "hca:25%",
        "--cache",
        "full",
        "--cache",
        "keys=pq/4x16",
    ];
    let objects = json_of(&[&eval[..], &["--json", "--token-offset", "100"]].concat());
    let names: Vec<&str> = objects.iter().map(|o| o["cache"].as_str().unwrap()).collect();
    assert_eq!(names, ["full", "hca:25%", "keys=pq/4x16"]);
    for object in &objects {
        assert_eq!(
            (&object["task"], &object["sample"]),
            (&"kl".into(), &"token 100, 10 steps".into())
        );
        let exact = object["cache"] == "full";
        let outcome = &object["outcome"];
        assert_eq!(outcome["summary"]["kl_mean"] == 0.0, exact, "{object}");
        assert_eq!(outcome["summary"]["num_steps"], 10);
        assert_eq!(outcome["steps"]["kl"].as_array().unwrap().len(), 10);
        let memory = object["memory"].as_array().unwrap();
        assert_eq!(memory[0]["num_tokens"], 800);
        assert_eq!(memory.last().unwrap()["num_tokens"], 810);
        assert_eq!(memory[0]["host_bytes"] == 0, exact);
        for field in ["spec", "inputs", "rows_read", "time", "run"] {
            assert!(!object[field].is_null(), "{field} is missing");
        }
        assert_eq!(object["run"]["engine"], "heterokv");
    }
    let table = stdout_of(&[&eval[..], &["--task", "kl,recall"]].concat());
    assert!(table.starts_with("tiny: q8 weights, "), "{table}");
    for heading in ["kl, 800 tokens: 1 sample, 10 steps", "recall, 800 tokens: 1 sample"] {
        assert!(table.contains(heading), "{table}");
    }
    assert_eq!(table.lines().filter(|line| line.starts_with("full ")).count(), 2);
    assert!(table.ends_with("\n* hca:25% keeps 25 % from 4,096 tokens on\n"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("hca:25% ") && line.contains(" %*  ")));

    // Longer than any context of this model, whose pieces are of 1,024 tokens.
    let book = file("eval-book.txt", &prose(2500));
    let args = ["--tokens", "2500", "--cache", "keys=pq/4x16", "--out", &profile];
    let stdout =
        stdout_of(&[&["profile", "--model", model(), "--corpus", &book][..], &args].concat());
    assert!(stdout.contains(", fitted on 2,500 tokens in pieces of 1,024, "), "{stdout}");
    let args = [&eval[..9], &["--cache", "keys=pq/4x16", "--json", "--profile", &profile]].concat();
    let profiled = json_of(&args).remove(1);
    let plain = json_of(&args[..args.len() - 2]).remove(1);
    assert_ne!(profiled["outcome"], plain["outcome"], "the profile changes nothing");
    assert_ne!(profiled["inputs"], plain["inputs"]);
}

#[test]
fn a_mix_is_measured_and_used_by_every_command() {
    let corpus = file("mix.txt", &prose(1000));
    let out = file("tiny.mix", "");
    let measure = ["--corpus", &corpus, "--context", "700", "--steps", "20", "--bits"];
    let mix = [&["mix", "--model", model()][..], &measure, &["8.5", "--out", &out]].concat();
    let stdout = stdout_of(&mix);
    let counts: Vec<usize> = stdout
        .lines()
        .filter(|line| line.starts_with("alloc/"))
        .map(|line| line.split_whitespace().last().unwrap().parse().unwrap())
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 2, "two layers of one head: {stdout}");
    let last = stdout.lines().last().unwrap();
    assert!(last.starts_with(&format!("{out}: keys of ")), "{last}");
    let reached = last.strip_prefix(&format!("{out}: keys of ")).unwrap();
    let reached: f64 = reached.split(' ').next().unwrap().parse().unwrap();
    assert!(reached > 2.0 && reached <= 8.5, "{last}");
    assert!(last.contains(" bits at 700 tokens, tables included, for tiny; "), "{last}");
    let spec = last.split("use with --cache ").nth(1).unwrap();
    assert_eq!(spec, format!("hca,keys=mix:{out}"));
    let file = std::fs::read_to_string(&out).unwrap();
    assert_eq!(stdout_of(&mix), stdout, "the same text gives the same mix");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), file);
    // Other candidates: only these are chosen.
    let few = [&measure[..], &["5", "--formats", "lm4,int4-token", "--out", &out]].concat();
    let stdout = stdout_of(&[&["mix", "--model", model()][..], &few].concat());
    assert!(stdout.contains("\nlm4 ") && !stdout.contains("alloc/"), "{stdout}");

    // Where keys only select, other things count; and so does another text.
    for option in [&["--rescore"][..], &["--token-offset", "100"]] {
        let stdout = stdout_of(&[&mix[..], option].concat());
        let preset = if option.len() == 1 { "hca-rescore" } else { "hca" };
        let end = format!(" for tiny; use with --cache {preset},keys=mix:{out}\n");
        assert!(stdout.ends_with(&end), "{stdout}");
    }
    let eval = ["eval", "--model", model(), "--corpus", &corpus, "--context", "700", "--cache"];
    let object =
        json_of(&[&eval[..], &[spec, "--json", "--continuation", "10"]].concat()).remove(1);
    assert_eq!(object["cache"], spec);
    assert!(object["spec"].as_str().unwrap().starts_with(&format!("keys=mix:{out},values=")));
    assert!(object["outcome"]["summary"]["kl_mean"].as_f64().unwrap() > 0.0);
    // What is planned is what is held, byte for byte.
    let book = crate::fixture::file("mix-book.txt", &prose(700));
    let generate = ["generate", "--model", model(), "--file", &book, "--max-tokens", "1", "--json"];
    let held = json_of(&[&generate[..], &["--cache", spec]].concat()).remove(0);
    let plan = ["plan", "--model", model(), "--context", "700", "--json", "--cache", spec];
    let planned = json_of(&plan).remove(0);
    for part in ["resident", "codes", "tables"] {
        assert_eq!(held["device"][part], planned["device"][part], "{part}");
    }
    assert!(held["device"]["codes"].as_u64().unwrap() > 0);
    // A profile holds the tables of such a cache.
    let profile = crate::fixture::file("mix.profile", "");
    let args = ["--corpus", &corpus, "--tokens", "700", "--cache", spec, "--out", &profile];
    let stdout = stdout_of(&[&["profile", "--model", model()][..], &args].concat());
    assert!(stdout.contains(&format!("tables of mix:{out} for tiny")), "{stdout}");
    let profiled = [&eval[..], &[spec, "--json", "--continuation", "10", "--profile", &profile]];
    assert_eq!(json_of(&profiled.concat()).len(), 2);
}

#[test]
fn eval_prints_logits_of_tokens() {
    let ids: Vec<u32> = (0..60).map(|i| i * 37 % 256).collect();
    let list = serde_json::to_string(&ids).unwrap();
    let paths = [file("list.json", &list), file("object.json", &format!("{{\"ids\":{list}}}"))];
    let reports: Vec<_> = paths
        .iter()
        .map(|path| {
            let args =
                ["eval", "--model", model(), "--compute", "f32", "--logits", "--tokens", path];
            json_of(&[&args[..], &["--rows", "-1,0"]].concat()).remove(0)
        })
        .collect();
    assert_eq!(reports[0], reports[1]);
    assert_eq!(reports[0]["num_tokens"], 60);
    assert_eq!(reports[0]["rows"][0]["row"], 59);
    assert_eq!(reports[0]["rows"][1]["row"], 0);
    let logits: Vec<f64> = serde_json::from_value(reports[0]["rows"][0]["logits"].clone()).unwrap();
    assert_eq!(logits.len(), 259);
    let lse = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    let reported = reports[0]["rows"][0]["logsumexp"].as_f64().unwrap();
    assert!((lse - reported).abs() < 1e-4, "{lse} {reported}");
}

#[test]
fn chat_reads_once_and_answers_every_line() {
    let book = file("chat.txt", &prose(300));
    let mut child = program(&[
        "chat",
        "--model",
        model(),
        "--file",
        &book,
        "--max-tokens",
        "6",
        "--stats",
        "--cache",
        "hca:50%",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    child.stdin.take().unwrap().write_all(b"Who?\n\ncaf\xe9\nAnd then?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let figures = |name: &str| -> Vec<String> {
        let lines = stdout.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line[name.len()..].trim().to_owned()).collect()
    };
    let held: Vec<usize> = figures("tokens in it").iter().map(|n| n.parse().unwrap()).collect();
    assert_eq!(held.len(), 2, "{stdout}");
    assert!(held[1] > held[0]);
    // The question and what the template puts around it: the text is not read again.
    assert!(figures("prompt")[0].starts_with("17 tokens"), "{stdout}");
    assert!(figures("prompt")[1].starts_with("30 tokens"), "{stdout}");
    let opening = String::from_utf8(output.stderr).unwrap();
    assert!(opening.contains("308 tokens of prompt"), "{opening}");
    assert!(opening.contains("this question is not UTF-8 text (byte 3)"), "{opening}");
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let args = ["generate", "--model", model(), "--prompt", "a", "--max-tokens", "1000"];
    let mut child = program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    let help = program(&["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut help = help.unwrap();
    drop(help.stdout.take());
    assert!(help.wait_with_output().unwrap().stderr.is_empty());
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_reply_and_keeps_the_figures() {
    let args = [
        "generate",
        "--model",
        model(),
        "--prompt",
        "a",
        "--max-tokens",
        "1000000",
        "--stats",
        "--cache",
        "keys=lm2",
        "--allow-beyond-trained",
        "--temperature",
        "1",
        "--seed",
        "3",
    ];
    let mut child = program(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(String::from_utf8_lossy(&rest).contains("time to first token"));
}

#[test]
fn inspect_shows_the_model() {
    let stdout = stdout_of(&["inspect", model(), "--tensors"]);
    for part in [
        "architecture   llama",
        "heads          2 query, 1 key-value, 64 wide",
        "context        1,024 tokens",
        "tokenizer      byte-level BPE, 259 tokens",
        "chat template  yes",
        "end tokens     <|end|> (258)",
        "fingerprint    ",
        "model.layers.1.mlp.down_proj.weight",
    ] {
        assert!(stdout.contains(part), "{part:?} is not in\n{stdout}");
    }
    let object = json_of(&["inspect", model(), "--json"]).remove(0);
    assert_eq!(object["tensors"]["F32"]["tensors"], 20);
    assert_eq!(object["fingerprint"].as_str().unwrap().len(), 64);
}

#[test]
fn help_shows_the_grammar() {
    for command in ["generate", "chat", "eval", "plan", "profile", "mix"] {
        let help = stdout_of(&[command, "--help"]);
        assert!(help.contains("SPEC   = PRESET[:R%]") && help.contains("hca-rescore:6.25%"));
    }
}
