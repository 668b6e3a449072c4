//! Damaged and hostile GGUF files: an error that says what is wrong, no panic, no giant allocation.
//!
//! Counts such as 2^40 and 2^62 would end the process if anything were allocated by them.

use heterokv_model::{
    Checkpoint, Error, Result,
    checkpoint::{LayerTensor, TensorRole},
};
use proptest::prelude::*;

use crate::{
    check_error, fixture,
    gguf_bytes::{ARRAY, BOOL, Header, STRING, U32, string},
};

fn open(header: &Header) -> Result<Checkpoint> {
    Checkpoint::from_gguf_bytes(header.bytes())
}

/// Touches everything that can be asked of a checkpoint.
fn walk(checkpoint: &Checkpoint) {
    let mut sum = 0_u64;
    for tensor in checkpoint.tensors() {
        sum += tensor.bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    }
    for role in TensorRole::all(checkpoint.config()) {
        checkpoint.tensor(role).unwrap();
    }
    let metadata = checkpoint.gguf_metadata().unwrap();
    for (key, value) in metadata.iter() {
        sum += value.to_string().len() as u64;
        // Most of these are errors about the type, which is fine: none may panic.
        let _ = (metadata.str(key), metadata.u32(key), metadata.u64(key), metadata.f64(key));
        let _ = (metadata.bool(key), metadata.str_array(key));
        let _ = (metadata.u32_array(key), metadata.f32_array(key));
    }
    std::hint::black_box((sum, checkpoint.fingerprint()));
}

#[test]
fn the_unharmed_file_opens() {
    walk(&open(&Header::model()).unwrap());
    walk(&Checkpoint::open(&fixture("qwen2.gguf")).unwrap());
}

