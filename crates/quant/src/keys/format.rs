//! The names of the key formats, and the size of each before any table is fitted.

use std::fmt;
use std::str::FromStr;

use super::STRIP;
use crate::bits::CHUNK;
use crate::{Error, Result};

/// How keys of one (layer, KV head) are coded. Post-RoPE frame, all of them.
///
/// | name | codes | tables | a coded row may move between pages |
/// | --- | --- | --- | --- |
/// | `f16` | half precision | none | yes |
/// | `int{8,6,4}-token` | affine integers, one scale and zero per token | none | yes |
/// | `int{8,4,3,2}-channel/{32,64,128}` | affine integers, one scale and zero per channel over a group of tokens (KIVI, arXiv 2402.02750) | none | whole groups only |
/// | `lm1` … `lm4` | centred, rotated, Lloyd–Max codebook, one scale per token (TurboQuant, arXiv 2504.19874, without its residual sketch) | centre | yes |
/// | `pq/WxC` | product quantization, `C` centroids per group of `W` channels (HCAttention, arXiv 2507.19823, §1) | codebooks | yes |
/// | `alloc/B` | centred, bits allocated over channels by query-weighted error, `B` bits per element on average (reverse water-filling) | centre, steps, widths | yes |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyFormat {
    /// Half precision.
    F16,
    /// Affine integers per token.
    IntToken {
        /// Bits of a code: 8, 6 or 4.
        bits: u8,
    },
    /// Affine integers per channel over a group of tokens.
    IntChannel {
        /// Bits of a code: 8, 4, 3 or 2.
        bits: u8,
        /// Tokens that share a scale and zero: 32, 64 or 128.
        group_tokens: u8,
    },
    /// Rotated Lloyd–Max codes.
    LloydMax {
        /// Bits of a code: 1 to 4.
        bits: u8,
    },
    /// Product quantization.
    Pq {
        /// Channels per group: 2 or 4.
        width: u8,
        /// Bits of a code: 4 to 8, for 16 to 256 centroids.
        code_bits: u8,
    },
    /// Bits allocated over channels.
    Alloc {
        /// Hundredths of a bit per element, from half a bit to 8 bits per element.
        centibits: u16,
    },
}

/// What [`KeyFormat::from_str`] accepts.
pub const KEY_FORMATS: &str = "f16, int8-token, int6-token, int4-token, int{8,4,3,2}-channel/{32,64,128}, \
     lm1, lm2, lm3, lm4, pq/2xC and pq/4xC with C = 16, 32, 64, 128 or 256, alloc/B with B from 0.5 to 8 bits";

/// The size of a format for one `head_dim`, the same numbers that the coders use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLayout {
    /// Tokens that are encoded together.
    pub group_tokens: usize,
    /// Tokens whose codes share a block of bytes: whole groups.
    pub block_tokens: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes of the fitted tables of one (layer, KV head).
    pub table_bytes: usize,
    /// Tokens without which the tables cannot be fitted.
    pub min_fit_tokens: usize,
}

impl KeyLayout {
    /// Bytes of the blocks that hold `num_tokens` tokens.
    #[must_use]
    pub fn bytes(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_tokens) * self.block_bytes
    }
}

impl KeyFormat {
    /// The sizes of this format for keys `[head_dim]`.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`] for a format put together of parts that no name has; [`Error::HeadDim`]
    /// and [`Error::HeadDimTooLong`] when the format cannot hold vectors of that length.
    pub fn layout(self, head_dim: usize) -> Result<KeyLayout> {
        if !self.has_name() {
            return Err(unknown(self.to_string()));
        }
        let multiple_of = self.channel_multiple();
        if head_dim == 0 || !head_dim.is_multiple_of(multiple_of) {
            return Err(Error::HeadDim { format: self.family(), head_dim, multiple_of });
        }
        let max = if self == Self::F16 { MAX_F16_HEAD_DIM } else { MAX_CODED_HEAD_DIM };
        if head_dim > max {
            return Err(Error::HeadDimTooLong { format: self.family(), head_dim, max });
        }
        let f16_row = 2 * head_dim;
        let per_token = |tokens: usize, row: usize, table_bytes, min_fit_tokens| KeyLayout {
            group_tokens: 1,
            block_tokens: tokens,
            block_bytes: tokens * row,
            table_bytes,
            min_fit_tokens,
        };
        Ok(match self {
            Self::F16 => per_token(1, f16_row, 0, 0),
            Self::IntToken { bits } => per_token(STRIP, head_dim * usize::from(bits) / 8 + 4, 0, 0),
            Self::IntChannel { bits, group_tokens } => {
                let group_tokens = usize::from(group_tokens);
                let codes = group_tokens * head_dim * usize::from(bits) / 8;
                KeyLayout {
                    group_tokens,
                    block_tokens: group_tokens,
                    block_bytes: 2 * f16_row + codes,
                    table_bytes: 0,
                    min_fit_tokens: 0,
                }
            }
            Self::LloydMax { bits } => {
                let block_tokens = if bits == 3 { 1 } else { STRIP };
                per_token(block_tokens, head_dim * usize::from(bits) / 8 + 2, f16_row, 64)
            }
            Self::Pq { width, code_bits } => {
                let num_groups = head_dim / usize::from(width);
                let row = (num_groups * usize::from(code_bits)).div_ceil(8);
                let centroids = 1 << code_bits;
                per_token(1, row, (centroids + 1) * f16_row, 2 * centroids)
            }
            Self::Alloc { .. } => {
                let row = self.alloc_code_bytes(head_dim) + 1;
                // Five tables, all held as f16: order, centre, step, weight, widths.
                per_token(STRIP, row, 4 * f16_row + head_dim / CHUNK * 2, 256)
            }
        })
    }

