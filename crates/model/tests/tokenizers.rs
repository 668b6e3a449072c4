//! Every kind of tokenizer against ids by another implementation (`fixtures/tokenizers/make.py`).

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

use heterokv_model::text::{EncodeOptions, GgufVocab, HfText, SpecialTokens, Tokenizer};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Fixture {
    model: String,
    pre: Option<String>,
    tokens: Vec<String>,
    token_types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    unk_id: Option<u32>,
    /// Control tokens in the text are read as such.
    cases: Vec<Case>,
    /// Control tokens in the text are letters.
    plain_cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

impl Fixture {
    fn parse(json: &str) -> Self {
        serde_json::from_str(json).unwrap()
    }

    fn vocab(&self) -> GgufVocab {
        GgufVocab {
            model: self.model.clone(),
            pre: self.pre.clone(),
            tokens: self.tokens.clone(),
            token_types: self.token_types.clone(),
            scores: self.scores.clone(),
            merges: self.merges.clone(),
            bos_id: self.bos_id,
            eos_id: self.eos_id,
            unk_id: self.unk_id,
            ..Default::default()
        }
    }
}

fn fixtures() -> Vec<(&'static str, Fixture)> {
    vec![
        ("gpt2", Fixture::parse(include_str!("fixtures/tokenizers/gpt2.json"))),
        ("smollm", Fixture::parse(include_str!("fixtures/tokenizers/smollm.json"))),
        ("llama-bpe", Fixture::parse(include_str!("fixtures/tokenizers/llama-bpe.json"))),
        ("qwen2", Fixture::parse(include_str!("fixtures/tokenizers/qwen2.json"))),
        ("llama-spm", Fixture::parse(include_str!("fixtures/tokenizers/llama-spm.json"))),
    ]
}

const PARSE: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };

/// Differences, as text, between the ids of a tokenizer and the expected ones.
fn differences(tokenizer: &Tokenizer, cases: &[Case], options: EncodeOptions) -> Vec<String> {
    let ids = |case: &Case| tokenizer.encode(&case.text, options).unwrap();
    let differ = cases.iter().filter(|case| ids(case) != case.ids);
    differ.map(|case| format!("{:?}: {:?} not {:?}", case.text, ids(case), case.ids)).collect()
}

#[test]
fn ids_equal_those_of_another_implementation() {
    for (name, fixture) in fixtures() {
        let tokenizer = Tokenizer::from_gguf(&fixture.vocab()).unwrap();
        assert!(fixture.cases.len() > 50);
        let wrong = differences(&tokenizer, &fixture.cases, PARSE);
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
        let wrong = differences(&tokenizer, &fixture.plain_cases, PLAIN);
        assert!(wrong.is_empty(), "{name}, plain:\n{}", wrong.join("\n"));
    }
}

#[test]
fn another_pre_tokenizer_is_seen() {
    // Each kind's texts tell it apart from every other kind.
    let names = ["gpt-2", "smollm", "llama-bpe", "qwen2"];
    for (name, fixture) in fixtures().into_iter().filter(|(_, fixture)| fixture.pre.is_some()) {
        for other in names.into_iter().filter(|other| Some(*other) != fixture.pre.as_deref()) {
            let vocab = GgufVocab { pre: Some(other.to_owned()), ..fixture.vocab() };
            let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
            let wrong = differences(&tokenizer, &fixture.cases, PARSE);
            assert!(!wrong.is_empty(), "{name} as {other}");
        }
    }
}

#[test]
fn decoding_gives_the_text_back() {
    for (name, fixture) in fixtures() {
        let tokenizer = Tokenizer::from_gguf(&fixture.vocab()).unwrap();
        for case in &fixture.cases {
            // This pre-tokenizer composes characters, which cannot be undone; and a space is put
            // before every part of a SentencePiece text, of which only the first is known.
            let is_changed = case.text.contains('\u{301}') && name == "qwen2"
                || case.text.contains("</s>") && name == "llama-spm"
                || case.text.contains('▁') && name == "llama-spm";
            if is_changed {
                continue;
            }
            let text = tokenizer.decode(&case.ids, SpecialTokens::Show).unwrap();
            assert_eq!(text, case.text, "{name}");
        }
    }
}

