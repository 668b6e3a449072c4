//! Mixes: every head has its own format, in bytes, attention, forks and profiles; files are read or refused.

use std::path::Path;

use heterokv_cache::{CachePlan, Error, FileKind, KeyFormat, KeyMix};
use heterokv_testkit::Inputs;

use super::*;

/// Formats of every kind of layout: with tables and without, coded one by one and in groups.
const FORMATS: [&str; 8] =
    ["alloc/1", "alloc/3", "f16", "int2-channel/32", "lm3", "pq/4x16", "int4-token", "alloc/1"];

fn formats(names: &[&str]) -> Vec<KeyFormat> {
    names.iter().map(|name| name.parse().expect("a format")).collect()
}

/// Four layers of two KV heads.
fn mixed_shape(head_dim: usize) -> KvShape {
    shape(4, 4, 2, head_dim)
}

/// A mix of [`FORMATS`] in a file; and the spec that names it.
fn saved(folder: &Path, shape: &KvShape) -> (KeyMix, String) {
    let path = folder.join(format!("{}.mix", shape.heads.head_dim));
    let mix = KeyMix::create(&path, "model-7", shape, formats(&FORMATS));
    let mix = mix.expect("formats of this shape and a writable folder");
    let spec = format!("keys=mix:{},values=int8@host,sinks=2,recent=16", path.display());
    (mix, spec)
}

#[test]
fn a_spec_names_the_file_and_is_written_out_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let shape = mixed_shape(16);
    let (mix, spec) = saved(folder.path(), &shape);
    for preset in ["", "hca,", "hca-rescore,"] {
        let spec = format!("{preset}{spec}");
        let parsed: CacheSpec = spec.parse().unwrap_or_else(|e| panic!("{spec}: {e}"));
        assert_eq!(parsed.to_string(), spec);
        assert!(parsed.promise().is_none());
        let config = parsed.resolve(&shape, None).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let CacheConfig::Hca(hca) = &config else { panic!("not full") };
        assert_eq!(hca.keys, heterokv_cache::Keys::Mix(mix.clone().into()));
        let again: CacheSpec = config.to_string().parse().unwrap();
        assert_eq!(again.resolve(&shape, None).unwrap(), config);
        assert_eq!(parsed.resolve(&shape, Some("model-7")).expect("the model it is for"), config);
        let error = parsed.resolve(&shape, Some("model-8")).unwrap_err();
        assert!(matches!(error, Error::Mismatch { field: "model", .. }), "{error}");
        assert!(error.to_string().contains("mix is for model model-7, not model-8"), "{error}");
    }
    let uniform: CacheSpec = "hca:50%".parse().unwrap();
    uniform.resolve(&shape, Some("any")).expect("a cache for any model");
}

