//! Rows fetched in the background: what they are, what they wait for and what not, and how they end.

use std::any::Any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use heterokv_offload::{Error, Fetch};

use crate::sim::{Call, Fate, Sim};
use crate::*;

const HEAD: (usize, usize) = (0, 1);

/// A store of one worker and a few frames whose first rows are on disk only.
fn spilled(sim: &Sim) -> (Store, Sequence) {
    let options = DiskOptions {
        num_workers: 1,
        queue_len: 64,
        ..disk(Arc::new(sim.clone()), Path::new("folder"))
    };
    let options = StoreOptions { shape: shape(4), ram_budget_bytes: 8 * 64, disk: Some(options) };
    let store = Store::open(options).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, 400).unwrap();
    sequence.save("name").unwrap();
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

fn expected(positions: &[u32]) -> Vec<u8> {
    positions.iter().flat_map(|&row| row_bytes(1, row as usize)).collect()
}

/// Asks again and again until the result is there.
fn poll(fetch: &mut Fetch) -> Result<Vec<u8>> {
    loop {
        if let Some(result) = fetch.try_take() {
            return result;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_fetch_gives_the_rows_from_ram_and_from_disk() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Fetch>();
    let all: Vec<u32> = (0..3000).collect();
    let some: Vec<u32> = all.iter().copied().filter(|row| row % 7 < 2).collect();
    for store in [Store::in_ram(shape(4)).unwrap(), open(Arc::new(Sim::default()), 6).unwrap()] {
        let mut sequence = store.sequence();
        append(&mut sequence, HEAD, 1, 3000).unwrap();
        let rows = sequence.rows(HEAD.0, HEAD.1);
        // More than are looked at between two looks at whether they are wanted, several at a time, and none.
        let mut fetches = [&all[..], &some, &[], &[2999]].map(|rows_of| {
            let fetch = rows.fetch(rows_of.to_vec());
            (fetch, expected(rows_of))
        });
        sequence.keep(HEAD.0, HEAD.1, &[7]).unwrap();
        append(&mut sequence, HEAD, 2, 50).unwrap();
        drop((sequence, rows));
        let (first, expected) = &mut fetches[0];
        assert_eq!(&poll(first).unwrap(), expected, "of the rows that its reader had");
        for (fetch, expected) in fetches.into_iter().skip(1) {
            assert_eq!(fetch.wait().unwrap(), expected);
        }
    }
}

#[test]
fn a_wrong_row_would_be_noticed() {
    let (_store, sequence) = spilled(&Sim::default());
    let bytes = sequence.rows(HEAD.0, HEAD.1).fetch(vec![3, 4]).wait().unwrap();
    assert_ne!(bytes, expected(&[3, 5]));
    assert_ne!(bytes, expected(&[4, 3]));
    assert_eq!(bytes, expected(&[3, 4]));
}

#[test]
fn nobody_waits_for_a_fetch_that_is_under_way() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    let (is_here, go) = gate(&sim);
    let rows = sequence.rows(HEAD.0, HEAD.1);
    let waits = store.stats().read_waits.total();
    let mut fetch = rows.fetch(vec![0, 399]);
    is_here.recv().unwrap();
    for _ in 0..10 {
        assert!(fetch.try_take().is_none(), "its read has not come back");
    }
    // What is in RAM is read meanwhile.
    assert_eq!(read(&rows, &[399]).unwrap(), [row_bytes(1, 399)]);
    go.send(()).unwrap();
    assert_eq!(poll(&mut fetch).unwrap(), expected(&[0, 399]));
    assert_eq!(store.stats().read_waits.total(), waits, "no reader has waited");
}

#[test]
fn a_reader_goes_before_a_fetch() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    let rows = sequence.rows(HEAD.0, HEAD.1);
    let (is_here, go) = gate(&sim);
    let mut fetch = rows.fetch(vec![0, 40, 80]);
    is_here.recv().unwrap();
    // The one worker reads the first page; those of the others wait.
    while store.stats().queued.prefetch < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&rows, &[120]).unwrap());
        while store.stats().queued.demand < 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        go.send(()).unwrap();
        is_here.recv().unwrap();
        go.send(()).unwrap();
        assert_eq!(reader.join().unwrap(), [row_bytes(1, 120)]);
        is_here.recv().unwrap();
        assert!(fetch.try_take().is_none(), "two of its pages are still to come");
    });
    drop((go, is_here));
    assert_eq!(fetch.wait().unwrap(), expected(&[0, 40, 80]));
}

