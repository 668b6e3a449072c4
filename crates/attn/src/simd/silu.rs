//! The gated activation between the matrix products of a layer.
//!
//! One text, compiled for each level without fused multiply-adds: all levels give the same bits.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

use heterokv_quant::Level;

use super::exp::exp_weight;

/// `gate = silu(gate) · up`, element by element, with `silu(x) = x / (1 + exp(−x))` (arXiv 2002.05202).
///
/// The relative error of `silu` is at most 4e-7; below −87.3, where it is under 2e-36, it may be 0. NaN gives NaN, and so
/// does minus infinity. The slices may be empty.
///
/// # Panics
/// When the slices differ in length.
pub fn swiglu(level: Level, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "slices of one length");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx512() {
        // SAFETY: a level for which `is_avx512` is true exists only on a CPU with AVX-512 F.
        return unsafe { swiglu_avx512(gate, up) };
    }
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level for which `is_avx2` is true exists only on a CPU with AVX2.
        return unsafe { swiglu_avx2(gate, up) };
    }
    let _ = level;
    swiglu_body(gate, up);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn swiglu_avx512(gate: &mut [f32], up: &[f32]) {
    swiglu_body(gate, up);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn swiglu_avx2(gate: &mut [f32], up: &[f32]) {
    swiglu_body(gate, up);
}

#[inline(always)]
fn swiglu_body(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        let x = *gate;
        // Of −|x|, as the exponential takes no positive arguments: 1 / (1 + exp(−x)) is exp(x) / (1 + exp(x)).
        let power = exp_weight(-x.abs());
        let numerator = if x < 0.0 { x * power } else { x };
        *gate = numerator / (1.0 + power) * up;
    }
}

#[cfg(test)]
mod tests {
    use heterokv_testkit::{Tolerance, compare};

    use super::*;

    const TOLERANCE: Tolerance = Tolerance { absolute: 4e-36, relative: 5e-7 };

    fn gates() -> Vec<f32> {
        let dense = (-4000..4000).map(|i| i as f32 * 0.0219 + 0.003);
        [0.0, -0.0, 1e-30, -1e-30, 88.0, -87.2, -200.0, 3e38].into_iter().chain(dense).collect()
    }

    fn ups(len: usize) -> Vec<f32> {
        (0..len).map(|i| 1.75 - (i % 5) as f32 / 2.0).collect()
    }

    fn expected(gates: &[f32], sign: f64) -> Vec<f64> {
        let silu = |x: f64| x / (1.0 + (sign * x).exp());
        gates.iter().zip(ups(gates.len())).map(|(&x, up)| silu(x.into()) * f64::from(up)).collect()
    }

    #[test]
    fn is_near_f64_at_every_length_and_of_one_result_on_all_levels() {
        let gates = gates();
        swiglu(Level::detect(), &mut [], &[]);
        for len in (1..70).chain([gates.len()]) {
            let mut portable = gates[..len].to_vec();
            swiglu(Level::SCALAR, &mut portable, &ups(len));
            for level in Level::available() {
                let mut actual = gates[..len].to_vec();
                swiglu(level, &mut actual, &ups(len));
                compare(&actual, &expected(&gates[..len], -1.0), TOLERANCE)
                    .unwrap_or_else(|error| panic!("{level}, {len} values: {error}"));
                let is_same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(actual.iter().zip(&portable).all(is_same), "{level}, {len} values");
            }
        }
        // The comparer tells another activation from this one.
        let mut actual = gates.clone();
        swiglu(Level::SCALAR, &mut actual, &ups(gates.len()));
        assert!(compare(&actual, &expected(&gates, 1.0), TOLERANCE).is_err());
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        for level in Level::available() {
            let mut gate = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 1.0];
            swiglu(level, &mut gate, &[1.0, 1.0, 1.0, f32::NAN]);
            assert!(gate[0].is_nan() && gate[1].is_nan() && gate[3].is_nan(), "{level}");
            assert_eq!(gate[2], f32::INFINITY, "{level}");
        }
    }
}
