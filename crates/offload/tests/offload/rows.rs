//! Rows of a store in RAM alone, against plain lists.

use heterokv_offload::{Arena, Error, StoreShape};
use proptest::prelude::*;

use super::*;
use crate::sim::Sim;

fn in_ram(ram_budget_bytes: usize) -> Store {
    Store::open(StoreOptions { shape: shape(4), ram_budget_bytes, disk: None }).unwrap()
}

proptest! {
    #[test]
    fn reads_what_was_appended(
        appends in prop::collection::vec((0usize..2, 0usize..2), 0..200),
        page_size in 1usize..9,
        with_keys: bool,
        picks in prop::collection::btree_set(0u32..100, 0..40),
    ) {
        let key = with_keys.then_some(RowFormat::Int8);
        let layout = RowLayout { key, ..shape(1).layout };
        let shape = StoreShape { layout, ..shape(page_size) };
        let store = Store::in_ram(shape).unwrap();
        let mut sequence = store.sequence();
        let mut model = vec![Vec::new(); 4];
        for (i, &(layer, head)) in appends.iter().enumerate() {
            sequence.append(layer, head, &row(0, i), &row(1, i)).unwrap();
            let mut bytes = vec![0; shape.layout.row_bytes()];
            shape.layout.encode(&row(0, i), &row(1, i), &mut bytes).unwrap();
            model[layer * 2 + head].push(bytes);
        }
        let mut fork = sequence.fork();
        let mut pages = 0;
        for (i, expected) in model.iter().enumerate() {
            let rows = sequence.rows(i / 2, i % 2);
            prop_assert_eq!(rows.num_rows(), expected.len());
            let positions: Vec<u32> =
                picks.iter().copied().filter(|&p| (p as usize) < expected.len()).collect();
            let found = read(&rows, &positions).unwrap();
            prop_assert_eq!(&found, &read(&fork.rows(i / 2, i % 2), &positions).unwrap());
            for (bytes, position) in found.iter().zip(&positions) {
                prop_assert_eq!(bytes, &expected[*position as usize]);
            }
            pages += expected.len().div_ceil(page_size);
        }
        let page_bytes = Arena::allocated_bytes(page_size * shape.layout.row_bytes());
        prop_assert_eq!(sequence.in_use_bytes(), pages * page_bytes);
        prop_assert_eq!(store.stats().ram.bytes, pages * page_bytes, "a fork shares all pages");
        // A fork is independent: what is appended to it is seen by it alone.
        fork.append(1, 1, &row(7, 0), &row(8, 0)).unwrap();
        prop_assert_eq!(sequence.rows(1, 1).num_rows() + 1, fork.rows(1, 1).num_rows());
        prop_assert!(store.stats().ram.pages <= pages + 1);
    }
}

#[test]
fn the_bytes_of_a_shape_are_those_of_its_store() {
    for num_rows in [0, 1, 3, 4, 5, 8, 101] {
        let store = Store::in_ram(shape(4)).unwrap();
        let mut sequence = store.sequence();
        for head in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            append(&mut sequence, head, 0, num_rows).unwrap();
        }
        assert_eq!(sequence.in_use_bytes(), shape(4).bytes(num_rows));
        assert_eq!(store.stats().ram.bytes, shape(4).bytes(num_rows));
    }
}

#[test]
fn a_shared_prefix_is_stored_once() {
    let store = Store::in_ram(shape(4)).unwrap();
    let mut parent = store.sequence();
    append(&mut parent, (0, 0), 1, 4000).unwrap();
    let mut forks: Vec<_> = (0..10).map(|_| parent.fork()).collect();
    assert_eq!(store.stats().ram.pages, 1000);
    for (i, fork) in forks.iter_mut().enumerate() {
        fork.truncate(0, 0, 3998);
        append(fork, (0, 0), 1, 2 + i).unwrap();
    }
    // Each has a last page of its own: the first two rows of it are copies.
    let own: usize = (0..10).map(|i| 1 + usize::div_ceil(i, 4)).sum();
    assert_eq!(store.stats().ram.pages, 1000 + own);
    drop(parent);
    for (i, fork) in forks.iter().enumerate() {
        check(fork, (0, 0), 1, 4000 + i);
    }
    drop(forks);
    let stats = store.stats();
    assert_eq!((stats.ram.pages, stats.slab_bytes), (0, 0), "memory is given back");
    assert_eq!(stats.ram_peak.pages, 1000 + own);
}

#[test]
fn a_reader_keeps_the_rows_that_it_was_made_for() {
    let store = Store::in_ram(shape(4)).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (1, 0), 1, 6).unwrap();
    let before = sequence.rows(1, 0);
    append(&mut sequence, (1, 0), 1, 10).unwrap();
    let after = sequence.rows(1, 0);
    sequence.truncate(1, 0, 1);
    append(&mut sequence, (1, 0), 2, 7).unwrap();
    drop(sequence);
    let expected: Vec<_> = (0..16).map(|i| row_bytes(1, i)).collect();
    assert_eq!(read_all(&before).unwrap(), expected[..6]);
    assert_eq!(read_all(&after).unwrap(), expected);
}

