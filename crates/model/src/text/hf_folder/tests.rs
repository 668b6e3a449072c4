//! Folders made here: what is read from where, and files that contradict themselves.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::text::{EncodeOptions, LeadingSpace, SpecialTokens};

const WHOLE: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

fn good() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"max_length": 1, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": null,
        "added_tokens": [added(3, "<s>", true), added(4, "<|eot_id|>", true), added(9, "<tool>", false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": " ?\\p{L}+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
        ]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                  "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 5}, "merges": [["a", "b"]]},
    })
}

fn load(file: &Value) -> Result<Tokenizer> {
    tokenizer(file.to_string().as_bytes(), [&Value::Null, &Value::Null], &Value::Null)
}

/// The error that a change to a good file brings.
fn broken(change: impl Fn(&mut Value)) -> Error {
    let mut file = good();
    change(&mut file);
    load(&file).unwrap_err()
}

#[test]
fn a_good_file() {
    let tokenizer = load(&good()).unwrap();
    assert_eq!(tokenizer.encode("ab a<|eot_id|><tool>", WHOLE).unwrap(), [3, 2, 5, 0, 4, 9]);
    assert_eq!(tokenizer.decode(&[3, 2, 5, 0, 4, 9], SpecialTokens::Skip).unwrap(), "ab a<tool>");
    assert_eq!((tokenizer.num_tokens(), tokenizer.max_id()), (7, Some(9)));
    assert_eq!(tokenizer.end_ids().iter().copied().collect::<Vec<_>>(), [4]);
    assert_eq!(tokenizer.leading_space(), LeadingSpace::Keep);
    let mut legacy = good();
    legacy["model"]["merges"] = json!(["a b"]);
    legacy["model"].as_object_mut().unwrap().remove("type");
    assert_eq!(load(&legacy).unwrap().encode("ab", WHOLE).unwrap(), [3, 2]);
}

#[test]
fn contradictions_are_errors() {
    let e = broken(|f| f["model"]["type"] = json!("Unigram"));
    assert!(matches!(e, Error::UnknownModel { name, .. } if name == "Unigram"));
    let e = broken(|f| f["model"] = json!(null));
    assert!(matches!(e, Error::UnknownModel { .. }));
    let e = broken(|f| f["model"]["dropout"] = json!(0.1));
    assert!(matches!(e, Error::UnsupportedPart { name, .. } if name == "dropout"));
    let e = broken(|f| f["model"]["end_of_word_suffix"] = json!("</w>"));
    assert!(matches!(e, Error::UnsupportedPart { .. }));
    let e = broken(|f| f["model"]["vocab"] = json!({}));
    assert!(matches!(e, Error::EmptyVocab));
    let e = broken(|f| f["model"]["vocab"]["c"] = json!(1));
    assert!(matches!(e, Error::DuplicateId { id: 1, .. }));
    let e = broken(|f| f["model"]["vocab"][""] = json!(7));
    assert!(matches!(e, Error::EmptyToken { id: 7 }));
    for id in [json!(-1), json!(4_294_967_296_u64), json!("1"), json!(1.5)] {
        let e = broken(|f| f["model"]["vocab"]["c"] = id.clone());
        assert!(matches!(e, Error::Field { .. }), "{id}");
    }
    let wrong =
        [json!("ab"), json!("a c"), json!(["b", "a"]), json!(["a"]), json!(1), json!("a b b")];
    for merge in wrong {
        let e = broken(|f| f["model"]["merges"] = json!([["a", "b"], merge]));
        assert!(matches!(e, Error::Merge { index: 1, .. }), "{merge}");
    }
    let e = broken(|f| f["model"]["unk_token"] = json!("<unk>"));
    assert!(matches!(e, Error::TokenText { purpose: "unknown", .. }));
    let e = broken(|f| f["added_tokens"][1] = added(0, "<|eot_id|>", true));
    assert!(matches!(e, Error::DuplicateId { id: 0, .. }));
    let e = broken(|f| f["added_tokens"][1] = added(8, "a", true));
    assert!(matches!(e, Error::DuplicateToken { first: 0, second: 8, .. }));
    let e = broken(|f| f["added_tokens"][1] = added(8, "<s>", true));
    assert!(matches!(e, Error::DuplicateToken { first: 3, second: 8, .. }));
    let e = broken(|f| f["added_tokens"][1] = added(8, "", true));
    assert!(matches!(e, Error::EmptyToken { id: 8 }));
    let e =
        broken(|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": ""}));
    assert!(matches!(e, Error::UnsupportedPart { part: "normalizer", .. }));
    let e = broken(|f| {
        f["pre_tokenizer"]["pretokenizers"][0] = json!({"type": "FixedLength", "length": 0})
    });
    assert!(matches!(e, Error::UnknownPreTokenizer { name, .. } if name == "FixedLength"));
    let e = broken(|f| f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "("}));
    assert!(matches!(e, Error::Json { .. }));
    let e = broken(|f| f["decoder"] = json!({"type": "WordPiece"}));
    assert!(matches!(e, Error::UnsupportedPart { part: "decoder", .. }));
    let e = broken(|f| f["decoder"] = json!(null));
    assert!(matches!(e, Error::UnsupportedPart { part: "decoder", .. }));
    let e = broken(|f| f["post_processor"] = json!({"type": "Mystery"}));
    assert!(matches!(e, Error::UnsupportedPart { part: "post_processor", .. }));
    let e = broken(|f| {
        f["post_processor"]["processors"][1]["special_tokens"] = json!({"<s>": {"ids": [77]}});
    });
    assert!(matches!(e, Error::TokenId { id: 77, .. }));
    let e = broken(|f| f["post_processor"]["processors"][1]["special_tokens"] = json!({}));
    assert!(matches!(e, Error::Field { .. }));
    for not_a_file in ["", "[]", "null", "{", "7"] {
        let result = tokenizer(not_a_file.as_bytes(), [&Value::Null, &Value::Null], &Value::Null);
        assert!(result.is_err(), "{not_a_file}");
    }
}

