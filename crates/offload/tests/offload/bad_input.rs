//! Options, folders and files that cannot be right: errors of a type, no panic, and no memory taken.

use std::fs;

use heterokv_offload::{Damage, Error, Files, OsFiles, StoreShape};

use crate::sim::Sim;
use crate::*;

fn error(options: StoreOptions) -> Error {
    Store::open(options).unwrap_err()
}

fn on(folder: &Path) -> StoreOptions {
    let disk = Some(disk(Arc::new(OsFiles::default()), folder));
    StoreOptions { shape: shape(4), ram_budget_bytes: 1 << 12, disk }
}

#[test]
fn shapes_and_options_that_no_store_can_have() {
    let good = shape(4);
    let layout = RowLayout { head_dim: 0, ..good.layout };
    for shape in [
        StoreShape { num_layers: 0, ..good },
        StoreShape { num_kv_heads: 0, ..good },
        StoreShape { num_layers: usize::MAX, ..good },
        StoreShape { num_kv_heads: usize::MAX, ..good },
        StoreShape { num_layers: 1 << 16, num_kv_heads: 1 << 16, ..good },
        StoreShape { page_size: 0, ..good },
        StoreShape { page_size: usize::MAX, ..good },
        StoreShape { layout, ..good },
        StoreShape { layout: RowLayout { head_dim: usize::MAX, ..layout }, ..good },
    ] {
        let error = error(StoreOptions { shape, ram_budget_bytes: usize::MAX, disk: None });
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        assert!(Store::in_ram(shape).is_err());
    }
    for ram_budget_bytes in [0, 1, 63] {
        let error = error(StoreOptions { shape: good, ram_budget_bytes, disk: None });
        assert!(matches!(error, Error::OutOfRange { least: 64, .. }), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (num_workers, queue_len) in [(0, 8), (257, 8), (1, 0), (1, usize::MAX)] {
        let good = on(folder.path());
        let disk = good.disk.map(|disk| DiskOptions { num_workers, queue_len, ..disk });
        let error = error(StoreOptions { disk, shape: good.shape, ..good });
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
}

/// Whether an error names the file that has the last number.
fn is_after(error: &Error, name: &str) -> bool {
    matches!(error, Error::LastFile { path } if path.ends_with(name))
}

#[test]
fn numbers_of_files_end_and_no_file_is_written_twice() {
    let sim = Sim::default();
    sim.create(Path::new("folder/pages-4294967294")).unwrap();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    for _ in 0..2 {
        let error = append(&mut sequence, (0, 0), 1, 400).unwrap_err();
        assert!(is_after(&error, "pages-4294967295"), "{error}");
        assert_eq!(sim.names(), ["pages-4294967295"]);
    }
    let num_rows = sequence.rows(0, 0).num_rows();
    assert!(num_rows > 5 * 4, "the last file takes its pages");
}

#[test]
fn numbers_of_attached_files_end_and_what_is_saved_stays() {
    let sim = Sim::default();
    sim.create(Path::new("folder/attached-4294967294")).unwrap();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    save_with(&mut sequence, "talk", 7).unwrap();
    for name in ["talk", "other"] {
        let error = save_with(&mut sequence, name, 9).unwrap_err();
        assert!(is_after(&error, "attached-4294967295"), "{error}");
    }
    assert_eq!(store.saved_names(), ["talk"]);
    drop((sequence, store));
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    assert_eq!(read_attachment(&store, "talk").unwrap(), beside(7));
    let error = save_with(&mut store.sequence(), "other", 9).unwrap_err();
    assert!(is_after(&error, "attached-4294967295"), "{error}");
    // The remedy: nothing saved lies in it any more.
    store.forget("talk").unwrap();
    drop(store);
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    save_with(&mut store.sequence(), "other", 9).unwrap();
    assert_eq!(sim.names(), ["attached-00000001", "other.saved"]);
}

#[test]
fn a_budget_of_one_page_and_files_of_one_page_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = on(folder.path());
    let disk = options.disk.map(|disk| DiskOptions { file_bytes: 0, ..disk });
    let options = StoreOptions { disk, ram_budget_bytes: 64, shape: options.shape };
    let store = Store::open(options).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (0, 0), 1, 40).unwrap();
    check(&sequence, (0, 0), 1, 40);
    assert_eq!(store.stats().ram_peak.pages, 1);
}

#[test]
fn folders_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let missing = error(on(&folder.path().join("missing")));
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    assert!(!folder.path().join("missing").exists(), "none is made");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(error(on(&file)), Error::Io { .. }));
    let store = Store::open(on(folder.path())).unwrap();
    let taken = error(on(folder.path()));
    assert!(matches!(taken, Error::Io { action: "lock", .. }), "{taken}");
    drop(store);
    Store::open(on(folder.path())).unwrap();
    // What others keep in the folder stays.
    fs::write(folder.path().join("pages-1"), "").unwrap();
    fs::write(folder.path().join("pages-000000001"), "").unwrap();
    fs::write(folder.path().join("pages-00000007"), "").unwrap();
    Store::open(on(folder.path())).unwrap();
    let mut names = OsFiles::default().names(folder.path()).unwrap();
    names.sort();
    assert_eq!(names, ["file", "lock", "pages-000000001", "pages-1"]);
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written() {
    // To the system's first user every folder can be.
    let unwritable = error(on(Path::new("/proc")));
    assert!(matches!(unwritable, Error::Io { action: "lock", .. }), "{unwritable}");
}