    /// All bits of a coded element at `num_tokens`: codes, scales and tables.
    ///
    /// # Errors
    /// As [`KeyFormat::layout`].
    pub fn bits_per_element(self, head_dim: usize, num_tokens: usize) -> Result<f64> {
        let layout = self.layout(head_dim)?;
        let codes = layout.block_bytes as f64 / layout.block_tokens as f64;
        let tables = layout.table_bytes as f64 / num_tokens.max(1) as f64;
        Ok(8.0 * (codes + tables) / head_dim as f64)
    }

    /// The `alloc` format whose rows take `row_bytes` for keys `[head_dim]`, if there is one.
    #[must_use]
    pub fn alloc_of_row_bytes(row_bytes: usize, head_dim: usize) -> Option<Self> {
        let centibits = (800 * row_bytes.checked_sub(1)?).div_ceil(head_dim.max(1));
        let known = (MIN_CENTIBITS..=MAX_CENTIBITS).contains(&centibits);
        known.then_some(Self::Alloc { centibits: centibits as u16 })
    }

    /// Bytes of codes of an `alloc` row: the average width times the channels, in whole bytes.
    pub(super) fn alloc_code_bytes(self, head_dim: usize) -> usize {
        let Self::Alloc { centibits } = self else { return 0 };
        (usize::from(centibits) * head_dim / 800).max(1)
    }

    /// Whether its parts are among those that a name can ask for.
    fn has_name(self) -> bool {
        match self {
            Self::F16 => true,
            Self::IntToken { bits } => [8, 6, 4].contains(&bits),
            Self::IntChannel { bits, group_tokens } => {
                [8, 4, 3, 2].contains(&bits) && [32, 64, 128].contains(&group_tokens)
            }
            Self::LloydMax { bits } => (1..=4).contains(&bits),
            Self::Pq { width, code_bits } => {
                [2, 4].contains(&width) && (4..=8).contains(&code_bits)
            }
            Self::Alloc { centibits } => {
                (MIN_CENTIBITS..=MAX_CENTIBITS).contains(&usize::from(centibits))
            }
        }
    }

    fn channel_multiple(self) -> usize {
        match self {
            Self::F16 => 1,
            Self::Pq { width, .. } => 2 * usize::from(width),
            _ => CHUNK,
        }
    }

    fn family(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::IntToken { .. } => "int-token",
            Self::IntChannel { .. } => "int-channel",
            Self::LloydMax { .. } => "lm",
            Self::Pq { .. } => "pq",
            Self::Alloc { .. } => "alloc",
        }
    }
}

/// Longest vector of the coded formats: far above what models have, small enough for the channel
/// numbers of `alloc` to be exact in f16 and for a row to be copied to the stack.
pub(crate) const MAX_CODED_HEAD_DIM: usize = 1024;

/// Longest vector in half precision: one whose bytes can be counted.
const MAX_F16_HEAD_DIM: usize = isize::MAX as usize / 2;

const MIN_CENTIBITS: usize = 50;
const MAX_CENTIBITS: usize = 800;

impl fmt::Display for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::F16 => f.write_str("f16"),
            Self::IntToken { bits } => write!(f, "int{bits}-token"),
            Self::IntChannel { bits, group_tokens } => {
                write!(f, "int{bits}-channel/{group_tokens}")
            }
            Self::LloydMax { bits } => write!(f, "lm{bits}"),
            Self::Pq { width, code_bits } => {
                write!(f, "pq/{width}x{}", f64::from(code_bits).exp2())
            }
            Self::Alloc { centibits } => write!(f, "alloc/{}", f64::from(centibits) / 100.0),
        }
    }
}

impl FromStr for KeyFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        parse(name).filter(|format| format.has_name()).ok_or_else(|| unknown(name.to_owned()))
    }
}

fn unknown(name: String) -> Error {
    Error::UnknownFormat { kind: "key", name, known: KEY_FORMATS }
}

/// The format that `name` spells, whether or not there is one of such parts.
fn parse(name: &str) -> Option<KeyFormat> {
    // Rust's numbers may carry a plus sign, the names here do not.
    if name.contains('+') {
        return None;
    }
    if name == "f16" {
        return Some(KeyFormat::F16);
    }
    if let Some(bits) = name.strip_prefix("lm") {
        return Some(KeyFormat::LloydMax { bits: bits.parse().ok()? });
    }
    if let Some(shape) = name.strip_prefix("pq/") {
        let (width, centroids) = shape.split_once('x')?;
        let width = width.parse().ok()?;
        let centroids: u32 = centroids.parse().ok().filter(|n: &u32| n.is_power_of_two())?;
        return Some(KeyFormat::Pq { width, code_bits: centroids.ilog2() as u8 });
    }
    if let Some(bits) = name.strip_prefix("alloc/") {
        let exact = bits.parse::<f64>().ok()? * 100.0;
        let centibits = exact.round();
        // A finer width than the format has is refused rather than rounded; a cast of one out of range
        // ends at the ends of u16, which are no widths.
        let is_whole = (exact - centibits).abs() < 1e-6;
        return is_whole.then_some(KeyFormat::Alloc { centibits: centibits as u16 });
    }
    let (bits, axis) = name.strip_prefix("int")?.split_once('-')?;
    let bits = bits.parse().ok()?;
    if axis == "token" {
        return Some(KeyFormat::IntToken { bits });
    }
    let group_tokens = axis.strip_prefix("channel/")?.parse().ok()?;
    Some(KeyFormat::IntChannel { bits, group_tokens })
}
