//! The names of the key formats, and the size of each before any table is fitted.

use std::fmt;
use std::str::FromStr;

use super::STRIP;
use super::pq::{EXACT_BLOCK_TOKENS, PqShape};
use crate::affine::Group;
use crate::bits::CHUNK;
use crate::grouped::{GroupSize, Grouped};
use crate::{Error, Result};

/// How keys of one (layer, KV head) are coded. Post-RoPE frame, all of them.
///
/// | name | codes | tables | a coded row may [move](super::KeyCoder::copy_group) between pages |
/// | --- | --- | --- | --- |
/// | `f16`, `bf16` | half precision, brain floats | none | yes |
/// | `fp8` | e4m3fn without a scale, held at ±448 (Micikevicius et al., arXiv 2209.05433) | none | yes |
/// | `int{8,6,4,3,2}-token` | affine integers, one scale and zero per token | none | yes |
/// | `int{8,6,4,3,2}-token/{32,64,128}` | the same with a scale and zero for every so many channels | none | yes |
/// | `int{8,6,4,3,2}-channel/{32,64,128}` | affine integers, one scale and zero per channel over a group of tokens (KIVI, arXiv 2402.02750) | none | whole groups only |
/// | `rot-int…` | any of the affine integers, of keys under a randomised Hadamard rotation (QuaRot, arXiv 2404.00456) | none | as without |
/// | `lm1` … `lm4` | centred, rotated, Lloyd–Max codebook, one scale per token (TurboQuant, arXiv 2504.19874, without its residual sketch) | centre | yes |
/// | `lm1-plain` … `lm4-plain` | the same without centring | none | yes |
/// | `pq/WxC` | product quantization, `C` centroids per group of `W` channels (HCAttention, arXiv 2507.19823, §1) | codebooks, weights | yes |
/// | `opq/WxC` | the same under a learned rotation (OPQ, CVPR 2013) | codebooks, weights, rotation | yes |
/// | `pq/WxC+xN`, `opq/WxC+xN` | the same with the `N` tokens of each 128 kept in f16 whose codes are furthest from them | as without | whole blocks of 128 only |
/// | `alloc/B` | centred, bits allocated over channels by query-weighted error, `B` bits per element on average (reverse water-filling) | order, centre, steps, weights, widths | yes |
///
/// # Layout
///
/// Numbers are little-endian, scales and zeros f16, a strip is 32 tokens. Blocks of [`KeyLayout::block_bytes`]
/// follow each other:
///
/// | names | block |
/// | --- | --- |
/// | `f16`, `bf16`, `fp8` | a token: its elements |
/// | `int…-token` of 8 bits | a strip: for each pair of channels two bytes of every token; then the scales of all tokens, then their zeros |
/// | `int…-token` of other widths, `lm1`, `lm2`, `lm4`, `alloc` | a strip: planes of 16 bytes, a nibble of every token each, of one channel of 4 bits, two of 2 or four of 1 (wider codes have several, upper bits first; planes of 4 bits come first); then the scales of all tokens, then their zeros (`lm`: scales alone; `alloc`: scales alone, a byte each that counts eighths of octaves) |
/// | `int…-token/G` | a token: codes in order, each eight packed from the lowest bit up, then for each group its scale and zero |
/// | `int…-channel/T` | `T` tokens: scale and zero of every channel, then the codes: those of 8 and 4 bits in strips as above, others a token after the other, each eight packed from the lowest bit up |
/// | `lm3` | a token: codes, each eight packed from the lowest bit up, then its scale |
/// | `pq`, `opq` of 16 centroids | a strip: a plane of 16 bytes for each group of channels |
/// | `pq`, `opq` of others | a token: the codes of its groups packed from the lowest bit up |
/// | `…+xN` | 128 tokens: their codes as above, then `N` times the number of a token and one (0: none) in a byte and its coordinates in f16 |
///
/// Groups of 4, 3 and 2 bits, per channel or in groups of a token, hold scale and zero in two bytes instead of four: the
/// step, `2^((e − 128) / 8)`, and the centre of the codes in half steps, signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyFormat {
    /// Half precision.
    F16,
    /// Brain floats.
    Bf16,
    /// Eight-bit floats, e4m3fn.
    Fp8,
    /// Affine integers per token.
    IntToken {
        /// Bits of a code: 8, 6, 4, 3 or 2.
        bits: u8,
    },
    /// Affine integers per token in groups along the channels.
    IntTokenGroups {
        /// Bits of a code: 8, 6, 4, 3 or 2.
        bits: u8,
        /// Channels that share a scale and zero, no more than there are.
        group: GroupSize,
    },
    /// Affine integers per channel over a group of tokens.
    IntChannel {
        /// Bits of a code: 8, 6, 4, 3 or 2.
        bits: u8,
        /// Tokens that share a scale and zero: 32, 64 or 128.
        group_tokens: u8,
    },
    /// Affine integers of keys under a randomised Hadamard rotation.
    Rotated {
        /// Bits of a code: 8, 6, 4, 3 or 2.
        bits: u8,
        /// What shares a scale and zero.
        scale: SharedScale,
    },
    /// Rotated Lloyd–Max codes.
    LloydMax {
        /// Bits of a code: 1 to 4.
        bits: u8,
    },
    /// Rotated Lloyd–Max codes of keys that are not centred.
    LloydMaxPlain {
        /// Bits of a code: 1 to 4.
        bits: u8,
    },
    /// Product quantization.
    Pq {
        /// Channels per group: 2, 4 or 8.
        width: u8,
        /// Bits of a code: 4 to 12, for 16 to 4,096 centroids.
        code_bits: u8,
        /// Whether groups are cut under a learned rotation.
        is_rotated: bool,
        /// Tokens of each 128 that are kept in f16, at most 8.
        num_exact: u8,
    },
    /// Bits allocated over channels.
    Alloc {
        /// Hundredths of a bit per element, from half a bit to 8 bits per element.
        centibits: u16,
    },
}

