//! Disks that fail: each time a typed error that names what failed, or full recovery, and never a wrong byte.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use heterokv_offload::{Damage, Error, Files};

use crate::sim::{Call, Fate, Sim};
use crate::*;

const HEAD: (usize, usize) = (1, 0);

/// A sequence whose first rows are on disk only.
fn spilled(sim: &Sim) -> (Store, Sequence) {
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 5, 100).unwrap();
    (store, sequence)
}

/// Fails every call of a kind until the hook is cleared.
fn fail(sim: &Sim, of: Call, fate: Fate) {
    sim.set_hook(move |call, _| if call == of { fate } else { Fate::Well });
}

#[test]
fn a_full_disk_is_an_error_of_the_writer_and_loses_nothing() {
    for fate in [
        Fate::Fails(ErrorKind::StorageFull),
        Fate::FailsAfter(0, ErrorKind::StorageFull),
        Fate::FailsAfter(70, ErrorKind::StorageFull),
        Fate::FailsAfter(4096 + 70, ErrorKind::StorageFull),
    ] {
        let sim = Sim::default();
        let (store, mut sequence) = spilled(&sim);
        fail(&sim, Call::Write, fate);
        let error = append(&mut sequence, HEAD, 5, 100).unwrap_err();
        let Error::WritePage { page, source } = &error else { panic!("{error}") };
        assert_eq!((page.layer, page.kv_head), (1, 0));
        assert_eq!(source.kind(), ErrorKind::StorageFull);
        for _ in 0..100 {
            assert!(sequence.save("name").is_err());
        }
        let stats = store.stats();
        assert!(stats.dirty_pages <= stats.ram.pages, "{stats:?}");
        let kept = sequence.rows(1, 0).num_rows();
        assert!((100..200).contains(&kept));
        // What is in RAM, and what was written before, can be read while the disk is full: nothing in RAM is clean,
        // so only what does not need room.
        let last = [kept as u32 - 1];
        assert_eq!(read(&sequence.rows(1, 0), &last).unwrap(), [row_bytes(5, kept - 1)]);
        sim.clear_hook();
        append(&mut sequence, HEAD, 5, 200 - kept).unwrap();
        check(&sequence, HEAD, 5, 200);
        sequence.save("name").unwrap();
        assert!(store.stats().failures > 0);
    }
}

#[test]
fn a_disk_that_takes_or_gives_few_bytes_at_a_time_is_asked_again() {
    for most in [1, 63, 64, 65, 4097] {
        let sim = Sim::default();
        sim.set_hook(move |_, _| Fate::Short(most));
        let (_, sequence) = spilled(&sim);
        check(&sequence, HEAD, 5, 100);
    }
}

#[test]
fn a_read_that_fails_names_the_page_and_can_be_tried_again() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    fail(&sim, Call::Read, Fate::Fails(ErrorKind::Other));
    let error = read(&sequence.rows(1, 0), &[1]).unwrap_err();
    let Error::ReadPage { page, .. } = &error else { panic!("{error}") };
    assert_eq!((page.layer, page.kv_head, page.page_idx), (1, 0, 0));
    assert_eq!(error.to_string(), format!("cannot read {page}: other error"));
    let error = sequence.rows(1, 0).prefetch(&[1]).unwrap().wait().unwrap_err();
    assert!(matches!(error, Error::ReadPage { .. }), "{error}");
    sim.clear_hook();
    check(&sequence, HEAD, 5, 100);
    assert_eq!(store.stats().failures, 2);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    for bit in 0..8 * (64 + 4 * ROW_BYTES) {
        // Something else is read between, so that the page leaves.
        read(&sequence.rows(1, 0), &[80, 84, 88, 92]).unwrap();
        sim.set_hook(move |call, _| if call == Call::Read { Fate::Flips(bit) } else { Fate::Well });
        let error = read(&sequence.rows(1, 0), &[1]).unwrap_err();
        let Error::DamagedPage { page, damage } = error else { panic!("{error}") };
        assert_eq!(page.page_idx, 0);
        let expected = match bit / 8 {
            0..8 => Damage::Magic,
            8..16 => Damage::Fingerprint,
            16..20 => Damage::Version,
            20..40 => Damage::Identity,
            40..44 => Damage::Length,
            _ => Damage::Checksum,
        };
        assert_eq!(damage, expected, "bit {bit}");
        sim.clear_hook();
    }
    assert_eq!(store.stats().damaged_pages, 8 * (64 + 4 * ROW_BYTES) as u64);
    check(&sequence, HEAD, 5, 100);
}

