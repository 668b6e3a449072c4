//! Head profiles: kept and read back, ours and those that others publish, and refused where they contradict
//! themselves.

use heterokv_cache::{Error, FileKind, HeadMeasure, HeadProfile, HeadRole, SimilarityAt};
use heterokv_testkit::Inputs;
use serde_json::{Value, json};

use super::*;

use HeadRole::{Anchor, Pivot, Satellite, Volatile};

const MEASURE: HeadMeasure = HeadMeasure {
    prompt_tokens: 5000,
    steps: 100,
    top_k: 1024,
    tau_stable: 0.5,
    tau_sim: 0.4,
    similarity: SimilarityAt::Prompt,
};

const ROLES: [HeadRole; 8] = [
    Pivot,
    Satellite { pivot: 0 },
    Anchor,
    Satellite { pivot: 0 },
    Volatile,
    Satellite { pivot: 2 },
    Pivot,
    Volatile,
];

const STABILITY: [f64; 8] = [0.7, 0.625, 0.5, 0.1, 0.25, 0.3, 1.0, 1.0 / 3.0];

/// Two layers of four KV heads.
fn head_shape() -> KvShape {
    shape(2, 8, 4, 16)
}

fn profile() -> HeadProfile {
    let (stability, roles) = (STABILITY.to_vec(), ROLES.to_vec());
    let profile = HeadProfile::new("model-7", &head_shape(), MEASURE, stability, roles);
    profile.expect("roles that go together")
}

/// A published file of the same roles.
fn published() -> Value {
    let weights = profile();
    let weight = |layer, head| match weights.weight(layer, head) {
        0.0 => -1.0,
        weight => weight,
    };
    let row = |layer| (0..4).map(|head| weight(layer, head)).collect::<Vec<f64>>();
    json!({
        "meta": {
            "type_map": {"anchor": 1, "volatile": 2, "pivot": 3, "satellite": 4},
            "counts": {"anchor": 1, "volatile": 2, "pivot": 2, "satellite": 3},
        },
        "classification_matrix": [[3, 4, 1, 4], [2, 4, 3, 2]],
        "allocation_matrix": [row(0), row(1)],
        "leader_member_relations": [{"0": [1, 3]}, {"2": [1]}],
    })
}

fn load(bytes: &[u8]) -> heterokv_cache::Result<HeadProfile> {
    let file = tempfile::NamedTempFile::new().expect("a writable folder");
    std::fs::write(file.path(), bytes).expect("room on the disk");
    HeadProfile::load(file.path())
}

#[track_caller]
fn refused(bytes: &[u8], reason: &str) {
    let error = load(bytes).expect_err(reason);
    assert!(matches!(error, Error::FileFormat { kind: FileKind::Heads, .. }), "{error}");
    assert!(error.to_string().contains(reason), "{reason}: {error}");
    assert!(error.to_string().contains("make one with `heterokv profile --heads`"), "{error}");
}

#[test]
fn a_profile_is_read_as_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.heads");
    HeadProfile::check_writable(&path).unwrap();
    let budget = [0.5, 1.5, 1.0, 1.0, 0.1, 1.9, 2.0 / 3.0, 4.0 / 3.0];
    for profile in [profile(), profile().with_budget_weights(budget.to_vec()).unwrap()] {
        profile.save(&path).unwrap();
        assert_eq!(HeadProfile::load(&path).unwrap(), profile);
    }
    let read = HeadProfile::load(&path).unwrap();
    assert_eq!((read.num_layers(), read.num_kv_heads()), (2, 4));
    assert_eq!((read.roles(), read.measure()), (&ROLES[..], Some(MEASURE)));
    assert_eq!(read.full_share(), 0.5);
    for (index, role) in ROLES.into_iter().enumerate() {
        let (layer, head) = (index / 4, index % 4);
        assert_eq!(read.role(layer, head), role);
        assert_eq!(read.stability(layer, head), Some(STABILITY[index]));
        assert_eq!(read.budget_weight(layer, head), Some(budget[index]));
        assert_eq!(read.weight(layer, head) > 0.0, role.is_compressed(), "{role}");
    }
    assert_eq!(profile().budget_weight(0, 0), None);
    let compressed = (0..8).map(|i| read.weight(i / 4, i % 4)).sum::<f64>();
    assert!((compressed - 4.0).abs() < 1e-9, "a mean of 1 over four heads: {compressed}");
}

