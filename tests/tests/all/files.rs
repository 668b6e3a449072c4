//! Where fixtures and shared references are.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A checkpoint or file beside `make_checkpoints.py`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A file of the shared references. `None`, and a line that says so, where there are none; a folder
/// that was asked for by `HETEROKV_SHARED`, or one that lacks the file, fails.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let asked = std::env::var_os("HETEROKV_SHARED").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let folder = asked.clone().unwrap_or_else(beside);
    if asked.is_none() && !folder.is_dir() {
        println!(
            "SKIPPED: no shared references beside the workspace (HETEROKV_SHARED names others)"
        );
        return None;
    }
    let path = folder.join(name);
    assert!(path.exists(), "the shared references lack {name}");
    Some(path)
}

/// Reads a JSON file.
#[track_caller]
pub(crate) fn json<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether every bar is to be measured in full.
pub(crate) fn is_long() -> bool {
    match std::env::var("HETEROKV_LONG") {
        Err(_) => false,
        Ok(value) => {
            assert!(value == "1" || value == "0", "HETEROKV_LONG is 1 or 0, not {value:?}");
            value == "1"
        }
    }
}
