//! Many readers, a writer and a small budget at the same time: every byte is that of the model.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::sim::Sim;
use crate::*;

const HEAD: (usize, usize) = (0, 0);

/// Holds random rows of a reader to the stream.
fn check_some(rows: &HeadRows, stream: usize, seed: usize) {
    let step = 1 + seed * 7 % 23;
    let positions: Vec<u32> = (seed % 5..rows.num_rows()).step_by(step).map(|i| i as u32).collect();
    for (bytes, position) in read(rows, &positions).unwrap().iter().zip(&positions) {
        assert_eq!(bytes, &row_bytes(stream, *position as usize));
    }
}

#[test]
fn readers_go_on_while_one_writer_appends() {
    let store = open(Arc::new(Sim::default()), 16).unwrap();
    let mut sequence = store.sequence();
    let latest = std::sync::Mutex::new(sequence.rows(0, 0));
    let is_done = AtomicBool::new(false);
    let num_reads = AtomicUsize::new(0);
    thread::scope(|scope| {
        for reader in 0..4 {
            let (latest, is_done, num_reads) = (&latest, &is_done, &num_reads);
            scope.spawn(move || {
                let mut seed = reader;
                while !is_done.load(Ordering::Relaxed) || seed < 50 {
                    let rows = latest.lock().unwrap().clone();
                    check_some(&rows, 3, seed);
                    num_reads.fetch_add(1, Ordering::Relaxed);
                    seed += 4;
                }
            });
        }
        for _ in 0..300 {
            append(&mut sequence, HEAD, 3, 7).unwrap();
            *latest.lock().unwrap() = sequence.rows(0, 0);
        }
        is_done.store(true, Ordering::Relaxed);
    });
    check(&sequence, HEAD, 3, 2100);
    assert!(num_reads.into_inner() > 40);
    let stats = store.stats();
    assert!(stats.ram_peak.pages <= 16 && stats.evictions > 100, "{stats:?}");
}

#[test]
fn writers_of_many_sequences_share_a_small_budget() {
    let store = open(Arc::new(Sim::default()), 20).unwrap();
    thread::scope(|scope| {
        for stream in 0..6 {
            let store = &store;
            scope.spawn(move || {
                let mut sequence = store.sequence();
                for round in 0..60 {
                    append(&mut sequence, HEAD, stream, 11).unwrap();
                    check_some(&sequence.rows(0, 0), stream, round);
                    if round % 20 == 10 {
                        let fork = sequence.fork();
                        sequence.truncate(0, 0, 11 * round - 3);
                        append(&mut sequence, HEAD, stream, 14).unwrap();
                        check_some(&fork.rows(0, 0), stream, 1);
                    }
                    if round % 20 == 15 {
                        sequence.save(&format!("stream-{stream}")).unwrap();
                    }
                }
                check(&sequence, HEAD, stream, 660);
            });
        }
    });
    assert_eq!(store.saved_names().len(), 6);
    for stream in 0..6 {
        let loaded = store.load(&format!("stream-{stream}")).unwrap();
        check(&loaded, HEAD, stream, 56 * 11);
    }
    assert!(store.stats().ram_peak.pages <= 20);
}

#[test]
fn a_page_that_many_ask_for_is_read_once() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 3, 100).unwrap();
    read(&sequence.rows(0, 0), &[80, 84, 88]).unwrap();
    let before = store.stats();
    sim.set_hook(|_, _| {
        thread::sleep(std::time::Duration::from_millis(20));
        crate::sim::Fate::Well
    });
    let rows = sequence.rows(0, 0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(read(&rows, &[2]).unwrap(), [row_bytes(3, 2)]));
        }
    });
    let after = store.stats();
    assert_eq!(after.reads - before.reads, 1);
    assert_eq!(after.misses + after.hits - before.misses - before.hits, 8 * 2, "in two ways");
}

#[test]
fn a_store_whose_frames_are_all_held_is_an_error_and_no_hang() {
    let store = open(Arc::new(Sim::default()), 4).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 3, 40).unwrap();
    let pin = sequence.rows(0, 0).pin(&[0, 4, 8, 12]).unwrap();
    assert_eq!(pin.num_pages(), 4);
    let is_full = |error| matches!(error, heterokv_offload::Error::OutOfMemory { .. });
    assert!(is_full(append(&mut sequence, HEAD, 3, 1).unwrap_err()));
    assert!(is_full(read(&sequence.rows(0, 0), &[20]).unwrap_err()));
    assert!(is_full(sequence.rows(0, 0).pin(&[20]).unwrap_err()));
    // What is pinned is read nonetheless, and a hint is dropped.
    assert_eq!(read(&sequence.rows(0, 0), &[5]).unwrap(), [row_bytes(3, 5)]);
    let mut ticket = sequence.rows(0, 0).prefetch(&[20, 24]).unwrap();
    assert_eq!(ticket.wait().unwrap().num_dropped, 2);
    drop(pin);
    append(&mut sequence, HEAD, 3, 1).unwrap();
    check(&sequence, HEAD, 3, 41);
}
