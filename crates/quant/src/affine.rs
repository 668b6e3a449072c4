//! Affine integers: a group of values as codes of a few bits with one scale and one zero.
//!
//! Two ways to store scale and zero:
//!
//! - **[`Affine`]**, four bytes, for whole tokens and for codes wider than 4 bits. `x ≈ zero + scale · code` with both
//!   in f16, the zero rounded down from the smallest value and the scale up from what reaches the largest, so that
//!   no error is above half a step.
//! - **[`Window`]**, two bytes, for other groups of codes of up to 4 bits. The step is an eighth of an octave
//!   `2^(e / 8)` and the codes are `2^bits` neighbours on a grid of such steps, whole or shifted by half of one;
//!   stored are `e` and the centre of the window in half steps, a byte each. Of the windows that a search looks
//!   at the one with the least squared error is taken, which may leave the ends of the group outside.
//!
//! A step off by half an eighth of an octave costs little where it is wide, and little is lost by a zero
//! on a grid: it only shifts which values are rounded where. So at few bits the two bytes saved are
//! worth more than what they say, and the search more than both; tests hold the order. Half steps, because
//! the best window of values that lie evenly around zero does so too. A window reaches 63 steps to either
//! side of zero, which wider codes would need for themselves.
//!
//! Encoding what was decoded gives it again. Scale and zero of an affine group are those that the ends of what it
//! decodes to have in turn. A window whose both ends are taken has the centre of what it
//! decodes to, and only such windows are candidates, but for one; steps of up to the range's share are
//! always filled. The one is for groups far from zero, whose filled windows are out of reach: the
//! smallest step that reaches them, on whole multiples. It is smallest again for the multiples that they are
//! rounded to ([`REACH`]).

use half::f16;

use crate::keys::{EIGHTHS, OCTAVE_BIAS};
use crate::saturate::{f16_below, to_f16};

/// Widest codes that are stored as a window.
const MAX_WINDOW_BITS: u8 = 4;

/// `zero`, `scale` and the codes' range of one group of values, scale and zero as stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    pub(crate) zero: f32,
    pub(crate) scale: f32,
    max_code: f32,
}

impl Affine {
    /// Zero and scale for `values`, finite and at least one, by codes of up to 8 `bits`: those that a second pass
    /// over the decoded values finds again.
    pub(crate) fn of(values: impl Iterator<Item = f32>, bits: u8) -> Self {
        let (low, high) = values
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let mut affine = Self::between(low, high, bits);
        loop {
            // The zero only rises and the scale only falls, by half a first step at most.
            let [low, high] = [low, high].map(|x| affine.value(affine.code(x)));
            let next = Self::between(low, high, bits);
            if !(next.zero > affine.zero || next.scale < affine.scale) {
                return affine;
            }
            affine = next;
        }
    }

    /// Zero and scale for values from `low` to `high`; what is decoded under them may ask for others.
    fn between(low: f32, high: f32, bits: u8) -> Self {
        let max_code = f32::from((1u16 << bits) - 1);
        let zero = f16_below(low).to_f32();
        // The least scale under which the last code reaches the largest value, as f32 rounds it: what a quotient says
        // but for few steps.
        let reaches = |scale: f16| zero + scale.to_f32() * max_code >= high;
        let mut scale = to_f16((high - zero).max(0.0) / max_code);
        while !reaches(scale) && scale < f16::MAX {
            scale = f16::from_bits(scale.to_bits() + 1);
        }
        while scale > f16::ZERO && reaches(f16::from_bits(scale.to_bits() - 1)) {
            scale = f16::from_bits(scale.to_bits() - 1);
        }
        Self { zero, scale: scale.to_f32(), max_code }
    }

    fn value(&self, code: u8) -> f32 {
        self.zero + self.scale * f32::from(code)
    }

    pub(crate) fn code(&self, x: f32) -> u8 {
        // A constant group has scale 0 and decodes to its zero whatever the code.
        if self.scale > 0.0 {
            ((x - self.zero) / self.scale).round().clamp(0.0, self.max_code) as u8
        } else {
            0
        }
    }
}

