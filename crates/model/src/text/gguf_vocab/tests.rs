//! Vocabularies that contradict themselves, and what the fields mean.

use proptest::prelude::*;

use super::*;
use crate::text::{EncodeOptions, SpecialTokens};

fn strings(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(|&token| token.to_owned()).collect()
}

fn byte_level() -> GgufVocab {
    GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: strings(&["a", "b", "Ġ", "ab", "<|im_end|>", "<tool>", "Ċ", "<|eom|>"]),
        token_types: vec![1, 1, 1, 1, 3, 4, 1, 3],
        merges: strings(&["a b"]),
        bos_id: Some(7),
        eos_id: Some(7),
        ..Default::default()
    }
}

fn sentencepiece() -> GgufVocab {
    GgufVocab {
        model: "llama".to_owned(),
        tokens: strings(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "▁a", "<tool>"]),
        token_types: vec![2, 3, 3, 6, 1, 1, 1, 4],
        scores: vec![0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -1.0, 0.0],
        bos_id: Some(1),
        eos_id: Some(2),
        unk_id: Some(0),
        ..Default::default()
    }
}

/// The error that a change to a good vocabulary brings.
fn broken(vocab: fn() -> GgufVocab, change: impl Fn(&mut GgufVocab)) -> Error {
    let mut vocab = vocab();
    assert!(Tokenizer::from_gguf(&vocab).is_ok());
    change(&mut vocab);
    Tokenizer::from_gguf(&vocab).unwrap_err()
}

const PARSE: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const WHOLE: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

#[test]
fn contradictions_are_errors() {
    let e = broken(byte_level, |v| v.model = "t5".to_owned());
    assert!(matches!(e, Error::UnknownModel { name, .. } if name == "t5"));
    let e = broken(byte_level, |v| v.pre = Some("tekken".to_owned()));
    assert!(matches!(e, Error::UnknownPreTokenizer { name, .. } if name == "tekken"));
    let e = broken(byte_level, |v| v.pre = None);
    assert!(matches!(e, Error::MissingPreTokenizer));
    let e = broken(byte_level, |v| v.tokens.clear());
    assert!(matches!(e, Error::EmptyVocab));
    let e = broken(byte_level, |v| v.tokens[1].clear());
    assert!(matches!(e, Error::EmptyToken { id: 1 }));
    let e = broken(byte_level, |v| v.tokens[2] = "a".to_owned());
    assert!(matches!(e, Error::DuplicateToken { first: 0, second: 2, .. }));
    let e = broken(byte_level, |v| v.token_types.truncate(3));
    assert!(matches!(e, Error::ArrayLength { array: "token_type", expected: 8, actual: 3 }));
    let e = broken(byte_level, |v| v.scores = vec![0.0]);
    assert!(matches!(e, Error::ArrayLength { array: "scores", .. }));
    let e = broken(byte_level, |v| v.token_types[5] = 9);
    assert!(matches!(e, Error::TokenType { id: 5, value: 9 }));
    for merge in ["ab", "a x", "a a", "b a b", "a ", " b", "", "<|im_end|> a"] {
        let e = broken(byte_level, |v| v.merges.push(merge.to_owned()));
        assert!(matches!(e, Error::Merge { index: 1, .. }), "{merge}");
    }
    // Longer than every token: the pair joins to nothing in the vocabulary.
    let e = broken(byte_level, |v| v.merges.push("<tool> <tool>".to_owned()));
    assert!(matches!(e, Error::Merge { .. }));
    for (set, purpose) in [
        ((|v, id| v.bos_id = id) as fn(&mut GgufVocab, Option<u32>), "beginning"),
        (|v, id| v.eos_id = id, "end"),
        (|v, id| v.eot_id = id, "end of turn"),
        (|v, id| v.eom_id = id, "end of message"),
    ] {
        let e = broken(byte_level, |v| set(v, Some(8)));
        assert!(matches!(e, Error::TokenId { purpose: p, id: 8, num_tokens: 8 } if p == purpose));
    }
    let e = broken(byte_level, |v| (v.add_bos, v.bos_id) = (Some(true), None));
    assert!(matches!(e, Error::MissingToken { purpose: "beginning" }));
}

#[test]
fn sentencepiece_contradictions_are_errors() {
    let e = broken(sentencepiece, |v| v.scores.clear());
    assert!(matches!(e, Error::ArrayLength { array: "scores", actual: 0, .. }));
    let e = broken(sentencepiece, |v| v.token_types.clear());
    assert!(matches!(e, Error::ArrayLength { array: "token_type", actual: 0, .. }));
    let e = broken(sentencepiece, |v| v.scores[4] = f32::NAN);
    assert!(matches!(e, Error::Score { id: 4 }));
    let e = broken(sentencepiece, |v| v.tokens[3] = "<0xZZ>".to_owned());
    assert!(matches!(e, Error::ByteToken { id: 3, .. }));
    let e = broken(sentencepiece, |v| v.unk_id = Some(u32::MAX));
    assert!(matches!(e, Error::TokenId { purpose: "unknown", .. }));
    let e = broken(sentencepiece, |v| (v.add_eos, v.eos_id) = (Some(true), None));
    assert!(matches!(e, Error::MissingToken { purpose: "end" }));
}

