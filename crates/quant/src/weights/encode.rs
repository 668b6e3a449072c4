//! One source row to the `q8` compute form: codes, f16 scales and f16 offsets per 32 columns.
//!
//! Types that already are `scale * code + offset` keep their codes. Those with f16 fields (Q8_0, Q4_0,
//! Q4_1, Q5_0, Q5_1) are held exactly; of Q4_K and Q5_K, the product of the super-block's scale and
//! the group's is rounded to f16, which moves a value by at most 2⁻¹¹ of its two terms. All others
//! are quantized to 8 symmetric bits with [`quantize_block`].

use half::f16;

use super::{BLOCK, ComputeType, TensorType, dequant::dequantize, unpack};
use crate::{Error, Result};

/// Where one row goes; `num_blocks` = columns / 32, rounded up.
pub(super) struct Q8RowMut<'a> {
    /// Codes `[num_blocks * 32]`.
    pub(super) codes: &'a mut [i8],
    /// Scales `[num_blocks]`.
    pub(super) scales: &'a mut [f16],
    /// Offsets `[num_blocks]`, or empty for types without a minimum.
    pub(super) offsets: &'a mut [f16],
}

/// Encodes source row `row` of type `ty`. `scratch` `[cols]` is overwritten.
///
/// # Errors
///
/// [`Error::WeightOverflow`] where a finite scale or offset is infinite in f16.
pub(super) fn encode_row(
    ty: TensorType,
    bytes: &[u8],
    row: usize,
    scratch: &mut [f32],
    out: &mut Q8RowMut<'_>,
) -> Result<()> {
    let to_half = |value: f32| {
        let half = f16::from_f32(value);
        if value.is_finite() && !half.is_finite() {
            return Err(Error::WeightOverflow { row, value, compute: ComputeType::Q8 });
        }
        Ok(half)
    };

    if unpack::is_affine(ty) {
        let mut result = Ok(());
        unpack::unpack(ty, bytes, |idx, block| {
            out.codes[BLOCK * idx..][..BLOCK].copy_from_slice(&block.codes);
            let fields = to_half(block.scale).and_then(|scale| {
                out.scales[idx] = scale;
                if let Some(offset) = block.offset {
                    out.offsets[idx] = to_half(offset)?;
                }
                Ok(())
            });
            if result.is_ok() {
                result = fields;
            }
        });
        return result;
    }

    dequantize(ty, bytes, scratch)?;
    for (idx, values) in scratch.chunks(BLOCK).enumerate() {
        let mut block = [0.0; BLOCK];
        block[..values.len()].copy_from_slice(values);
        let codes = &mut out.codes[BLOCK * idx..][..BLOCK];
        let own_step = (ty == TensorType::Q6K).then(|| q6_k_step(bytes, idx));
        out.scales[idx] = quantize_block(&block, own_step, codes)
            .map_err(|value| Error::WeightOverflow { row, value, compute: ComputeType::Q8 })?;
    }
    Ok(())
}

/// A quarter of the larger of the two group scales that cover columns `32 * block_idx..` of a Q6_K
/// row: with it the codes of that group are four times its own 6-bit ones, hence exact.
fn q6_k_step(bytes: &[u8], block_idx: usize) -> f32 {
    let (_, scales) = unpack::unpack_q6_k(&bytes[210 * (block_idx / 8)..][..210]);
    let (a, b) = (scales[2 * (block_idx % 8)], scales[2 * (block_idx % 8) + 1]);
    0.25 * if a.abs() >= b.abs() { a } else { b }
}

