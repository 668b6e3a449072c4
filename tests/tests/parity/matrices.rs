//! Weights for the cases: random codes, scales and offsets, which are exact in every form.

use half::f16;
use heterokv_attn::device::{DeviceError, MatrixRows};
use heterokv_shaders::WeightForm;
use heterokv_testkit::Inputs;

/// A matrix in a form, and the weights that it stands for.
pub(crate) struct Matrix {
    pub(crate) form: WeightForm,
    pub(crate) shape: [usize; 2],
    pub(crate) values: Vec<f32>,
    codes: Vec<u32>,
    scales: Vec<u32>,
}

impl Matrix {
    pub(crate) fn random(inputs: &mut Inputs, form: WeightForm, [rows, cols]: [usize; 2]) -> Self {
        let num_blocks = cols / 32;
        let (mut values, mut codes, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rows * num_blocks {
            let scale = f16::from_f32(0.01 + 0.02 * inputs.unit());
            let offset = f16::from_f32(0.1 * (inputs.unit() - 0.5));
            let affine = |code: f32| scale.to_f32() * code + offset.to_f32();
            let block: Vec<u32> = match form {
                WeightForm::F16 => (0..16)
                    .map(|_| {
                        let pair = [(); 2].map(|()| f16::from_f32(inputs.gaussian()));
                        values.extend(pair.map(f16::to_f32));
                        u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16
                    })
                    .collect(),
                WeightForm::Q8 => (0..8)
                    .map(|_| {
                        let four = [(); 4].map(|()| inputs.bits() as i8);
                        values.extend(four.map(|code| affine(f32::from(code))));
                        u32::from_le_bytes(four.map(|code| code as u8))
                    })
                    .collect(),
                WeightForm::Q4 => (0..4)
                    .map(|_| {
                        let word = inputs.bits() as u32;
                        values.extend((0..8).map(|i| affine((word >> (4 * i) & 15) as f32)));
                        word
                    })
                    .collect(),
            };
            codes.extend(block);
            scales.push(u32::from(scale.to_bits()) | u32::from(offset.to_bits()) << 16);
        }
        Self { form, shape: [rows, cols], values, codes, scales }
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.shape[1]..][..self.shape[1]]
    }
}

impl MatrixRows for &Matrix {
    type Error = DeviceError;

    fn write(
        &mut self,
        first_row: usize,
        codes: &mut [u32],
        scales: &mut [u32],
    ) -> Result<(), DeviceError> {
        let num_blocks = self.shape[1] / 32;
        let first = first_row * num_blocks;
        codes.copy_from_slice(&self.codes[first * self.form.code_words()..][..codes.len()]);
        scales.copy_from_slice(&self.scales[first..][..scales.len()]);
        Ok(())
    }
}
