//! Hints: tickets polled, waited for and awaited, taken back, and in the order of their priority.

use std::future::Future;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use heterokv_offload::Prefetched;

use crate::sim::{Call, Fate, Sim};
use crate::*;

const HEAD: (usize, usize) = (0, 0);

/// A store of one worker whose first 96 rows are on disk only; the last ten pages are in RAM.
fn spilled(sim: &Sim) -> (Store, Sequence) {
    let options =
        DiskOptions { num_workers: 1, ..disk(Arc::new(sim.clone()), Path::new("folder")) };
    let disk = Some(DiskOptions { queue_len: 64, ..options });
    let options = StoreOptions { shape: shape(4), ram_budget_bytes: 24 * 64, disk };
    let store = Store::open(options).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, 96).unwrap();
    sequence.save("name").unwrap();
    drop(sequence);
    let sequence = store.load("name").unwrap();
    assert_eq!(sequence.rows(0, 0).num_rows(), 96);
    (store, sequence)
}

/// Lets reads through one at a time: each says that it is there, and waits for a word.
fn gate(sim: &Sim) -> (Receiver<()>, Sender<()>) {
    let [(here, is_here), (go, may_go)] = [channel(), channel()];
    let may_go = Mutex::new(may_go);
    sim.set_hook(move |call, _| {
        if call == Call::Read {
            // Without the other end, the gate is open.
            let _ = here.send(());
            let _ = may_go.lock().unwrap().recv();
        }
        Fate::Well
    });
    (is_here, go)
}

/// Ends the life of everything in RAM that can leave.
fn flush(store: &Store, num_pages: usize) {
    let mut other = store.sequence();
    append(&mut other, (1, 1), 9, 4 * num_pages).unwrap();
}

/// Waits until hints have brought this many pages and no more: a page is counted after its ticket is told.
fn await_prefetched(store: &Store, num_pages: u64) {
    while store.stats().prefetched < num_pages {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(store.stats().prefetched, num_pages);
}

/// How often it was woken.
struct Count(Mutex<usize>);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() += 1;
    }
}

#[test]
fn a_page_that_a_hint_brought_is_there_for_its_reader() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    flush(&store, 60);
    let before = store.stats();
    let rows = sequence.rows(0, 0);
    let outcome = rows.prefetch(&[0, 1, 9, 20]).unwrap().wait().unwrap();
    assert_eq!(outcome, Prefetched { num_loaded: 3, num_dropped: 0 });
    read(&rows, &[1, 9, 20]).unwrap();
    await_prefetched(&store, before.prefetched + 3);
    let after = store.stats();
    assert_eq!(after.misses, before.misses);
    assert_eq!(after.hits - before.hits, 6, "in two ways");
    assert_eq!(after.prefetch_hits - before.prefetch_hits, 3);
    let outcome = rows.prefetch(&[0, 9]).unwrap().wait().unwrap();
    assert_eq!(outcome.num_loaded, 2, "those that are there are there");
    assert_eq!(rows.prefetch(&[]).unwrap().wait().unwrap(), Prefetched::default());
}

