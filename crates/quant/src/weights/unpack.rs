//! The bit layouts of the GGUF block types.
//!
//! Six of the nine block types share one meaning: 32 consecutive elements with
//! `value = scale * code + offset`. [`unpack`] yields them in that form ([`AffineBlock`]) without
//! loss, whether the type packs 32 elements per block or 256; `dequantize` and the `q8` compute form
//! both start from it. Q6_K has a scale per 16 elements and is read by [`unpack_q6_k`].
//!
//! All integers and f16 fields are little-endian. Every byte pattern is a valid block.

use half::f16;

use super::TensorType;

/// 32 consecutive elements of a tensor: `value = scale * code + offset`.
#[derive(Clone, Debug)]
pub(super) struct AffineBlock {
    /// Codes `[32]`, in −128..=127.
    pub(super) codes: [i8; 32],
    /// Step of one code.
    pub(super) scale: f32,
    /// Value of code 0; `None` for types that store no minimum, whose value is the product alone (so
    /// that a zero code under a negative scale stays −0, as the format's own decoders have it).
    pub(super) offset: Option<f32>,
}

/// True for the types that [`unpack`] reads.
pub(super) fn is_affine(ty: TensorType) -> bool {
    use TensorType::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q8_0};
    matches!(ty, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4K | Q5K)
}

/// True for the affine types that store a minimum per block.
pub(super) fn has_offset(ty: TensorType) -> bool {
    use TensorType::{Q4_1, Q4K, Q5_1, Q5K};
    matches!(ty, Q4_1 | Q5_1 | Q4K | Q5K)
}

/// Calls `visit(block_idx, block)` for every 32 elements of `bytes`, in order.
///
/// `bytes` holds whole blocks of `ty`, and `ty` is affine ([`is_affine`]); the callers check both.
pub(super) fn unpack(ty: TensorType, bytes: &[u8], mut visit: impl FnMut(usize, &AffineBlock)) {
    debug_assert!(is_affine(ty) && bytes.len().is_multiple_of(ty.block_bytes()));
    for (idx, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
        match ty {
            // f16 d, then i8 codes [32].
            TensorType::Q8_0 => {
                let mut codes = [0; 32];
                for (code, &byte) in codes.iter_mut().zip(&block[2..]) {
                    *code = byte.cast_signed();
                }
                visit(idx, &AffineBlock { codes, scale: half_at(block, 0), offset: None });
            }
            // f16 d, then 16 bytes; byte i holds element i (low) and i + 16 (high).
            TensorType::Q4_0 => {
                let codes = nibbles(&block[2..], |_, nibble| nibble.cast_signed() - 8);
                visit(idx, &AffineBlock { codes, scale: half_at(block, 0), offset: None });
            }
            // f16 d, f16 m, then as Q4_0, unsigned.
            TensorType::Q4_1 => {
                let codes = nibbles(&block[4..], |_, nibble| nibble.cast_signed());
                let offset = Some(half_at(block, 2));
                visit(idx, &AffineBlock { codes, scale: half_at(block, 0), offset });
            }
            // f16 d, u32 of fifth bits (bit i belongs to element i), then as Q4_0.
            TensorType::Q5_0 => {
                let high = u32_at(block, 2);
                let codes = nibbles(&block[6..], |i, nibble| {
                    (nibble | fifth_bit(high, i)).cast_signed() - 16
                });
                visit(idx, &AffineBlock { codes, scale: half_at(block, 0), offset: None });
            }
            // f16 d, f16 m, u32 of fifth bits, then as Q4_0, unsigned.
            TensorType::Q5_1 => {
                let high = u32_at(block, 4);
                let codes =
                    nibbles(&block[8..], |i, nibble| (nibble | fifth_bit(high, i)).cast_signed());
                let offset = Some(half_at(block, 2));
                visit(idx, &AffineBlock { codes, scale: half_at(block, 0), offset });
            }
            TensorType::Q4K => unpack_k(block, None, &block[16..144], idx, &mut visit),
            TensorType::Q5K => {
                unpack_k(block, Some(&block[16..48]), &block[48..176], idx, &mut visit);
            }
            TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q6K => {
                unreachable!("only affine types are unpacked")
            }
        }
    }
}

