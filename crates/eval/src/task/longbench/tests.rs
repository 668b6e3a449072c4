//! Small files made here, with a tokenizer whose tokens are bytes, so that every length is known.

mod prompts;

use std::fs;
use std::path::Path;

use heterokv_model::text::{ChatTemplate, GgufVocab, ModelText, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::Metric;
use crate::task::Settings;

const BOS: u32 = 256;

/// A token for every byte, one that begins a text, and a template that writes `[` and `]` around a message.
fn bytes() -> ModelText {
    let mut moved = 0x100_u32..;
    let pieces = (0..=u8::MAX).map(|byte| {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { u32::from(byte) } else { moved.next().unwrap() };
        char::from_u32(code).unwrap().to_string()
    });
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens: pieces.chain(["<s>".to_owned()]).collect(),
        token_types: [vec![1; 256], vec![3]].concat(),
        bos_id: Some(BOS),
        eos_id: Some(BOS),
        add_bos: Some(true),
        ..GgufVocab::default()
    };
    let template = ChatTemplate::new("[{{ messages[0].content }}]").unwrap();
    ModelText { tokenizer: Tokenizer::from_gguf(&vocab).unwrap(), chat_template: Some(template) }
}

fn record(dataset: &str, id: &str) -> Value {
    json!({
        "input": "Who?", "context": "A whale.", "answers": ["Ahab", "the captain"], "length": 2,
        "dataset": dataset, "language": "en", "all_classes": null, "_id": id,
    })
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

/// A folder with these files.
fn folder(files: &[(&str, String)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn settings(seed: u64, num_samples: usize) -> Settings {
    Settings { seed, num_samples, offsets: vec![], num_steps: None, depths: vec![] }
}

fn samples_of(path: &Path, settings: &Settings, context: usize) -> Result<Vec<Sample>> {
    samples_by(None, path, settings, context)
}

/// By the prompts of a file.
fn samples_by(
    prompts: Option<&Path>,
    path: &Path,
    settings: &Settings,
    context: usize,
) -> Result<Vec<Sample>> {
    let text = bytes();
    let prompting = Prompting::chat(&text)?;
    let inputs = Inputs {
        prompting: &prompting,
        corpus: None,
        haystack: None,
        longbench: Some(path),
        longbench_prompts: prompts,
        settings,
    };
    LongBench.samples(&inputs, context)
}

/// Dataset and record.
fn names(samples: &[Sample]) -> Vec<String> {
    let name =
        |Sample { part, name, .. }: &Sample| format!("{}/{name}", part.as_deref().unwrap_or(""));
    samples.iter().map(name).collect()
}

fn question(sample: &Sample) -> &Question {
    match &sample.probe {
        Probe::Questions(questions) if questions.len() == 1 => &questions[0],
        other => panic!("one question, not {other:?}"),
    }
}

/// The text that a model sees, the end of what is cached marked by `|`.
fn seen(sample: &Sample) -> String {
    let text = bytes();
    let prompting = Prompting::plain(&text);
    let decode = |tokens: &[u32]| prompting.decode(tokens).unwrap();
    format!("{}|{}", decode(&sample.context), decode(&question(sample).tokens))
}

fn num_tokens(sample: &Sample) -> usize {
    sample.context.len() + question(sample).tokens.len()
}

/// What reading a file of these bytes brings.
fn error_of(bytes: &[u8]) -> String {
    let folder = folder(&[]);
    let file = folder.path().join("some.jsonl");
    fs::write(&file, bytes).unwrap();
    let error = samples_of(&file, &settings(0, 1), 500).unwrap_err().to_string();
    error.strip_prefix(&file.display().to_string()).unwrap().to_owned()
}

#[test]
fn there_are_21_datasets_as_longbench_has_them() {
    let all = dataset::all();
    assert_eq!(all.len(), 21);
    let mut names: Vec<&str> = all.iter().map(|dataset| &*dataset.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 21);
    for dataset in all {
        assert!([32, 64, 128, 512].contains(&dataset.max_tokens), "{}", dataset.name);
    }
    let with = |is: &dyn Fn(&Dataset) -> bool| -> Vec<&str> {
        all.iter().filter(|dataset| is(dataset)).map(|dataset| &*dataset.name).collect()
    };
    assert_eq!(
        with(&|dataset| !dataset.chat),
        ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]
    );
    assert_eq!(with(&|dataset| dataset.has_classes()), ["trec", "lsht"]);
    assert_eq!(
        with(&|dataset| dataset.max_tokens == 512),
        ["gov_report", "qmsum", "multi_news", "vcsum"]
    );
}

#[test]
fn a_record_becomes_a_context_and_a_question() {
    let folder = folder(&[("multifieldqa_en.jsonl", lines(&[record("multifieldqa_en", "1f")]))]);
    let samples = samples_of(folder.path(), &settings(0, 5), 500).unwrap();
    assert_eq!(names(&samples), ["multifieldqa_en/1f"]);
    assert_eq!((samples[0].length, samples[0].depth), (500, None));
    assert_eq!(
        seen(&samples[0]),
        "[A text follows, and a question about it that has a short answer.\n\nA whale.|\n\nWhat does \
         the text say to this? Write the bare answer.\n\nQuestion: Who?\nAnswer:]"
    );
    let question = question(&samples[0]);
    assert!(question.text.starts_with("What does") && question.text.ends_with("Answer:"));
    assert_eq!(question.references, ["Ahab", "the captain"]);
    assert_eq!((&question.metric, question.max_tokens), (&Metric::QaF1, 64));
    assert!(question.stops.is_empty());
}

#[test]
fn few_shot_records_have_no_template_and_one_line() {
    let mut trec = record("trec", "1");
    trec["all_classes"] = json!(["Date", "Ahab"]);
    // Braces of the record are its own.
    trec["context"] = json!("{input} {context}");
    let mut code = record("lcc", "2");
    code["input"] = json!("");
    let folder = folder(&[("trec.jsonl", lines(&[trec.clone()])), ("lcc.jsonl", lines(&[code]))]);
    let samples = samples_of(folder.path(), &settings(0, 1), 500).unwrap();
    assert_eq!(names(&samples), ["trec/1", "lcc/2"]);
    assert_eq!(samples[0].context[0], BOS);
    assert!(seen(&samples[0]).ends_with("labels.\n\n{input} {context}|\nWho?"));
    let classes = vec!["Date".to_owned(), "Ahab".to_owned()];
    let metric = Metric::FirstLine(Box::new(Metric::Classification { classes }));
    assert_eq!(question(&samples[0]).metric, metric);
    assert_eq!(
        seen(&samples[1]),
        "Go on with this source file by one line.\nA whale.|The line that comes next:\n"
    );
    assert_eq!(question(&samples[1]).metric, Metric::CodeSimilarity);
}

#[test]
fn a_long_prompt_loses_its_middle() {
    let mut long = record("trec", "1");
    long["context"] = json!("0123456789".repeat(20));
    long["all_classes"] = json!(["Date"]);
    let instruction = "i".repeat(87);
    let prompts = json!({ "trec": format!("{instruction}{{context}}\n{{input}}") }).to_string();
    let folder = folder(&[("trec.jsonl", lines(&[long])), ("prompts.json", prompts)]);
    let prompts = folder.path().join("prompts.json");
    let samples = |context| samples_by(Some(&prompts), folder.path(), &settings(0, 1), context);
    let cut = |context| {
        let samples = samples(context).unwrap();
        assert!(num_tokens(&samples[0]) <= context, "{context}");
        seen(&samples[0])
    };
    let whole = format!("{instruction}{}|\nWho?", "0123456789".repeat(20));
    // The mark is no token; the token that begins a text is.
    assert_eq!(cut(whole.len()), whole);
    // 100 tokens at each end: the first, 87 of the instruction, 12 of the text; 95 of the text, 5 of the question.
    let (head, tail) = ("012345678901", "56789".to_owned() + &"0123456789".repeat(9));
    assert_eq!(cut(200), format!("{instruction}{head}{tail}|\nWho?"));
    assert_eq!(cut(201), cut(200));
    // Six at each end leave one of the text, behind the question's five.
    assert_eq!(cut(12), "iiiii9|\nWho?");
    for context in [0, 1, 11] {
        let error = samples(context).unwrap_err();
        let needed = matches!(error, Error::ShortTaskContext { task: NAME, needed_tokens: 12, .. });
        assert!(needed, "{error}");
    }
}

#[test]
fn a_question_longer_than_half_is_cut_too() {
    let (instruction, behind) = ("i".repeat(39), "b".repeat(19));
    let prompt = format!("{instruction}{{context}}{{input}}{behind}");
    let prompts = json!({ "repobench-p": prompt }).to_string();
    let cut = |text: &str, context| {
        let mut long = record("repobench-p", "1");
        long["context"] = json!(text);
        long["input"] = json!("q".repeat(300));
        let records = lines(&[long]);
        let folder = folder(&[("repobench-p.jsonl", records), ("prompts.json", prompts.clone())]);
        let prompts = folder.path().join("prompts.json");
        let samples = samples_by(Some(&prompts), folder.path(), &settings(0, 1), context);
        samples.map(|samples| seen(&samples[0]))
    };
    // 50 at each end: the first, 39 and 10 of the text; 31 of the input and 19 behind it.
    let tail = "q".repeat(29) + &behind;
    let seen = cut(&"t".repeat(90), 100).unwrap();
    assert_eq!(seen, format!("{instruction}{}|qq{tail}", "t".repeat(10)));
    // The first half goes beyond a short text, into the question.
    let seen = cut("text", 100).unwrap();
    assert_eq!(seen, format!("{instruction}text|{}{tail}", "q".repeat(8)));
    assert!(cut("text", 82).is_ok());
    assert!(matches!(cut("text", 81), Err(Error::ShortTaskContext { needed_tokens: 82, .. })));
}

#[test]
fn the_template_is_counted_too() {
    let mut long = record("hotpotqa", "1");
    long["context"] = json!("捕鯨船".repeat(300));
    let folder = folder(&[("hotpotqa.jsonl", lines(&[long]))]);
    for context in [333, 334, 500, 501, 502, 503, 900] {
        let samples = samples_of(folder.path(), &settings(0, 1), context).unwrap();
        let seen = seen(&samples[0]);
        assert!(num_tokens(&samples[0]) <= context, "{context}");
        // A character that was cut through is left out: at most two bytes at each cut, and an odd one.
        assert!(num_tokens(&samples[0]) + 5 >= context, "{context} {}", num_tokens(&samples[0]));
        assert!(seen.starts_with("[Some passages") && seen.ends_with("Answer:]"), "{seen}");
        assert!(!seen.contains(char::REPLACEMENT_CHARACTER));
    }
    let error = samples_of(folder.path(), &settings(0, 1), 100).unwrap_err();
    let Error::ShortTaskContext { needed_tokens, .. } = error else { panic!("{error}") };
    assert!(samples_of(folder.path(), &settings(0, 1), needed_tokens).is_ok());
    assert!(samples_of(folder.path(), &settings(0, 1), needed_tokens - 1).is_err());
}

#[test]
fn samples_are_drawn_by_seed_without_replacement() {
    let of = |dataset: &str| -> Vec<Value> {
        (0..40).map(|id| record(dataset, &id.to_string())).collect()
    };
    let (qasper, musique) = (of("qasper"), of("musique"));
    let folder = folder(&[
        ("musique.jsonl", lines(&musique)),
        ("qasper.jsonl", lines(&qasper)),
        ("qasper_e.jsonl", lines(&of("qasper_e"))),
        ("notes.jsonl", "not read".to_owned()),
    ]);
    let draw = |seed, num_samples| {
        let samples = samples_of(folder.path(), &settings(seed, num_samples), 900).unwrap();
        names(&samples)
    };
    let drawn = draw(7, 10);
    assert_eq!(drawn.iter().filter(|name| name.starts_with("qasper/")).count(), 10);
    assert_eq!(drawn.iter().filter(|name| name.starts_with("musique/")).count(), 10);
    assert!(drawn[0].starts_with("qasper/"), "in LongBench's order: {drawn:?}");
    let mut distinct = drawn.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 20);
    assert_eq!(draw(7, 10), drawn);
    assert_ne!(draw(8, 10), drawn);
    let more = draw(7, 15);
    assert!(drawn.iter().all(|name| more.contains(name)));
    assert_eq!(draw(7, 100).len(), 80);
    assert!(draw(7, 0).is_empty());

    let reversed: Vec<Value> = musique.iter().rev().cloned().collect();
    fs::write(folder.path().join("musique.jsonl"), lines(&reversed)).unwrap();
    assert_eq!(draw(7, 10), drawn);

    let file = folder.path().join("qasper_e.jsonl");
    let samples = samples_of(&file, &settings(7, 2), 900).unwrap();
    assert!(names(&samples).iter().all(|name| name.starts_with("qasper_e/")));
}

#[test]
fn missing_paths_and_empty_ones() {
    let text = bytes();
    let prompting = Prompting::plain(&text);
    let settings = settings(0, 1);
    let inputs = Inputs {
        prompting: &prompting,
        corpus: None,
        haystack: None,
        longbench: None,
        longbench_prompts: None,
        settings: &settings,
    };
    let error = LongBench.samples(&inputs, 500).unwrap_err();
    assert!(matches!(error, Error::MissingInput { task: NAME, .. }), "{error}");

    let folder = folder(&[("notes.jsonl", lines(&[record("qasper", "1")]))]);
    let error = samples_of(&folder.path().join("none"), &settings, 500).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let error = samples_of(folder.path(), &settings, 500).unwrap_err();
    assert!(matches!(error, Error::NoRecords { .. }), "{error}");
    assert!(error.to_string().contains("narrativeqa.jsonl"), "{error}");
    for nothing in ["", "\n \r\n"] {
        let message = error_of(nothing.as_bytes());
        assert_eq!(
            message,
            " holds nothing for longbench: it should have a JSON object on every line"
        );
    }
    // One empty file among good ones is no good either.
    fs::write(folder.path().join("qasper.jsonl"), lines(&[record("qasper", "1")])).unwrap();
    assert!(samples_of(folder.path(), &settings, 900).is_ok());
    fs::write(folder.path().join("lsht.jsonl"), "").unwrap();
    assert!(samples_of(folder.path(), &settings, 900).is_err());
}

#[test]
fn a_bad_line_is_named_with_its_number() {
    let good = lines(&[record("qasper", "1")]);
    let after = |line: &str| error_of(format!("{good}\n{line}").as_bytes());
    assert_eq!(after(r#"{"input": "#), " line 3: EOF while parsing a value (column 10)");
    assert!(after("[]").starts_with(" line 3: "));
    assert!(after("{}").contains(" line 3: missing field `input`"));
    for field in ["input", "context", "answers", "dataset", "_id"] {
        let mut lacking = record("qasper", "2");
        lacking.as_object_mut().unwrap().remove(field);
        let message = after(&lacking.to_string());
        assert!(message.contains(&format!("line 3: missing field `{field}`")), "{message}");
        let mut wrong = record("qasper", "2");
        wrong[field] = json!(1);
        assert!(after(&wrong.to_string()).contains("line 3: invalid type"), "{field}");
    }
    let mut lacking = record("qasper", "2");
    lacking["answers"] = json!([]);
    assert_eq!(after(&lacking.to_string()), " line 3: `answers` is empty");
    let message = after(&record("quasper", "2").to_string());
    assert!(message.starts_with(" line 3: there is no dataset `quasper`; there are narrativeqa, "));
    assert_eq!(after(&good), " line 3: the `_id` 1 of qasper was there before");
    let message = after(&record("trec", "2").to_string());
    assert_eq!(message, " line 3: `all_classes` has no class, and trec needs them");
    let latin = [good.as_bytes(), b"\xE9"].concat();
    assert_eq!(error_of(&latin), " line 2: its byte 1 is not UTF-8");

    // The same id in two datasets, fields that are not needed, and other ends of lines are good.
    let mut short = record("musique", "1");
    short
        .as_object_mut()
        .unwrap()
        .retain(|field, _| !["length", "language", "all_classes"].contains(&&**field));
    let folder = folder(&[("all.jsonl", format!("{}\r\n{short}", record("qasper", "1")))]);
    let samples = samples_of(&folder.path().join("all.jsonl"), &settings(0, 1), 900).unwrap();
    assert_eq!(names(&samples), ["qasper/1", "musique/1"]);
}

proptest! {
    #[test]
    fn any_bytes_are_samples_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = folder(&[]);
        let file = folder.path().join("some.jsonl");
        fs::write(&file, &bytes).unwrap();
        prop_assert!(samples_of(&file, &settings(0, 1), 500).is_err());
    }

    #[test]
    fn no_prompt_is_longer_than_asked(
        text in "\\PC{0,80}", question in "\\PC{0,40}", context in 0..600_usize, dataset in 0..21_usize,
    ) {
        let mut record = record(&dataset::all()[dataset].name, "1");
        record["context"] = json!(text);
        record["input"] = json!(question);
        record["all_classes"] = json!(["Date"]);
        let folder = folder(&[("all.jsonl", lines(&[record]))]);
        let file = folder.path().join("all.jsonl");
        match samples_of(&file, &settings(0, 1), context) {
            Ok(samples) => prop_assert!(num_tokens(&samples[0]) <= context),
            Err(Error::ShortTaskContext { needed_tokens, .. }) => {
                prop_assert!(needed_tokens > context);
                let samples = samples_of(&file, &settings(0, 1), needed_tokens).unwrap();
                prop_assert!(num_tokens(&samples[0]) <= needed_tokens);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
