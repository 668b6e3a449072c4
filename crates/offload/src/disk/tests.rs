//! Slots: where pages go, and when files go.

use super::*;
use crate::PageName;

fn disk(folder: &Path, file_bytes: u64) -> Disk {
    let options = DiskOptions { file_bytes, ..DiskOptions::new(folder, "a model") };
    Disk::open(&options, 100).expect("the folder is there").0
}

fn header(page_idx: u32) -> Header {
    let name = PageName { sequence: 0, layer: 0, kv_head: 0, page_idx };
    Header { fingerprint: 7, name, num_rows: 1 }
}

fn write(disk: &Disk, num_pages: u32) -> Vec<Slot> {
    let payloads: Vec<_> = (0..num_pages).map(|i| vec![i as u8; 100]).collect();
    let pages: Vec<_> = (0..num_pages).map(header).zip(payloads.iter().map(|p| &p[..])).collect();
    let (slots, result) = disk.write(&pages);
    result.expect("the folder can be written");
    slots
}

fn places(slots: &[Slot]) -> Vec<(u32, u32)> {
    slots.iter().map(|slot| (slot.file.number, slot.idx)).collect()
}

#[test]
fn slots_are_neighbours_and_freed_ones_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), 4 << 12);
    let mut slots = write(&disk, 6);
    assert_eq!(places(&slots), [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]);
    assert_eq!(disk.num_slots(), 6);
    slots.drain(1..3);
    assert_eq!(places(&write(&disk, 3)), [(1, 1), (1, 2), (2, 2)]);
    assert_eq!(disk.num_slots(), 4, "what was written second is gone again");
}

#[test]
fn a_file_without_pages_goes_and_one_that_is_to_stay_stays() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), 2 << 12);
    let has = |number| folder.path().join(FileKind::Pages.name(number)).exists();
    let mut slots = write(&disk, 5);
    assert_eq!([has(1), has(2), has(3)], [true; 3]);
    slots.drain(..2);
    assert_eq!([has(1), has(2)], [false, true]);
    slots[0].file.keep();
    drop(slots);
    assert!(has(2));
    assert!(has(3), "it takes the next page");
    drop(disk);
    assert!(!has(3));
}

#[test]
fn pages_are_read_in_one_call_and_one_that_is_damaged_spoils_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), 1 << 20);
    let mut slots = write(&disk, 4);
    let places: Vec<_> = slots.iter().map(Slot::place).collect();
    let mut buffers = [[0_u8; 100]; 4];
    let mut read = |places: &[Place]| {
        let buffers = buffers.iter_mut().map(|buffer| &mut buffer[..]);
        let mut pages: Vec<_> = (0..4).map(header).zip(buffers).collect();
        disk.read(places, &mut pages).iter().map(Result::is_ok).collect::<Vec<_>>()
    };
    assert_eq!(read(&places), [true; 4]);
    let path = folder.path().join(FileKind::Pages.name(1));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(3 * 4096 + 64 + 99).unwrap();
    assert_eq!(read(&places), [true, true, true, false]);
    file.set_len(2 * 4096 + 64 + 99).unwrap();
    assert_eq!(read(&places), [true, true, false, false]);
    slots[1].checksum ^= 1;
    let places: Vec<_> = slots.iter().map(Slot::place).collect();
    assert_eq!(read(&places), [true, false, false, false]);
    assert_eq!(buffers[0], [0; 100]);
}

#[test]
fn a_folder_is_one_stores() {
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions::new(folder.path(), "a model");
    let (first, _) = Disk::open(&options, 100).unwrap();
    let slots = write(&first, 1);
    drop(first);
    // The lock is that of the files, which go last.
    assert!(matches!(Disk::open(&options, 100), Err(Error::Io { action: "lock", .. })));
    drop(slots);
    Disk::open(&options, 100).unwrap();
}

#[test]
fn without_its_check_a_damaged_page_would_be_read_as_data() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), 1 << 20);
    let slots = write(&disk, 2);
    let path = folder.path().join(FileKind::Pages.name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + HEADER_BYTES + 50] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let places = [slots[1].place()];
    let mut buffer = [0; 100];
    let mut pages = [(header(1), &mut buffer[..])];
    assert!(disk.read_run(&places, &mut pages).is_ok(), "the system sees nothing wrong");
    let result = disk.read(&places, &mut pages).remove(0);
    assert!(matches!(result, Err(Error::DamagedPage { damage: Damage::Checksum, .. })));
    assert_ne!(buffer, [1; 100]);
}

#[test]
#[cfg(target_os = "linux")]
fn reads_past_the_systems_cache_begin_and_end_anywhere() {
    // On the disk that the build is on; folders for temporary files may be in RAM.
    let program = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let path = folder.path().join("file");
    let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let file = match (OsFiles { reads: Reads::Direct }).open(&path) {
        Ok(file) => file,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
    };
    for (offset, len) in [(0, 10_000), (0, 1), (4095, 2), (4096, 4096), (5000, 5000), (9999, 1)] {
        let (mut first, mut second) = (vec![0; len / 3], vec![0; len - len / 3]);
        let mut parts = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        read_all(&*file, offset as u64, &mut parts).unwrap();
        assert_eq!([first, second].concat(), bytes[offset..][..len], "{offset} {len}");
    }
    for offset in [9_999, 10_000, 12_288, 20_000] {
        let mut rest = [0; 2];
        let error = read_all(&*file, offset, &mut [IoSliceMut::new(&mut rest)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{offset}");
    }
}

#[test]
fn nothing_lies_behind_the_last_slot() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), 1 << 20);
    let file = Arc::clone(&write(&disk, 1)[0].file);
    let place = |idx| Place { file: Arc::clone(&file), idx, checksum: 0 };
    assert!(place(4).is_before(&place(5)) && !place(4).is_before(&place(6)));
    assert!(!place(u32::MAX).is_before(&place(0)));
}
