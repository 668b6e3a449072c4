//! Sessions over the small Llama fixture: what was read goes on to the bit, and what lies beside the cache is held against
//! the model before anything is made of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use heterokv_cache::{
    CacheConfig, CacheSpec, DiskOptions, KvCache, Level, OsFiles, SavedCache, Store, StoreOptions,
};
use heterokv_model::{Checkpoint, ComputeType, Decoder, Error, HostDecoder, Model, Session};

const PROMPT: [u32; 9] = [3, 9, 4, 17, 11, 5, 5, 20, 1];

struct Place {
    checkpoint: Checkpoint,
    model: Model,
    config: CacheConfig,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(spec: &str) -> Self {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-hf");
        let checkpoint = Checkpoint::open(&fixture).unwrap();
        let model = Model::load(&checkpoint, ComputeType::F32, Level::detect()).unwrap();
        let spec: CacheSpec = spec.parse().unwrap();
        let config = spec.resolve(&model.kv_shape(), None).unwrap();
        Self { checkpoint, model, config, folder: tempfile::tempdir().unwrap() }
    }

    fn open(&self) -> Result<Session, Error> {
        let (shape, folder) = (self.model.kv_shape(), self.folder.path());
        Session::open(
            folder,
            &self.checkpoint,
            &shape,
            &self.config,
            usize::MAX,
            OsFiles::default(),
        )
    }

    /// What a session has of a prompt, and the number of its tokens.
    fn resume(&self, session: &Session, prompt: &[u32]) -> (HostDecoder<'_>, usize) {
        let config = (self.model.kv_shape(), self.config.clone());
        let resumed = session.resume(prompt, config, self.model.level(), None).unwrap();
        let found = resumed.num_tokens;
        (HostDecoder::resume(&self.model, resumed), found)
    }

    /// Reads a prompt and saves it.
    fn save(&self, prompt: &[u32]) {
        let mut session = self.open().unwrap();
        let (mut decoder, found) = self.resume(&session, prompt);
        decoder.feed(&prompt[found..], None).unwrap();
        decoder.save(&mut session, prompt).unwrap();
    }

    /// Saves the cache that is there with other bytes beside it.
    fn change(&self, companion: &[u8]) {
        let mut cache =
            self.saved().load(self.model.kv_shape(), self.config.clone(), self.model.level(), None);
        cache.as_mut().unwrap().save("session", companion).unwrap();
    }

    fn saved(&self) -> SavedCache {
        let options = StoreOptions {
            shape: self.config.store_shape(&self.model.kv_shape()),
            ram_budget_bytes: usize::MAX,
            disk: Some(DiskOptions::new(
                self.folder.path(),
                self.checkpoint.fingerprint().to_string(),
            )),
        };
        SavedCache::open(&Store::open(options).unwrap(), "session").unwrap()
    }
}

