//! Short floats against a reference in f64 that shares nothing with them.

use super::*;

/// The value of a finite code of e4m3fn, by the definition of the format.
fn fp8_value(code: u8) -> f64 {
    let (exponent, significand) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        0 => significand / 8.0 * 2.0f64.powi(-6),
        _ => (1.0 + significand / 8.0) * 2.0f64.powi(exponent - 7),
    };
    if code < 0x80 { size } else { -size }
}

/// The finite codes of one sign, in rising size.
fn sizes() -> impl Iterator<Item = u8> {
    0..=0x7E
}

/// The code nearest to `size`, the even one of two; what lies beyond the last is the last.
fn nearest_fp8(size: f64) -> u8 {
    let distance = |code: &u8| (fp8_value(*code) - size).abs();
    let by_distance =
        |a: &u8, b: &u8| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)));
    sizes().min_by(by_distance).unwrap()
}

#[test]
fn every_code_of_fp8_has_its_value_and_comes_back() {
    assert_eq!(fp8_value(0x7E), f64::from(MAX_FP8));
    assert_eq!(fp8_value(0x01), 2.0f64.powi(-9));
    for code in 0..=u8::MAX {
        let value = from_fp8(code);
        if code & 0x7F == 0x7F {
            assert!(value.is_nan(), "{code:#04x} is {value}");
        } else {
            assert_eq!(f64::from(value).to_bits(), fp8_value(code).to_bits(), "{code:#04x}");
            assert_eq!(to_fp8(value), code, "{value}");
        }
    }
}

#[test]
fn fp8_rounds_to_the_nearest_at_every_float_around_its_codes_and_their_middles() {
    // The middle of two codes is a tie, which goes to the even code; a float to either side is none.
    let mut ties = 0;
    for code in sizes() {
        let (here, next) = (fp8_value(code), fp8_value(code + 1));
        for x in [here, (here + next) / 2.0, next] {
            let x = x as f32;
            for x in [x.next_down(), x, x.next_up()] {
                let expected = nearest_fp8(f64::from(x).abs());
                assert_eq!(to_fp8(x.abs()), expected, "{x}");
                assert_eq!(to_fp8(-x.abs()), expected | 0x80, "-{x}");
            }
            let expected = nearest_fp8(f64::from(x));
            ties += usize::from(fp8_value(expected) != f64::from(x) && code < 0x7E);
        }
    }
    assert_eq!(ties, 126, "every middle of two finite codes was met");
}

#[test]
fn fp8_agrees_with_the_reference_from_the_smallest_float_to_the_largest() {
    // Every 4,999th float, a prime step, so that all patterns of low bits come.
    for bits in (0..f32::INFINITY.to_bits()).step_by(4999) {
        let x = f32::from_bits(bits);
        // The nearest of a sorted list, without walking over it.
        let size = f64::from(x);
        let above = sizes().collect::<Vec<_>>().partition_point(|&code| fp8_value(code) < size);
        let expected = match above {
            0 => 0,
            127 => 0x7E,
            above => {
                let (low, high) = (above as u8 - 1, above as u8);
                let (down, up) = (size - fp8_value(low), fp8_value(high) - size);
                if down < up || (down == up && low % 2 == 0) { low } else { high }
            }
        };
        assert_eq!(to_fp8(x), expected, "{x:e}");
    }
    assert_eq!([to_fp8(f32::MAX), to_fp8(f32::MIN), to_fp8(-0.0)], [0x7E, 0xFE, 0x80]);
    assert_eq!(to_fp8(f32::from_bits(1)), 0);
}

#[test]
fn halves_hold_what_is_too_large_at_their_ends() {
    for x in [65_504.0, 65_520.0, 1e9, f32::MAX] {
        assert_eq!(to_f16(x).to_f32(), 65_504.0);
        assert_eq!(to_f16(-x).to_f32(), -65_504.0);
    }
    let end = f32::from_bits(0x7F7F_0000);
    for x in [end, f32::from_bits(0x7F7F_8000), f32::MAX] {
        assert_eq!(to_bf16(x).to_f32(), end);
        assert_eq!(to_bf16(-x).to_f32(), -end);
    }
    // Ties of bf16 go to even, as do those of f16.
    assert_eq!(to_bf16(f32::from_bits(0x3F80_8000)).to_bits(), 0x3F80);
    assert_eq!(to_bf16(f32::from_bits(0x3F81_8000)).to_bits(), 0x3F82);
    assert_eq!(to_bf16(f32::from_bits(0x3F80_8001)).to_bits(), 0x3F81);
}

#[test]
fn a_half_below_is_the_largest_that_is_not_above() {
    let finite = |bits: &u16| f16::from_bits(*bits).is_finite();
    let mut halves: Vec<f16> = (0..=u16::MAX).filter(finite).map(f16::from_bits).collect();
    halves.sort_by(|a, b| a.total_cmp(b));
    for pair in halves.windows(2) {
        let [a, b] = [pair[0].to_f32(), pair[1].to_f32()];
        assert_eq!(f16_below(a).to_f32(), a);
        if a < b {
            for between in [0.5 * (a + b), b.next_down()] {
                assert_eq!(f16_below(between).to_f32(), a, "{between}");
            }
        }
    }
    assert_eq!(f16_below(f32::MIN), f16::MIN);
    assert_eq!(f16_below(1e9), f16::MAX);
}
