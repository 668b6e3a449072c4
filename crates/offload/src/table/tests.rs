//! Tables of saved sequences: what is written is read, and nothing else is.

use proptest::prelude::*;

use super::*;

fn page() -> impl Strategy<Value = PageEntry> {
    (any::<[u32; 4]>(), any::<u64>()).prop_map(|([file, slot, sequence, num_rows], checksum)| {
        PageEntry { file, slot, sequence, num_rows, checksum }
    })
}

fn table() -> impl Strategy<Value = Table> {
    let head = (any::<u64>(), prop::collection::vec(page(), 0..5))
        .prop_map(|(num_rows, pages)| HeadEntry { num_rows, pages });
    let attached = (1_u32.., 1..5 * BLOCK_BYTES as u64, any::<[u64; 5]>());
    let attached = attached.prop_map(|(file, num_bytes, checksums)| {
        let num_blocks = num_bytes.div_ceil(BLOCK_BYTES as u64) as usize;
        AttachedEntry { file, num_bytes, checksums: checksums[..num_blocks].to_vec() }
    });
    let heads = prop::collection::vec(head, 0..5);
    (".{0,20}", any::<u64>(), heads, prop::option::of(attached)).prop_map(
        |(description, fingerprint, heads, attached)| Table {
            description,
            fingerprint,
            heads,
            attached,
        },
    )
}

/// Bytes with the checksum that they should have.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(Hasher::oneshot(&bytes).to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read(table in table()) {
        prop_assert_eq!(Table::decode(&table.encode()), Ok(table));
    }

    #[test]
    fn a_table_that_is_cut_or_changed_anywhere_is_damaged(table in table(), bit: u8) {
        let bytes = table.encode();
        for len in 0..bytes.len() {
            prop_assert!(Table::decode(&bytes[..len]).is_err(), "{} bytes", len);
            let mut changed = bytes.clone();
            changed[len] ^= 1 << (bit % 8);
            prop_assert!(Table::decode(&changed).is_err(), "byte {}", len);
        }
    }

    #[test]
    fn bytes_of_others_are_an_error_and_take_no_memory(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        with_head: bool,
    ) {
        let head: Vec<u8> = MAGIC.into_iter().chain(VERSION.to_le_bytes()).collect();
        let bytes = if with_head { [head, bytes].concat() } else { bytes };
        let _ = Table::decode(&bytes);
        let _ = Table::decode(&signed(bytes));
    }
}

#[test]
fn counts_that_nothing_stands_behind_are_refused() {
    let (description, heads) = (String::new(), Vec::new());
    let table = Table { description, fingerprint: 1, heads, attached: None };
    let mut bytes = table.encode();
    bytes.truncate(bytes.len() - 16);
    let attached = [0, 1, u32::MAX, u32::MAX];
    for counts in [&[u32::MAX][..], &[1, 0, 0, u32::MAX], &[1], &[0], &[0, 1], &attached] {
        let counts = counts.iter().flat_map(|count: &u32| count.to_le_bytes());
        let hostile = signed(bytes.iter().copied().chain(counts).collect());
        assert_eq!(Table::decode(&hostile), Err(Damage::Length));
    }
}
