//! Any bytes as a GGUF file: an error, or a checkpoint whose every tensor and key can be read.
//!
//! Start from the small files in `tests/fixtures`:
//! `cargo +nightly fuzz run gguf fuzz/corpus/gguf tests/fixtures`.

#![no_main]

use heterokv_model::{Checkpoint, checkpoint::TensorRole};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_gguf_bytes(bytes.to_vec()) else { return };
    for role in TensorRole::all(checkpoint.config()) {
        checkpoint.tensor(role).expect("checked when the file was opened");
    }
    let metadata = checkpoint.gguf_metadata().expect("this is a GGUF file");
    for (key, value) in metadata.iter() {
        // Most of these are errors about the value's type; that is an answer, too.
        let _ = std::hint::black_box((value.to_string(), metadata.str(key), metadata.u64(key)));
        let _ = std::hint::black_box((metadata.f64(key), metadata.bool(key)));
        let _ = std::hint::black_box((metadata.str_array(key), metadata.u32_array(key)));
        let _ = std::hint::black_box(metadata.f32_array(key));
    }
    std::hint::black_box(checkpoint.fingerprint());
});