#[test]
fn tickets_can_be_polled_and_awaited() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    flush(&store, 60);
    let (is_here, go) = gate(&sim);
    let mut ticket = std::pin::pin!(sequence.rows(0, 0).prefetch(&[0, 20]).unwrap());
    assert!(!ticket.is_done());
    let count = Arc::new(Count(Mutex::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    assert!(ticket.as_mut().poll(&mut context).is_pending());
    for _ in 0..2 {
        is_here.recv().unwrap();
        go.send(()).unwrap();
    }
    let outcome = loop {
        match ticket.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => break outcome.unwrap(),
            Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert_eq!(outcome.num_loaded, 2);
    assert!(*count.0.lock().unwrap() > 0);
}

#[test]
fn what_is_cancelled_before_its_turn_is_not_read() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    flush(&store, 60);
    let before = store.stats();
    let (is_here, go) = gate(&sim);
    let rows = sequence.rows(0, 0);
    let mut first = rows.prefetch(&[0]).unwrap();
    is_here.recv().unwrap();
    // The worker is busy: these wait in the queue.
    let second = rows.prefetch(&[20, 40]).unwrap();
    let mut third = rows.prefetch(&[40]).unwrap();
    assert_eq!(store.stats().queued.prefetch, 2);
    second.cancel();
    drop(rows.prefetch(&[60]).unwrap());
    go.send(()).unwrap();
    is_here.recv().unwrap();
    go.send(()).unwrap();
    assert_eq!(first.wait().unwrap().num_loaded, 1);
    assert_eq!(
        third.wait().unwrap().num_loaded,
        1,
        "somebody else's wish for the same page stands"
    );
    drop((is_here, go));
    store.shutdown().unwrap();
    assert_eq!(store.stats().prefetched, before.prefetched + 2);
}

#[test]
fn what_a_hint_brought_stays_until_it_is_read_or_the_hint_is_taken_back() {
    let misses_of = |is_kept: bool| {
        // Far more than a reader holds at a time.
        let store = open(Arc::new(Sim::default()), 300).unwrap();
        let mut sequence = store.sequence();
        append(&mut sequence, HEAD, 1, 4_000).unwrap();
        let rows = sequence.rows(0, 0);
        let scan = || {
            for start in (400..4_000).step_by(80) {
                read(&rows, &(start..start + 80).collect::<Vec<_>>()).unwrap();
            }
        };
        scan();
        let hinted: Vec<u32> = (0..32).collect();
        let mut ticket = rows.prefetch(&hinted).unwrap();
        assert_eq!(ticket.wait().unwrap().num_loaded, 8);
        let ticket = is_kept.then_some(ticket);
        scan();
        let before = store.stats();
        read(&rows, &hinted).unwrap();
        drop(ticket);
        store.stats().misses - before.misses
    };
    assert_eq!(misses_of(true), 0);
    assert!(misses_of(false) > 0, "other pages would have been kept, too");
}

#[test]
fn a_reader_goes_before_hints() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    flush(&store, 60);
    let (is_here, go) = gate(&sim);
    let rows = sequence.rows(0, 0);
    let mut first = rows.prefetch(&[0]).unwrap();
    is_here.recv().unwrap();
    // Two rows apart, so that no two come in one read.
    let mut hints = rows.prefetch(&[8, 16, 24, 32, 40]).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&rows, &[41]).unwrap());
        while store.stats().queued.demand == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        go.send(()).unwrap();
        is_here.recv().unwrap();
        go.send(()).unwrap();
        assert_eq!(reader.join().unwrap(), [row_bytes(1, 41)]);
        assert!(store.stats().queued.prefetch >= 4, "though a hint for it came last");
    });
    drop((is_here, go));
    assert_eq!(hints.wait().unwrap().num_loaded, 5);
    assert_eq!(first.wait().unwrap().num_loaded, 1);
}

#[test]
fn hints_beyond_the_queue_are_dropped_and_readers_are_not() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 40).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, 400).unwrap();
    let (is_here, go) = gate(&sim);
    let rows = sequence.rows(0, 0);
    let positions: Vec<u32> = (0..100).map(|row| 4 * row).collect();
    let mut hint = rows.prefetch(&positions).unwrap();
    is_here.recv().unwrap();
    drop((is_here, go));
    let outcome = hint.wait().unwrap();
    assert_eq!(outcome.num_loaded + outcome.num_dropped, 100);
    // Sixty pages are not in RAM; eight are queued, and each of two workers has sixteen at most.
    assert!(outcome.num_dropped >= 20, "{outcome:?}");
    assert_eq!(store.stats().prefetch_dropped as usize, outcome.num_dropped);
    check(&sequence, HEAD, 1, 400);
}

#[test]
fn neighbours_come_in_one_read_and_pages_in_ram_are_shown_while_others_load() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    let rows = sequence.rows(0, 0);
    let before = store.stats();
    let (is_here, go) = gate(&sim);
    drop((is_here, go));
    let pin = rows.pin(&[64]).unwrap();
    flush(&store, 60);
    read(&rows, &(0..32).collect::<Vec<_>>()).unwrap();
    let num_reads = store.stats().reads - before.reads;
    assert!(num_reads < 9, "{num_reads} reads of nine pages");
    flush(&store, 60);
    let (is_here, go) = gate(&sim);
    let mut order = Vec::new();
    rows.visit_rows(&[0, 64], &mut |page| {
        if order.is_empty() {
            // The read is under way, and what is in RAM is shown.
            is_here.recv().unwrap();
            go.send(()).unwrap();
        }
        order.push(page.first_row);
    })
    .unwrap();
    assert_eq!(order, [64, 0]);
    drop(pin);
}
