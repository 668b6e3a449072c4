//! Page headers: what is written passes, and nothing else does.

use proptest::prelude::*;

use super::*;

const HEADER: Header = Header {
    fingerprint: 0x0123_4567_89ab_cdef,
    name: PageName { sequence: 1, layer: 2, kv_head: 3, page_idx: 4 },
    num_rows: 5,
};

#[test]
fn the_bytes_of_the_format_are_these() {
    let (bytes, checksum) = HEADER.encode(b"rows");
    let mut expected = b"hkv-page".to_vec();
    expected.extend([0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
    for word in [1, 1, 2, 3, 4, 5, 4_u32, 0] {
        expected.extend(word.to_le_bytes());
    }
    assert_eq!(bytes[..COVERED], expected[..]);
    assert_eq!(bytes[COVERED..56], checksum.to_le_bytes());
    assert_eq!(bytes[56..], [0; 8]);
    // Computed once: a change means that no page of before can be read.
    assert_eq!(checksum, 12_402_726_761_410_106_529);
}

proptest! {
    #[test]
    fn any_change_is_found(payload in prop::collection::vec(any::<u8>(), 1..300), bit: usize) {
        let (mut header, checksum) = HEADER.encode(&payload);
        prop_assert_eq!(HEADER.check(&header, &payload, checksum), Ok(()));
        prop_assert_eq!(HEADER.check(&header, &payload, checksum ^ 1), Err(Damage::Checksum));
        let mut changed = payload.clone();
        changed[bit / 8 % payload.len()] ^= 1 << (bit % 8);
        prop_assert_eq!(HEADER.check(&header, &changed, checksum), Err(Damage::Checksum));
        header[bit / 8 % HEADER_BYTES] ^= 1 << (bit % 8);
        prop_assert!(HEADER.check(&header, &payload, checksum).is_err());
    }

    #[test]
    fn a_page_of_another_place_is_not_this_one(other: [u32; 4], payload: [u8; 8]) {
        let [sequence, layer, kv_head, page_idx] = other;
        let name = PageName { sequence, layer, kv_head, page_idx };
        prop_assume!(name != HEADER.name);
        let (found, checksum) = Header { name, ..HEADER }.encode(&payload);
        prop_assert_eq!(HEADER.check(&found, &payload, checksum), Err(Damage::Identity));
    }
}

#[test]
fn what_is_wrong_is_named() {
    let (found, checksum) = HEADER.encode(b"rows");
    let check = |header: Header, payload: &[u8]| header.check(&found, payload, checksum);
    assert_eq!(check(Header { fingerprint: 0, ..HEADER }, b"rows"), Err(Damage::Fingerprint));
    assert_eq!(check(Header { num_rows: 6, ..HEADER }, b"rows"), Err(Damage::Identity));
    assert_eq!(check(HEADER, b"row"), Err(Damage::Length));
    assert_eq!(HEADER.check(&[0; HEADER_BYTES], b"rows", checksum), Err(Damage::Magic));
}
