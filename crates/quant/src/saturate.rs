//! Rounding to short floats without infinities.

use half::{bf16, f16};

/// The largest finite f16.
const MAX_F16: f32 = 65_504.0;

/// The largest finite value of fp8 e4m3fn.
pub(crate) const MAX_FP8: f32 = 448.0;

/// `x`, held at the ends of what f16 can say.
pub(crate) fn in_f16_range(x: f32) -> f32 {
    x.clamp(-MAX_F16, MAX_F16)
}

/// `x` rounded to f16, held at the ends of its range.
pub(crate) fn to_f16(x: f32) -> f16 {
    f16::from_f32(in_f16_range(x))
}

/// The largest f16 that is not above `x`, which is not NaN; the least of all where there is none.
pub(crate) fn f16_below(x: f32) -> f16 {
    let nearest = to_f16(x);
    match nearest.to_bits() {
        _ if nearest.to_f32() <= x || nearest == f16::MIN => nearest,
        // Below zero comes the least in size of those with a sign.
        0 | 0x8000 => f16::from_bits(0x8001),
        bits if nearest.is_sign_negative() => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// `x` rounded to bf16, held at the ends of its range.
pub(crate) fn to_bf16(x: f32) -> bf16 {
    bf16::from_f32(x.clamp(bf16::MIN.to_f32(), bf16::MAX.to_f32()))
}

/// `x`, which is not NaN, rounded to fp8 e4m3fn (Micikevicius et al., arXiv 2209.05433): a sign, four bits
/// of exponent with bias 7 and three of significand, ties to even, held at ±448.
pub(crate) fn to_fp8(x: f32) -> u8 {
    /// Adding 2^14 to a value below 2^-6 leaves it rounded to multiples of 2^-9 in the lowest bits.
    const SUBNORMAL: f32 = 16_384.0;
    /// The smallest normal value.
    const MIN_NORMAL: f32 = 1.0 / 64.0;
    let size = x.abs().min(MAX_FP8);
    let code = if size < MIN_NORMAL {
        (size + SUBNORMAL).to_bits() - SUBNORMAL.to_bits()
    } else {
        let bits = size.to_bits();
        let half_less_one = (1 << 19) - 1;
        let even = bits >> 20 & 1;
        ((bits + half_less_one + even) >> 20) - ((127 - 7) << 3)
    };
    code as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// What a code of fp8 e4m3fn stands for; NaN for the two codes of NaN, which [`to_fp8`] does not give.
pub(crate) fn from_fp8(code: u8) -> f32 {
    let size = if code & 0x7F == 0x7F {
        f32::NAN
    } else {
        // Exponent and significand in their places in f32, whose bias is larger by 120.
        f32::from_bits(u32::from(code & 0x7F) << 20) * 2.0f32.powi(120)
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests;
