//! Profiles: written and read back to the bit; damaged or foreign ones are typed errors.

use std::path::Path;

use heterokv_cache::{Error, FileKind, KeyMix};
use heterokv_testkit::Inputs;

use super::*;

const KEYS: [&str; 6] = ["f16", "int4-channel/32", "lm3", "pq/2x16", "pq/4x64", "alloc/2"];

fn spec_of(keys: &str) -> String {
    format!("keys={keys},values=int8@host,select=top-k:50,sinks=2,recent=16")
}

/// A profile fitted on some tokens, saved under `folder`.
fn saved(folder: &Path, keys: &str, tokens: &Tokens) -> (Profile, std::path::PathBuf) {
    let cache = tokens.cache(&spec_of(keys), tokens.len, tokens.len);
    let profile = Profile::of(&cache, "model-7").expect("every head has coded");
    let path = folder.join(format!("{}.profile", keys.replace('/', "-")));
    profile.save(&path).expect("a writable folder");
    (profile, path)
}

#[test]
fn a_profile_read_back_attends_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(1, shape(2, 4, 2, 16), 400);
    let other = Tokens::new(2, tokens.shape, 120);
    for keys in KEYS {
        let (profile, path) = saved(folder.path(), keys, &tokens);
        let loaded = Profile::load(&path).unwrap_or_else(|e| panic!("{keys}: {e}"));
        assert_eq!(loaded.format(), Some(keys.parse().unwrap()));
        loaded.check_fingerprint("model-7").expect("the model it was fitted for");
        let run = |profile: &Profile| {
            let mut cache = cache_with(&spec_of(keys), tokens.shape, Some(profile));
            other.fill(&mut cache, 60, 120);
            // With tables at hand a short context is coded too.
            assert!(cache.host_in_use_bytes() > 0, "{keys}");
            assert_eq!(cache.device_in_use_bytes(), cache.device_bytes().total());
            bits(&other.attend(&mut cache, 119))
        };
        assert_eq!(run(&profile), run(&loaded), "{keys}");
        assert!(
            !std::fs::read_dir(folder.path())
                .unwrap()
                .any(|entry| { entry.unwrap().path().extension().is_some_and(|e| e == "partial") })
        );
    }
}

#[test]
fn a_cache_that_has_coded_nothing_has_no_profile() {
    let tokens = Tokens::new(3, shape(1, 1, 1, 16), 300);
    assert!(Profile::of(&tokens.cache("full", 300, 300), "m").is_none());
    assert!(Profile::of(&tokens.cache("keys=lm2", 200, 200), "m").is_none());
}

#[test]
fn a_profile_for_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(4, shape(2, 4, 2, 16), 400);
    let (profile, _) = saved(folder.path(), "lm3", &tokens);
    let mismatch = |result: Result<KvCache, Error>, name: &str| {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, Error::Mismatch { kind: FileKind::Profile, field, .. } if *field == name),
            "{error}"
        );
    };
    for other in [shape(1, 4, 2, 16), shape(2, 4, 4, 16), shape(2, 4, 2, 8)] {
        let config = config(&spec_of("lm3"), other);
        mismatch(KvCache::new(other, config, Level::SCALAR, Some(&profile)), "shape");
    }
    let config = config(&spec_of("lm2"), tokens.shape);
    mismatch(KvCache::new(tokens.shape, config, Level::SCALAR, Some(&profile)), "key format");
    let error = profile.check_fingerprint("model-8").unwrap_err().to_string();
    assert!(error.contains("model-7") && error.contains("model-8"), "{error}");
}

#[test]
fn damaged_files_are_typed_errors() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(5, shape(1, 2, 2, 16), 400);
    let path = folder.path().join("damaged");
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Profile::load(&path)
    };
    for keys in KEYS {
        let (_, good) = saved(folder.path(), keys, &tokens);
        let bytes = std::fs::read(&good).unwrap();
        assert!(load(&bytes).is_ok());
        for len in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            let error = load(&bytes[..len]).unwrap_err();
            assert!(
                matches!(error, Error::FileFormat { kind: FileKind::Profile, .. }),
                "{keys} {len}: {error}"
            );
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(load(&longer).is_err(), "{keys}");
        // Any single byte may be wrong: an error or another profile, never a panic.
        let mut inputs = Inputs::new(6);
        for _ in 0..500 {
            let mut broken = bytes.clone();
            let place = inputs.below(broken.len().min(2000));
            broken[place] ^= 1 << inputs.below(8);
            if let Err(error) = load(&broken) {
                assert!(
                    matches!(error, Error::FileFormat { kind: FileKind::Profile, .. }),
                    "{keys}: {error}"
                );
            }
        }
        for (from, to, reason) in [
            ("\"heterokv_profile\":\"1\"", "\"heterokv_profile\":\"2\"", "version 2"),
            ("\"num_kv_heads\":\"2\"", "\"num_kv_heads\":\"0\"", "not a count"),
            ("\"num_layers\":\"1\"", "\"num_layers\":\"x\"", "not a count"),
            ("\"model\"", "\"m0del\"", "does not say its model"),
            ("\"keys\":\"", "\"keys\":\"\0", "unknown key format"),
        ] {
            let text = String::from_utf8_lossy(&bytes[8..bytes.len().min(4000)]).into_owned();
            assert!(text.contains(from), "{keys}: the header holds {from}");
            let error = load(&replaced(&bytes, from, to)).unwrap_err().to_string();
            // A control character may be refused by the JSON reader first.
            assert!(error.contains(reason) || to.contains('\0'), "{keys}, {to}: {error}");
        }
    }
    let error = Profile::load(&folder.path().join("absent")).unwrap_err();
    assert!(matches!(error, Error::Missing { kind: FileKind::Profile, .. }), "{error}");
}

