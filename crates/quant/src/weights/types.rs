//! The tensor types a checkpoint may hold, and how many bytes their blocks take.
//!
//! The numbers are those of the GGUF format; safetensors files use the first three types only.
//! Nothing is decoded here.

use std::fmt;

/// How the elements of one weight tensor are stored.
///
/// A row is a whole number of blocks of [`block_len`](Self::block_len) elements, each taking
/// [`block_bytes`](Self::block_bytes) bytes, little-endian, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 32 signed bytes and one f16 scale.
    Q8_0,
    /// 32 4-bit codes and one f16 scale.
    Q4_0,
    /// 32 4-bit codes, an f16 scale and an f16 minimum.
    Q4_1,
    /// 32 5-bit codes and one f16 scale.
    Q5_0,
    /// 32 5-bit codes, an f16 scale and an f16 minimum.
    Q5_1,
    /// 256 4-bit codes in 8 groups, each with a 6-bit scale and a 6-bit minimum.
    Q4K,
    /// 256 5-bit codes in 8 groups, each with a 6-bit scale and a 6-bit minimum.
    Q5K,
    /// 256 6-bit codes in 16 groups, each with an 8-bit scale.
    Q6K,
}

impl TensorType {
    /// Every type, in the order of the enum.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The type that a GGUF file calls `id`, or `None` where it is not one of ours
    /// ([`ggml_name`] names it for the error message).
    #[must_use]
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.ggml_id() == id)
    }

    /// The number a GGUF file gives this type.
    #[must_use]
    pub fn ggml_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    /// The type's usual name, `Q4_K` for [`Self::Q4K`].
    #[must_use]
    pub fn name(self) -> &'static str {
        ggml_name(self.ggml_id())
    }

    /// Elements in one block; 1 for the float types.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block, scales included.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of `num_elements` elements; `None` where they are not whole blocks or the product
    /// overflows. Zero elements take zero bytes.
    #[must_use]
    pub fn bytes_of(self, num_elements: u64) -> Option<u64> {
        let block_len = self.block_len() as u64;
        if !num_elements.is_multiple_of(block_len) {
            return None;
        }
        (num_elements / block_len).checked_mul(self.block_bytes() as u64)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of the tensor type that a GGUF file calls `id`, supported here or not, for messages.
#[must_use]
pub fn ggml_name(id: u32) -> &'static str {
    match id {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        4 => "Q4_2",
        5 => "Q4_3",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::{TensorType, ggml_name};

    /// Name, elements and bytes per block as the format's own Python package lists them.
    const TABLE: [(u32, &str, usize, usize); 11] = [
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (30, "BF16", 1, 2),
    ];

    #[test]
    fn sizes_are_those_of_the_format() {
        for (id, name, block_len, block_bytes) in TABLE {
            let ty = TensorType::from_ggml(id).unwrap();
            assert_eq!((ty.ggml_id(), ty.name()), (id, name));
            assert_eq!((ty.block_len(), ty.block_bytes()), (block_len, block_bytes), "{name}");
        }
        let num_known = (0..1000).filter(|&id| TensorType::from_ggml(id).is_some()).count();
        assert_eq!(num_known, TABLE.len());
    }

    #[test]
    fn bytes_need_whole_blocks_and_no_overflow() {
        assert_eq!(TensorType::Q4K.bytes_of(0), Some(0));
        assert_eq!(TensorType::Q4K.bytes_of(255), None);
        assert_eq!(TensorType::Q4K.bytes_of(256), Some(144));
        assert_eq!(TensorType::Q4K.bytes_of(257), None);
        assert_eq!(TensorType::Q8_0.bytes_of(64), Some(68));
        assert_eq!(TensorType::F32.bytes_of(u64::MAX), None);
        assert_eq!(TensorType::F16.bytes_of(u64::MAX / 2), Some(u64::MAX - 1));
    }

    #[test]
    fn unsupported_types_have_names() {
        assert_eq!(ggml_name(10), "Q2_K");
        assert_eq!(ggml_name(23), "IQ4_XS");
        assert_eq!(ggml_name(u32::MAX), "unknown");
        assert_eq!(TensorType::from_ggml(10), None);
    }
}