#[test]
fn paths_that_a_spec_cannot_hold_are_refused_with_the_reason() {
    for spec in ["keys=mix:a,b.mix", "hca,keys=mix:a,b.mix,sinks=3", "keys=mix:a,"] {
        let error = spec.parse::<CacheSpec>().unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{spec}: {error:?}");
        assert!(error.to_string().contains("cannot hold one; rename the file"), "{error}");
    }
    let error = "keys=mix:".parse::<CacheSpec>().unwrap_err();
    assert!(error.to_string().contains("keys=mix:FILE"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    for (name, reason) in [
        ("", "it is empty"),
        ("a,b", "it has a comma"),
        ("a ", "it ends in white space"),
        ("a\n", "it ends in white space"),
    ] {
        let path = if name.is_empty() { name.into() } else { folder.path().join(name) };
        let shape = mixed_shape(16);
        for error in [
            KeyMix::create(&path, "m", &shape, formats(&FORMATS)).unwrap_err(),
            KeyMix::check_writable(&path).unwrap_err(),
            KeyMix::load(&path).unwrap_err(),
        ] {
            assert!(matches!(error, Error::MixPath { .. }), "{name:?}: {error}");
            assert!(error.to_string().contains(reason), "{name:?}: {error}");
        }
    }
    for spec in ["hca:25%,keys=mix:x", "full,keys=mix:x", "keys=mix:a=b,keys=f16"] {
        assert!(spec.parse::<CacheSpec>().is_err(), "{spec}");
    }
    let spec: CacheSpec = "keys=mix:no such file".parse().unwrap();
    let error = spec.resolve(&mixed_shape(16), None).unwrap_err();
    assert!(matches!(error, Error::Missing { kind: FileKind::Mix, .. }), "{error}");
    let said =
        "there is no mix no such file, which keys=mix:FILE asks for; make one with `heterokv mix`";
    assert_eq!(error.to_string(), said);
}

#[test]
fn a_mix_takes_what_the_plan_says_and_every_head_what_its_format_takes() {
    let folder = tempfile::tempdir().unwrap();
    for head_dim in [16, 80] {
        let shape = mixed_shape(head_dim);
        let (_, spec) = saved(folder.path(), &shape);
        let tokens = Tokens::new(1, shape, 700);
        let mixed = config(&spec, shape);
        for len in [0, 1, 2, 17, 18, 49, 50, 145, 273, 274, 306, 400, 529, 530, 700] {
            let cache = tokens.cache(&spec, len, len);
            let plan = CachePlan::new(&mixed, &shape, len).expect("a plan");
            let found = (cache.device_bytes(), cache.host_in_use_bytes());
            assert_eq!(found, (plan.device, plan.host_bytes), "{head_dim} {len}");
            assert_eq!(cache.device_in_use_bytes(), plan.device.total());
            // A head costs the same whoever its neighbours are.
            let mut sum = (0, 0);
            for name in FORMATS {
                let uniform =
                    spec.replace(&spec[..spec.find(',').unwrap()], &format!("keys={name}"));
                let one_head = super::shape(1, 2, 1, head_dim);
                let plan = CachePlan::new(&config(&uniform, one_head), &one_head, len).unwrap();
                sum = (sum.0 + plan.device.total(), sum.1 + plan.host_bytes);
            }
            assert_eq!(sum, (plan.device.total(), plan.host_bytes), "{head_dim} {len}");
        }
    }
}

#[test]
fn every_head_attends_as_under_its_own_format() {
    let folder = tempfile::tempdir().unwrap();
    let shape = mixed_shape(16);
    let (mix, spec) = saved(folder.path(), &shape);
    let tokens = Tokens::new(3, shape, 420);
    let rest = &spec[spec.find(',').unwrap()..];
    // From a prompt, and token by token, where heads begin to code at different lengths.
    for prompt in [0, 400] {
        let mut mixed = tokens.cache(&spec, prompt, 419);
        let mut fork = mixed.fork().expect("memory");
        let out = tokens.attend(&mut mixed, 418);
        assert_eq!(bits(&out), bits(&tokens.attend(&mut fork, 418)));
        tokens.append(&mut mixed, 419);
        tokens.append(&mut fork, 419);
        let next = bits(&tokens.attend(&mut mixed, 419));
        assert_eq!(next, bits(&tokens.attend(&mut fork, 419)));
        assert_eq!(fork.config(), mixed.config());
        for name in ["alloc/1", "alloc/3", "f16", "int2-channel/32", "lm3", "pq/4x16", "int4-token"]
        {
            let mut uniform = tokens.cache(&format!("keys={name}{rest}"), prompt, 419);
            let expected = tokens.attend(&mut uniform, 418);
            for (head, format) in formats(&FORMATS).into_iter().enumerate() {
                let group = head * 32..(head + 1) * 32;
                let is_same = bits(&out[group.clone()]) == bits(&expected[group]);
                assert_eq!(is_same, format.to_string() == name, "{name} in head {head}");
            }
        }
        assert_eq!(mix.format(2, 1).to_string(), "pq/4x16");
    }
}

#[test]
fn a_profile_holds_the_tables_of_mixed_formats() {
    let folder = tempfile::tempdir().unwrap();
    let shape = mixed_shape(16);
    let (_, spec) = saved(folder.path(), &shape);
    let tokens = Tokens::new(4, shape, 400);
    let profile = Profile::of(&tokens.cache(&spec, 400, 400), "model-7").expect("all have coded");
    assert_eq!(profile.format(), None);
    let path = folder.path().join("mixed.profile");
    profile.save(&path).unwrap();
    let loaded = Profile::load(&path).unwrap();
    let other = Tokens::new(5, shape, 120);
    let run = |profile: &Profile| {
        let mut cache = cache_with(&spec, shape, Some(profile));
        other.fill(&mut cache, 60, 120);
        bits(&other.attend(&mut cache, 119))
    };
    assert_eq!(run(&profile), run(&loaded));
    // A profile of other formats, of one in all heads or of two that changed places, is refused by name.
    let refused = |spec: &str, profile: &Profile, parts: &[&str]| {
        let config = config(spec, shape);
        let error = KvCache::new(shape, config, Level::SCALAR, Some(profile)).unwrap_err();
        assert!(
            matches!(error, Error::Mismatch { kind: FileKind::Profile, field: "key format", .. }),
            "{error}"
        );
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{error}"));
    };
    refused("keys=alloc/1", &loaded, &["alloc/3 in layer 0, KV head 1, not alloc/1 in"]);
    let uniform = Profile::of(&tokens.cache("keys=lm2", 400, 400), "model-7").unwrap();
    refused(&spec, &uniform, &["lm2 in layer 0, KV head 0, not alloc/1 in layer 0"]);
    let mut swapped = formats(&FORMATS);
    swapped.swap(4, 6);
    let path = folder.path().join("swapped.mix");
    KeyMix::create(&path, "model-7", &shape, swapped).unwrap();
    refused(&format!("keys=mix:{}", path.display()), &loaded, &["lm3 in layer 2, KV head 0"]);
}

#[test]
fn a_mix_is_read_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mix");
    for fingerprint in ["model-7", "", "quotes \" and \\ and \n", "größer"] {
        let shape = mixed_shape(64);
        let mix = KeyMix::create(&path, fingerprint, &shape, formats(&FORMATS)).unwrap();
        assert_eq!(KeyMix::load(&path).unwrap(), mix);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\n    [\"alloc/1\", \"alloc/3\"],\n"), "a line for each layer: {text}");
    let entries: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(entries.len(), 1, "nothing half written is left");
    let missing = folder.path().join("missing").join("a.mix");
    for error in [
        KeyMix::check_writable(&missing).unwrap_err(),
        KeyMix::check_writable(folder.path()).unwrap_err(),
        KeyMix::load(folder.path()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::FileIo { kind: FileKind::Mix, .. }), "{error}");
    }
    KeyMix::check_writable(&path).expect("a file that can be replaced");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "and is left alone");
}