fn bits(decoder: &mut HostDecoder<'_>) -> Vec<u32> {
    decoder.logits().unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_session_goes_on_to_the_bit() {
    for spec in ["full", "keys=int4-token,values=int8@host,sinks=1,recent=2,select=none"] {
        let place = Place::new(spec);
        let new = KvCache::new(place.model.kv_shape(), place.config.clone(), Level::detect(), None);
        let mut without = HostDecoder::new(&place.model, new.unwrap());
        without.feed(&PROMPT[..7], None).unwrap();
        place.save(&PROMPT[..7]);
        let session = place.open().unwrap();
        assert_eq!(session.found(&PROMPT).unwrap(), 7);
        let (mut decoder, found) = place.resume(&session, &PROMPT);
        assert_eq!(found, 7);
        assert_eq!(bits(&mut decoder), bits(&mut without), "{spec}");
        for token in [2, 8, 19] {
            decoder.feed(&[token], None).unwrap();
            without.feed(&[token], None).unwrap();
            assert_eq!(bits(&mut decoder), bits(&mut without), "{spec} {token}");
        }
        drop((decoder, session));
        // What it shares with another text, and nothing else of it.
        let other: Vec<u32> = PROMPT[..5].iter().copied().chain([12, 13]).collect();
        let mut session = place.open().unwrap();
        let (mut decoder, found) = place.resume(&session, &other);
        assert_eq!((found, decoder.num_tokens()), (5, 5));
        assert!(
            matches!(decoder.logits(), Err(Error::EmptyPrompt)),
            "of the fifth nothing is known"
        );
        assert!(matches!(decoder.save(&mut session, &other[..5]), Err(Error::EmptyPrompt)));
        decoder.feed(&other[5..], None).unwrap();
        decoder.save(&mut session, &other).unwrap();
        assert_ne!(bits(&mut decoder), bits(&mut without), "{spec}");
        drop((decoder, session));
        assert_eq!(place.open().unwrap().found(&other).unwrap(), 7);
    }
}

#[test]
fn a_text_of_which_more_would_be_lost_than_kept_is_refused() {
    let place = Place::new("full");
    place.save(&PROMPT);
    let session = place.open().unwrap();
    let begins = |common: usize| {
        let mut prompt = PROMPT.to_vec();
        prompt[common] ^= 1;
        session.found(&prompt)
    };
    for common in 0..5 {
        let error = begins(common).unwrap_err();
        let is_told =
            matches!(error, Error::OtherText { common: c, num_tokens: 9, .. } if c == common);
        assert!(is_told, "{error}");
    }
    (5..9).for_each(|common| assert_eq!(begins(common).unwrap(), common));
}

#[test]
fn what_is_refused_loses_nothing_and_goes_on_from_the_same_session() {
    let place = Place::new("full");
    place.save(&PROMPT);
    let session = &mut place.open().unwrap();
    let config = |spec: &str| {
        let spec: CacheSpec = spec.parse().unwrap();
        (place.model.kv_shape(), spec.resolve(&place.model.kv_shape(), None).unwrap())
    };
    let level = Level::detect();
    let of_text = session.resume(&[4, 4, 4], config("full"), level, None).unwrap_err();
    assert!(matches!(of_text, Error::OtherText { common: 0, num_tokens: 9, .. }), "{of_text}");
    let of_cache = session.resume(&PROMPT, config("keys=lm2"), level, None).unwrap_err();
    assert!(matches!(of_cache, Error::Session { .. }), "{of_cache}");
    // Twice: neither a refusal nor a cache that was given out takes it.
    for _ in 0..2 {
        let (mut decoder, found) = place.resume(session, &PROMPT);
        assert_eq!((found, decoder.num_tokens()), (9, 9));
        decoder.logits().unwrap();
    }
    // What was read without the session is not saved in it.
    let cache = KvCache::new(place.model.kv_shape(), config("full").1, level, None).unwrap();
    let mut decoder = HostDecoder::new(&place.model, cache);
    decoder.feed(&[4, 4, 4], None).unwrap();
    let error = decoder.save(session, &[4, 4, 4]).unwrap_err();
    assert!(matches!(&error, Error::OtherSession { path } if path == place.folder.path()));
    assert_eq!(session.found(&PROMPT).unwrap(), 9);
}

#[test]
fn a_session_is_what_was_saved_in_it_last() {
    let place = Place::new("full");
    let mut session = place.open().unwrap();
    for (text, found) in [(&PROMPT[..5], 0), (&PROMPT[..], 5)] {
        let (mut decoder, num_tokens) = place.resume(&session, text);
        assert_eq!(num_tokens, found);
        decoder.feed(&text[found..], None).unwrap();
        decoder.save(&mut session, text).unwrap();
        let logits = bits(&mut decoder);
        let (mut decoder, num_tokens) = place.resume(&session, text);
        assert_eq!((num_tokens, bits(&mut decoder)), (text.len(), logits));
    }
    let shared = [&PROMPT[..4], &[0]].concat();
    let error = session.found(&shared).unwrap_err();
    assert!(matches!(error, Error::OtherText { common: 4, num_tokens: 9, .. }), "{error}");
}

#[test]
fn a_cache_of_one_session_is_not_saved_in_another() {
    let [one, other] = ["full", "full"].map(Place::new);
    let [mut session_of_one, mut session_of_other] = [&one, &other].map(|at| at.open().unwrap());
    let (mut decoder, _) = one.resume(&session_of_one, &PROMPT);
    decoder.feed(&PROMPT, None).unwrap();
    let error = decoder.save(&mut session_of_other, &PROMPT).unwrap_err();
    assert!(matches!(&error, Error::OtherSession { path } if path == other.folder.path()));
    for session in [&session_of_one, &session_of_other] {
        assert_eq!(session.found(&PROMPT).unwrap(), 0, "nothing was saved in either");
    }
    decoder.save(&mut session_of_one, &PROMPT).unwrap();
    drop((decoder, session_of_one, session_of_other));
    assert_eq!([one, other].map(|at| at.open().unwrap().found(&PROMPT).unwrap()), [9, 0]);
}

#[test]
fn what_lies_beside_the_cache_is_checked() {
    let place = Place::new("full");
    place.save(&PROMPT);
    let whole = place.saved().companion().to_vec();
    let refused = |bytes: &[u8], part: &str| {
        place.change(bytes);
        let error = in_one_line(place.open().unwrap_err());
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    };
    for len in 0..whole.len() {
        refused(&whole[..len], "damaged");
    }
    refused(&[&whole[..], &[0; 4]].concat(), "damaged");
    let len = u32::from_le_bytes(whole[..4].try_into().unwrap()) as usize;
    let header = String::from_utf8(whole[4..4 + len].to_vec()).unwrap();
    let with_header = |from: &str, to: &str| {
        let changed = header.replace(from, to);
        assert_ne!(changed, header);
        let len = (changed.len() as u32).to_le_bytes();
        [&len[..], changed.as_bytes(), &whole[4 + header.len()..]].concat()
    };
    refused(&with_header("\"version\":1", "\"version\":2"), "of version 2, not 1");
    refused(&with_header("\"num_tokens\":9", "\"num_tokens\":18446744073709551615"), "damaged");
    refused(&with_header("\"num_tokens\":9", "\"num_tokens\":8"), "damaged");
    refused(&with_header("\"fingerprint\":\"", "\"fingerprint\":\"f"), "of a model f");
    place.change(&with_header("\"rope\":\"theta ", "\"rope\":\"theta 7"));
    place.open().expect("a fingerprint holds RoPE, however it is written");
    let tokens = 4 + len;
    let changed = |place: usize, word: u32| {
        let mut bytes = whole.clone();
        bytes[place..place + 4].copy_from_slice(&word.to_le_bytes());
        bytes
    };
    refused(&changed(tokens + 4, 24), "a token is none of the vocabulary");
    refused(&changed(tokens + 36, f32::NAN.to_bits()), "hidden state is none of the model's");
    place.change(&whole);
    assert_eq!(place.open().unwrap().found(&PROMPT).unwrap(), 9);
}

/// An error and its causes.
fn in_one_line(error: Error) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}