#[test]
fn truncated_anywhere() {
    for bytes in [Header::model().bytes(), std::fs::read(fixture("qwen2.gguf")).unwrap()] {
        for len in 0..bytes.len() {
            let result = Checkpoint::from_gguf_bytes(bytes[..len].to_vec());
            assert!(result.is_err(), "accepted after {len} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn magic_and_version() {
    let mut header = Header::model();
    header.version = 2;
    open(&header).unwrap();
    for version in [0, 1, 4, u32::MAX] {
        header.version = version;
        check_error(open(&header), &["version", &version.to_string()]);
    }
    header.version = 3_u32.swap_bytes();
    check_error(open(&header), &["big-endian"]);
    header.magic = *b"GGML";
    check_error(open(&header), &["GGUF"]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    for content in [&b"GGM"[..], b"", b"PK\x03\x04 and so on"] {
        std::fs::write(&file, content).unwrap();
        check_error(Checkpoint::open(&file), &["model.gguf", "not a GGUF file"]);
    }
    std::fs::write(&file, b"GGUF").unwrap();
    check_error(Checkpoint::open(&file), &["version"]);
    check_error(Checkpoint::open(&folder.path().join("none")), &["none"]);
    check_error(Checkpoint::open(folder.path()), &["config.json"]);
}

#[test]
fn huge_counts() {
    for count in [1 << 20, 1 << 40, 1 << 62, u64::MAX] {
        let mut header = Header::model();
        header.claimed_pairs = Some(count);
        check_error(open(&header), &["metadata"]);
        let mut header = Header::model();
        header.claimed_tensors = Some(count);
        check_error(open(&header), &["tensor"]);
        for element_ty in [0_u32, U32, BOOL, STRING, ARRAY, 12] {
            let mut array = element_ty.to_le_bytes().to_vec();
            array.extend(count.to_le_bytes());
            let header = Header::model().pair("an.array", ARRAY, &array);
            check_error(open(&header), &["array"]);
        }
        let header = Header::model().pair("a.string", STRING, &count.to_le_bytes());
        check_error(open(&header), &["string", &count.to_string()]);
    }
}

#[test]
fn nested_arrays() {
    let nested = |depth: usize| {
        let mut bytes = Vec::new();
        for _ in 1..depth {
            bytes.extend(ARRAY.to_le_bytes());
            bytes.extend(1_u64.to_le_bytes());
        }
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.push(7);
        bytes
    };
    for depth in [1, 2, 4] {
        walk(&open(&Header::model().pair("deep", ARRAY, &nested(depth))).unwrap());
    }
    for depth in [5, 6, 100_000] {
        let header = Header::model().pair("deep", ARRAY, &nested(depth));
        check_error(open(&header), &["nesting", "deep"]);
    }
}

#[test]
fn bad_values() {
    check_error(open(&Header::model().pair("odd", 13, &[0; 8])), &["odd", "13"]);
    check_error(open(&Header::model().pair("flag", BOOL, &[2])), &["flag", "2"]);
    let twice = Header::model().pair("a", U32, &[0; 4]).pair_again("a", U32, &[0; 4]);
    check_error(open(&twice), &["metadata key a", "twice"]);
    let mut invalid_text = 2_u64.to_le_bytes().to_vec();
    invalid_text.extend([0xff, 0xfe]);
    let header = Header::model().pair("general.name", STRING, &invalid_text);
    let checkpoint = open(&header).unwrap();
    walk(&checkpoint);
    check_error(checkpoint.gguf_metadata().unwrap().str("general.name"), &["UTF-8"]);
    let mut bytes = Header::model().bytes();
    bytes[32] = 0xff;
    check_error(Checkpoint::from_gguf_bytes(bytes), &["UTF-8"]);
}

#[test]
fn alignments() {
    let aligned =
        |alignment: u32| Header::model().pair("general.alignment", U32, &alignment.to_le_bytes());
    for alignment in [0, 3, 24, u32::MAX] {
        let parts = ["general.alignment", &alignment.to_string(), "power of two"];
        check_error(open(&aligned(alignment)), &parts);
    }
    for alignment in [1, 8, 32] {
        walk(&open(&aligned(alignment)).unwrap());
    }
    check_error(open(&aligned(1 << 31)), &["multiples of 2147483648"]);
    let text = Header::model().pair("general.alignment", STRING, &string("32"));
    check_error(open(&text), &["general.alignment"]);
}

#[test]
fn tensors_outside_the_file() {
    let header = Header::model();
    let end = header.data.len().next_multiple_of(32) as u64;
    let with = |axes: &[u64], ty: u32, offset: u64| {
        open(&Header::model().tensor("extra", axes, ty, offset))
    };
    check_error(with(&[4], 0, end), &["extra", "truncated"]);
    check_error(with(&[1], 0, 1 << 40), &["extra", "truncated"]);
    check_error(with(&[1], 0, u64::MAX - 31), &["extra", "truncated"]);
    check_error(with(&[16], 0, u64::MAX - 31), &["extra", "more than a file"]);
    check_error(with(&[1 << 40], 0, end), &["extra"]);
    check_error(with(&[1 << 62, 4], 0, 0), &["extra", "more than a file"]);
    check_error(with(&[1 << 32, 1 << 32, 1 << 32, 1], 0, 0), &["extra", "more than a file"]);
    check_error(with(&[u64::MAX], 0, 0), &["extra", "more than a file"]);
    check_error(with(&[4], 0, 32 * 3), &["extra", "another tensor"]);
    check_error(with(&[4], 0, 4), &["extra", "multiples of 32"]);
    check_error(with(&[0], 0, 0), &["extra", "at least 1"]);
    check_error(with(&[], 0, 0), &["extra", "axes"]);
    check_error(with(&[1; 5], 0, 0), &["extra", "axes", "5"]);
    check_error(with(&[48, 2], 2, 0), &["extra", "Q4_0", "48"]);
    check_error(with(&[32], 12, 0), &["extra", "Q4_K"]);
    check_error(open(&Header::model().zeros("output_norm.weight", &[8])), &["twice"]);
}

#[test]
fn unknown_tensor_types_are_named() {
    for (ty, name) in [(10, "Q2_K"), (16, "IQ2_XXS"), (28, "F64"), (99, "unknown (ggml type 99)")] {
        let result = open(&Header::model().tensor("extra", &[256], ty, 0));
        assert!(matches!(result, Err(Error::UnsupportedTensorType { .. })));
        check_error(result, &["extra", name, "Q4_K, Q5_K, Q6_K"]);
    }
}

#[test]
fn layer_indexes_beyond_the_model() {
    let checkpoint = open(&Header::model()).unwrap();
    for layer_idx in [1, usize::MAX] {
        let role = TensorRole::Layer(layer_idx, LayerTensor::Wq);
        check_error(checkpoint.tensor(role), &["attn_q", &layer_idx.to_string()]);
        assert!(checkpoint.optional_tensor(role).unwrap().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any damage gives an error or a checkpoint that can be walked.
    #[test]
    fn damaged_files_never_panic(
        from_fixture: bool,
        // Mostly the header, where it hurts.
        edits in prop::collection::vec((0_usize..2600, any::<u8>(), 0_u8..4), 1..6),
        cut in prop::option::weighted(0.2, 0_usize..8000),
    ) {
        let mut bytes = if from_fixture {
            std::fs::read(fixture("qwen2.gguf")).unwrap()
        } else {
            Header::model().bytes()
        };
        for (at, byte, edit) in edits {
            let at = at % bytes.len();
            match edit {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        if let Ok(checkpoint) = Checkpoint::from_gguf_bytes(bytes) {
            walk(&checkpoint);
        }
    }

    /// Any bytes at all behind a valid start.
    #[test]
    fn noise_never_panics(
        num_tensors in 0_u64..4,
        num_pairs in 0_u64..4,
        noise in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..16, any::<u8>()], 0..400),
    ) {
        let mut header = Header::new();
        header.data.clear();
        header.claimed_tensors = Some(num_tensors);
        header.claimed_pairs = Some(num_pairs);
        let mut bytes = header.bytes();
        bytes.truncate(24);
        bytes.extend(noise);
        if let Ok(checkpoint) = Checkpoint::from_gguf_bytes(bytes) {
            walk(&checkpoint);
        }
    }
}