#[test]
fn a_profile_is_for_one_model() {
    let profile = profile();
    profile.check_fingerprint("model-7").unwrap();
    profile.check_shape(&head_shape()).unwrap();
    let error = profile.check_fingerprint("model-8").unwrap_err();
    let said = "the head profile is for model model-7, not model-8; make one with `heterokv profile --heads`";
    assert_eq!(error.to_string(), said);
    for other in [shape(3, 8, 4, 16), shape(2, 8, 8, 16), shape(2, 8, 4, 32)] {
        let error = profile.check_shape(&other).unwrap_err();
        assert!(
            matches!(error, Error::Mismatch { kind: FileKind::Heads, field: "shape", .. }),
            "{error}"
        );
    }
}

#[test]
fn a_published_file_is_read_and_is_for_any_model_of_its_shape() {
    let read = load(published().to_string().as_bytes()).unwrap();
    let ours = profile();
    assert_eq!(read.roles(), ours.roles());
    for (layer, head) in (0..2).flat_map(|layer| (0..4).map(move |head| (layer, head))) {
        assert_eq!(read.weight(layer, head), ours.weight(layer, head));
        assert_eq!((read.stability(layer, head), read.budget_weight(layer, head)), (None, None));
    }
    assert_eq!((read.measure(), read.full_share()), (None, 0.5));
    read.check_fingerprint("any").unwrap();
    read.check_shape(&shape(2, 8, 4, 128)).unwrap();
    let error = read.check_shape(&shape(2, 8, 8, 16)).unwrap_err().to_string();
    assert!(error.contains("for shape 2 layers of 4 KV heads, not 2 layers of 8"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("published");
    let error = read.save(&path).unwrap_err();
    assert!(matches!(error, Error::NotMeasured) && !path.exists(), "{error}");
    // It is theirs and stays.
    std::fs::write(&path, published().to_string()).unwrap();
    let error = ours.save(&path).unwrap_err();
    assert!(matches!(error, Error::Occupied { kind: FileKind::Heads, .. }), "{error}");
    // Counts may be missing, and more may be said.
    let mut other = published();
    other["meta"]["counts"].take();
    other["note"] = json!("of another tool");
    load(other.to_string().as_bytes()).unwrap();
}

#[test]
fn a_published_file_that_contradicts_itself_is_refused() {
    let types = "/classification_matrix/0";
    let weights = "/allocation_matrix";
    let pivots = "/leader_member_relations";
    for (place, value, reason) in [
        (pivots, json!([{"0": [1]}, {"2": [1]}]), "layer 0: head 3 is a satellite without a pivot"),
        (pivots, json!([{"0": [1, 3], "2": [3]}, {}]), "layer 0: head 2 has satellites and is no"),
        (pivots, json!([{"0": [1, 3], "9": []}, {"2": [1]}]), "head 9 has satellites and is no"),
        (pivots, json!([{"0": [1, 2, 3]}, {"2": [1]}]), "head 2 is listed as a satellite and is"),
        (pivots, json!([{"0": [1, 3, 3]}, {"2": [1]}]), "a satellite of heads 0 and 0"),
        (pivots, json!([{"0": [1, 3, 4]}, {"2": [1]}]), "satellite 4 of head 0 does not exist"),
        (pivots, json!([{"00": [1, 3]}, {"2": [1]}]), "pivot '00' is not the number of a head"),
        (pivots, json!([{"x": [1, 3]}, {"2": [1]}]), "pivot 'x' is not the number of a head"),
        (pivots, json!([{"0": [1, 3]}]), "it has pivots of 1 layers, not 2"),
        (pivots, json!([{"0": [1, -3]}, {"2": [1]}]), "invalid value"),
        (types, json!([3, 4, 1]), "it has types for 4 KV heads in layer 1, not 3"),
        (types, json!([3, 4, 0, 4]), "layer 0: head 2 is of type 0, which is not known"),
        (types, json!([3, 4, 3, 4]), "layer 0: head 2 is a pivot without satellites"),
        (types, json!([3, 4, 2, 4]), "it has 0 heads of type anchor and says 1"),
        (types, json!([]), "are no model's"),
        (&format!("{weights}/0"), json!([-1.0, 1.0]), "weights for 2 KV heads in layer 0, not 4"),
        (&format!("{weights}/1"), json!([-1.0, -1.0, -1.0, -1.0]), "layer 1, KV head 1 is -1"),
        (&format!("{weights}/0/0"), json!(0.7), "that of layer 0, KV head 0 is 0.7"),
        (&format!("{weights}/0/1"), json!(0.0), "that of layer 0, KV head 1 is 0"),
        (&format!("{weights}/0/1"), json!(99.0), "its weights: their mean is "),
        (&format!("{weights}/0/1"), json!("1"), "invalid type"),
        (weights, json!([]), "it has weights for 0 layers, not 2"),
        ("/meta/type_map/pivot", json!(5), "its types are not those known"),
        ("/meta/counts/pivot", json!(3), "it has 2 heads of type pivot and says 3"),
        ("/meta", json!({}), "missing field `type_map`"),
    ] {
        let mut file = published();
        *file.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value;
        refused(file.to_string().as_bytes(), reason);
    }
    let text = published().to_string();
    for number in ["NaN", "1e999", "-Infinity"] {
        let broken = text.replacen("-1.0", number, 1);
        assert_ne!(broken, text);
        assert!(matches!(load(broken.as_bytes()).unwrap_err(), Error::FileFormat { .. }));
    }
    let mut huge = published();
    huge["classification_matrix"] = json!(vec![vec![2; 300]; 300]);
    refused(huge.to_string().as_bytes(), "give a shape of 1 to 65536 KV heads");
}

#[test]
fn damaged_files_are_typed_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    let ours = profile().with_budget_weights(vec![1.0; 8]).unwrap();
    ours.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    for file in [good.clone(), published().to_string().into_bytes()] {
        let end = file.trim_ascii_end().len();
        for len in (0..end).step_by(11).chain([end - 1]) {
            let error = load(&file[..len]).unwrap_err();
            assert!(matches!(error, Error::FileFormat { kind: FileKind::Heads, .. }), "{error}");
        }
        // Any byte may be wrong: an error or another profile, never a panic.
        let mut inputs = Inputs::new(8);
        for _ in 0..700 {
            let mut broken = file.clone();
            let place = inputs.below(broken.len());
            broken[place] = inputs.below(256) as u8;
            if let Err(error) = load(&broken) {
                assert!(
                    matches!(error, Error::FileFormat { kind: FileKind::Heads, .. }),
                    "{error}"
                );
            }
        }
    }
    let text = String::from_utf8(good).unwrap();
    for (from, to, reason) in [
        (
            "\"heterokv_heads\": 1",
            "\"heterokv_heads\": 2",
            "it is of version 2, this program reads 1",
        ),
        ("\"heterokv_heads\": 1,", "", "missing field `heterokv_heads`"),
        ("\"model\"", "\"modell\"", "unknown field `modell`"),
        ("\"num_layers\": 2", "\"num_layers\": 3", "roles for 2 layers, not 3"),
        ("\"num_layers\": 2", "\"num_layers\": 18446744073709551615", "no model's"),
        ("\"num_kv_heads\": 4", "\"num_kv_heads\": 0", "no model's"),
        ("\"num_kv_heads\": 4", "\"num_kv_heads\": 5", "roles for 4 KV heads in layer 0, not 5"),
        ("\"top_k\": 1024", "\"top_k\": 5000", "a top-k of 5000"),
        ("\"top_k\": 1024", "\"top_k\": 0", "a top-k of 0"),
        ("\"steps\": 100", "\"steps\": 0", "steps of 0"),
        ("\"tau_sim\": 0.4", "\"tau_sim\": 1.5", "tau_sim must lie in (0, 1], not 1.5"),
        ("\"tau_stable\": 0.5", "\"tau_stable\": -0.5", "tau_stable must lie in (0, 1]"),
        ("\"similarity\": \"prompt\"", "\"similarity\": \"never\"", "unknown 'never'"),
        (
            "\"satellite:0\"",
            "\"satellite:2\"",
            "head 1 is a satellite of head 2, which is no pivot",
        ),
        ("\"satellite:2\"", "\"anchor\"", "head 2 is a pivot without satellites"),
        ("\"anchor\"", "\"leader\"", "unknown role of a head 'leader'"),
        ("0.625", "1.625", "the stability 1.625 of head 1 does not lie in [0, 1]"),
        ("\"anchor\"", "\"volatile\"", "its weights: that of layer 0, KV head 2 is 0."),
        ("\"budget_weights\": [\n    [1,", "\"budget_weights\": [\n    [2,", "their mean is 1.125"),
        ("\"budget_weights\": [\n    [1,", "\"budget_weights\": [\n    [0,", "KV head 0 is 0"),
    ] {
        assert!(text.contains(from), "{from} is not in\n{text}");
        refused(text.replacen(from, to, 1).as_bytes(), reason);
    }
    refused("[".repeat(100_000).as_bytes(), "invalid type: sequence");
    refused(b"\0\0\0", "expected value");
    let huge = std::fs::File::create(&path).unwrap();
    huge.set_len(1 << 40).unwrap();
    let error = HeadProfile::load(&path).unwrap_err();
    assert!(error.to_string().contains("more than 16777216 bytes"), "{error}");
}

#[test]
fn what_is_no_profile_is_not_made() {
    let new = |measure, stability: &[f64], roles: &[HeadRole]| {
        HeadProfile::new("m", &head_shape(), measure, stability.to_vec(), roles.to_vec())
    };
    let error = new(MEASURE, &STABILITY[1..], &ROLES).unwrap_err();
    assert!(matches!(error, Error::Length { tensor: "stability", .. }), "{error}");
    let error = new(MEASURE, &STABILITY, &ROLES[1..]).unwrap_err();
    assert!(matches!(error, Error::Length { tensor: "roles", .. }), "{error}");
    let error = new(HeadMeasure { steps: 0, ..MEASURE }, &STABILITY, &ROLES).unwrap_err();
    assert!(matches!(error, Error::HeadMeasure { what: "steps", .. }), "{error}");
    let error = new(HeadMeasure { tau_sim: f64::NAN, ..MEASURE }, &STABILITY, &ROLES).unwrap_err();
    assert!(matches!(error, Error::Evict(_)), "{error}");
    for value in [f64::NAN, -1.0, 2.0] {
        let error = new(MEASURE, &[&STABILITY[..7], &[value]].concat(), &ROLES).unwrap_err();
        assert!(matches!(error, Error::Evict(_)), "{error}");
    }
    let error = new(MEASURE, &STABILITY, &[Satellite { pivot: 4 }; 8]).unwrap_err();
    assert!(matches!(error, Error::Evict(_)), "{error}");
    let budget = |weights: Vec<f64>| profile().with_budget_weights(weights).unwrap_err();
    assert!(matches!(budget(vec![1.0; 7]), Error::Length { .. }));
    for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1.5] {
        let error = budget([&[value][..], &[1.0; 7]].concat());
        assert!(matches!(error, Error::HeadWeights { what: "budget weights", .. }), "{error}");
    }
}

