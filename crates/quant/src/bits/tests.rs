//! Packed rows against a list of codes and a bit string written out by hand.

use proptest::prelude::*;

use super::*;

/// Widths of chunks, and a code for each place that fits its chunk's width.
fn rows() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    prop::collection::vec((0..=MAX_BITS, prop::array::uniform8(any::<u8>())), 1..20).prop_map(
        |chunks| {
            let widths = chunks.iter().map(|(bits, _)| *bits).collect();
            let fit = |(bits, codes): &(u8, [u8; 8])| codes.map(|c| c & ((1u16 << bits) - 1) as u8);
            (widths, chunks.iter().flat_map(fit).collect())
        },
    )
}

proptest! {
    #[test]
    fn what_is_packed_comes_back((widths, codes) in rows()) {
        let num_bytes = widths.iter().map(|&b| usize::from(b)).sum();
        let mut packed = vec![0xFF; num_bytes];
        pack_row(&codes, &widths, &mut packed);
        let mut seen = vec![];
        for_each_code(&packed, &widths, |channel, code| {
            assert_eq!(channel, seen.len(), "channels come in order");
            seen.push(code);
        });
        prop_assert_eq!(&seen, &codes);
        // The definition: code i of a chunk of width b lies in bits i·b .. (i+1)·b.
        let bit = |place: usize| packed[place / 8] >> (place % 8) & 1;
        let mut first_bit = 0;
        for (chunk, &bits) in widths.iter().enumerate() {
            for i in 0..CHUNK {
                let code = codes[chunk * CHUNK + i];
                for b in 0..usize::from(bits) {
                    prop_assert_eq!(bit(first_bit + i * usize::from(bits) + b), code >> b & 1);
                }
            }
            first_bit += CHUNK * usize::from(bits);
        }
    }

    #[test]
    fn a_chunk_is_its_own((widths, codes) in rows()) {
        let mut rest = vec![];
        for (chunk, &bits) in codes.as_chunks::<CHUNK>().0.iter().zip(&widths) {
            let mut bytes = vec![0; bits.into()];
            pack_chunk(chunk, bits, &mut bytes);
            prop_assert_eq!(&unpack_chunk(&bytes, bits), chunk);
            rest.extend(bytes);
        }
        let mut packed = vec![0; rest.len()];
        pack_row(&codes, &widths, &mut packed);
        prop_assert_eq!(packed, rest);
    }
}
