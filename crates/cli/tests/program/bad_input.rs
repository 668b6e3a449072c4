//! Every mistake is one line that names the thing, and exit code 2.

use std::process::Output;

use crate::fixture::{TRAINED_TOKENS, file, model, other_model, prose, run, stdout_of};

/// Runs the program, which must refuse, and looks at the line of the error: the first one it says,
/// unless the fault shows only once the model is running.
#[track_caller]
pub(crate) fn refuses(args: &[&str], parts: &[&str]) {
    is_refusal(run(args), args, parts);
}

/// Looks at what the program said.
#[track_caller]
pub(crate) fn is_refusal(output: Output, args: &[&str], parts: &[&str]) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} printed something");
    let is_error = |line: &&str| line.starts_with("error: ");
    let line = stderr.lines().find(is_error).unwrap_or_else(|| panic!("no error in {stderr}"));
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
}

#[track_caller]
pub(crate) fn generate_refuses(args: &[&str], parts: &[&str]) {
    let all = [&["generate", "--model", model(), "--prompt", "Call me"], args].concat();
    refuses(&all, parts);
}

#[test]
fn unknown_words() {
    refuses(&["gnerate"], &["unrecognized subcommand 'gnerate'"]);
    refuses(&["generate", "--modell", "x"], &["unexpected argument '--modell'"]);
    for (spec, parts) in [
        (
            "hca:12.5%,frobs=1",
            &["unknown option 'frobs' in a cache spec; known are keys, values"][..],
        ),
        ("hcc:12.5%", &["unknown preset 'hcc:12.5%'", "full, hca, hca-rescore"]),
        ("hca:0%", &["unknown amount", "as in hca:12.5%"]),
        ("hca", &["a preset needs a ratio, as in hca:12.5%"]),
        ("full,recent=3", &["full takes no options"]),
    ] {
        generate_refuses(&["--cache", spec], parts);
    }
    generate_refuses(&["--compute", "q4"], &["'q4'", "f32, f16, q8, q8a8"]);
}

#[test]
fn a_ratio_that_no_format_keeps() {
    let parts = ["hca cannot keep 0.50 %", "from 32768 tokens on", "the least it can keep is"];
    generate_refuses(&["--cache", "hca:0.5%"], &parts);
}

#[test]
fn models_that_are_none() {
    refuses(
        &["generate", "--model", "nowhere.gguf", "--prompt", "a"],
        &["there is no model at nowhere.gguf; give a GGUF file or a Hugging Face folder"],
    );
    let text = file("not-a-model.txt", "Call me Ishmael.");
    for command in [&["generate", "--prompt", "a", "--model"][..], &["inspect"]] {
        refuses(&[command, &[&text]].concat(), &["not-a-model.txt", "not a GGUF file"]);
    }
    let parts = ["there is no file or folder llama-9", "known: llama-3-8b"];
    refuses(&["plan", "--model", "llama-9"], &parts);
}

#[test]
fn prompts_that_are_none() {
    let empty = file("empty.txt", "");
    generate_refuses(&["--file", &empty], &["empty.txt is empty; give a file with some text"]);
    for args in [&["--prompt", ""][..], &[], &["--chat"]] {
        let all = [&["generate", "--model", model()], args].concat();
        refuses(&all, &["the prompt is empty; give --prompt TEXT or --file FILE"]);
    }
    generate_refuses(&["--file", "nowhere.txt"], &["cannot read nowhere.txt", "No such file"]);
    let path = file("latin1.txt", "");
    std::fs::write(&path, b"caf\xe9").unwrap();
    generate_refuses(&["--file", &path], &["latin1.txt is not UTF-8 text (byte 3)"]);
}