#[test]
fn only_a_mix_or_an_empty_file_is_replaced_by_a_mix() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let create = |path: &Path| KeyMix::create(path, "m", &mixed_shape(16), formats(&FORMATS));
    let refused = |path: &Path, reason: &str| {
        let before = std::fs::read(path).unwrap();
        for error in [KeyMix::check_writable(path).unwrap_err(), create(path).unwrap_err()] {
            assert!(matches!(error, Error::Occupied { kind: FileKind::Mix, .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains(reason), "{error}");
            assert!(error.ends_with("; give another path or remove that file"), "{error}");
        }
        assert_eq!(std::fs::read(path).unwrap(), before);
    };
    for text in ["Call me Ishmael.", "{}", "{\"model\": \"heterokv_mix\"}", "\"heterokv_mix\": 1"] {
        std::fs::write(at("corpus"), text).unwrap();
        refused(&at("corpus"), "the file there is something else");
    }
    let tokens = Tokens::new(8, shape(1, 2, 2, 16), 400);
    let profile = Profile::of(&tokens.cache("keys=lm2", 400, 400), "model-7").unwrap();
    profile.save(&at("profile")).unwrap();
    refused(&at("profile"), "the file there is something else");

    // What a user keeps beside it stays, whatever it is called.
    for name in ["mix.partial", &format!("mix.{}-0.partial", std::process::id())] {
        std::fs::write(at(name), "kept").unwrap();
    }
    std::fs::write(at("mix"), "").unwrap();
    create(&at("mix")).expect("in place of an empty file");
    create(&at("mix")).expect("in place of a mix");
    assert_eq!(std::fs::read_to_string(at("mix.partial")).unwrap(), "kept");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        5,
        "nothing half written is left"
    );

    let mut permissions = std::fs::metadata(at("mix")).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(at("mix"), permissions).unwrap();
    refused(&at("mix"), "the file there is read-only");
}

#[cfg(unix)]
#[test]
fn a_mix_goes_to_where_a_symlink_leads() {
    let folder = tempfile::tempdir().unwrap();
    let (link, file) = (folder.path().join("link"), folder.path().join("file"));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let create = || KeyMix::create(&link, "m", &mixed_shape(16), formats(&FORMATS));
    let error = create().expect_err("it leads nowhere");
    assert!(matches!(error, Error::FileIo { kind: FileKind::Mix, .. }), "{error}");
    std::fs::write(&file, "").unwrap();
    create().expect("it leads to an empty file");
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(KeyMix::load(&file).is_ok());
}

