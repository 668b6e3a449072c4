//! The scalar forms of the row kernels, on every CPU.

use super::halves;

pub(super) fn dot_f16(query: &[f32], row: &[u8]) -> f32 {
    query.iter().zip(halves(row)).map(|(q, x)| q * x).sum()
}

pub(super) fn dot_int8(query: &[f32], codes: &[u8]) -> f32 {
    query.iter().zip(codes).map(|(q, &x)| q * f32::from(x as i8)).sum()
}

pub(super) fn add_scaled_f16(weight: f32, row: &[u8], sums: &mut [f32]) {
    for (sum, x) in sums.iter_mut().zip(halves(row)) {
        *sum += weight * x;
    }
}

pub(super) fn add_scaled_int8(weight: f32, codes: &[u8], sums: &mut [f32]) {
    for (sum, &x) in sums.iter_mut().zip(codes) {
        *sum += weight * f32::from(x as i8);
    }
}
