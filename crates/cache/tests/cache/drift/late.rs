//! Rows that come late: from a disk whose reads wait at a gate.

use std::any::Any;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use heterokv_offload::{File, Files, OsFiles};

use super::*;

/// What reads wait at while it is closed.
#[derive(Debug, Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn close(&self) {
        *self.is_closed.lock().expect("nobody panics with it") = true;
    }

    fn open(&self) {
        *self.is_closed.lock().expect("nobody panics with it") = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let is_closed = self.is_closed.lock().expect("nobody panics with it");
        let passed = self.opened.wait_while(is_closed, |is_closed| *is_closed);
        drop(passed.expect("nobody panics with it"));
    }
}

/// The machine's files behind a gate.
#[derive(Debug)]
struct GatedFiles(Arc<Gate>);

#[derive(Debug)]
struct GatedFile(Box<dyn File>, Arc<Gate>);

impl Files for GatedFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(GatedFile(OsFiles::default().create(path)?, Arc::clone(&self.0))))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(GatedFile(OsFiles::default().open(path)?, Arc::clone(&self.0))))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        OsFiles::default().names(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsFiles::default().rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsFiles::default().remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        OsFiles::default().sync_folder(folder)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        OsFiles::default().lock(path)
    }
}

impl File for GatedFile {
    fn num_bytes(&self) -> io::Result<u64> {
        self.0.num_bytes()
    }

