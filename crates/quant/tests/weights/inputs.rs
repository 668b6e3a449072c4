//! Random tensors and vectors, and the case table.

use half::f16;
use heterokv_quant::{
    Level,
    weights::{ComputeType, TensorType, WeightMatrix},
};
use rand::{Rng, RngExt, rngs::StdRng};

pub(crate) const COMPUTE: [ComputeType; 4] =
    [ComputeType::F32, ComputeType::F16, ComputeType::Q8, ComputeType::Q8A8];

/// Largest magnitude of the f16 scales and minima of generated blocks.
pub(crate) const MAX_SCALE: f32 = 0.02;

/// What a code of 0 can stand for in generated blocks: the minimum, for K types times a 6-bit factor.
pub(crate) fn max_offset(ty: TensorType) -> f64 {
    match ty {
        TensorType::Q4_1 | TensorType::Q5_1 => f64::from(MAX_SCALE),
        TensorType::Q4K | TensorType::Q5K => 63.0 * f64::from(MAX_SCALE),
        _ => 0.0,
    }
}

/// Random bytes of a tensor, with finite weights and scales up to [`MAX_SCALE`].
pub(crate) fn tensor(ty: TensorType, rows: usize, cols: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; ty.bytes_of((rows * cols) as u64).expect("whole blocks") as usize];
    rng.fill_bytes(&mut bytes);
    let halves: &[usize] = match ty {
        TensorType::F32 => {
            for b in bytes.chunks_exact_mut(4) {
                b.copy_from_slice(&rng.random_range(-1.0f32..1.0).to_le_bytes());
            }
            &[]
        }
        TensorType::BF16 => {
            for b in bytes.chunks_exact_mut(2) {
                let value = half::bf16::from_f32(rng.random_range(-1.0f32..1.0));
                b.copy_from_slice(&value.to_le_bytes());
            }
            &[]
        }
        TensorType::F16 | TensorType::Q8_0 | TensorType::Q4_0 | TensorType::Q5_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q6K => &[208],
    };
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in halves {
            let value = f16::from_f32(rng.random_range(-MAX_SCALE..MAX_SCALE));
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

pub(crate) fn vector(len: usize, rng: &mut StdRng) -> Vec<f32> {
    // Magnitudes differ from block to block, as those of real activations do.
    (0..len).map(|i| rng.random_range(-1.0f32..1.0) * [1.0, 30.0, 0.01][i / 32 % 3]).collect()
}

pub(crate) fn build(
    ty: TensorType,
    bytes: &[u8],
    shape: [usize; 2],
    compute: ComputeType,
    level: Level,
) -> WeightMatrix {
    WeightMatrix::from_tensor(ty, bytes, shape, |row| row, compute, level).expect("a good tensor")
}

pub(crate) const SHAPES: [[usize; 2]; 20] = [
    [1, 1],
    [3, 7],
    [1, 31],
    [2, 32],
    [31, 33],
    [33, 64],
    [5, 255],
    [32, 256],
    [97, 257],
    [15, 96],
    [16, 512],
    [17, 544],
    [48, 100],
    [63, 600],
    [70, 599],
    [7, 288],
    [64, 576],
    [576, 576],
    [192, 1536],
    [49, 2048],
];

pub(crate) fn for_each_case(
    mut check: impl FnMut(&str, TensorType, [usize; 2], ComputeType, Level, u64),
) {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for ty in TensorType::ALL {
            if !shape[1].is_multiple_of(ty.block_len()) {
                continue;
            }
            for compute in COMPUTE {
                for level in Level::available() {
                    let name = format!("{ty} {shape:?} {compute} {level} seed {seed}");
                    check(&name, ty, shape, compute, level, seed as u64);
                }
            }
        }
    }
}
