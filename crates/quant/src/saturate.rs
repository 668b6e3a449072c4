//! Rounding to half precision without infinities.

use half::f16;

/// The largest finite f16.
const MAX: f32 = 65_504.0;

/// `x`, held at the ends of what f16 can say.
pub(crate) fn in_f16_range(x: f32) -> f32 {
    x.clamp(-MAX, MAX)
}

/// `x` rounded to f16, held at the ends of its range.
pub(crate) fn to_f16(x: f32) -> f16 {
    f16::from_f32(in_f16_range(x))
}