#[test]
fn a_write_that_never_came_is_not_read_as_the_page_that_lay_there_before() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 5, 100).unwrap();
    sequence.save("name").unwrap();
    store.forget("name").unwrap();
    // The same places in the same slots, with other rows, of which the disk says that it has them.
    sequence.truncate(HEAD.0, HEAD.1, 0);
    fail(&sim, Call::Write, Fate::Lies);
    append(&mut sequence, HEAD, 6, 100).unwrap();
    sim.clear_hook();
    let error = read_all(&sequence.rows(1, 0)).unwrap_err();
    assert!(matches!(error, Error::DamagedPage { .. }), "{error}");
}

#[test]
fn files_that_are_cut_or_emptied_under_us_are_noticed_page_by_page() {
    let sim = Sim::default();
    let (_store, sequence) = spilled(&sim);
    sim.edit("pages-00000001", |bytes| bytes.truncate(4096 + 100));
    let mut num_damaged = 0;
    for page in 0..25 {
        match read(&sequence.rows(1, 0), &[4 * page]) {
            Ok(rows) => assert_eq!(rows, [row_bytes(5, 4 * page as usize)]),
            Err(Error::DamagedPage { page: name, damage: Damage::Length }) => {
                assert_eq!(name.page_idx, page);
                num_damaged += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(num_damaged, 4, "of five pages of the file, the first is whole");
    // All of a file's pages at once: the error is of one that is damaged.
    let error = read_all(&sequence.rows(1, 0)).unwrap_err();
    assert!(matches!(error, Error::DamagedPage { damage: Damage::Length, .. }), "{error}");
}

#[test]
fn a_real_file_that_is_removed_or_cut_under_us() {
    for reads in real_reads() {
        let folder = folder();
        let store = Store::open(StoreOptions {
            shape: shape(4),
            ram_budget_bytes: 4 * 64,
            disk: Some(disk(Arc::new(heterokv_offload::OsFiles { reads }), folder.path())),
        })
        .unwrap();
        let mut sequence = store.sequence();
        append(&mut sequence, HEAD, 5, 100).unwrap();
        check(&sequence, HEAD, 5, 100);
        let file = |number: u32| folder.path().join(format!("pages-{number:08}"));
        // Whoever has a file open keeps it.
        std::fs::remove_file(file(1)).unwrap();
        check(&sequence, HEAD, 5, 100);
        std::fs::File::options().write(true).open(file(2)).unwrap().set_len(10).unwrap();
        let error = read_all(&sequence.rows(1, 0)).unwrap_err();
        assert!(matches!(error, Error::DamagedPage { damage: Damage::Length, .. }), "{error}");
    }
}

#[test]
fn a_folder_that_is_removed_under_us_is_an_error_until_it_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let within = folder.path().join("within");
    std::fs::create_dir(&within).unwrap();
    let disk = Some(disk(Arc::new(heterokv_offload::OsFiles::default()), &within));
    let options = StoreOptions { shape: shape(4), ram_budget_bytes: 4 * 64, disk };
    let store = Store::open(options).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, HEAD, 5, 100).unwrap();
    std::fs::remove_dir_all(&within).unwrap();
    let error = append(&mut sequence, HEAD, 5, 100).unwrap_err();
    assert!(matches!(error, Error::Io { action: "create", .. }), "{error}");
    assert!(matches!(sequence.save("name"), Err(Error::Io { .. })));
    let kept = sequence.rows(1, 0).num_rows();
    std::fs::create_dir(&within).unwrap();
    append(&mut sequence, HEAD, 5, 200 - kept).unwrap();
    check(&sequence, HEAD, 5, 200);
}

#[test]
fn a_saved_sequence_of_which_a_file_is_missing_for_a_while_keeps_the_others() {
    let sim = Sim::default();
    let (store, mut sequence) = spilled(&sim);
    sequence.save("name").unwrap();
    drop((sequence, store));
    let names = sim.names();
    let pages: Vec<_> = names.iter().filter(|name| name.starts_with("pages-")).collect();
    assert!(pages.len() > 2, "{names:?}");
    for name in &pages {
        let path = Path::new("folder").join(name);
        sim.rename(&path, Path::new("folder/elsewhere")).unwrap();
        let store = open(Arc::new(sim.clone()), 4).unwrap();
        let error = store.load("name").unwrap_err();
        assert!(matches!(error, Error::Io { action: "open", .. }), "{error}");
        drop(store);
        sim.rename(Path::new("folder/elsewhere"), &path).unwrap();
        assert_eq!(sim.names(), names);
    }
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    check(&store.load("name").unwrap(), HEAD, 5, 100);
}

#[test]
fn a_name_whose_removal_failed_halfway_can_be_removed() {
    let sim = Sim::default();
    let (store, mut sequence) = spilled(&sim);
    sequence.save("name").unwrap();
    drop(sequence);
    fail(&sim, Call::SyncFolder, Fate::Fails(ErrorKind::Other));
    assert!(matches!(store.forget("name"), Err(Error::Io { .. })));
    sim.clear_hook();
    store.forget("name").unwrap();
    assert!(matches!(store.forget("name"), Err(Error::NoSuchSave { .. })));
    drop(store);
    assert_eq!(sim.names(), [""; 0]);
}

#[test]
fn a_first_save_that_fails_at_its_end_is_no_name_and_can_be_removed() {
    for failing in [Call::Rename, Call::SyncFolder] {
        let sim = Sim::default();
        let (store, mut sequence) = spilled(&sim);
        // The folder is made durable before the rename, too.
        let is_renamed = AtomicBool::new(false);
        sim.set_hook(move |call, _| {
            is_renamed.fetch_or(call == Call::Rename, Ordering::SeqCst);
            let fails = call == failing && is_renamed.load(Ordering::SeqCst);
            if fails { Fate::Fails(ErrorKind::Other) } else { Fate::Well }
        });
        let error = sequence.save("name").unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        sim.clear_hook();
        assert_eq!(store.saved_names(), [""; 0]);
        assert!(matches!(store.load("name"), Err(Error::NoSuchSave { .. })));
        let is_there = sim.names().contains(&"name.saved".to_owned());
        assert_eq!(is_there, failing == Call::SyncFolder, "so it may come back");
        store.forget("name").unwrap();
        assert!(matches!(store.forget("name"), Err(Error::NoSuchSave { .. })));
        assert!(!sim.names().contains(&"name.saved".to_owned()));
        sequence.save("name").unwrap();
        assert_eq!(store.saved_names(), ["name"]);
        check(&store.load("name").unwrap(), HEAD, 5, 100);
    }
}

#[test]
fn a_worker_that_panics_is_an_error_and_no_hang() {
    let sim = Sim::default();
    let (store, sequence) = spilled(&sim);
    fail(&sim, Call::Read, Fate::Panics);
    for _ in 0..5 {
        let error = read(&sequence.rows(1, 0), &[1]).unwrap_err();
        assert!(matches!(error, Error::WorkerPanicked { page: Some(_) }), "{error}");
    }
    sim.clear_hook();
    check(&sequence, HEAD, 5, 100);
    assert!(matches!(store.shutdown(), Err(Error::WorkerPanicked { .. })));
}

#[test]
fn a_writing_worker_that_panics_loses_nothing() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 12).unwrap();
    let mut sequence = store.sequence();
    // More than half of the frames: the workers are asked to write.
    let num_panics = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&num_panics);
    sim.set_hook(move |call, _| {
        let is_first = call == Call::Write && counted.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { Fate::Panics } else { Fate::Well }
    });
    append(&mut sequence, HEAD, 5, 40).unwrap();
    while num_panics.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    append(&mut sequence, HEAD, 5, 160).unwrap();
    check(&sequence, HEAD, 5, 200);
    sequence.save("name").unwrap();
    drop((sequence, store));
    let store = open(Arc::new(sim), 12).unwrap();
    check(&store.load("name").unwrap(), HEAD, 5, 200);
}

