//! Weights on a device.

use heterokv_gpu::{Buffer, Gpu};

use super::{DeviceError, DeviceResult, WeightForm};

/// Bytes of codes that are handed over at a time.
const UPLOAD_BYTES: usize = 4 << 20;

/// Where the rows of a matrix come from.
pub trait MatrixRows {
    /// What can go wrong with them, and with the device.
    type Error: From<DeviceError>;

    /// Writes the rows from `first_row` on, as many as there is room for: their codes, as many words as the form has for
    /// a row, and, but for weights in f16, a scale and an offset for each block of 32 columns, f16 both, the scale in the
    /// lower half.
    ///
    /// # Errors
    /// Rows that the form cannot hold.
    fn write(
        &mut self,
        first_row: usize,
        codes: &mut [u32],
        scales: &mut [u32],
    ) -> Result<(), Self::Error>;
}

/// A matrix `[rows, cols]` and its bias. Where it is larger than a buffer can be, it lies in several, of whole rows.
#[derive(Debug)]
pub struct DeviceMatrix {
    form: WeightForm,
    rows: usize,
    cols: usize,
    slabs: Vec<Slab>,
}

/// Some of the rows.
#[derive(Debug)]
pub(super) struct Slab {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) codes: Buffer,
    pub(super) scales: Buffer,
    pub(super) bias: Buffer,
}

impl DeviceMatrix {
    /// Columns that share a scale: a matrix has whole blocks of them.
    pub const BLOCK: usize = 32;

    /// Bytes of a matrix on the device, its bias included.
    #[must_use]
    pub fn bytes(form: WeightForm, [rows, cols]: [usize; 2]) -> u64 {
        let of_row = cols.div_ceil(Self::BLOCK) * (form.code_words() + form.scale_words()) + 1;
        // Of scales there is a word where there are none.
        4 * (rows as u64 * of_row as u64 + u64::from(form.scale_words() == 0))
    }

    /// Uploads a matrix, a few rows at a time: no second copy of it is held. `bias` is `[rows]`.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] for columns that are not whole blocks of 32, [`DeviceError::Length`] of the bias, what the
    /// device lacks, and whatever is wrong with the rows.
    pub fn upload<S: MatrixRows>(
        gpu: &Gpu,
        form: WeightForm,
        [rows, cols]: [usize; 2],
        bias: Option<&[f32]>,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        check(rows, cols, bias)?;
        let num_blocks = cols / Self::BLOCK;
        let words = [num_blocks * form.code_words(), num_blocks * form.scale_words()];
        let row_bytes = (4 * words[0]).max(4);
        let slab_rows = (gpu.limits().binding_bytes as usize / row_bytes).max(1);
        let zeros = vec![0.0; rows];
        let bias = bias.unwrap_or(&zeros);
        let mut slabs = Vec::new();
        for first_row in (0..rows).step_by(slab_rows) {
            let rows = slab_rows.min(rows - first_row);
            let bias = &bias[first_row..][..rows];
            let slab = Slab::new(gpu, first_row, bias, words)?;
            slab.fill(gpu, source, words)?;
            slabs.push(slab);
        }
        Ok(Self { form, rows, cols, slabs })
    }

    /// How its weights are held.
    #[must_use]
    pub fn form(&self) -> WeightForm {
        self.form
    }

    /// Length of a product.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a vector that it is multiplied with.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn num_blocks(&self) -> u32 {
        (self.cols / Self::BLOCK) as u32
    }

    pub(super) fn slabs(&self) -> &[Slab] {
        &self.slabs
    }
}

impl Slab {
    fn new(
        gpu: &Gpu,
        first_row: usize,
        bias: &[f32],
        [code_words, scale_words]: [usize; 2],
    ) -> DeviceResult<Self> {
        let rows = bias.len();
        Ok(Self {
            first_row,
            rows,
            codes: gpu.buffer("weight codes", 4 * (rows * code_words) as u64)?,
            // A binding is never empty.
            scales: gpu.buffer("weight scales", 4 * (rows * scale_words).max(1) as u64)?,
            bias: gpu.upload("bias", bytemuck::cast_slice(bias))?,
        })
    }

    fn fill<S: MatrixRows>(
        &self,
        gpu: &Gpu,
        source: &mut S,
        [code_words, scale_words]: [usize; 2],
    ) -> Result<(), S::Error> {
        let part_rows = (UPLOAD_BYTES / (4 * code_words.max(1))).clamp(1, self.rows.max(1));
        let mut codes = vec![0u32; part_rows * code_words];
        let mut scales = vec![0u32; part_rows * scale_words];
        for first in (0..self.rows).step_by(part_rows) {
            let rows = part_rows.min(self.rows - first);
            let codes = &mut codes[..rows * code_words];
            let scales = &mut scales[..rows * scale_words];
            source.write(self.first_row + first, codes, scales)?;
            let write = |to, at: usize, words: &[u32]| {
                gpu.write(to, 4 * at as u64, bytemuck::cast_slice(words))
            };
            write(&self.codes, first * code_words, codes).map_err(DeviceError::from)?;
            write(&self.scales, first * scale_words, scales).map_err(DeviceError::from)?;
        }
        Ok(())
    }
}

fn check(rows: usize, cols: usize, bias: Option<&[f32]>) -> DeviceResult<()> {
    const NAME: &str = "upload";
    if !cols.is_multiple_of(DeviceMatrix::BLOCK) {
        return Err(DeviceError::Shape {
            operation: NAME,
            what: "columns",
            value: cols as u64,
            remedy: "weights on a device come in blocks of 32 columns",
        });
    }
    if let Some(bias) = bias.filter(|bias| bias.len() != rows) {
        let (expected, actual) = (rows as u64, bias.len() as u64);
        return Err(DeviceError::Length { operation: NAME, tensor: "bias", expected, actual });
    }
    Ok(())
}