#[test]
fn what_is_dropped_is_not_read() {
    let sim = Sim::default();
    let (store, mut sequence) = spilled(&sim);
    append(&mut sequence, HEAD, 1, 8000).unwrap();
    let rows = sequence.rows(HEAD.0, HEAD.1);
    let (is_here, go) = gate(&sim);
    let (first, second) = (rows.fetch((0..8000).collect()), rows.fetch((100..4000).collect()));
    let third = rows.fetch(vec![0, 1]);
    is_here.recv().unwrap();
    let before = store.stats().reads;
    drop((first, second));
    drop((go, is_here));
    assert_eq!(third.wait().unwrap(), expected(&[0, 1]));
    // Of the first what was begun, at most the pages of 1,024 rows; of the second nothing.
    let reads = store.stats().reads - before;
    assert!(reads <= 1024 / 4 + 1, "{reads} reads");
}

#[test]
fn the_store_ends_with_the_last_of_its_fetches() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    let fetch = sequence.rows(HEAD.0, HEAD.1).fetch((0..400).collect());
    drop((store, sequence));
    assert_eq!(fetch.wait().unwrap(), expected(&(0..400).collect::<Vec<_>>()));
    // At once, and while one is under way.
    for _ in 0..20 {
        let store = open(Arc::new(sim.clone()), 6).unwrap();
        let rows = store.load("name").unwrap().rows(HEAD.0, HEAD.1);
        drop(store);
        let fetches = [(0..300).collect(), (100..400).collect()].map(|rows_of| rows.fetch(rows_of));
        drop(rows);
        drop(fetches);
    }
    drop(open(Arc::new(sim), 6).unwrap());
}

#[test]
fn what_cannot_be_fetched_is_a_typed_error() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    let rows = sequence.rows(HEAD.0, HEAD.1);
    let error = rows.fetch(vec![1, 400]).wait().unwrap_err();
    assert!(matches!(error, Error::NoSuchRow { row: 400, num_rows: 400, .. }), "{error}");
    let error = rows.fetch(vec![7, 7]).wait().unwrap_err();
    assert!(matches!(error, Error::RowOrder { row: 7, before: 7, .. }), "{error}");
    let fates = [Fate::Fails(std::io::ErrorKind::Other), Fate::Flips(8 * 80), Fate::Panics];
    for (first, fate) in [0, 100, 200].into_iter().zip(fates) {
        // A page that is not in RAM, of which no read is left under way when it fails.
        sim.set_hook(move |call, _| if call == Call::Read { fate } else { Fate::Well });
        let error = poll(&mut rows.fetch(vec![first])).unwrap_err();
        let is_expected = match fate {
            Fate::Flips(_) => matches!(error, Error::DamagedPage { .. }),
            Fate::Panics => matches!(error, Error::WorkerPanicked { page: Some(_) }),
            _ => matches!(error, Error::ReadPage { .. }),
        };
        assert!(is_expected, "{error}");
        sim.clear_hook();
        let both = [first, first + 50];
        assert_eq!(rows.fetch(both.to_vec()).wait().unwrap(), expected(&both));
    }
    // What was asked for before a shutdown is done, and nothing after it.
    let before = rows.fetch(vec![0, 1, 390]);
    assert!(matches!(store.shutdown(), Err(Error::WorkerPanicked { .. })));
    assert_eq!(before.wait().unwrap(), expected(&[0, 1, 390]));
    assert!(matches!(rows.fetch(vec![399]).wait(), Err(Error::Closed)));
}

#[test]
#[should_panic(expected = "a result is given once")]
fn a_result_is_given_once() {
    let (_store, sequence) = spilled(&Sim::default());
    let mut fetch = sequence.rows(HEAD.0, HEAD.1).fetch(vec![1]);
    assert_eq!(poll(&mut fetch).unwrap(), expected(&[1]));
    let _ = fetch.try_take();
}

/// What is dropped by whoever wakes it.
struct DropsAll(Mutex<Option<Box<dyn Any + Send>>>);

impl Wake for DropsAll {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
    }
}

/// The only worker drops the last of a store, while a page that the fetch waits for is still for it to read.
#[test]
fn a_worker_that_ends_the_store_does_not_wait_for_a_fetch_that_waits_for_it() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    let rows = sequence.rows(HEAD.0, HEAD.1);
    let (is_here, go) = gate(&sim);
    let busy = rows.prefetch(&[0]).unwrap();
    is_here.recv().unwrap();
    let mut ticket = Box::pin(rows.prefetch(&[40]).unwrap());
    let fetch = rows.fetch(vec![80, 120]);
    while store.stats().queued.prefetch < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let all = Arc::new(DropsAll(Mutex::new(None)));
    let waker = Waker::from(Arc::clone(&all));
    let polled = ticket.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(matches!(polled, Poll::Pending));
    *all.0.lock().unwrap() = Some(Box::new((ticket, fetch, busy, rows, sequence, store)));
    drop((go, is_here));
    let since = Instant::now();
    let is_open = || open(Arc::new(sim.clone()), 4).is_ok();
    while !is_open() {
        assert!(since.elapsed() < Duration::from_secs(20), "the store has not ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(all.0.lock().unwrap().is_none(), "the worker has dropped it");
}
