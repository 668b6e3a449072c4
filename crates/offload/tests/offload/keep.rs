//! Some rows of a head stay: their bytes, the pages that nobody has any more, and what others had before.

use std::io::ErrorKind;

use heterokv_offload::{Arena, Error};
use proptest::prelude::*;

use crate::sim::{Call, Fate, Sim};
use crate::*;

const HEAD: (usize, usize) = (1, 0);

/// Holds a head to rows of stream 1.
#[track_caller]
fn check_rows(sequence: &Sequence, expected: &[u32]) {
    let rows = sequence.rows(HEAD.0, HEAD.1);
    assert_eq!(rows.num_rows(), expected.len());
    let expected: Vec<_> = expected.iter().map(|&i| row_bytes(1, i as usize)).collect();
    assert_eq!(read_all(&rows).unwrap(), expected);
}

fn keep(sequence: &mut Sequence, kept: &[u32]) -> Result<()> {
    sequence.keep(HEAD.0, HEAD.1, kept)
}

fn in_ram(page_size: usize, num_rows: usize) -> (Store, Sequence) {
    let store = Store::in_ram(shape(page_size)).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, num_rows).unwrap();
    (store, sequence)
}

proptest! {
    #[test]
    fn rows_stay_in_their_order_and_pages_are_freed(
        page_size in 1usize..9,
        num_rows in 0usize..90,
        drops in prop::collection::vec(0u32..90, 0..60),
        more in 0usize..9,
    ) {
        let (store, mut sequence) = in_ram(page_size, num_rows);
        append(&mut sequence, (0, 1), 2, 7).unwrap();
        let (fork, rows) = (sequence.fork(), sequence.rows(HEAD.0, HEAD.1));
        let kept: Vec<u32> = (0..num_rows as u32).filter(|row| !drops.contains(row)).collect();
        keep(&mut sequence, &kept).unwrap();
        check_rows(&sequence, &kept);
        let all: Vec<u32> = (0..num_rows as u32).collect();
        check_rows(&fork, &all);
        prop_assert_eq!(read_all(&rows).unwrap().len(), num_rows);
        check(&sequence, (0, 1), 2, 7);
        let page_bytes = Arena::allocated_bytes(page_size * ROW_BYTES);
        let pages = |rows: usize| rows.div_ceil(page_size) * page_bytes;
        drop((fork, rows));
        prop_assert_eq!(store.stats().ram.bytes, pages(kept.len()) + pages(7), "nothing else is left");
        // Rows go on behind those that stayed, and some of these go again.
        let last = kept.last().map_or(0, |&last| last + 1);
        let new: Vec<f32> = (0..more).flat_map(|i| row(1, last as usize + i)).collect();
        sequence.append(HEAD.0, HEAD.1, &new, &new).unwrap();
        let all: Vec<u32> = kept.iter().copied().chain(last..last + more as u32).collect();
        check_rows(&sequence, &all);
        let odd: Vec<u32> = (0..all.len() as u32).filter(|row| row % 2 == 1).collect();
        keep(&mut sequence, &odd).unwrap();
        check_rows(&sequence, &odd.iter().map(|&row| all[row as usize]).collect::<Vec<_>>());
        prop_assert_eq!(sequence.in_use_bytes(), pages(odd.len()) + pages(7));
    }
}

#[test]
fn full_pages_before_the_first_that_loses_a_row_are_shared_with_forks() {
    let (store, mut sequence) = in_ram(4, 40);
    let fork = sequence.fork();
    let kept: Vec<u32> = (0..40).filter(|row| ![22, 23, 30].contains(row)).collect();
    keep(&mut sequence, &kept).unwrap();
    // Of ten pages five stay, and 17 rows behind them take five new ones.
    assert_eq!(store.stats().ram.pages, 10 + 5);
    check_rows(&sequence, &kept);
    keep(&mut sequence, &(0..14).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.stats().ram.pages, 10, "the first rows of a page take no new one");
    drop(fork);
    assert_eq!(store.stats().ram.pages, 4);
    check_rows(&sequence, &(0..14).collect::<Vec<_>>());
}

#[test]
fn under_a_small_budget_all_goes_by_way_of_the_disk() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, 1000).unwrap();
    let (fork, before) = (sequence.fork(), sequence.rows(HEAD.0, HEAD.1));
    let kept: Vec<u32> = (0..1000).filter(|row| row % 7 > 2).collect();
    keep(&mut sequence, &kept).unwrap();
    let stats = store.stats();
    assert!(stats.ram_peak.pages <= 4, "{stats:?}");
    check_rows(&sequence, &kept);
    check(&fork, HEAD, 1, 1000);
    assert_eq!(read_all(&before).unwrap().len(), 1000);
    drop((fork, before));
    check_rows(&sequence, &kept);
    let num_pages = store.stats().disk.pages;
    assert!(num_pages <= kept.len().div_ceil(4), "{num_pages} pages on disk");
}