/// The 8 groups of a Q4_K or Q5_K super-block.
///
/// Layout: f16 d, f16 dmin, 12 bytes of packed 6-bit scales and minima, for Q5_K 32 bytes of fifth
/// bits (byte i, bit g belongs to element i of group g), then 4 × 32 bytes of nibbles: the low ones
/// are an even group, the high ones the odd group after it.
/// `value = (d * sc[g]) * code - (dmin * m[g])`.
fn unpack_k(
    block: &[u8],
    high: Option<&[u8]>,
    nibbles: &[u8],
    block_idx: usize,
    visit: &mut impl FnMut(usize, &AffineBlock),
) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for group in 0..8 {
        let (sc, min) = k_scale_min(&block[4..16], group);
        let quarter = &nibbles[32 * (group / 2)..][..32];
        let mut codes = [0; 32];
        for (i, code) in codes.iter_mut().enumerate() {
            let low = (quarter[i] >> (4 * (group % 2))) & 0x0f;
            let fifth = high.map_or(0, |high| ((high[i] >> group) & 1) << 4);
            *code = (low | fifth).cast_signed();
        }
        let scale = d * f32::from(sc);
        let offset = Some(-(dmin * f32::from(min)));
        visit(block_idx * 8 + group, &AffineBlock { codes, scale, offset });
    }
}

/// The 6-bit scale and minimum of `group` (0..8).
///
/// Bytes 0..4 hold the scales of groups 0..4 and bytes 4..8 their minima, in their low six bits.
/// Groups 4..8 have their low four bits in bytes 8..12 (scale low nibble, minimum high nibble) and
/// their upper two bits in the upper two of bytes 0..4 and 4..8.
fn k_scale_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 0x3f, packed[group + 4] & 0x3f)
    } else {
        let low = packed[group + 4];
        let scale = (low & 0x0f) | ((packed[group - 4] >> 6) << 4);
        let min = (low >> 4) | ((packed[group] >> 6) << 4);
        (scale, min)
    }
}

/// A Q6_K super-block: codes `[256]` in −32..=31 and scales `[16]`, one per 16 elements;
/// `value = scale * code`.
///
/// Layout: 128 bytes of low nibbles, 64 bytes of upper bit pairs, i8 scales `[16]`, f16 d. Each half
/// of 128 elements uses 64 nibble bytes and 32 bytes of pairs; its quarter q (32 elements) takes the
/// nibble bytes of q mod 2, the low nibble for q < 2 and the high one else, and bits 2q of the pairs.
pub(super) fn unpack_q6_k(block: &[u8]) -> ([i8; 256], [f32; 16]) {
    let d = half_at(block, 208);
    let mut codes = [0; 256];
    for (i, code) in codes.iter_mut().enumerate() {
        let (half, quarter, lane) = (i / 128, (i / 32) % 4, i % 32);
        let low = block[64 * half + 32 * (quarter % 2) + lane] >> (4 * (quarter / 2));
        let high = block[128 + 32 * half + lane] >> (2 * quarter);
        *code = ((low & 0x0f) | ((high & 3) << 4)).cast_signed() - 32;
    }
    let mut scales = [0.0; 16];
    for (scale, &byte) in scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(byte.cast_signed());
    }
    (codes, scales)
}

/// Spreads 16 bytes of nibbles to 32 codes: element i is the low nibble of byte i, element i + 16
/// the high one.
fn nibbles(bytes: &[u8], code: impl Fn(usize, u8) -> i8) -> [i8; 32] {
    let mut codes = [0; 32];
    for (i, &byte) in bytes[..16].iter().enumerate() {
        codes[i] = code(i, byte & 0x0f);
        codes[i + 16] = code(i + 16, byte >> 4);
    }
    codes
}

/// Bit `element` of `high`, moved to bit 4.
fn fifth_bit(high: u32, element: usize) -> u8 {
    if (high >> element) & 1 == 1 { 0x10 } else { 0 }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