#[test]
fn beginning_tokens_by_kind() {
    let whole = EncodeOptions { add_special: true, parse_special: false };
    for (name, fixture) in fixtures() {
        let tokenizer = Tokenizer::from_gguf(&fixture.vocab()).unwrap();
        let ids = tokenizer.encode("x", whole).unwrap();
        let wants_bos = matches!(name, "llama-bpe" | "llama-spm");
        assert_eq!(ids.first() == fixture.bos_id.as_ref(), wants_bos, "{name}");
    }
}

/// The `tokenizer.json` of the same vocabulary.
fn tokenizer_json(name: &str, fixture: &Fixture) -> serde_json::Value {
    let ids = || (0_u32..).zip(&fixture.tokens).zip(&fixture.token_types);
    let added: Vec<_> = ids()
        .filter(|&(_, &kind)| kind == 2 || kind == 3)
        .map(|((id, token), _)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let vocab: serde_json::Map<_, _> =
        ids().map(|((id, token), _)| (token.clone(), json!(id))).collect();
    let split = |pattern: &str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
               "invert": false})
    };
    let byte_level = |use_regex: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
               "use_regex": use_regex})
    };
    let mut merges: Vec<(f32, String, String)> = Vec::new();
    if name == "llama-spm" {
        for ((_, token), _) in ids().filter(|&(_, &kind)| kind == 1) {
            for (cut, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(cut);
                let score = |piece| fixture.scores[vocab[piece].as_u64().unwrap() as usize];
                if vocab.contains_key(left) && vocab.contains_key(right) {
                    merges.push((score(token.as_str()), left.to_owned(), right.to_owned()));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    } else {
        merges.extend(fixture.merges.iter().map(|merge| {
            let (left, right) = merge.split_once(' ').unwrap();
            (0.0, left.to_owned(), right.to_owned())
        }));
    }
    let merges: Vec<_> = merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
    let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let pre_tokenizer = match name {
        "gpt2" => byte_level(true),
        "smollm" => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level(true)]}),
        "llama-bpe" => json!({"type": "Sequence", "pretokenizers": [
            split(words), byte_level(false)]}),
        "qwen2" => json!({"type": "Sequence", "pretokenizers": [
            split(&words.replace("{1,3}", "")), byte_level(false)]}),
        _ => json!(null),
    };
    let is_spm = name == "llama-spm";
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let normalizer = match name {
        "qwen2" => json!({"type": "NFC"}),
        "llama-spm" => json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}),
        _ => json!(null),
    };
    let decoder = if is_spm {
        json!({"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"},
               {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
    } else {
        byte_level(true)
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": is_spm.then_some("<unk>"),
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": is_spm, "byte_fallback": is_spm,
                  "ignore_merges": name == "llama-bpe", "vocab": vocab, "merges": merges},
    })
}

#[test]
fn a_folder_gives_the_same_ids() {
    for (name, fixture) in fixtures() {
        let folder = tempfile::tempdir().unwrap();
        let json = tokenizer_json(name, &fixture).to_string();
        std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        let tokenizer = HfText::open(folder.path()).unwrap().tokenizer;
        let wrong = differences(&tokenizer, &fixture.cases, PARSE);
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
        for case in fixture.cases.iter().filter(|case| !case.text.contains(['▁', '\u{301}'])) {
            if name == "llama-spm" && case.text.contains("</s>") {
                continue;
            }
            let text = tokenizer.decode(&case.ids, SpecialTokens::Show).unwrap();
            assert_eq!(text, case.text, "{name}");
        }
    }
}
