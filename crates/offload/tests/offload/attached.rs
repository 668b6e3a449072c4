//! What is saved beside the rows: whole, or an error that says what is wrong with it, and one pair with the rows.

use std::fs;
use std::io::{self, ErrorKind};

use heterokv_offload::{Damage, Error, OsFiles};

use crate::sim::{Call, Fate, Sim};
use crate::*;

/// Bytes of a block.
const BLOCK: usize = 1 << 20;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn save(sequence: &mut Sequence, name: &str, bytes: &[u8]) -> Result<()> {
    // In pieces of no block's length.
    sequence.save_with(name, |write| bytes.chunks(77_777).try_for_each(|b| write.write_all(b)))
}

fn on(folder: &Path) -> Store {
    let disk = Some(disk(Arc::new(OsFiles::default()), folder));
    Store::open(StoreOptions { shape: shape(4), ram_budget_bytes: 1 << 12, disk }).unwrap()
}

#[test]
fn streams_of_every_length_are_read_as_they_were_written() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK / 2] {
        save(&mut sequence, "talk", &bytes(len)).unwrap();
        let mut attachment = store.attachment("talk").unwrap();
        assert_eq!(attachment.rest_bytes(), len as u64);
        let mut found = vec![0; len];
        for part in found.chunks_mut(100_001) {
            attachment.read_exact(part).unwrap();
        }
        assert_eq!((attachment.rest_bytes(), found), (0, bytes(len)), "{len}");
        let error = attachment.read_exact(&mut [0]).unwrap_err();
        assert!(matches!(error, Error::DamagedAttachment { damage: Damage::Length, .. }));
        assert_eq!(sim.names().iter().filter(|name| name.starts_with("attached-")).count(), 1);
    }
    sequence.save("talk").unwrap();
    assert!(matches!(store.attachment("talk"), Err(Error::NoAttachment { .. })));
    assert!(matches!(store.attachment("other"), Err(Error::NoSuchSave { .. })));
    assert!(!sim.names().iter().any(|name| name.starts_with("attached-")), "nothing names one");
}

#[test]
fn it_goes_with_the_last_table_that_names_it_and_a_reader_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let names = || {
        let mut names = OsFiles::default().names(folder.path()).unwrap();
        names.retain(|name| name.starts_with("attached-"));
        names.sort();
        names
    };
    let store = on(folder.path());
    let mut sequence = store.sequence();
    save(&mut sequence, "one", &bytes(10)).unwrap();
    save(&mut sequence, "two", &bytes(20)).unwrap();
    let mut old = store.attachment("one").unwrap();
    save(&mut sequence, "one", &bytes(30)).unwrap();
    assert_eq!(names().len(), 3, "somebody reads the first");
    let mut found = [0; 10];
    old.read_exact(&mut found).unwrap();
    assert_eq!(found[..], bytes(10));
    drop(old);
    assert_eq!(names(), ["attached-00000002", "attached-00000003"]);
    store.forget("two").unwrap();
    drop((sequence, store));
    fs::write(folder.path().join("attached-00000009"), "left behind").unwrap();
    let store = on(folder.path());
    assert_eq!(names(), ["attached-00000003"]);
    assert_eq!(read_attachment(&store, "one").unwrap(), bytes(30));
}

#[test]
fn a_pair_is_of_one_save_whatever_is_saved_later() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let save = |stream: usize, num_rows: usize| {
        let mut sequence = store.sequence();
        append(&mut sequence, (0, 0), stream, num_rows).unwrap();
        save_with(&mut sequence, "talk", num_rows).unwrap();
    };
    save(1, 10);
    let (mut beside_first, first) = store.load_with("talk").unwrap();
    save(2, 13);
    let (mut beside_second, second) = store.load_with("talk").unwrap();
    check(&first.unwrap(), (0, 0), 1, 10);
    check(&second.unwrap(), (0, 0), 2, 13);
    for (attachment, expected) in
        [(&mut beside_first, beside(10)), (&mut beside_second, beside(13))]
    {
        let mut found = [vec![0; 500], vec![0; expected.len() - 500]];
        attachment.read_exact(&mut found[0]).unwrap();
        // Each of the two goes on by itself.
        let mut clone = attachment.clone();
        for attachment in [attachment, &mut clone] {
            attachment.read_exact(&mut found[1]).unwrap();
            assert_eq!(found.concat(), expected);
            found[1].fill(0);
        }
    }
    assert!(matches!(store.load_with("other"), Err(Error::NoSuchSave { .. })));
    store.sequence().save("plain").unwrap();
    assert!(matches!(store.load_with("plain"), Err(Error::NoAttachment { .. })));
}

