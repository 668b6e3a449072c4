//! The loader held to checkpoints made by other programs, and to damaged ones.

#![expect(clippy::print_stdout, reason = "a skipped test says so")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as the tests themselves do")]

mod checkpoints;
mod gguf_bytes;
mod gguf_config;
mod hf_config;
mod hostile_gguf;
mod hostile_safetensors;
mod rope;

use std::path::{Path, PathBuf};

/// A file or folder beside `make_checkpoints.py`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Fails unless `result` is an error whose message, sources included, has all of `parts`.
#[track_caller]
fn check_error<T>(result: heterokv_model::Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("accepted, but an error with {parts:?} was due") };
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        message = format!("{message}: {inner}");
        source = inner.source();
    }
    for part in parts {
        assert!(message.contains(part), "{message:?} does not name {part:?}");
    }
}