/// What shares the scale and zero of affine integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharedScale {
    /// All channels of a token.
    Token,
    /// So many channels of a token.
    TokenGroups(GroupSize),
    /// A channel of so many tokens: 32, 64 or 128.
    Channel(u8),
}

/// What [`KeyFormat::from_str`] accepts.
pub const KEY_FORMATS: &str = "f16, bf16, fp8, int{8,6,4,3,2}-token, int{8,6,4,3,2}-token/{32,64,128}, \
     int{8,6,4,3,2}-channel/{32,64,128}, these with rot- before them, lm1, lm2, lm3, lm4, \
     these with -plain after them, pq/2xC, pq/4xC and pq/8xC with C a power of two from 16 to 4096, opq/ instead of pq/, +xN behind either with N from 1 to 8, alloc/B with B from 0.5 to 8 bits";

/// The size of a format for one `head_dim`, the same numbers that the coders use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLayout {
    /// Tokens that are encoded together.
    pub group_tokens: usize,
    /// Tokens whose codes share a block of bytes: whole groups.
    pub block_tokens: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes of the fitted tables of one (layer, KV head), as they are stored. What an encoder or a kernel lays out
    /// from them in other orders is memory of the host.
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
    /// [`Error::UnknownFormat`] for a format put together of parts that no name has; [`Error::HeadDim`],
    /// [`Error::HeadDimTooLong`] and [`Error::GroupTooLong`] when the format cannot hold vectors of that
    /// length.
    pub fn layout(self, head_dim: usize) -> Result<KeyLayout> {
        if !self.has_name() {
            return Err(unknown(self.to_string()));
        }
        let multiple_of = self.channel_multiple();
        if head_dim == 0 || !head_dim.is_multiple_of(multiple_of) {
            return Err(Error::HeadDim { format: self.family(), head_dim, multiple_of });
        }
        let max = if self.is_plain() { MAX_PLAIN_HEAD_DIM } else { MAX_CODED_HEAD_DIM };
        if head_dim > max {
            return Err(Error::HeadDimTooLong { format: self.family(), head_dim, max });
        }
        if let Self::IntTokenGroups { group, .. } = self.unrotated()
            && group.channels() > head_dim
        {
            let (format, group) = (self.to_string(), group.channels());
            return Err(Error::GroupTooLong { format, group, head_dim });
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
            Self::F16 | Self::Bf16 => per_token(1, f16_row, 0, 0),
            Self::Fp8 => per_token(1, head_dim, 0, 0),
            Self::IntToken { bits } => per_token(STRIP, head_dim * usize::from(bits) / 8 + 4, 0, 0),
            Self::IntTokenGroups { bits, group } => {
                per_token(1, Grouped::new(bits, head_dim, group).num_bytes(), 0, 0)
            }
            Self::IntChannel { bits, group_tokens } => {
                let group_tokens = usize::from(group_tokens);
                let codes = group_tokens * head_dim * usize::from(bits) / 8;
                KeyLayout {
                    group_tokens,
                    block_tokens: group_tokens,
                    block_bytes: Group::header_bytes(bits) * head_dim + codes,
                    table_bytes: 0,
                    min_fit_tokens: 0,
                }
            }
            Self::Rotated { .. } => self.unrotated().layout(head_dim)?,
            Self::LloydMax { bits } | Self::LloydMaxPlain { bits } => {
                let block_tokens = if bits == 3 { 1 } else { STRIP };
                let row = head_dim * usize::from(bits) / 8 + 2;
                match self {
                    Self::LloydMax { .. } => per_token(block_tokens, row, f16_row, 64),
                    _ => per_token(block_tokens, row, 0, 0),
                }
            }
            Self::Pq { width, code_bits, is_rotated, num_exact } => {
                let PqShape { width, code_bits, num_exact, .. } =
                    PqShape::new(width, code_bits, is_rotated, num_exact);
                let row = (head_dim / width * code_bits).div_ceil(8);
                let centroids = 1 << code_bits;
                let rotation = if is_rotated { head_dim * f16_row } else { 0 };
                let table_bytes = (centroids + 1) * f16_row + rotation;
                let block_tokens = if code_bits == 4 { STRIP } else { 1 };
                let plain = per_token(block_tokens, row, table_bytes, 2 * centroids);
                if num_exact == 0 {
                    return Ok(plain);
                }
                KeyLayout {
                    group_tokens: EXACT_BLOCK_TOKENS,
                    block_tokens: EXACT_BLOCK_TOKENS,
                    block_bytes: plain.bytes(EXACT_BLOCK_TOKENS) + num_exact * (1 + f16_row),
                    ..plain
                }
            }
            Self::Alloc { .. } => {
                let row = self.alloc_code_bytes(head_dim) + 1;
                // Five tables, all held as f16: order, centre, step, weight, widths.
                per_token(STRIP, row, 4 * f16_row + head_dim / CHUNK * 2, 256)
            }
        })
    }

    /// All bits of a coded element at `num_tokens`: codes, scales and tables, the last block not counted as whole. Of no
    /// tokens as of one.
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
        let centibits = row_bytes.checked_sub(1)?.checked_mul(800)?.div_ceil(head_dim.max(1));
        let known = (MIN_CENTIBITS..=MAX_CENTIBITS).contains(&centibits);
        known.then_some(Self::Alloc { centibits: centibits as u16 })
    }

    /// Bytes of codes of an `alloc` row: the average width times the channels, in whole bytes.
    pub(super) fn alloc_code_bytes(self, head_dim: usize) -> usize {
        let Self::Alloc { centibits } = self else { return 0 };
        (usize::from(centibits) * head_dim / 800).max(1)
    }

    /// The affine format that holds the rotated keys; any other format itself.
    pub(super) fn unrotated(self) -> Self {
        match self {
            Self::Rotated { bits, scale } => Self::integers(bits, scale),
            _ => self,
        }
    }

    fn integers(bits: u8, scale: SharedScale) -> Self {
        match scale {
            SharedScale::Token => Self::IntToken { bits },
            SharedScale::TokenGroups(group) => Self::IntTokenGroups { bits, group },
            SharedScale::Channel(group_tokens) => Self::IntChannel { bits, group_tokens },
        }
    }

    /// Whether its parts are among those that a name can ask for.
    fn has_name(self) -> bool {
        match self {
            Self::F16 | Self::Bf16 | Self::Fp8 => true,
            Self::IntToken { bits } | Self::IntTokenGroups { bits, .. } => INT_BITS.contains(&bits),
            Self::IntChannel { bits, group_tokens } => {
                INT_BITS.contains(&bits) && [32, 64, 128].contains(&group_tokens)
            }
            Self::Rotated { .. } => self.unrotated().has_name(),
            Self::LloydMax { bits } | Self::LloydMaxPlain { bits } => (1..=4).contains(&bits),
            Self::Pq { width, code_bits, num_exact, .. } => {
                [2, 4, 8].contains(&width) && (4..=12).contains(&code_bits) && num_exact <= 8
            }
            Self::Alloc { centibits } => {
                (MIN_CENTIBITS..=MAX_CENTIBITS).contains(&usize::from(centibits))
            }
        }
    }

    /// Whether every channel is a float of its own, so that any number of them will do.
    pub(super) fn is_plain(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::Fp8)
    }

    fn channel_multiple(self) -> usize {
        match self {
            _ if self.is_plain() => 1,
            Self::Pq { width, .. } => 2 * usize::from(width),
            _ => CHUNK,
        }
    }

    fn family(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::IntToken { .. } => "int-token",
            Self::IntTokenGroups { .. } => "int-token groups",
            Self::IntChannel { .. } => "int-channel",
            Self::Rotated { .. } => "rot-int",
            Self::LloydMax { .. } | Self::LloydMaxPlain { .. } => "lm",
            Self::Pq { .. } => "pq",
            Self::Alloc { .. } => "alloc",
        }
    }
}