/// Quantizes 32 values to 8 symmetric bits, by the better (in squared error) of two steps: the
/// largest magnitude / 127, and `own_step` if there is one. Returns the step.
///
/// Each value is off by at most half a step, and the first step is at most
/// `largest / 127 * (1 + 2⁻¹⁰) + 2⁻²⁴` (it is rounded up to f16 so that no code is clipped). A block
/// with a NaN or an infinity gets a NaN step, so that it stays visible.
///
/// Fails with the step if that is infinite in f16.
fn quantize_block(
    values: &[f32; BLOCK],
    own_step: Option<f32>,
    codes: &mut [i8],
) -> Result<f16, f32> {
    codes.fill(0);
    if values.iter().any(|v| !v.is_finite()) {
        return Ok(f16::NAN);
    }
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return Ok(f16::ZERO);
    }

    let step = largest / 127.0;
    let mut half = f16::from_f32(step);
    if half.to_f32() < step {
        half = f16::from_bits(half.to_bits() + 1);
    }
    if !half.is_finite() {
        return Err(step);
    }
    let error = round_to(values, half, codes);

    if let Some(own) =
        own_step.map(f16::from_f32).filter(|own| own.is_finite() && *own != f16::ZERO)
    {
        let mut own_codes = [0; BLOCK];
        if round_to(values, own, &mut own_codes) < error {
            codes.copy_from_slice(&own_codes);
            return Ok(own);
        }
    }
    Ok(half)
}

/// Writes the nearest code of each value and returns the sum of squared errors, relative to `step²`.
fn round_to(values: &[f32; BLOCK], step: f16, codes: &mut [i8]) -> f32 {
    /// Adding and subtracting 1.5 * 2²³ rounds a magnitude under 2²² to the nearest integer, and
    /// vectorizes on every CPU, which `round_ties_even` does not.
    const ROUND: f32 = 12_582_912.0;
    let inverse = 1.0 / step.to_f32();
    let mut error = 0.0;
    for (code, value) in codes.iter_mut().zip(values) {
        let quotient = value * inverse;
        let rounded = (quotient.clamp(-128.0, 127.0) + ROUND) - ROUND;
        error += (quotient - rounded) * (quotient - rounded);
        *code = rounded as i8;
    }
    error * step.to_f32() * step.to_f32()
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::quantize_block;

    #[test]
    fn values_are_within_half_a_step() {
        // The magnitudes reach down to where the f16 step is subnormal.
        for exponent in -30..16 {
            let values: [f32; 32] =
                std::array::from_fn(|i| ((i * 7) as f32).sin() * (exponent as f32).exp2());
            let mut codes = [0; 32];
            let step = quantize_block(&values, None, &mut codes).unwrap().to_f32();
            let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let bound = largest / 127.0 * (1.0 + 2f32.powi(-10)) + 2f32.powi(-24);
            assert!(step > 0.0 && step <= bound, "2^{exponent}: {step} {bound}");
            for (value, &code) in values.iter().zip(&codes) {
                let error = (value - step * f32::from(code)).abs();
                assert!(error <= 0.5001 * step, "2^{exponent}: {error} {step}");
            }
        }
    }

    #[test]
    fn a_better_step_of_the_source_is_kept() {
        let values: [f32; 32] = std::array::from_fn(|i| (i as f32 - 16.0) * 0.25);
        let mut codes = [0; 32];
        let step = quantize_block(&values, Some(0.0625), &mut codes).unwrap();
        assert_eq!(step, f16::from_f32(0.0625));
        assert_eq!((codes[0], codes[31]), (-64, 60));
        // A hopeless step is not.
        let step = quantize_block(&values, Some(100.0), &mut codes).unwrap();
        assert!(step.to_f32() < 0.04);
    }

    #[test]
    fn what_f16_cannot_hold_is_an_error_or_nan() {
        let mut codes = [1; 32];
        let mut values = [0.0; 32];
        assert_eq!(quantize_block(&values, None, &mut codes).unwrap(), f16::ZERO);
        values[5] = 65504.0 * 127.0;
        assert!(quantize_block(&values, None, &mut codes).is_ok());
        values[5] = 65600.0 * 127.0;
        assert!(quantize_block(&values, None, &mut codes).is_err());
        for bad in [f32::NAN, f32::INFINITY] {
            values[5] = bad;
            assert!(quantize_block(&values, None, &mut codes).unwrap().is_nan());
            assert_eq!(codes, [0; 32]);
        }
    }
}