    fn read_at(&self, offset: u64, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.1.pass();
        self.0.read_at(offset, parts)
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_at(offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

/// A cache whose satellite's rows are on a disk behind a gate, and all tokens that it has seen.
struct Late {
    text: Text,
    cache: KvCache,
    store: Store,
    gate: Arc<Gate>,
    k: Vec<f32>,
    v: Vec<f32>,
    _folder: tempfile::TempDir,
}

impl Late {
    /// After the prompt, with the gate closed.
    fn new() -> Self {
        let (text, gate) = (Text::new(), Arc::new(Gate::default()));
        let folder = tempfile::tempdir().expect("a folder");
        let files = Arc::new(GatedFiles(Arc::clone(&gate)));
        let disk = Some(DiskOptions { files, ..DiskOptions::new(folder.path(), "a model") });
        // Of sixteen pages few are on disk: with all their reads at the gate there is room for the last pages, which take
        // rows, of this cache, of a copy and of what is on its way.
        let (cache, store) = text.cache_in("", 13 * 8192, disk);
        assert!(store.stats().disk.pages > 0, "{:?}", store.stats());
        gate.close();
        let (k, v) = (text.k.clone(), text.v.clone());
        Self { text, cache, store, gate, k, v, _folder: folder }
    }

    fn step(&mut self, topic: usize) {
        let [key, value, _] = self.text.step(&mut self.cache, topic);
        self.k.extend(key);
        self.v.extend(value);
    }

    /// Steps until satellites were chosen anew so often.
    fn drift(&mut self, topic: usize, num_refreshes: u64) {
        for _ in 0..40 {
            if self.cache.num_refreshes() == num_refreshes {
                return;
            }
            self.step(topic);
        }
        panic!("nothing has drifted to topic {topic}");
    }

    /// Opens the gate, and waits until all that was asked for can be taken.
    fn let_come(&self) {
        self.gate.open();
        // The store does one fetch after the other.
        let nothing = self.store.sequence().rows(0, 0).fetch(Vec::new());
        nothing.wait().expect("the store is open");
    }

    /// Bytes that came from the host.
    fn bytes(&self) -> u64 {
        self.cache.stats().host_bytes
    }

    fn check_rows(&self, topic: usize) {
        check_rows(&self.text, &self.cache, topic, (&self.k, &self.v));
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        // Workers that wait at the gate are waited for.
        self.gate.open();
    }
}

#[test]
fn rows_that_nobody_waits_for_come_all_the_same_also_to_a_fork() {
    let mut late = Late::new();
    let before = of_other_topic(&late.cache, 1);
    late.drift(1, 1);
    let mut fork = late.cache.fork().expect("there is memory");
    for _ in 0..4 {
        late.step(1);
    }
    assert!(of_other_topic(&late.cache, 1) <= before, "they are on their way");
    assert_eq!(late.bytes(), 0);
    late.let_come();
    let held = late.cache.held_positions(0, 1).to_vec();
    late.step(1);
    assert!(of_other_topic(&late.cache, 1) > before + 100, "they have come");
    let now = late.cache.held_positions(0, 1);
    let num_new = now.iter().filter(|&position| held.binary_search(position).is_err()).count();
    // The token of the step is new too.
    assert_eq!(late.bytes(), 4 * HEAD_DIM as u64 * (num_new as u64 - 1), "only those it lacked");
    assert!(num_new < now.len() - 50, "{num_new} of {}", now.len());
    late.check_rows(1);
    assert!(of_other_topic(&fork, 1) <= before);
    late.text.step(&mut fork, 1);
    assert!(of_other_topic(&fork, 1) > before + 100, "they have come to the fork");
}

#[test]
fn a_choice_waits_for_what_is_on_its_way_and_only_the_newest_does() {
    let mut late = Late::new();
    let before = of_other_topic(&late.cache, 1);
    for (refresh, topic) in [(1, 1), (2, 0), (3, 1), (4, 0)] {
        late.drift(topic, refresh);
    }
    assert!(of_other_topic(&late.cache, 1) <= before && late.bytes() == 0);
    late.let_come();
    late.gate.close();
    late.step(0);
    assert!(of_other_topic(&late.cache, 1) > before + 100, "the first, of topic 1, has come");
    late.check_rows(0);
    let bytes = late.bytes();
    late.let_come();
    late.step(0);
    assert!(of_other_topic(&late.cache, 1) < before + 100, "the last, of topic 0");
    late.check_rows(0);
    assert!(late.bytes() > bytes);
    let bytes = late.bytes();
    late.let_come();
    late.step(0);
    assert_eq!((late.bytes(), late.cache.num_refreshes()), (bytes, 4), "those between never come");
}

#[test]
fn what_is_on_its_way_does_not_come_to_what_was_cut() {
    let mut late = Late::new();
    late.drift(1, 1);
    let mut fork = late.cache.fork().expect("there is memory");
    let left = PROMPT - 100;
    assert_eq!(fork.truncate(left), left);
    late.let_come();
    // In the copy nothing comes; to the other what was on its way.
    let before = of_other_topic(&fork, 1);
    late.text.step(&mut fork, 0);
    let satellite = fork.held_positions(0, 1);
    assert!(satellite.iter().all(|&position| position as usize <= left));
    assert!(of_other_topic(&fork, 1) <= before + 1 && fork.stats().host_bytes == 0);
    late.step(1);
    assert!(late.bytes() > 0);
    late.check_rows(1);
    // The same of a cache itself, and what comes next is right.
    late.gate.close();
    late.drift(0, 2);
    let (bytes, row_len) = (late.bytes(), 3 * HEAD_DIM);
    assert_eq!(late.cache.truncate(left), left);
    late.k.truncate(left * row_len);
    late.v.truncate(left * row_len);
    late.let_come();
    late.step(1);
    assert_eq!(late.bytes(), bytes);
    late.check_rows(1);
    for (topic, refresh) in [(0, 3), (1, 4)] {
        late.drift(topic, refresh);
        late.let_come();
        late.step(topic);
        late.check_rows(topic);
    }
    assert!(late.bytes() > bytes);
}

#[test]
fn what_is_forgotten_while_rows_are_on_their_way_stays_so() {
    let mut late = Late::new();
    late.drift(1, 1);
    let before = late.cache.held_positions(0, 1).to_vec();
    for _ in 0..40 {
        late.step(1);
    }
    let after = late.cache.held_positions(0, 1).to_vec();
    let gone: Vec<u32> =
        before.into_iter().filter(|position| after.binary_search(position).is_err()).collect();
    assert!(!gone.is_empty(), "some made room");
    late.let_come();
    late.step(1);
    assert!(late.bytes() > 0);
    let held = late.cache.held_positions(0, 1);
    assert!(gone.iter().all(|position| held.binary_search(position).is_err()));
    late.check_rows(1);
}