/// Longest vector of the coded formats: far above what models have, small enough for the channel
/// numbers of `alloc` to be exact in f16 and for a row to be copied to the stack.
pub(crate) const MAX_CODED_HEAD_DIM: usize = 1024;

/// Bits of the codes of affine integers.
const INT_BITS: [u8; 5] = [8, 6, 4, 3, 2];

/// Longest vector of floats: one whose bytes can be counted.
const MAX_PLAIN_HEAD_DIM: usize = isize::MAX as usize / 2;

const MIN_CENTIBITS: usize = 50;
const MAX_CENTIBITS: usize = 800;

impl fmt::Display for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::F16 | Self::Bf16 | Self::Fp8 => f.write_str(self.family()),
            Self::IntToken { bits } => write!(f, "int{bits}-token"),
            Self::IntTokenGroups { bits, group } => {
                write!(f, "int{bits}-token/{}", group.channels())
            }
            Self::IntChannel { bits, group_tokens } => {
                write!(f, "int{bits}-channel/{group_tokens}")
            }
            Self::Rotated { .. } => write!(f, "rot-{}", self.unrotated()),
            Self::LloydMax { bits } => write!(f, "lm{bits}"),
            Self::LloydMaxPlain { bits } => write!(f, "lm{bits}-plain"),
            Self::Pq { width, code_bits, is_rotated, num_exact } => {
                let family = if is_rotated { "opq" } else { "pq" };
                write!(f, "{family}/{width}x{}", f64::from(code_bits).exp2())?;
                if num_exact > 0 { write!(f, "+x{num_exact}") } else { Ok(()) }
            }
            Self::Alloc { centibits } => write!(f, "alloc/{}", f64::from(centibits) / 100.0),
        }
    }
}