#[test]
fn longer_than_the_trained_context() {
    let book = file("long.txt", &prose(TRAINED_TOKENS));
    generate_refuses(
        &["--file", &book],
        &[
            "the prompt has 1,031 tokens (1,024 of them from ",
            "long.txt), and up to 256 more may follow",
            "this model was trained for 1,024; use a shorter text",
            "--allow-beyond-trained",
        ],
    );
    generate_refuses(&["--max-tokens", "1018"], &["the prompt has 7 tokens, and up to 1,018 more"]);
    let args = ["generate", "--model", model(), "--max-tokens", "3", "--allow-beyond-trained"];
    stdout_of(&[&args[..], &["--file", &book]].concat());
    let (context, corpus) = (TRAINED_TOKENS.to_string(), file("longer.txt", &prose(1100)));
    refuses(
        &[
            "eval",
            "--model",
            model(),
            "--corpus",
            &corpus,
            "--context",
            &context,
            "--continuation",
            "8",
        ],
        &[
            "kl token 0, 8 steps: 1024 tokens of context and 8 behind it are more than the 1024",
            "--allow-beyond-trained",
        ],
    );
    let profile = file("never-long.profile", "");
    let args = ["--corpus", &corpus, "--tokens", "1100", "--piece", "1025", "--out", &profile];
    refuses(
        &[&["profile", "--model", model()][..], &args].concat(),
        &["1025 tokens of context", "more than the 1024", "--allow-beyond-trained"],
    );
    let mut chat = crate::fixture::program(&["chat", "--model", model(), "--file", &book]);
    let output = chat.stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("(1,024 of them from "));
}

#[test]
fn more_than_the_machine_has() {
    let args = ["--allow-beyond-trained", "--max-tokens", "4_000_000_000"];
    generate_refuses(&args, &["invalid value '4_000_000_000'"]);
    let args = ["--allow-beyond-trained", "--max-tokens", "200000000000"];
    generate_refuses(&args, &["200,000,000,007 tokens are more than can be planned for"]);
    if std::path::Path::new("/proc/meminfo").exists() {
        let args = ["--allow-beyond-trained", "--max-tokens", "4294967000", "--cache", "full"];
        generate_refuses(&args, &["this needs 2.0 TiB of memory", "use a shorter context"]);
    }
}

#[test]
fn a_corpus_that_ends_too_soon() {
    let corpus = file("short.txt", &prose(100));
    let eval = ["eval", "--model", model(), "--corpus", &corpus];
    refuses(
        &[&eval[..], &["--context", "90", "--continuation", "20"]].concat(),
        &["the corpus has 100 tokens, the window of kl needs 111", "context 90 + 21 behind it"],
    );
    refuses(
        &[&eval[..], &["--context", "90", "--continuation", "4", "--task", "recall"]].concat(),
        &["recall repeats context tokens 500..505, but the context has 90"],
    );
    let out = file("never.profile", "");
    refuses(
        &["profile", "--model", model(), "--corpus", &corpus, "--tokens", "1k", "--out", &out],
        &["short.txt has 100 tokens, 1,000 from token 0 are asked for", "or fewer --tokens"],
    );
    let profile = ["profile", "--model", model(), "--corpus", &corpus, "--out", &out];
    let parts = ["100 tokens are too few to fit the tables of", "need 256: 96 are left of them"];
    refuses(&[&profile[..], &["--tokens", "100"]].concat(), &parts);
    let parts = ["need 256: 60 are left of them", "first 4 of every piece of 10", "more tokens"];
    refuses(&[&profile[..], &["--tokens", "100", "--piece", "10"]].concat(), &parts);
    let parts = ["pieces of 4 tokens leave none to fit tables on", "use longer pieces"];
    refuses(&[&profile[..], &["--tokens", "100", "--piece", "4"]].concat(), &parts);
}

#[test]
fn a_ratio_that_the_context_is_too_short_for() {
    let parts = ["hca:12.5% takes ", " % at 7 tokens and keeps 12.5 % from 4,096 tokens on"];
    generate_refuses(&["--strict-ratio"], &parts);
    let corpus = file("strict.txt", &prose(500));
    refuses(
        &[
            "eval",
            "--model",
            model(),
            "--corpus",
            &corpus,
            "--context",
            "400",
            "--continuation",
            "8",
            "--strict-ratio",
        ],
        &["hca:12.5% takes ", " % at 400 tokens"],
    );
}

#[test]
fn settings_out_of_range() {
    generate_refuses(&["--top-p", "1.5"], &["top-p must be above 0 and at most 1, not 1.5"]);
    generate_refuses(&["--max-tokens", "0"], &["invalid value '0' for '--max-tokens"]);
    generate_refuses(&["--threads", "0"], &["invalid value '0' for '--threads"]);
    generate_refuses(&["--stop", ""], &["error: stop string 1 is empty", "give it some text"]);
    generate_refuses(
        &["--temperature", "-1"],
        &["temperature must be finite and at least 0, not -1"],
    );
    let at_least_1 = "expected a whole number of at least 1 (see --help)";
    generate_refuses(&["--top-k", "-1"], &["invalid value '-1' for '--top-k <N>'", at_least_1]);
    generate_refuses(&["--seed", "-1"], &["'--seed <N>'", "from 0 to 18446744073709551615"]);
    generate_refuses(&["--threads", "1000000"], &["'--threads <N>'", "a whole number from 1 to "]);
}

