//! Saved sequences that were changed by somebody who knows the checksums: typed errors or what was written, and no
//! memory for numbers that nothing stands behind.

use heterokv_offload::{Damage, Error};

use crate::tampered::{Folder, Outcome};

/// What stands in the place of four bytes, and of eight.
const WORDS: [u32; 6] = [0, 1, 2, i32::MAX as u32, u32::MAX - 1, u32::MAX];
const LONG_WORDS: [u64; 4] = [1 << 32, i64::MAX as u64, u64::MAX - 1, u64::MAX];

/// Every table with a number of [`WORDS`] or [`LONG_WORDS`] in any place, or cut or changed there, and the checksum that
/// it then should have: those that are refused, and those that are loaded.
pub(crate) fn hostile_tables() -> [usize; 2] {
    let whole = Folder::new();
    let len = whole.clone().table().len();
    let mut counts = [0, 0];
    let mut check = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut folder = whole.clone();
        change(folder.table());
        folder.sign_table();
        let is_loaded = matches!(folder.check(), Outcome::Loaded { .. });
        counts[usize::from(is_loaded)] += 1;
    };
    for at in 0..len {
        check(&|table| table.truncate(at));
        check(&|table| table[at] ^= 0x10);
        for word in WORDS {
            check(&|table| overwrite(table, at, &word.to_le_bytes()));
        }
        for word in LONG_WORDS {
            check(&|table| overwrite(table, at, &word.to_le_bytes()));
        }
    }
    counts
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes[at..].iter_mut().zip(with).for_each(|(byte, with)| *byte = *with);
}

#[test]
fn what_nobody_changed_is_whole() {
    let outcome = Folder::new().check();
    assert!(matches!(outcome, Outcome::Loaded { num_good: 7, num_damaged: 0 }), "{outcome:?}");
}

#[test]
fn tables_with_hostile_numbers_and_good_checksums() {
    let [num_refused, num_loaded] = hostile_tables();
    assert!(num_refused > 2000, "{num_refused}");
    // Wrong places and checksums of pages, which are found out when they are read, and bytes that were so before.
    assert!(num_loaded > 500, "{num_loaded}");
}

#[test]
fn a_change_that_no_checksum_covers_is_noticed_all_the_same() {
    let whole = Folder::new();
    for at in 0..whole.clone().table().len() {
        let mut folder = whole.clone();
        folder.table()[at] ^= 4;
        let Outcome::Refused(error) = folder.check() else { panic!("byte {at}") };
        assert!(matches!(error, Error::DamagedSave { .. }), "byte {at}: {error}");
    }
}

#[test]
fn pages_with_hostile_headers_and_good_checksums() {
    let whole = Folder::new();
    for idx in 0..whole.num_pages() {
        let checksum = whole.checksum_of_page(idx);
        let len = whole.clone().page(idx).len();
        let num_read = |folder: &Folder| match folder.check() {
            Outcome::Loaded { num_good, num_damaged } => {
                assert_eq!(num_good + num_damaged, whole.num_pages());
                num_good
            }
            Outcome::Refused(error) => panic!("{error}"),
        };
        let mut num_other_rows = 0;
        for at in 0..len {
            let mut folder = whole.clone();
            folder.page(idx)[at] ^= 0x10;
            assert_eq!(num_read(&folder), whole.num_pages() - 1, "byte {at} of page {idx}");
            folder.sign_page(idx);
            // A header says what is known before; rows may be others, and are those.
            let is_header = at < len - num_row_bytes(idx);
            let is_same = checksum.contains(&at) || !is_header;
            num_other_rows += usize::from(!is_header);
            let expected = whole.num_pages() - usize::from(!is_same);
            assert_eq!(num_read(&folder), expected, "byte {at} of page {idx}, signed");
        }
        assert_eq!(num_other_rows, num_row_bytes(idx));
    }
}

#[test]
fn a_file_that_is_cut_within_a_page_is_noticed() {
    let whole = Folder::new();
    for idx in 0..whole.num_pages() {
        for at in 0..whole.clone().page(idx).len() {
            let mut folder = whole.clone();
            folder.cut_page(idx, at);
            let Outcome::Loaded { num_good, num_damaged } = folder.check() else { panic!("{at}") };
            assert!(num_damaged > 0 && num_good + num_damaged == whole.num_pages(), "{at}");
        }
    }
}

/// Bytes of the rows of a page.
fn num_row_bytes(idx: usize) -> usize {
    [4, 4, 4, 4, 2, 4, 3][idx] * crate::ROW_BYTES
}

#[test]
fn a_row_that_was_not_written_would_be_noticed() {
    // A page whose rows were changed in a way that its checksums allow, and of which nothing is told to the one who checks.
    let mut told = Folder::new();
    let whole = told.clone();
    let last = told.page(0).len() - 1;
    told.page(0)[last] ^= 1;
    told.sign_page(0);
    assert!(matches!(told.check(), Outcome::Loaded { num_damaged: 0, .. }));
    let untold = told.with_rows_of(&whole);
    assert!(std::panic::catch_unwind(|| untold.check()).is_err());
}

#[test]
fn what_is_refused_has_a_reason_that_fits() {
    let mut folder = Folder::new();
    folder.table()[0] ^= 1;
    folder.sign_table();
    let Outcome::Refused(error) = folder.check() else { panic!("another mark") };
    assert!(matches!(error, Error::DamagedSave { damage: Damage::Magic, .. }), "{error}");
}