impl FromStr for KeyFormat {
    type Err = Error;

    /// The format of that very name: a name has no other spelling, such as leading zeros.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`], and [`Error::Spelling`] for another spelling of a name.
    fn from_str(name: &str) -> Result<Self> {
        let format = parse(name).filter(|format| format.has_name());
        let format = format.ok_or_else(|| unknown(name.to_owned()))?;
        let canonical = format.to_string();
        if name == canonical {
            Ok(format)
        } else {
            Err(Error::Spelling { name: name.to_owned(), canonical })
        }
    }
}

fn unknown(name: String) -> Error {
    Error::UnknownFormat { kind: "key", name, known: KEY_FORMATS }
}

/// The format that `name` spells, whether or not there is one of such parts.
fn parse(name: &str) -> Option<KeyFormat> {
    if let Some(shape) = name.strip_prefix("pq/") {
        return parse_pq(shape, false);
    }
    if let Some(shape) = name.strip_prefix("opq/") {
        return parse_pq(shape, true);
    }
    // Rust's numbers may carry a plus sign, the other names do not.
    if name.contains('+') {
        return None;
    }
    let plain = [KeyFormat::F16, KeyFormat::Bf16, KeyFormat::Fp8];
    if let Some(format) = plain.into_iter().find(|format| format.family() == name) {
        return Some(format);
    }
    if let Some(bits) = name.strip_prefix("lm").and_then(|name| name.strip_suffix("-plain")) {
        return Some(KeyFormat::LloydMaxPlain { bits: bits.parse().ok()? });
    }
    if let Some(bits) = name.strip_prefix("lm") {
        return Some(KeyFormat::LloydMax { bits: bits.parse().ok()? });
    }
    if let Some(bits) = name.strip_prefix("alloc/") {
        let exact = bits.parse::<f64>().ok()? * 100.0;
        let centibits = exact.round();
        // A finer width than the format has is refused rather than rounded; a cast of one out of range
        // ends at the ends of u16, which are no widths.
        let is_whole = (exact - centibits).abs() < 1e-6;
        return is_whole.then_some(KeyFormat::Alloc { centibits: centibits as u16 });
    }
    if let Some(name) = name.strip_prefix("rot-") {
        let (bits, scale) = parse_integers(name)?;
        return Some(KeyFormat::Rotated { bits, scale });
    }
    let (bits, scale) = parse_integers(name)?;
    Some(KeyFormat::integers(bits, scale))
}

