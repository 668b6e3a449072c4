//! Our prompts, and those of files.

use super::*;
use crate::task::longbench::prompts::checked;

/// What the one record comes to, by a file of these bytes.
fn by(record: &Value, prompts: &[u8]) -> Result<String> {
    let folder = folder(&[("all.jsonl", lines(std::slice::from_ref(record)))]);
    let file = folder.path().join("prompts.json");
    fs::write(&file, prompts).unwrap();
    let records = folder.path().join("all.jsonl");
    samples_by(Some(&file), &records, &settings(0, 1), 900).map(|samples| seen(&samples[0]))
}

/// What is wrong with a file of these bytes, for a record of qasper.
fn reason_of(prompts: &[u8]) -> String {
    let error = by(&record("qasper", "1"), prompts).unwrap_err();
    let message = error.to_string();
    let Error::BadPrompts { path, reason } = error else { panic!("{message}") };
    assert!(path.ends_with("prompts.json"));
    assert_eq!(message, format!("{}: {reason}", path.display()));
    reason
}

#[test]
fn our_prompts_have_the_form_of_longbench() {
    let all = dataset::all();
    for dataset in all {
        assert_eq!(checked(&dataset.prompt), Ok(()), "{}", dataset.name);
        let (instruction, behind) = dataset.prompt.split_once("{context}").unwrap();
        assert!(!instruction.contains('{') && !instruction.is_empty(), "{}", dataset.name);
        assert!(!behind.replacen("{input}", "", 1).contains(['{', '}']), "{}", dataset.name);
    }
    let with = |is: &dyn Fn(&str) -> bool| -> Vec<&str> {
        all.iter().filter(|dataset| is(&dataset.prompt)).map(|dataset| &*dataset.name).collect()
    };
    assert_eq!(
        with(&|prompt| !prompt.contains("{input}")),
        ["gov_report", "multi_news", "vcsum", "passage_count", "lcc"]
    );
    assert_eq!(
        with(&|prompt| prompt.contains(|letter| ('\u{4E00}'..='\u{9FFF}').contains(&letter))),
        ["multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"]
    );
    // What right answers look like.
    assert_eq!(with(&|prompt| prompt.contains("\"unanswerable\"")), ["qasper"]);
    assert_eq!(with(&|prompt| prompt.contains("\"Paragraph 7\"")), ["passage_retrieval_en"]);
    assert_eq!(with(&|prompt| prompt.contains("段落7")), ["passage_retrieval_zh"]);
}

#[test]
fn prompts_of_a_file_take_the_place_of_ours() {
    let given = json!({
        "qasper": "<{input}> {context} </{input}> {input}?", "trec": "{context}.", "of nothing": "",
    });
    let given = given.to_string();
    let seen = |name: &str| {
        let mut record = record(name, "1");
        record["all_classes"] = json!(["Date"]);
        // Braces of the record are its own.
        record["context"] = json!("A {input}.");
        by(&record, given.as_bytes()).unwrap()
    };
    assert_eq!(seen("qasper"), "[<Who?> A {input}.| </Who?> Who??]");
    assert_eq!(seen("qasper_e"), seen("qasper"));
    assert_eq!(seen("trec"), "A {input}.|.");
}

#[test]
fn a_dataset_without_a_prompt_is_named() {
    let given = br#"{"qasper": "{context}."}"#;
    let error = by(&record("musique", "1"), given).unwrap_err();
    let Error::BadPrompts { path, reason } = error else { panic!("{error}") };
    assert!(path.ends_with("prompts.json"));
    assert_eq!(reason, "it has no prompt for musique, whose records are asked for");
    assert_eq!(by(&record("qasper", "1"), given).unwrap(), "[A whale.|.]");
}

#[test]
fn bad_files_of_prompts_are_errors() {
    let files = [&b""[..], b"[]", b"{", br#"{"qasper": 1}"#, b"{\"qasper\": \"\xE9\"}"];
    for malformed in files {
        let reason = reason_of(malformed);
        assert!(reason.contains(" at line 1 column "), "{reason}");
        assert!(reason.ends_with("it should be a JSON object with a prompt by name of a dataset"));
    }
    let of = |prompt: &str| reason_of(json!({ "qasper": prompt }).to_string().as_bytes());
    assert_eq!(of("{input}"), "the prompt of qasper has {context} 0 times, and needs it once");
    assert_eq!(
        of("{context} {context}?"),
        "the prompt of qasper has {context} 2 times, and needs it once"
    );
    for bare in ["Of {context}", "{context}{input}"] {
        assert_eq!(
            of(bare),
            "the prompt of qasper needs something behind {context}, other than {input} alone"
        );
    }
    // Also that of a dataset without a record here.
    let other = json!({ "qasper": "{context}.", "musique": "?" }).to_string();
    assert!(reason_of(other.as_bytes()).starts_with("the prompt of musique "));

    let folder = folder(&[("all.jsonl", lines(&[record("qasper", "1")]))]);
    let missing = folder.path().join("none.json");
    let error = samples_by(Some(&missing), folder.path(), &settings(0, 1), 900).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == missing), "{error}");
}

proptest! {
    #[test]
    fn any_prompt_is_kept_to_or_an_error(prompt in "(\\PC|\\{context\\}|\\{input\\}){0,12}") {
        let given = json!({ "qasper": prompt }).to_string();
        match by(&record("qasper", "1"), given.as_bytes()) {
            Ok(seen) => {
                prop_assert_eq!(checked(&prompt), Ok(()));
                let filled = prompt.replace("{input}", "Who?").replace("{context}", "A whale.|");
                prop_assert_eq!(seen, format!("[{filled}]"));
            }
            Err(error) => {
                prop_assert!(matches!(error, Error::BadPrompts { .. }), "{}", error);
                prop_assert!(checked(&prompt).is_err());
            }
        }
    }
}