/// `2^bits` neighbours on a grid of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    bits: u8,
    /// The step is `2^(exponent / 8)`.
    exponent: i8,
    /// The middle of the window in half steps; odd where its values are whole multiples of the step.
    centre: i8,
}

/// Steps from zero to the largest value under the smallest step that reaches it. The multiple nearest to
/// that value is not above this, and the one nearest to it under a step smaller by an eighth of an octave would be:
/// such values, rounded, have the same smallest step.
const REACH: f32 = 59.48;

impl Window {
    /// The candidate with the least squared error. What is larger than the last value under the largest
    /// step, above 3 million, is held there; no values: any window.
    fn of(values: &[f32], bits: u8) -> Self {
        let (low, high) = ends(values);
        let gaps = f32::from((1u16 << bits) - 1);
        let eighths = |x: f32| 8.0 * x.log2();
        let smallest = eighths(low.abs().max(high.abs()) / REACH).ceil() as i32;
        // The widest step of which the values fill a window, but for the rounding of the logarithm.
        let filled = (eighths((high - low) / gaps) + 1e-3).floor() as i32;
        let (bottom, top) = (filled.saturating_sub(search_depth(bits)), filled.saturating_add(1));
        let exponents = i32::from(i8::MIN)..=i32::from(i8::MAX);
        let clamped = |e: i32| e.clamp(*exponents.start(), *exponents.end());
        let mut best = Self::on_multiples(low, high, bits, clamped(smallest) as i8);
        // A step far below all others leaves most of the group outside.
        let mut least_error =
            if smallest < bottom { f32::INFINITY } else { best.squared_error(values) };
        for exponent in (clamped(bottom)..=clamped(top)).rev() {
            let Some(window) = Self::filled(low, high, bits, exponent as i8) else { continue };
            let error = window.squared_error(values);
            if error < least_error {
                (best, least_error) = (window, error);
            }
        }
        best
    }

    /// The window around the middle of `low` and `high`, if it is within reach and they take its ends.
    fn filled(low: f32, high: f32, bits: u8, exponent: i8) -> Option<Self> {
        let step = STEPS[usize::from(exponent as u8 ^ 0x80)];
        let centre = rounded((low + high) / step);
        let window = Self { bits, exponent, centre: centre as i8 };
        let is_filled = window.place(low) <= 0.0 && window.place(high) >= window.last_code();
        (f32::from(window.centre) == centre && is_filled).then_some(window)
    }

    /// The window of whole multiples around the middle of `low` and `high`.
    fn on_multiples(low: f32, high: f32, bits: u8, exponent: i8) -> Self {
        let step = STEPS[usize::from(exponent as u8 ^ 0x80)];
        let centre = 2.0 * (0.5 * (low + high) / step).floor() + 1.0;
        // The one that does not fit a byte is odd at both of its ends.
        Self { bits, exponent, centre: centre.clamp(-127.0, 127.0) as i8 }
    }

    fn last_code(&self) -> f32 {
        f32::from((1u16 << self.bits) - 1)
    }

    /// Step, and how many of them the code 0 stands for.
    fn grid(&self) -> (f32, f32) {
        let first = 0.5 * (f32::from(self.centre) - self.last_code());
        (STEPS[usize::from(self.exponent as u8 ^ 0x80)], first)
    }

    /// The code of a value, were there codes beyond the ends.
    fn place(&self, x: f32) -> f32 {
        let (step, first) = self.grid();
        rounded(x / step - first)
    }

    fn squared_error(&self, values: &[f32]) -> f32 {
        const LANES: usize = 8;
        let ((step, first), last_code) = (self.grid(), self.last_code());
        let inverse = 1.0 / step;
        let error = |x: f32| {
            let code = rounded(x * inverse - first).clamp(0.0, last_code);
            let error = x - step * (first + code);
            error * error
        };
        // Lane by lane, which compilers turn into vector code as they do not a sum in order.
        let mut sums = [0.0; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &x) in sums.iter_mut().zip(chunk) {
                *sum += error(x);
            }
        }
        sums.iter().sum::<f32>() + rest.iter().map(|&x| error(x)).sum::<f32>()
    }
}