#[test]
fn an_argument_error_is_one_line() {
    for args in [
        &["generate", "--modell", "x"][..],
        &["generate"],
        &["gnerate"],
        &["generate", "--model", "x", "--cache", "hcc:1%"],
        &["eval", "--model", "x", "--task", "klm"],
        &["eval", "--model", "x", "--depth", "101"],
        &["report"],
    ] {
        let stderr = String::from_utf8(run(args).stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.ends_with(" (see --help)\n"), "{stderr}");
    }
}

#[test]
fn options_of_a_corpus_beside_tokens() {
    let ids = file("beside.json", "[1, 2]");
    let eval = ["eval", "--model", model(), "--logits", "--tokens", &ids];
    for option in [
        &["--corpus", "x"][..],
        &["--cache", "full"],
        &["--task", "kl"],
        &["--out", "x"],
        &["--gate", "x"],
        &["--context", "9"],
        &["--continuation", "9"],
        &["--token-offset", "9"],
        &["--profile", "x"],
        &["--strict-ratio"],
    ] {
        refuses(&[&eval[..], option].concat(), &["cannot be used with", option[0]]);
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_not_read() {
    let zeros = "/dev/zero";
    generate_refuses(&["--file", zeros], &["/dev/zero is not a regular file"]);
    for command in ["eval", "profile"] {
        let args = [command, "--model", model(), "--corpus", zeros];
        let out = if command == "profile" { &["--out", "never.profile"][..] } else { &[] };
        refuses(&[&args[..], out].concat(), &["/dev/zero is not a regular file"]);
    }
    let parts = ["profile /dev/zero: ", "else than a regular file"];
    generate_refuses(&["--cache", "keys=lm2", "--profile", zeros], &parts);
    for command in
        [&["generate", "--prompt", "a", "--model"][..], &["inspect"], &["plan", "--model"]]
    {
        refuses(&[command, &[zeros]].concat(), &["/dev/zero is ", "regular file", "give "]);
    }
}

#[test]
fn texts_too_large_to_fit_are_refused_unread() {
    // Nothing is ever written to them: a text of zeros costs no disk.
    let sparse = |name: &str, len: u64| {
        let path = file(name, "");
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        path
    };
    // The longest of the tiny model's tokens is `<|start|>`.
    let most = 1024 * 9 * 4;
    generate_refuses(
        &["--file", &sparse("large.txt", most + 1)],
        &[
            "large.txt takes 36.0 KiB, and the 1,024 tokens that this model was trained for cannot hold",
        ],
    );
    generate_refuses(&["--file", &sparse("at-most.txt", most)], &["the prompt has 36,871 tokens"]);
    let huge = sparse("huge.txt", (1 << 30) + 1);
    let parts = ["huge.txt takes 1.0 GiB, more than the 1.0 GiB that a text may"];
    generate_refuses(&["--allow-beyond-trained", "--file", &huge], &parts);
    refuses(&["eval", "--model", model(), "--corpus", &huge], &parts);
    std::fs::remove_file(huge).unwrap();
}

#[test]
fn a_profile_that_cannot_be_written_or_used() {
    let corpus = file("unwritten.txt", &prose(400));
    let profile = ["profile", "--model", "nowhere", "--corpus", &corpus, "--out"];
    let missing = format!("{corpus}.d/x");
    refuses(&[&profile[..], &[&missing]].concat(), &[&missing, "No such file"]);
    let folder = model();
    refuses(&[&profile[..], &[folder]].concat(), &["something else than a regular file"]);

    let out = file("unused.profile", "");
    let args = ["--corpus", &corpus, "--tokens", "400", "--cache", "keys=pq/4x16", "--out", &out];
    stdout_of(&[&["profile", "--model", model()][..], &args].concat());
    let args = ["--corpus", &corpus, "--cache", "keys=int4-token", "--out", &out];
    let parts = ["keys=int4-token has no tables and needs no profile", "keys=pq/2x256"];
    refuses(&[&["profile", "--model", model()][..], &args].concat(), &parts);
    let missing = ["--profile", "nowhere.profile", "--cache", "keys=pq/4x16"];
    let parts = ["there is no profile nowhere.profile", "make one with `heterokv profile`"];
    generate_refuses(&missing, &parts);
    let parts = ["full codes no keys and takes no profile"];
    generate_refuses(&["--profile", &out, "--cache", "full"], &parts);
    let parts = ["unwritten.txt is damaged or not a profile", "make one with `heterokv profile`"];
    generate_refuses(&["--profile", &corpus, "--cache", "keys=pq/4x16"], &parts);
}

#[test]
fn a_mix_that_cannot_be_made() {
    let corpus = file("unmixed.txt", &prose(500));
    let out = file("unmixed.mix", "");
    let mix = ["mix", "--model", model(), "--corpus", &corpus, "--context", "400", "--bits"];
    let refused = |args: &[&str], parts: &[&str]| refuses(&[&mix[..], args].concat(), parts);
    refused(&["2.25", "--out", &format!("{corpus}.d/x")], &["mix ", "No such file"]);
    refused(&["2.25", "--out", model()], &["something else than a regular file"]);
    let comma = format!("{corpus},mix");
    refused(&["2.25", "--out", &comma], &["it has a comma", "give the file another name"]);
    let range = ["expected a number of bits above 0 and up to 64, such as 2.25"];
    refused(&["0", "--out", &out], &range);
    refused(&["65", "--out", &out], &range);
    refused(&["2", "--out", &out, "--formats", "alloc/99"], &["unknown key format 'alloc/99'"]);
    refused(&["2", "--out", &out, "--formats", "int4-token/128"], &["groups of 128 channels"]);
    refused(
        &["0.7", "--out", &out],
        &["--bits 0.7 is less than the smallest of the formats takes: 0.79", "at 400 tokens"],
    );
    refused(
        &["2.25", "--out", &out, "--token-offset", "50"],
        &["has 500 tokens, 464 from token 50 are asked for", "text or a lower --token-offset"],
    );
    let long = file("long-mix.txt", &prose(TRAINED_TOKENS + 64));
    let context = TRAINED_TOKENS.to_string();
    let args = ["--bits", "3", "--out", &out, "--corpus", &long, "--context", &context];
    let parts = ["1024 tokens of context and 64 behind it are more", "--allow-beyond-trained"];
    refuses(&[&["mix", "--model", model()][..], &args].concat(), &parts);
    let args = ["--corpus", &corpus, "--context", "300", "--bits", "4", "--out", &out];
    let parts = [
        "at --context 300; give a longer --context or other --formats",
        "alloc/0.5 needs at least 256 tokens to fit its tables, got 233",
    ];
    let short = [&["mix", "--model", model()][..], &args].concat();
    refuses(&short, &parts);
    let stderr = String::from_utf8(run(&short).stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "no model was loaded before: {stderr}");
    let args = ["--corpus", &corpus, "--context", "67", "--bits", "20", "--out", &out];
    let parts = ["too few to code any", "4 first and 64 recent ones", "use a longer context"];
    let args = [&args[..], &["--formats", "f16", "--steps", "1"]].concat();
    refuses(&[&["mix", "--model", model()][..], &args].concat(), &parts);
    let args = ["--corpus", &corpus, "--context", "0", "--bits", "2", "--out", &out];
    let parts = ["at --context 0; give a longer --context", "too few to code any"];
    refuses(&[&["mix", "--model", model()][..], &args].concat(), &parts);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "", "nothing was written");
}

#[test]
fn files_that_stay() {
    let corpus = file("stays.txt", &prose(500));
    let weights = format!("{}-weights.safetensors", model());
    std::fs::copy(format!("{}/model.safetensors", model()), &weights).unwrap();
    let mix = ["mix", "--context", "400", "--bits", "4"];
    let profile = ["profile", "--tokens", "400", "--cache", "keys=pq/4x16"];
    let with = |command: &[&'static str], out: &str| -> Vec<String> {
        let given = ["--model", model(), "--corpus", &corpus, "--out", out];
        command.iter().chain(&given).map(|word| (*word).to_owned()).collect()
    };
    let made = |command: &[&'static str], out: &str| {
        let args = with(command, out);
        stdout_of(&args.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let refused = |command: &[&'static str], out: &str, reason: &str| {
        let before = std::fs::read(out).unwrap();
        let args = with(command, out);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refuses(&args, &[out, reason, "give another path or remove that file"]);
        assert!(std::fs::read(out).unwrap() == before, "{out} has changed");
    };
    for (command, name) in [(&mix[..], "stays.mix"), (&profile, "stays.profile")] {
        refused(command, &corpus, "the file there is something else");
        refused(command, &weights, "the file there is something else");
        let out = file(name, "");
        let partial = file(&format!("{name}.partial"), "kept");
        made(command, &out);
        made(command, &out);
        assert_eq!(std::fs::read_to_string(&partial).unwrap(), "kept");
        let other = if command == mix { &profile[..] } else { &mix };
        refused(other, &out, "the file there is something else");
        let permissions = std::fs::metadata(&out).unwrap().permissions();
        let mut read_only = permissions.clone();
        read_only.set_readonly(true);
        std::fs::set_permissions(&out, read_only).unwrap();
        refused(command, &out, "the file there is read-only");
        std::fs::set_permissions(&out, permissions).unwrap();
    }
}

#[test]
fn a_mix_of_another_model_or_none() {
    let (corpus, out) = (file("mix-fit.txt", &prose(500)), file("other.mix", ""));
    let args = ["--corpus", &corpus, "--context", "400", "--bits", "4", "--out", &out];
    stdout_of(&[&["mix", "--model", other_model()][..], &args].concat());
    let spec = format!("keys=mix:{out}");
    let parts = ["the mix is for model ", "make one with `heterokv mix`"];
    generate_refuses(&["--cache", &spec], &parts);
    refuses(&["plan", "--model", model(), "--cache", &spec], &parts);
    let args = ["--corpus", &corpus, "--context", "400", "--cache", &spec];
    refuses(&[&["eval", "--model", model(), "--continuation", "8"][..], &args].concat(), &parts);
    let profile = file("never-mixed.profile", "");
    let args = ["--corpus", &corpus, "--tokens", "400", "--cache", &spec, "--out", &profile];
    refuses(&[&["profile", "--model", model()][..], &args].concat(), &parts);
    let parts = ["the mix is for shape 2 layers of 1 KV heads of 64, not 32 layers of 8 KV heads"];
    refuses(&["plan", "--model", "llama-3-8b", "--cache", &spec], &parts);
    stdout_of(&["plan", "--model", other_model(), "--context", "500", "--cache", &spec]);
    generate_refuses(
        &["--cache", "keys=lm2", "--profile", &out],
        &["other.mix", "it is a mix, which"],
    );
    let spec = format!("keys=mix:{corpus}");
    generate_refuses(&["--cache", &spec], &["mix-fit.txt is damaged or not a mix: expected"]);
    generate_refuses(
        &["--cache", "keys=mix:nowhere"],
        &["there is no mix nowhere", "with `heterokv mix`"],
    );
    generate_refuses(&["--cache", "keys=mix:a,b"], &["the path of a file cannot hold one"]);
    #[cfg(unix)]
    generate_refuses(&["--cache", "keys=mix:/dev/zero"], &["else than a regular file"]);
}

#[test]
fn a_folder_without_tokenizer() {
    let folder = format!("{}-without-tokenizer", model());
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{}/{name}", model()), format!("{folder}/{name}")).unwrap();
    }
    let parts = ["-without-tokenizer holds no tokenizer.json; copy it there"];
    refuses(&["generate", "--model", &folder, "--prompt", "a"], &parts);
}

#[test]
fn a_config_that_cannot_be_planned_for() {
    let config = file("config-of-none.json", "{\"architectures\": [\"Nope\"]}");
    refuses(&["plan", "--model", &config], &["cannot plan for ", "config-of-none.json"]);
    generate_refuses(&["--system", "Be brief."], &["required arguments", "were not provided"]);
}

#[test]
fn a_profile_of_another_model_or_format() {
    let (corpus, out) = (file("fit.txt", &prose(400)), file("other.profile", ""));
    stdout_of(&[
        "profile",
        "--model",
        other_model(),
        "--corpus",
        &corpus,
        "--tokens",
        "400",
        "--cache",
        "keys=pq/4x16",
        "--out",
        &out,
    ]);
    generate_refuses(
        &["--profile", &out, "--cache", "keys=pq/4x16"],
        &["the profile is for model ", "make one with `heterokv profile`"],
    );
    refuses(
        &[
            "generate",
            "--model",
            other_model(),
            "--prompt",
            "a",
            "--profile",
            &out,
            "--cache",
            "keys=lm2",
        ],
        &["the profile is for key format pq/4x16, not lm2"],
    );
    generate_refuses(&["--profile", &corpus], &["is damaged or not a profile"]);
}