#[test]
fn mixes_that_cannot_be_are_refused() {
    let eight = || formats(&FORMATS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("never.mix");
    let create = |shape, formats| KeyMix::create(&path, "m", &shape, formats);
    let error = create(mixed_shape(16), eight()[1..].to_vec()).unwrap_err();
    assert!(matches!(error, Error::Length { actual: 7, expected: 8, .. }), "{error}");
    assert!(create(mixed_shape(12), eight()).is_err(), "alloc holds no 12 channels");
    let mut none = mixed_shape(16);
    for num_layers in [0, usize::MAX, 40_000] {
        none.num_layers = num_layers;
        let error = create(none, eight()).unwrap_err();
        assert!(matches!(error, Error::HeadCount { .. }), "{error}");
        assert!(error.to_string().contains("give a shape of 1 to 65536 KV heads"), "{error}");
    }
    assert!(!path.exists(), "nothing was written");
    let (_, spec) = saved(folder.path(), &mixed_shape(16));
    let mixed = config(&spec, mixed_shape(16));
    for other in [shape(2, 4, 2, 16), shape(4, 4, 4, 16), mixed_shape(8)] {
        let refused = [
            spec.parse::<CacheSpec>().unwrap().resolve(&other, None).unwrap_err(),
            KvCache::new(other, mixed.clone(), Level::SCALAR, None).unwrap_err(),
            CachePlan::new(&mixed, &other, 100).unwrap_err(),
        ];
        for error in refused {
            assert!(
                matches!(error, Error::Mismatch { kind: FileKind::Mix, field: "shape", .. }),
                "{error}"
            );
            assert!(error.to_string().contains("4 layers of 2 KV heads of 16"), "{error}");
        }
    }
}

#[test]
fn damaged_files_are_typed_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        KeyMix::load(&path)
    };
    KeyMix::create(&path, "model-7", &mixed_shape(16), formats(&FORMATS)).unwrap();
    let good = std::fs::read(&path).unwrap();
    // The last byte is the end of the last line.
    for len in 0..good.len() - 1 {
        let error = load(&good[..len]).unwrap_err();
        assert!(matches!(error, Error::FileFormat { kind: FileKind::Mix, .. }), "{len}: {error}");
    }
    // Any byte may be wrong: an error or another mix, never a panic.
    let mut inputs = Inputs::new(6);
    for _ in 0..2000 {
        let mut broken = good.clone();
        let place = inputs.below(broken.len());
        broken[place] = inputs.below(256) as u8;
        if let Err(error) = load(&broken) {
            assert!(matches!(error, Error::FileFormat { kind: FileKind::Mix, .. }), "{error}");
        }
    }
    let text = String::from_utf8(good).unwrap();
    for (from, to, reason) in [
        ("\"heterokv_mix\": 1", "\"heterokv_mix\": 2", "it is of version 2, this program reads 1"),
        ("\"heterokv_mix\": 1,", "", "missing field `heterokv_mix`"),
        ("\"model\"", "\"modell\"", "unknown field `modell`"),
        ("\"num_layers\": 4", "\"num_layers\": 5", "keys for 4 layers and says 5"),
        ("\"num_layers\": 4", "\"num_layers\": 18446744073709551615", "keys for 4 layers"),
        ("\"num_layers\": 4", "\"num_layers\": -1", "invalid value"),
        ("\"num_kv_heads\": 2", "\"num_kv_heads\": 3", "2 KV heads in layer 0, not 3"),
        ("\"head_dim\": 16", "\"head_dim\": 12", "layer 0, KV head 0: alloc keys need a head_dim"),
        ("\"head_dim\": 16", "\"head_dim\": 0", "layer 0, KV head 0: alloc keys need a head_dim"),
        ("\"alloc/3\"", "\"alloc/9\"", "layer 0, KV head 1: unknown key format 'alloc/9'"),
        ("\"alloc/3\"", "3", "invalid type"),
        ("\"alloc/3\"", "\"mix:other\"", "unknown key format 'mix:other'"),
        (", \"alloc/3\"", "", "keys for 1 KV heads in layer 0, not 2"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = load(text.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(matches!(error, Error::FileFormat { kind: FileKind::Mix, .. }), "{error}");
        assert!(error.to_string().contains(reason), "{to}: {error}");
    }
    let empty = "{\"heterokv_mix\":1,\"model\":\"m\",\"num_layers\":0,\"num_kv_heads\":9,\"head_dim\":16,\
                 \"keys\":[]}";
    assert!(load(empty.as_bytes()).unwrap_err().to_string().contains("no model's"));
    let deep = "[".repeat(100_000);
    assert!(matches!(
        load(deep.as_bytes()).unwrap_err(),
        Error::FileFormat { kind: FileKind::Mix, .. }
    ));
    let many = format!(
        "{{\"heterokv_mix\":1,\"model\":\"m\",\"num_layers\":1,\"num_kv_heads\":65537,\"head_dim\":16,\
         \"keys\":[[{}\"f16\"]]}}",
        "\"f16\",".repeat(65_536)
    );
    assert!(load(many.as_bytes()).unwrap_err().to_string().contains("no model's"));
    let huge = std::fs::File::create(&path).unwrap();
    huge.set_len(1 << 40).unwrap();
    let error = KeyMix::load(&path).unwrap_err();
    assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
    let tokens = Tokens::new(4, mixed_shape(16), 400);
    let profile = Profile::of(&tokens.cache("keys=lm2", 400, 400), "model-7").expect("coded");
    std::fs::remove_file(&path).unwrap();
    profile.save(&path).unwrap();
    let error = KeyMix::load(&path).unwrap_err().to_string();
    let parts = ["not a mix: it is a profile, which --profile takes", "with `heterokv mix`"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}
