//! Two sequences in one store, of which one floods it: whose pages are written, when, and by whom.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::sim::{Call, Fate, Sim};
use crate::*;

const HEAD: (usize, usize) = (0, 0);

/// The stream of the one that floods the store.
const FLOOD: usize = 1;

/// The stream of the other.
const OTHER: usize = 2;

/// Pages of one write.
const BATCH: usize = 16;

/// A store of one worker, whose pages are all in one file.
fn open(sim: &Sim, num_frames: usize) -> Store {
    let disk = disk(Arc::new(sim.clone()), Path::new("folder"));
    let disk = DiskOptions { num_workers: 1, queue_len: 64, file_bytes: 1 << 30, ..disk };
    let ram_budget_bytes = num_frames * 64;
    Store::open(StoreOptions { shape: shape(4), ram_budget_bytes, disk: Some(disk) }).unwrap()
}

/// Lets writes of the worker through one at a time: each says that it is there, and waits for a word.
fn gate(sim: &Sim) -> (Receiver<()>, Sender<()>) {
    let [(here, is_here), (go, may_go)] = [channel(), channel()];
    let may_go = Mutex::new(may_go);
    sim.set_hook(move |call, _| {
        if call == Call::Write && std::thread::current().name() == Some("heterokv-offload") {
            // Without the other end, the gate is open.
            let _ = here.send(());
            let _ = may_go.lock().unwrap().recv();
        }
        Fate::Well
    });
    (is_here, go)
}

fn append_pages(sequence: &mut Sequence, stream: usize, num_pages: usize) {
    append(sequence, HEAD, stream, 4 * num_pages).unwrap();
}

/// Whether a row is on disk.
fn is_written(sim: &Sim, stream: usize, i: usize) -> bool {
    let row = row_bytes(stream, i);
    let mut is_there = false;
    sim.edit("pages-00000001", |bytes| {
        is_there = bytes.chunks_exact(ROW_BYTES).any(|found| found == row);
    });
    is_there
}

#[test]
fn pages_beside_a_flood_are_written_in_their_turn() {
    let sim = Sim::default();
    let store = open(&sim, 200);
    let (is_here, go) = gate(&sim);
    let (mut flood, mut other) = (store.sequence(), store.sequence());
    // More than half of the frames, and so the worker begins.
    append_pages(&mut flood, FLOOD, 101);
    is_here.recv().unwrap();
    append_pages(&mut other, OTHER, 4);
    append_pages(&mut flood, FLOOD, 60);
    // What was begun, one batch of those that were there before, and then the other's.
    for batch in [1, 2, 3] {
        assert!(!is_written(&sim, OTHER, 0), "before batch {batch}");
        go.send(()).unwrap();
        is_here.recv().unwrap();
    }
    assert!((0..16).all(|i| is_written(&sim, OTHER, i)));
    assert!(is_written(&sim, FLOOD, 2 * 4 * BATCH - 1));
    assert!(!is_written(&sim, FLOOD, 3 * 4 * BATCH), "four batches of a hundred pages");
    drop((is_here, go));
    check(&flood, HEAD, FLOOD, 4 * 161);
    check(&other, HEAD, OTHER, 16);
}

#[test]
fn whoever_needs_room_writes_its_own_pages_as_long_as_it_has_some() {
    let sim = Sim::default();
    let store = open(&sim, 40);
    let (is_here, go) = gate(&sim);
    let (mut flood, mut other) = (store.sequence(), store.sequence());
    append_pages(&mut flood, FLOOD, 21);
    is_here.recv().unwrap();
    append_pages(&mut other, OTHER, 2);
    append_pages(&mut flood, FLOOD, 17);
    // No frame is free, and the worker writes none.
    let written = || store.stats().written_bytes as usize / 64;
    assert_eq!((store.stats().ram.pages, written()), (40, 0));
    append(&mut other, HEAD, OTHER, 1).unwrap();
    assert_eq!(written(), 2);
    assert!(is_written(&sim, OTHER, 0) && !is_written(&sim, FLOOD, 0));
    // One frame of the two is left: the flood takes it, and then pays for its own.
    append(&mut flood, HEAD, FLOOD, 1).unwrap();
    assert_eq!(written(), 2);
    append_pages(&mut flood, FLOOD, 1);
    assert_eq!(written(), 2 + BATCH);
    // Whoever has none left writes one batch of others, and has a frame of it.
    append_pages(&mut other, OTHER, BATCH);
    append_pages(&mut flood, FLOOD, 30);
    drop((is_here, go));
    check(&other, HEAD, OTHER, 4 * (2 + BATCH) + 1);
    check(&flood, HEAD, FLOOD, 4 * (21 + 17 + 1 + 30) + 1);
    assert!(store.stats().ram_peak.pages <= 40);
}