#[test]
fn names_that_are_none() {
    let sim = Sim::default();
    let store = open(Arc::new(sim), 4).unwrap();
    let mut sequence = store.sequence();
    let long = "x".repeat(65);
    for name in ["", ".", "..", "a/b", "a\\b", "a b", "ä", "a\0", &long] {
        assert!(matches!(sequence.save(name), Err(Error::BadName { .. })), "{name}");
        assert!(matches!(store.load(name), Err(Error::NoSuchSave { .. })), "{name}");
        assert!(matches!(store.forget(name), Err(Error::NoSuchSave { .. })), "{name}");
    }
    sequence.save(&long[..64]).unwrap();
    assert_eq!(store.saved_names(), [&long[..64]]);
}

#[test]
fn what_is_saved_is_of_one_model_format_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(on(folder.path())).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (0, 0), 1, 10).unwrap();
    sequence.save("talk").unwrap();
    drop((sequence, store));
    let good = shape(4);
    let int8 = RowLayout { value: RowFormat::Int8, ..good.layout };
    let keys = RowLayout { key: Some(RowFormat::F16), ..good.layout };
    for (shape, model) in [
        (StoreShape { page_size: 5, ..good }, "a model"),
        (StoreShape { num_layers: 1, num_kv_heads: 4, ..good }, "a model"),
        (StoreShape { layout: int8, ..good }, "a model"),
        (StoreShape { layout: keys, ..good }, "a model"),
        (good, "another model"),
    ] {
        let options = on(folder.path());
        let disk = options.disk.map(|disk| DiskOptions { model: model.to_owned(), ..disk });
        let store = Store::open(StoreOptions { shape, disk, ..options }).unwrap();
        let error = store.load("talk").unwrap_err();
        let Error::ForeignSave { expected, found, .. } = &error else { panic!("{error}") };
        assert!(found.ends_with("values f16, model a model") && expected != found, "{error}");
        // Its pages stay, and what this store saves stands beside them.
        append(&mut store.sequence(), (0, 0), 1, 1000).unwrap();
    }
    let store = Store::open(on(folder.path())).unwrap();
    check(&store.load("talk").unwrap(), (0, 0), 1, 10);
}

#[test]
fn a_table_that_is_cut_anywhere_is_damaged_and_its_pages_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(on(folder.path())).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (1, 1), 1, 9).unwrap();
    sequence.save("talk").unwrap();
    drop((sequence, store));
    let path = folder.path().join("talk.saved");
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let store = Store::open(on(folder.path())).unwrap();
        let error = store.load("talk").unwrap_err();
        assert!(matches!(error, Error::DamagedSave { .. }), "{len} bytes: {error}");
    }
    for bit in 0..8 * whole.len() {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        let store = Store::open(on(folder.path())).unwrap();
        assert!(store.load("talk").is_err(), "bit {bit}");
    }
    fs::write(&path, &whole).unwrap();
    let store = Store::open(on(folder.path())).unwrap();
    check(&store.load("talk").unwrap(), (1, 1), 1, 9);
}

#[test]
fn a_saved_page_that_is_cut_or_changed_anywhere_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(on(folder.path())).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (1, 1), 1, 3).unwrap();
    sequence.save("talk").unwrap();
    drop((sequence, store));
    let path = folder.path().join("pages-00000001");
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), 64 + 3 * ROW_BYTES);
    for len in 0..whole.len() {
        for is_cut in [true, false] {
            let mut bytes = whole.clone();
            if is_cut {
                bytes.truncate(len)
            } else {
                bytes[len] ^= 0x10
            }
            fs::write(&path, &bytes).unwrap();
            let store = Store::open(on(folder.path())).unwrap();
            let loaded = store.load("talk").unwrap();
            let error = read(&loaded.rows(1, 1), &[0]).unwrap_err();
            let Error::DamagedPage { page, damage } = error else { panic!("{error}") };
            assert_eq!((page.layer, page.kv_head, page.page_idx), (1, 1, 0));
            assert_eq!(damage == Damage::Length, is_cut || (40..44).contains(&len), "byte {len}");
        }
    }
    fs::remove_file(&path).unwrap();
    let store = Store::open(on(folder.path())).unwrap();
    assert!(matches!(store.load("talk"), Err(Error::Io { action: "open", .. })));
}