#[test]
fn only_head_profiles_are_replaced_and_each_kind_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for text in ["Call me Ishmael.", "{}", "{\"heterokv_mix\": 1}", "{\"a\": \"heterokv_heads\"}"] {
        std::fs::write(at("kept"), text).unwrap();
        for error in [
            HeadProfile::check_writable(&at("kept")).unwrap_err(),
            profile().save(&at("kept")).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Occupied { kind: FileKind::Heads, .. }), "{error}");
        }
        assert_eq!(std::fs::read_to_string(at("kept")).unwrap(), text);
    }
    profile().save(&at("heads")).unwrap();
    HeadProfile::check_writable(&at("heads")).unwrap();
    let error = Profile::check_writable(&at("heads")).unwrap_err();
    assert!(matches!(error, Error::Occupied { kind: FileKind::Profile, .. }), "{error}");
    for error in [
        Profile::load(&at("heads")).unwrap_err(),
        heterokv_cache::KeyMix::load(&at("heads")).unwrap_err(),
    ] {
        assert!(error.to_string().contains("it is a head profile, which heads=FILE"), "{error}");
    }
    let tokens = Tokens::new(8, shape(1, 2, 2, 16), 400);
    let tables = Profile::of(&tokens.cache("keys=lm2", 400, 400), "model-7").unwrap();
    tables.save(&at("tables")).unwrap();
    let error = HeadProfile::load(&at("tables")).unwrap_err().to_string();
    assert!(error.contains("it is a profile, which --profile takes"), "{error}");
    let error = HeadProfile::load(&at("nowhere")).unwrap_err();
    let said = format!(
        "there is no head profile {}, which heads=FILE asks for; make one with `heterokv profile --heads`",
        at("nowhere").display()
    );
    assert_eq!(error.to_string(), said);
}