#[test]
fn a_word_without_tokens_is_an_error() {
    let error = load(&good()).unwrap().encode("ab xyz", WHOLE).unwrap_err();
    assert!(matches!(error, Error::NoToken { text } if text == "Ġxyz"));
}

#[test]
fn sentencepiece_decoders() {
    let mut file = good();
    file["pre_tokenizer"] = json!(null);
    file["post_processor"] = json!(null);
    file["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    file["model"] = json!({"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "a",
        "vocab": {"a": 0, "▁": 1, "▁a": 2, "<0xC3>": 5, "<0xA9>": 6}, "merges": ["▁ a"]});
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    file["decoder"] = json!({"type": "Sequence", "decoders": [
        replace, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let tokenizer = load(&file).unwrap();
    let ids = tokenizer.encode("a é a", WHOLE).unwrap();
    assert_eq!(ids, [2, 1, 5, 6, 2]);
    assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip).unwrap(), "a é a");

    file["decoder"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"});
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.decode(&[2, 2], SpecialTokens::Skip).unwrap(), "a a");
    // Before the tokens are one text, stripping would mean every token.
    file["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    assert!(matches!(load(&file), Err(Error::UnsupportedPart { part: "decoder", .. })));
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    assert!(matches!(HfText::open(folder.path()), Err(Error::MissingTokenizer { .. })));
    write(TOKENIZER, &good().to_string());
    let text = HfText::open(folder.path()).unwrap();
    assert!(text.chat_templates.is_empty());
    assert_eq!((text.tokenizer.bos_id(), text.tokenizer.eos_id()), (None, None));

    write(
        CONFIG,
        &json!({
            "bos_token": {"content": "<s>", "special": true},
            "chat_template": [
                {"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
        })
        .to_string(),
    );
    write(SPECIAL_MAP, r#"{"eos_token": "b"}"#);
    write(GENERATION, r#"{"eos_token_id": [4, 5]}"#);
    let text = HfText::open(folder.path()).unwrap();
    assert_eq!((text.tokenizer.bos_id(), text.tokenizer.eos_id()), (Some(3), Some(1)));
    assert_eq!(text.tokenizer.bos_token().as_deref(), Some("<s>"));
    assert_eq!(text.tokenizer.end_ids().iter().copied().collect::<Vec<_>>(), [1, 4, 5]);
    assert_eq!(text.chat_templates["tool_use"], "T");

    write(CONFIG, r#"{"chat_template": "C"}"#);
    assert_eq!(HfText::open(folder.path()).unwrap().chat_templates["default"], "C");
    write(TEMPLATE, "J");
    assert_eq!(HfText::open(folder.path()).unwrap().chat_templates["default"], "J");

    write(GENERATION, r#"{"eos_token_id": 99}"#);
    let error = HfText::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::TokenId { purpose: "end", id: 99, .. }));
    write(GENERATION, r#"{"eos_token_id": "x"}"#);
    assert!(matches!(HfText::open(folder.path()), Err(Error::Field { file: GENERATION, .. })));
    write(GENERATION, "{");
    assert!(matches!(HfText::open(folder.path()), Err(Error::Json { file: GENERATION, .. })));
    write(GENERATION, "{}");
    write(CONFIG, r#"{"bos_token": "<nowhere>", "chat_template": 3}"#);
    let error = HfText::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::TokenText { purpose: "beginning", .. }));
}

/// Every place in a JSON value, as pointers.
fn places(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(child, format!("{at}/{key}"), out);
            }
        }
        Value::Array(items) => {
            for (index, child) in items.iter().enumerate() {
                places(child, format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
    out.push(at);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_damaged_file_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..10), 1..4),
        text in "[ab <>ls|\\n]{0,10}",
    ) {
        let values = [
            json!(null), json!(""), json!("a"), json!(0), json!(-1), json!(u64::MAX),
            json!([]), json!({}), json!(true), json!([["a", "b"], ["ab", "ab"]]),
        ];
        let mut file = good();
        for (index, value) in damage {
            let mut pointers = Vec::new();
            places(&file, String::new(), &mut pointers);
            let pointer = &pointers[index.index(pointers.len())];
            *file.pointer_mut(pointer).unwrap() = values[value].clone();
        }
        if let Ok(tokenizer) = load(&file)
            && let Ok(ids) = tokenizer.encode(&text, WHOLE)
        {
            prop_assert!(tokenizer.decode(&ids, SpecialTokens::Show).is_ok());
        }
    }
}

#[test]
fn an_added_token_that_normalizes_to_nothing_is_an_error() {
    let mut file = good();
    file["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    file["added_tokens"][2] = added(9, "  ", false);
    file["added_tokens"][2]["normalized"] = json!(true);
    assert!(matches!(load(&file), Err(Error::EmptyToken { id: 9 })));
    file["normalizer"] = json!(null);
    assert!(load(&file).is_ok());
}