#[test]
fn a_save_that_fails_leaves_the_pair_that_was_there() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let mut sequence = store.sequence();
    append(&mut sequence, (0, 0), 1, 10).unwrap();
    save_with(&mut sequence, "talk", 10).unwrap();
    append(&mut sequence, (0, 0), 1, 10).unwrap();
    for call in [Call::Create, Call::Write, Call::Sync] {
        sim.set_hook(move |found, name| {
            let is_meant = found == call && name.starts_with("attached-");
            if is_meant { Fate::Fails(ErrorKind::StorageFull) } else { Fate::Well }
        });
        let error = save_with(&mut sequence, "talk", 20).unwrap_err();
        let Error::Io { path, source, .. } = &error else { panic!("{error}") };
        assert!(path.display().to_string().contains("attached-"), "{error}");
        assert_eq!(source.kind(), ErrorKind::StorageFull);
    }
    sim.clear_hook();
    let error = sequence.save_with("talk", |_| Err(io::Error::other("no more"))).unwrap_err();
    assert!(error.to_string().ends_with("no more"), "{error}");
    assert_eq!(read_attachment(&store, "talk").unwrap(), beside(10));
    check(&store.load("talk").unwrap(), (0, 0), 1, 10);
    assert_eq!(sim.names().iter().filter(|name| name.starts_with("attached-")).count(), 1);
    // Nobody knows whether the table was replaced: both pairs stay.
    let folder = |found, _: &str| match found {
        Call::SyncFolder => Fate::Fails(ErrorKind::Other),
        _ => Fate::Well,
    };
    sim.set_hook(folder);
    save_with(&mut sequence, "talk", 20).unwrap_err();
    sim.clear_hook();
    drop((sequence, store));
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let num_rows = store.load("talk").unwrap().rows(0, 0).num_rows();
    assert_eq!(read_attachment(&store, "talk").unwrap(), beside(num_rows));
}

#[test]
fn a_changed_bit_is_noticed_in_its_block_and_in_no_other() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let whole = bytes(5 * BLOCK / 2);
    save(&mut store.sequence(), "talk", &whole).unwrap();
    for at in [0, BLOCK - 1, BLOCK, 2 * BLOCK, whole.len() - 1] {
        sim.edit("attached-00000001", |bytes| bytes[at] ^= 0x40);
        let mut attachment = store.attachment("talk").unwrap();
        let mut good = vec![0; at / BLOCK * BLOCK];
        attachment.read_exact(&mut good).unwrap();
        assert_eq!(good, whole[..good.len()]);
        let error = attachment.read_exact(&mut [0]).unwrap_err();
        let is_seen = matches!(error, Error::DamagedAttachment { damage: Damage::Checksum, .. });
        assert!(is_seen, "{at}: {error}");
        sim.edit("attached-00000001", |bytes| bytes[at] ^= 0x40);
    }
    assert_eq!(read_attachment(&store, "talk").unwrap(), whole);
    sim.set_hook(|call, _| match call {
        Call::Read => Fate::Fails(ErrorKind::Other),
        _ => Fate::Well,
    });
    assert!(matches!(read_attachment(&store, "talk"), Err(Error::Io { action: "read", .. })));
}