#[test]
fn control_tokens_only_on_request() {
    let tokenizer = Tokenizer::from_gguf(&byte_level()).unwrap();
    assert_eq!(tokenizer.encode("ab<|im_end|><tool>b", PARSE).unwrap(), [3, 4, 5, 1]);
    // The letters of the control token are not in this vocabulary; the added token always is.
    assert!(matches!(tokenizer.encode("<|im_end|>", PLAIN), Err(Error::NoToken { .. })));
    assert_eq!(tokenizer.encode("a<tool>", PLAIN).unwrap(), [0, 5]);
    assert_eq!(tokenizer.encode("", WHOLE).unwrap(), [0_u32; 0]);
    assert!(tokenizer.is_special(4) && !tokenizer.is_special(5) && !tokenizer.is_special(99));
    assert_eq!(tokenizer.decode(&[3, 4, 5], SpecialTokens::Skip).unwrap(), "ab<tool>");
    assert_eq!(tokenizer.decode(&[3, 4, 2], SpecialTokens::Show).unwrap(), "ab<|im_end|> ");
    let error = tokenizer.decode(&[8], SpecialTokens::Show).unwrap_err();
    assert!(matches!(error, Error::UnknownId { id: 8, num_tokens: 8 }));
}

#[test]
fn end_tokens_are_the_named_and_the_known_ones() {
    let ends = |change: fn(&mut GgufVocab)| {
        let mut vocab = byte_level();
        change(&mut vocab);
        let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
        tokenizer.end_ids().iter().copied().collect::<Vec<u32>>()
    };
    assert_eq!(ends(|_| {}), [4, 7]);
    assert_eq!(ends(|v| (v.eot_id, v.eom_id) = (Some(5), Some(6))), [4, 5, 6, 7]);
    assert_eq!(ends(|v| v.eos_id = None), [4]);
    // A word of the language that happens to be spelled like an end is none.
    assert_eq!(ends(|v| v.token_types[4] = 1), [7]);
}

#[test]
fn what_surrounds_a_text() {
    let around = |change: fn(&mut GgufVocab)| {
        let mut vocab = sentencepiece();
        change(&mut vocab);
        Tokenizer::from_gguf(&vocab).unwrap().encode("a", WHOLE).unwrap()
    };
    assert_eq!(around(|_| {}), [1, 6]);
    assert_eq!(around(|v| v.add_bos = Some(false)), [6]);
    assert_eq!(around(|v| v.add_eos = Some(true)), [1, 6, 2]);
    assert_eq!(around(|v| v.bos_id = None), [6]);
    assert_eq!(around(|v| v.add_space_prefix = Some(false)), [1, 5]);
}

#[test]
fn sentencepiece_bytes_unknowns_and_spaces() {
    let tokenizer = Tokenizer::from_gguf(&sentencepiece()).unwrap();
    assert_eq!(tokenizer.encode("a\n xx a", PARSE).unwrap(), [6, 3, 4, 0, 6]);
    // After a control token the text begins anew, with its space.
    assert_eq!(tokenizer.encode("a</s>a", PARSE).unwrap(), [6, 2, 6]);
    assert_eq!(tokenizer.decode(&[1, 6, 6, 3, 5], SpecialTokens::Skip).unwrap(), "a a\na");
    assert_eq!(tokenizer.bos_token().as_deref(), Some("<s>"));
    assert_eq!((tokenizer.num_tokens(), tokenizer.max_id()), (8, Some(7)));
    assert_eq!(tokenizer.token_id("▁a"), Some(6));
    assert_eq!(tokenizer.token_id("</s>"), Some(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_vocabulary_and_no_text_panics(
        kinds in (prop::sample::select(vec!["gpt2", "llama"]), prop::sample::select(vec!["gpt-2", "smollm", "llama-bpe", "qwen2"])),
        tokens in prop::collection::vec("[ab▁Ġ ]{0,3}|<0x[0-9A-F]{2}>|<[a-b]>", 0..12),
        token_types in prop::collection::vec(1_i32..8, 0..12),
        scores in prop::collection::vec(any::<f32>(), 0..12),
        merges in prop::collection::vec("[abĠ]{0,2} ?[abĠ]{0,2}", 0..4),
        ids in (any::<Option<u8>>(), any::<Option<u8>>(), any::<Option<bool>>()),
        text in "[ab▁ <>\n]{0,12}",
        is_lined_up: bool,
    ) {
        let mut vocab = GgufVocab {
            model: kinds.0.to_owned(),
            pre: Some(kinds.1.to_owned()),
            tokens,
            token_types,
            scores,
            merges,
            bos_id: ids.0.map(|id| u32::from(id % 16)),
            unk_id: ids.1.map(|id| u32::from(id % 16)),
            add_bos: ids.2,
            ..Default::default()
        };
        // Most arrays of chance contradict one another; half of the cases get past that.
        if is_lined_up {
            vocab.tokens.retain(|token| !token.is_empty());
            vocab.tokens.sort();
            vocab.tokens.dedup();
            vocab.token_types = vec![1; vocab.tokens.len()];
            vocab.scores = vec![-1.0; vocab.tokens.len()];
            vocab.merges.clear();
        }
        if let Ok(tokenizer) = Tokenizer::from_gguf(&vocab)
            && let Ok(ids) = tokenizer.encode(&text, WHOLE)
        {
            // What was encoded can be decoded.
            prop_assert!(tokenizer.decode(&ids, SpecialTokens::Show).is_ok());
        }
    }
}