#[test]
fn only_a_profile_is_replaced_by_a_profile() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(9, shape(1, 2, 2, 16), 400);
    let (profile, path) = saved(folder.path(), "lm2", &tokens);
    profile.save(&path).expect("in place of a profile");
    // Weights of a model are safetensors, too.
    let header =
        br#"{"__metadata__":{"format":"pt"},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    for contents in [&weights[..], b"Call me Ishmael: \"heterokv_profile\""] {
        std::fs::write(&path, contents).unwrap();
        for error in [Profile::check_writable(&path).unwrap_err(), profile.save(&path).unwrap_err()]
        {
            assert!(matches!(error, Error::Occupied { kind: FileKind::Profile, .. }), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), contents);
    }
}

/// Replaces the first `from` by `to`, taking what a longer one needs from the header's padding.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let place = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("found before");
    let mut out = [&bytes[..place], to.as_bytes(), &bytes[place + from.len()..]].concat();
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
        + (to.len() - from.len()) as u64;
    out[..8].copy_from_slice(&header.to_le_bytes());
    out
}

#[test]
fn counts_that_no_model_has_are_refused_at_once() {
    // Formats without tables have no arrays that could be missing.
    let folder = tempfile::tempdir().unwrap();
    for keys in ["f16", "int8-token"] {
        let header = format!(
            "{{\"__metadata__\":{{\"heterokv_profile\":\"1\",\"model\":\"m\",\"keys\":\"{keys}\",\
             \"num_layers\":\"65536\",\"num_kv_heads\":\"65536\",\"head_dim\":\"64\"}}}}"
        );
        let path = folder.path().join("huge");
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, bytes).unwrap();
        let error = Profile::load(&path).unwrap_err();
        assert!(error.to_string().contains("no model's"), "{error}");
    }
}

#[test]
fn files_of_another_kind_or_length_are_refused_with_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(7, shape(1, 2, 2, 16), 400);
    let refused = |path: &Path, parts: &[&str]| {
        let error = Profile::load(path).unwrap_err();
        assert!(matches!(error, Error::FileFormat { kind: FileKind::Profile, .. }), "{error}");
        let error = error.to_string();
        assert!(error.ends_with("; make one with `heterokv profile`"), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
    };
    let path = folder.path().join("model.mix");
    KeyMix::create(&path, "model-7", &tokens.shape, vec!["f16".parse().unwrap(); 2]).unwrap();
    refused(&path, &["model.mix", "it is a mix, which a cache names by keys=mix:FILE"]);
    let not_begun = "it does not begin with the length of a header";
    for text in
        ["", "{}", "a text that is longer than the first look at a file, if not by very much"]
    {
        std::fs::write(&path, text).unwrap();
        refused(&path, &[not_begun]);
    }
    // Much more than could be held, all of it zeros.
    std::fs::File::create(&path).unwrap().set_len(1 << 42).unwrap();
    refused(&path, &[not_begun]);
    std::fs::write(&path, [&(1u64 << 25).to_le_bytes()[..], &[b' '; 200]].concat()).unwrap();
    refused(&path, &["EOF while parsing"]);
    // A header that is right, before too few tables or too many.
    let (_, good) = saved(folder.path(), "lm3", &tokens);
    let len = std::fs::metadata(&good).unwrap().len();
    let file = std::fs::File::options().write(true).open(&good).unwrap();
    for wrong in [len - 2, len + 2, 1 << 42] {
        file.set_len(wrong).unwrap();
        let (found, needed) = (format!("it has {wrong} bytes"), format!("would have {len}"));
        refused(&good, &[&found, &needed]);
    }
    for path in [folder.path(), Path::new("/dev/zero")] {
        let error = Profile::load(path).unwrap_err();
        let is_io = matches!(error, Error::FileIo { kind: FileKind::Profile, .. });
        assert!(is_io && error.to_string().contains("else than a regular file"), "{error}");
    }
}