#[test]
fn pages_come_in_the_order_of_the_list_where_all_are_in_ram() {
    let store = Store::in_ram(shape(4)).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (0, 1), 1, 50).unwrap();
    let mut offsets = Vec::new();
    let visit = &mut |page: heterokv_quant::PageRows<'_>| offsets.push(page.offset);
    sequence.rows(0, 1).visit_rows(&[0, 1, 9, 30, 31, 49], visit).unwrap();
    assert_eq!(offsets, [0, 2, 3, 5]);
    sequence.rows(0, 1).visit_rows(&[], &mut |_| panic!("nothing was asked for")).unwrap();
}

#[test]
fn a_pin_holds_each_page_once() {
    let sim = Sim::default();
    // Pages of which two go on from one run of a reader to the next.
    let options = || StoreOptions {
        shape: shape(5),
        ram_budget_bytes: 64 * 128,
        disk: Some(disk(Arc::new(sim.clone()), Path::new("folder"))),
    };
    let store = Store::open(options()).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (0, 1), 1, 300).unwrap();
    let all: Vec<u32> = (0..300).collect();
    assert_eq!(sequence.rows(0, 1).pin(&all).unwrap().num_pages(), 60);
    sequence.save("name").unwrap();
    drop((sequence, store));
    // Out of RAM, and as they arrive.
    let store = Store::open(options()).unwrap();
    let rows = store.load("name").unwrap().rows(0, 1);
    for num_misses in [60, 0] {
        let before = store.stats();
        let pin = rows.pin(&all).unwrap();
        let stats = store.stats();
        assert_eq!((pin.num_pages(), stats.misses - before.misses), (60, num_misses));
    }
}

#[test]
fn what_cannot_be_done_is_a_typed_error() {
    let store = in_ram(100);
    let mut sequence = store.sequence();
    sequence.append(0, 1, &row(0, 0), &row(0, 0)).unwrap();
    let error = read(&sequence.rows(0, 1), &[0, 1]).unwrap_err();
    assert!(matches!(error, Error::NoSuchRow { row: 1, kv_head: 1, num_rows: 1, .. }), "{error}");
    let error = sequence.append(1, 0, &row(0, 0), &row(0, 0)).unwrap_err();
    assert!(
        matches!(error, Error::OutOfMemory { requested_bytes: 64, in_use_bytes: 64, .. }),
        "{error}"
    );
    let error = sequence.append(0, 1, &[f32::NAN; HEAD_DIM], &[f32::NAN; HEAD_DIM]).unwrap_err();
    assert!(matches!(error, Error::Encode { layer: 0, kv_head: 1, .. }), "{error}");
    assert_eq!(sequence.rows(0, 1).num_rows(), 1, "a refused row is not kept");
    assert!(matches!(sequence.save("name"), Err(Error::NoDisk)));
    assert!(matches!(store.forget("name"), Err(Error::NoDisk)));
    assert!(matches!(store.load("name"), Err(Error::NoSuchSave { .. })));
    assert!(Arena::new("device").allocate(usize::MAX / 2).is_err());
}

#[test]
fn rows_before_one_that_found_no_room_are_kept() {
    let store = in_ram(64);
    let mut sequence = store.sequence();
    assert!(matches!(append(&mut sequence, (0, 0), 3, 9), Err(Error::OutOfMemory { .. })));
    check(&sequence, (0, 0), 3, 4);
    sequence.truncate(0, 0, 0);
    append(&mut sequence, (0, 0), 3, 4).unwrap();
}

#[test]
#[should_panic(expected = "whole rows")]
fn values_that_are_no_whole_rows_are_refused() {
    let mut sequence = Store::in_ram(shape(4)).unwrap().sequence();
    let values = [1.0; HEAD_DIM + 1];
    let _ = sequence.append(0, 0, &values, &values);
}

#[test]
fn a_page_of_more_rows_than_are_read_at_a_time_comes_from_the_disk_whole() {
    const PAGE_SIZE: usize = 400;
    let sim = Sim::default();
    let store = Store::open(StoreOptions {
        shape: shape(PAGE_SIZE),
        ram_budget_bytes: 4 * Arena::allocated_bytes(PAGE_SIZE * ROW_BYTES),
        disk: Some(disk(Arc::new(sim), Path::new("folder"))),
    })
    .unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (1, 0), 2, 10 * PAGE_SIZE + 7).unwrap();
    check(&sequence, (1, 0), 2, 10 * PAGE_SIZE + 7);
    assert!(store.stats().misses > 0, "not all pages are in RAM");
}
