//! Tensor bytes to f32, for every type of a checkpoint.

use half::{bf16, f16};

use super::{TensorType, unpack};
use crate::{Error, Result};

/// Decodes `bytes`, whole blocks of `ty`, into `out`.
///
/// Products and sums are rounded to f32 in the order of the format's definition, without fused
/// multiply-add, so the result equals the format's own Python decoder bit for bit (a NaN is only
/// promised to be a NaN). Every byte pattern is accepted; NaN and infinite scales pass through. Bytes
/// are little-endian and need no alignment. No elements: nothing is done.
///
/// # Errors
///
/// [`Error::PartialBlock`] if `out` is not whole blocks; [`Error::LengthMismatch`] if `bytes` is not
/// as long as `out` needs.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let num_blocks = out.len() / ty.block_len();
    if num_blocks * ty.block_len() != out.len() {
        return Err(Error::PartialBlock { ty, num_elements: out.len() });
    }
    let expected = num_blocks
        .checked_mul(ty.block_bytes())
        .ok_or(Error::TooLarge { rows: 1, cols: out.len() })?;
    if bytes.len() != expected {
        return Err(Error::LengthMismatch { what: "tensor bytes", expected, actual: bytes.len() });
    }

    match ty {
        TensorType::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        TensorType::F16 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        TensorType::BF16 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        TensorType::Q6K => {
            for (values, block) in out.chunks_exact_mut(256).zip(bytes.chunks_exact(210)) {
                let (codes, scales) = unpack::unpack_q6_k(block);
                for (i, value) in values.iter_mut().enumerate() {
                    *value = scales[i / 16] * f32::from(codes[i]);
                }
            }
        }
        TensorType::Q8_0
        | TensorType::Q4_0
        | TensorType::Q4_1
        | TensorType::Q5_0
        | TensorType::Q5_1
        | TensorType::Q4K
        | TensorType::Q5K => unpack::unpack(ty, bytes, |idx, block| {
            for (value, &code) in out[32 * idx..][..32].iter_mut().zip(&block.codes) {
                let product = block.scale * f32::from(code);
                *value = block.offset.map_or(product, |offset| product + offset);
            }
        }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::dequantize;
    use crate::{Error, weights::TensorType};

    #[test]
    fn lengths_are_checked() {
        let mut out = [7.0; 33];
        assert!(matches!(
            dequantize(TensorType::Q4_0, &[0; 18], &mut out),
            Err(Error::PartialBlock { num_elements: 33, .. })
        ));
        assert!(matches!(
            dequantize(TensorType::Q4_0, &[0; 17], &mut out[..32]),
            Err(Error::LengthMismatch { expected: 18, actual: 17, .. })
        ));
        assert_eq!(out, [7.0; 33]);
        for ty in TensorType::ALL {
            dequantize(ty, &[], &mut []).unwrap();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 420)) {
            for ty in TensorType::ALL {
                let num_blocks = bytes.len() / ty.block_bytes();
                let mut out = vec![0.0; num_blocks * ty.block_len()];
                dequantize(ty, &bytes[..num_blocks * ty.block_bytes()], &mut out).unwrap();
            }
        }
    }
}