#[test]
fn after_a_read_that_failed_what_is_read_next_is_checked() {
    let sim = Sim::default();
    let store = open(Arc::new(sim.clone()), 4).unwrap();
    let whole = bytes(BLOCK + 10);
    save(&mut store.sequence(), "talk", &whole).unwrap();
    for start in [0, BLOCK] {
        let mut attachment = store.attachment("talk").unwrap();
        attachment.read_exact(&mut vec![0; start]).unwrap();
        sim.set_hook(|call, _| match call {
            Call::Read => Fate::Fails(ErrorKind::Other),
            _ => Fate::Well,
        });
        let error = attachment.read_exact(&mut [0; 10]).unwrap_err();
        assert!(matches!(error, Error::Io { action: "read", .. }), "{error}");
        sim.set_hook(|call, _| if call == Call::Read { Fate::Flips(3) } else { Fate::Well });
        let error = attachment.read_exact(&mut [0; 10]).unwrap_err();
        let is_seen = matches!(error, Error::DamagedAttachment { damage: Damage::Checksum, .. });
        assert!(is_seen, "{start}: {error}");
        sim.clear_hook();
        assert_eq!(attachment.rest_bytes(), (whole.len() - start) as u64);
        let mut found = [0; 10];
        attachment.read_exact(&mut found).unwrap();
        assert_eq!(found[..], whole[start..][..10]);
    }
}

#[test]
fn a_file_that_is_cut_or_gone_is_an_error_and_loses_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = on(folder.path());
    let mut sequence = store.sequence();
    append(&mut sequence, (1, 1), 1, 9).unwrap();
    save_with(&mut sequence, "talk", 9).unwrap();
    drop((sequence, store));
    let path = folder.path().join("attached-00000001");
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(97).chain([whole.len() - 1, whole.len() + 1]) {
        let mut bytes = whole.clone();
        bytes.resize(len, 0);
        fs::write(&path, &bytes).unwrap();
        let store = on(folder.path());
        let error = read_attachment(&store, "talk").unwrap_err();
        let is_seen = matches!(error, Error::DamagedAttachment { damage: Damage::Length, .. });
        assert!(is_seen, "{len}: {error}");
        check(&store.load("talk").unwrap(), (1, 1), 1, 9);
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(read_attachment(&on(folder.path()), "talk").unwrap(), whole);
    fs::remove_file(&path).unwrap();
    let store = on(folder.path());
    assert!(matches!(store.attachment("talk"), Err(Error::Io { action: "open", .. })));
    check(&store.load("talk").unwrap(), (1, 1), 1, 9);
}

#[test]
fn it_says_what_a_sequence_is_that_the_store_cannot_have() {
    let folder = tempfile::tempdir().unwrap();
    let store = on(folder.path());
    save(&mut store.sequence(), "talk", b"of another model").unwrap();
    drop(store);
    let disk = Some(DiskOptions {
        model: "another".to_owned(),
        ..disk(Arc::new(OsFiles::default()), folder.path())
    });
    let options = StoreOptions { shape: shape(5), ram_budget_bytes: 1 << 12, disk };
    let store = Store::open(options).unwrap();
    assert!(matches!(store.load("talk"), Err(Error::ForeignSave { .. })));
    assert_eq!(read_attachment(&store, "talk").unwrap(), b"of another model");
    let (_, sequence) = store.load_with("talk").unwrap();
    assert!(matches!(sequence, Err(Error::ForeignSave { .. })));
    drop(store);
    let names = ["talk.saved", "talk.saved-new", "attached-00000001", "lock"];
    assert_eq!(names.map(Store::saved_name), [Some("talk"), None, None, None]);
    assert_eq!(read_attachment(&on(folder.path()), "talk").unwrap(), b"of another model");
}

#[test]
fn pages_stay_where_one_file_of_several_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = on(folder.path());
    let mut sequence = store.sequence();
    append(&mut sequence, (1, 1), 1, 60).unwrap();
    sequence.save("talk").unwrap();
    drop((sequence, store));
    let [last, aside] = ["pages-00000003", "aside"].map(|name| folder.path().join(name));
    fs::rename(&last, &aside).unwrap();
    assert!(matches!(on(folder.path()).load("talk"), Err(Error::Io { action: "open", .. })));
    fs::rename(&aside, &last).unwrap();
    check(&on(folder.path()).load("talk").unwrap(), (1, 1), 1, 60);
}