/// `WxC` or `WxC+xN`.
fn parse_pq(name: &str, is_rotated: bool) -> Option<KeyFormat> {
    let (shape, num_exact) = match name.split_once("+x") {
        None => (name, 0),
        // Without slots there is nothing to name.
        Some((shape, num_exact)) => (shape, number(num_exact).filter(|&n: &u8| n > 0)?),
    };
    let (width, centroids) = shape.split_once('x')?;
    let centroids = number(centroids).filter(|n: &u32| n.is_power_of_two())?;
    let code_bits = centroids.ilog2() as u8;
    Some(KeyFormat::Pq { width: number(width)?, code_bits, is_rotated, num_exact })
}

/// A whole number without the plus sign that Rust's may carry and the names here do not.
fn number<N: FromStr>(text: &str) -> Option<N> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

fn parse_integers(name: &str) -> Option<(u8, SharedScale)> {
    let (bits, axis) = name.strip_prefix("int")?.split_once('-')?;
    let scale = if axis == "token" {
        SharedScale::Token
    } else if let Some(channels) = axis.strip_prefix("token/") {
        SharedScale::TokenGroups(GroupSize::named(channels)?)
    } else {
        SharedScale::Channel(axis.strip_prefix("channel/")?.parse().ok()?)
    };
    Some((bits.parse().ok()?, scale))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_spellings_are_refused_with_the_right_one() {
        for (name, right) in [
            ("int4-channel/032", "int4-channel/32"),
            ("int04-token", "int4-token"),
            ("int04-token/32", "int4-token/32"),
            ("rot-int08-channel/0128", "rot-int8-channel/128"),
            ("lm02", "lm2"),
            ("lm02-plain", "lm2-plain"),
            ("pq/02x256", "pq/2x256"),
            ("pq/2x0256", "pq/2x256"),
            ("opq/4x16+x01", "opq/4x16+x1"),
            ("alloc/2.00", "alloc/2"),
            ("alloc/2.", "alloc/2"),
            ("alloc/02", "alloc/2"),
            ("alloc/.5", "alloc/0.5"),
            ("alloc/5e-1", "alloc/0.5"),
            ("alloc/2.0000000001", "alloc/2"),
        ] {
            let error = name.parse::<KeyFormat>().unwrap_err();
            let told = format!("the key format '{name}' is written {right}; write it so");
            assert!(matches!(error, Error::Spelling { .. }), "{name}: {error:?}");
            assert_eq!(error.to_string(), told);
            assert_eq!(right.parse::<KeyFormat>().unwrap().to_string(), right);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn every_name_that_is_read_is_the_name_of_its_format(
            name in "(rot-)?int0?[2-8]-(token|token/0?(32|64|128)|channel/0?(32|64|128))\
                |lm0?[1-4](-plain)?|o?pq/0?[248]x0{0,2}(16|64|256|4096)(\\+x0?[1-8])?\
                |alloc/0?[0-8]?\\.?[0-9]{0,3}(e0)?|f16|bf16|fp8",
        ) {
            if let Ok(format) = name.parse::<KeyFormat>() {
                prop_assert_eq!(format.to_string(), name);
            }
        }
    }
}