#[test]
fn after_a_sync_that_failed_no_later_one_is_believed() {
    let sim = Sim::default();
    let (store, mut sequence) = spilled(&sim);
    let is_pages = |name: &str| name.starts_with("pages-");
    sim.set_hook(move |call, name| {
        let fails = call == Call::Sync && is_pages(name);
        if fails { Fate::Fails(ErrorKind::Other) } else { Fate::Well }
    });
    assert!(matches!(sequence.save("name"), Err(Error::Io { .. })));
    sim.clear_hook();
    // The system may have dropped what it could not write, and says nothing of it any more.
    assert!(matches!(sequence.save("name"), Err(Error::Io { .. })));
    assert!(matches!(store.load("name"), Err(Error::NoSuchSave { .. })));
    check(&sequence, HEAD, 5, 100);
}

#[test]
fn a_shutdown_does_what_is_queued_and_closes_the_queue() {
    let sim = Sim::default();
    let (store, mut sequence) = spilled(&sim);
    let rows = sequence.rows(1, 0);
    let mut ticket = rows.prefetch(&[0, 4, 8]).unwrap();
    store.shutdown().unwrap();
    let outcome = ticket.wait().unwrap();
    assert_eq!(outcome.num_loaded + outcome.num_dropped, 3);
    let stats = store.stats();
    let queued = stats.queued;
    assert_eq!((queued.demand, queued.prefetch, queued.write_behind), (0, 0, 0));
    // Somewhere among the rows is a page that must be read.
    assert!(matches!(read_all(&rows), Err(Error::Closed)));
    assert_eq!(rows.prefetch(&[40]).unwrap().wait().unwrap().num_dropped, 1);
    // What needs no queue goes on.
    append(&mut sequence, HEAD, 5, 50).unwrap();
    sequence.save("name").unwrap();
    store.shutdown().unwrap();
}