#[test]
fn what_is_saved_keeps_its_rows_and_what_stayed_can_be_saved() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 6).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, 90).unwrap();
    sequence.save("all").unwrap();
    let some: Vec<u32> = (0..90).filter(|row| row % 3 != 1).collect();
    keep(&mut sequence, &some).unwrap();
    sequence.save("some").unwrap();
    // In the place of what was saved before, with the first page shared.
    let few = [0, 1, 2, 3, 9, 20];
    keep(&mut sequence, &few).unwrap();
    sequence.save("few").unwrap();
    let few = few.map(|row| some[row as usize]);
    drop((sequence, store));
    let store = open(Arc::new(sim.clone()), 6).unwrap();
    check(&store.load("all").unwrap(), HEAD, 1, 90);
    let mut loaded = store.load("some").unwrap();
    check_rows(&loaded, &some);
    check_rows(&store.load("few").unwrap(), &few);
    // A loaded one loses rows as any other, and its save stays.
    keep(&mut loaded, &[5, 40]).unwrap();
    check_rows(&loaded, &[some[5], some[40]]);
    check_rows(&store.load("some").unwrap(), &some);
}

#[test]
fn an_error_on_the_way_leaves_all_rows() {
    for (call, fate) in [
        (Call::Write, Fate::Fails(ErrorKind::StorageFull)),
        (Call::Read, Fate::Fails(ErrorKind::Other)),
        (Call::Read, Fate::Flips(8 * 70)),
        (Call::Read, Fate::Panics),
    ] {
        let sim = Sim::default();
        let store = open(Arc::new(sim.clone()), 4).unwrap();
        let mut sequence = store.sequence();
        append(&mut sequence, HEAD, 1, 201).unwrap();
        let reader = sequence.rows(HEAD.0, HEAD.1);
        let kept: Vec<u32> = (0..201).filter(|row| row % 5 > 0).collect();
        let count = std::sync::atomic::AtomicUsize::new(0);
        sim.set_hook(move |of, _| {
            let fails = of == call && count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 5;
            if fails { fate } else { Fate::Well }
        });
        let error = keep(&mut sequence, &kept).unwrap_err();
        let is_expected = match (call, fate) {
            (Call::Write, _) => matches!(error, Error::WritePage { .. }),
            (_, Fate::Fails(_)) => matches!(error, Error::ReadPage { .. }),
            (_, Fate::Panics) => matches!(error, Error::WorkerPanicked { .. }),
            _ => matches!(error, Error::DamagedPage { .. }),
        };
        assert!(is_expected, "{error}");
        sim.clear_hook();
        // A read that had begun by then still fails whoever joins it.
        while read_all(&reader).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        check(&sequence, HEAD, 1, 201);
        append(&mut sequence, HEAD, 1, 9).unwrap();
        check(&sequence, HEAD, 1, 210);
        keep(&mut sequence, &kept).unwrap();
        check_rows(&sequence, &kept);
        assert_eq!(read_all(&reader).unwrap().len(), 201);
    }
}

#[test]
fn without_room_for_both_all_rows_stay() {
    let store =
        Store::open(StoreOptions { shape: shape(4), ram_budget_bytes: 11 * 64, disk: None });
    let store = store.unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 1, 40).unwrap();
    let kept: Vec<u32> = (1..40).collect();
    let error = keep(&mut sequence, &kept).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    check(&sequence, HEAD, 1, 40);
    assert_eq!(store.stats().ram.pages, 10);
    // Only the last two pages are put together again, in one.
    let kept: Vec<u32> = (0..40).filter(|row| ![32, 34, 36, 38].contains(row)).collect();
    keep(&mut sequence, &kept).unwrap();
    check_rows(&sequence, &kept);
    assert_eq!(store.stats().ram.pages, 9);
    append(&mut sequence, (0, 0), 2, 8).unwrap();
}

#[test]
fn positions_that_are_none_or_not_in_order_change_nothing() {
    let (_store, mut sequence) = in_ram(4, 10);
    let error = keep(&mut sequence, &[3, 10]).unwrap_err();
    assert!(matches!(error, Error::NoSuchRow { row: 10, num_rows: 10, .. }), "{error}");
    for (kept, before, row) in [([1, 4, 4], 4, 4), ([2, 1, 0], 2, 1)] {
        let error = keep(&mut sequence, &kept).unwrap_err();
        let Error::RowOrder { row: found, before: behind, layer: 1, kv_head: 0 } = error else {
            panic!("{error}");
        };
        assert_eq!((found, behind), (row, before));
    }
    check(&sequence, HEAD, 1, 10);
    keep(&mut sequence, &[]).unwrap();
    check_rows(&sequence, &[]);
    assert!(matches!(keep(&mut sequence, &[0]), Err(Error::NoSuchRow { num_rows: 0, .. })));
}
