//! Rows of codes, packed: chunks of eight codes, each chunk with its own width.
//!
//! A chunk of width `b` takes exactly `b` bytes: code `i` lies in bits `i·b .. (i+1)·b`, little endian.
//! So a chunk never shares a byte with the next, one 64-bit load covers it, and a row whose channels
//! have different widths costs no more to unpack than a uniform one.

/// Codes per chunk.
pub(crate) const CHUNK: usize = 8;

/// Widest code.
pub(crate) const MAX_BITS: u8 = 8;

/// Packs `codes [CHUNK]`, each below `2^bits`, into `out [bits]`.
pub(crate) fn pack_chunk(codes: &[u8; CHUNK], bits: u8, out: &mut [u8]) {
    let mut word = 0u64;
    for (i, &code) in codes.iter().enumerate() {
        word |= u64::from(code) << (i * usize::from(bits));
    }
    out.copy_from_slice(&word.to_le_bytes()[..usize::from(bits)]);
}

/// Unpacks one chunk of `bytes [bits]`.
pub(crate) fn unpack_chunk(bytes: &[u8], bits: u8) -> [u8; CHUNK] {
    let mut word = [0u8; 8];
    word[..usize::from(bits)].copy_from_slice(&bytes[..usize::from(bits)]);
    let word = u64::from_le_bytes(word);
    let mask = ((1u16 << bits) - 1) as u8;
    std::array::from_fn(|i| (word >> (i * usize::from(bits))) as u8 & mask)
}

/// Packs a row of `codes` (a multiple of [`CHUNK`]) by `widths [codes / CHUNK]` into `out [Σ widths]`.
pub(crate) fn pack_row(codes: &[u8], widths: &[u8], out: &mut [u8]) {
    let mut rest = out;
    for (chunk, &bits) in codes.as_chunks::<CHUNK>().0.iter().zip(widths) {
        let (head, tail) = rest.split_at_mut(usize::from(bits));
        pack_chunk(chunk, bits, head);
        rest = tail;
    }
}

/// Calls `visit(channel, code)` for every code of a packed row.
pub(crate) fn for_each_code(row: &[u8], widths: &[u8], mut visit: impl FnMut(usize, u8)) {
    let mut rest = row;
    for (chunk, &bits) in widths.iter().enumerate() {
        for (i, code) in unpack_chunk(rest, bits).into_iter().enumerate() {
            visit(chunk * CHUNK + i, code);
        }
        rest = &rest[usize::from(bits)..];
    }
}

#[cfg(test)]
mod tests;