/// Steps above the range's share that a search goes down, in eighths of an octave: as far as any group of normal
/// values takes it, which is further the fewer codes there are.
fn search_depth(bits: u8) -> i32 {
    match bits {
        0..=2 => 9,
        3 => 5,
        _ => 3,
    }
}

/// Smallest and largest value; zeros where there are none.
fn ends(values: &[f32]) -> (f32, f32) {
    let (low, high) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| {
        (if x < low { x } else { low }, if x > high { x } else { high })
    });
    if low > high { (0.0, 0.0) } else { (low, high) }
}

/// `x` rounded to an integer, ties to even, up to 2^22 in size; beyond, a number as large. In vector code
/// on every CPU, which [`f32::round_ties_even`] is not.
fn rounded(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The steps of all exponents, `2^((i − 128) / 8)`.
pub(crate) static STEPS: [f32; 256] = steps();

const fn steps() -> [f32; 256] {
    let mut steps = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        // A power of two by its exponent, so that the product is exact.
        let octave = f32::from_bits((i as u32 / 8 + 127 - OCTAVE_BIAS) << 23);
        steps[i] = EIGHTHS[i % 8] * octave;
        i += 1;
    }
    steps
}

/// Scale and zero of one group of values, in the form for its width.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Group {
    Window(Window),
    Affine(Affine),
}

impl Group {
    /// Bytes of a stored scale and zero.
    pub(crate) const fn header_bytes(bits: u8) -> usize {
        if bits <= MAX_WINDOW_BITS { 2 } else { 4 }
    }

    /// Fits a group of values.
    pub(crate) fn of(values: &[f32], bits: u8) -> Self {
        if bits <= MAX_WINDOW_BITS {
            Self::Window(Window::of(values, bits))
        } else {
            Self::Affine(Affine::of(values.iter().copied(), bits))
        }
    }

    /// Reads what [`Group::write`] wrote; any bytes are a group.
    pub(crate) fn read(header: &[u8], bits: u8) -> Self {
        if bits <= MAX_WINDOW_BITS {
            let exponent = (header[0] ^ 0x80) as i8;
            Self::Window(Window { bits, exponent, centre: header[1] as i8 })
        } else {
            let half = |i: usize| f16::from_le_bytes([header[i], header[i + 1]]).to_f32();
            let max_code = f32::from((1u16 << bits) - 1);
            Self::Affine(Affine { scale: half(0), zero: half(2), max_code })
        }
    }

    /// Writes scale and zero into `header [header_bytes]`.
    pub(crate) fn write(&self, header: &mut [u8]) {
        match self {
            Self::Window(window) => {
                header.copy_from_slice(&[window.exponent as u8 ^ 0x80, window.centre as u8]);
            }
            Self::Affine(affine) => {
                header[..2].copy_from_slice(&to_f16(affine.scale).to_le_bytes());
                header[2..].copy_from_slice(&to_f16(affine.zero).to_le_bytes());
            }
        }
    }

    /// The code of a value.
    pub(crate) fn code(&self, x: f32) -> u8 {
        match self {
            Self::Window(window) => window.place(x).clamp(0.0, window.last_code()) as u8,
            Self::Affine(affine) => affine.code(x),
        }
    }

    /// What a code stands for.
    pub(crate) fn value(&self, code: u8) -> f32 {
        match self {
            Self::Window(window) => {
                let (step, first) = window.grid();
                step * (first + f32::from(code))
            }
            Self::Affine(affine) => affine.value(code),
        }
    }

    /// Scale and zero with which `zero + scale · code` is the value of a code, up to rounding.
    pub(crate) fn line(&self) -> (f32, f32) {
        match self {
            Self::Window(window) => {
                let (step, first) = window.grid();
                (step, step * first)
            }
            Self::Affine(affine) => (affine.scale, affine.zero),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
