//! A weight matrix in the form it is computed in.

use half::f16;
use rayon::prelude::*;

use super::{
    Activations, BAND, BLOCK, Batch, ComputeType, TensorType,
    bands::Bands,
    dequant::dequantize,
    encode::{Q8RowMut, encode_row},
    gemv::gemv_many,
};
use crate::{
    Error, Level, Result,
    simd::weights::{self as kernels, PanelLayout, PanelSource},
};

/// A matrix `[rows, cols]` and the product `y = W x`.
///
/// Results do not depend on the number of threads: each element of `y` is summed by one task in one
/// order. Products run in rayon's current pool; call them from inside it (`ThreadPool::install`), as
/// entering a pool from outside costs more than a small product.
#[derive(Debug)]
pub struct WeightMatrix {
    rows: usize,
    cols: usize,
    level: Level,
    /// Whether a product with several vectors rounds these.
    rounds_vectors: bool,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// `[rows, cols]`.
    F32(Vec<f32>),
    /// `[rows, cols]`.
    F16(Vec<f16>),
    Q8(Bands),
}

/// What a [`WeightMatrix`] holds, row by row.
#[derive(Clone, Debug)]
pub enum StoredWeights<'a> {
    /// `[rows, cols]`.
    F32(&'a [f32]),
    /// `[rows, cols]`.
    F16(&'a [f16]),
    /// `scale * code + offset`, for every 32 columns: copied out of the bands in which products read them.
    Q8 {
        /// `[rows, blocks * 32]`, blocks being `cols / 32`, rounded up; the padding is 0.
        codes: Vec<i8>,
        /// `[rows, blocks]`.
        scales: Vec<f16>,
        /// `[rows, blocks]`, or empty if all are zero.
        offsets: Vec<f16>,
    },
}

/// Bytes of decoded weights that one loading task handles, so that tasks are neither tiny nor few.
const LOAD_TASK_BYTES: usize = 256 << 10;

/// What an allocation may have at most.
const MAX_BYTES: usize = isize::MAX as usize;

/// Up to so many vectors, reading the stored form once for each is faster than decoding it.
const MAX_GEMV_VECTORS: usize = 4;

impl WeightMatrix {
    /// Reads a tensor `[rows, cols]` of type `ty`, row by row, into the form `compute`.
    ///
    /// Row `r` of the matrix is row `row_order(r)` of the tensor (some checkpoints permute the rows
    /// of q and k); pass `|r| r` to keep them. Work is spread over rayon's current pool; beside the
    /// result only one decoded row per task exists. No rows or no columns: an empty matrix. `Q8A8` holds what `Q8`
    /// does.
    ///
    /// How exact each form is: `F32` is exact. `F16` rounds to f16. `Q8` is exact for Q8_0, Q4_0,
    /// Q4_1, Q5_0 and Q5_1. For Q4_K and Q5_K a value moves by at most 2⁻¹¹ (|scale * code| +
    /// |offset|) + 2⁻²⁵ (|code| + 1). F32, F16 and BF16 are rounded to the nearest multiple of 1/127
    /// of the largest magnitude among 32 columns (times 1 + 2⁻¹⁰, plus 2⁻²⁴). Q6_K takes, per 32
    /// columns, whichever has the smaller squared error: that, or steps that are exact for the group
    /// of 16 with the larger scale. Non-finite source values stay visible: they (in `Q8`, their
    /// block) read back as non-finite.
    ///
    /// # Errors
    ///
    /// [`Error::PartialBlock`] if `cols` is not whole blocks of `ty`; [`Error::TooLarge`] if the
    /// shape overflows; [`Error::LengthMismatch`] if `bytes` is not what the shape needs;
    /// [`Error::RowOutOfRange`] if `row_order` leaves the tensor; [`Error::WeightOverflow`] if a
    /// finite weight would become infinite.
    pub fn from_tensor(
        ty: TensorType,
        bytes: &[u8],
        [rows, cols]: [usize; 2],
        row_order: impl Fn(usize) -> usize + Sync,
        compute: ComputeType,
        level: Level,
    ) -> Result<Self> {
        if !cols.is_multiple_of(ty.block_len()) {
            return Err(Error::PartialBlock { ty, num_elements: cols });
        }
        let too_large = Error::TooLarge { rows, cols };
        let row_bytes = (cols / ty.block_len()).checked_mul(ty.block_bytes());
        let Some((row_bytes, expected)) = row_bytes.and_then(|b| Some((b, b.checked_mul(rows)?)))
        else {
            return Err(too_large);
        };
        if bytes.len() != expected {
            return Err(Error::LengthMismatch {
                what: "tensor bytes",
                expected,
                actual: bytes.len(),
            });
        }
        // Padding is not bounded by the length of `bytes`: a row may be held as sixteen.
        if Self::bytes_of(ty, [rows, cols], compute).is_none_or(|bytes| bytes > MAX_BYTES) {
            return Err(too_large);
        }
        let num_blocks = cols.div_ceil(BLOCK);
        let source_row = |r: usize| {
            let row = row_order(r);
            if row >= rows {
                return Err(Error::RowOutOfRange { row, rows });
            }
            Ok((row, &bytes[row * row_bytes..][..row_bytes]))
        };
        let task_rows = (LOAD_TASK_BYTES / (4 * cols.max(1))).max(1);

        let len = rows * cols;
        let store = match compute {
            _ if len == 0 => Store::F32(Vec::new()),
            ComputeType::F32 => {
                let mut values = vec![0.0; len];
                values.par_chunks_mut(task_rows * cols).enumerate().try_for_each(
                    |(task, chunk)| {
                        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
                            dequantize(ty, source_row(task * task_rows + i)?.1, out)?;
                        }
                        Ok(())
                    },
                )?;
                Store::F32(values)
            }
            ComputeType::F16 => {
                let mut values = vec![f16::ZERO; len];
                values.par_chunks_mut(task_rows * cols).enumerate().try_for_each_init(
                    || vec![0.0; cols],
                    |decoded, (task, chunk)| {
                        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
                            let (row, source) = source_row(task * task_rows + i)?;
                            dequantize(ty, source, decoded)?;
                            narrow(decoded, out).map_err(|value| Error::WeightOverflow {
                                row,
                                value,
                                compute,
                            })?;
                        }
                        Ok(())
                    },
                )?;
                Store::F16(values)
            }
            ComputeType::Q8 | ComputeType::Q8A8 => {
                let mut bands = Bands::zeros(ty, rows, num_blocks);
                let num_offsets = if bands.has_offsets() { num_blocks } else { 0 };
                let scratch = || {
                    let fields = (vec![f16::ZERO; num_blocks], vec![f16::ZERO; num_offsets]);
                    (vec![0.0; cols], vec![0i8; num_blocks * BLOCK], fields)
                };
                let tasks = bands.bands_mut().into_par_iter().enumerate();
                tasks.with_min_len(task_rows.div_ceil(BAND)).try_for_each_init(
                    scratch,
                    |(decoded, codes, (scales, offsets)), (band_index, mut band)| {
                        let first = band_index * BAND;
                        for row in first..rows.min(first + BAND) {
                            let (source_index, source) = source_row(row)?;
                            let mut out = Q8RowMut { codes, scales, offsets };
                            encode_row(ty, source, source_index, decoded, &mut out)?;
                            band.put(row - first, &out);
                        }
                        Ok(())
                    },
                )?;
                Store::Q8(bands)
            }
        };
        Ok(Self { rows, cols, level, rounds_vectors: compute == ComputeType::Q8A8, store })
    }

    /// Length of `y`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of `x`.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What [`bytes`](Self::bytes) will be for a tensor of this type and shape in the form `compute`;
    /// None where that overflows.
    #[must_use]
    pub fn bytes_of(
        ty: TensorType,
        [rows, cols]: [usize; 2],
        compute: ComputeType,
    ) -> Option<usize> {
        let per_row = match compute {
            ComputeType::F32 => cols.checked_mul(size_of::<f32>()),
            ComputeType::F16 => cols.checked_mul(size_of::<f16>()),
            ComputeType::Q8 | ComputeType::Q8A8 => {
                return Bands::bytes_of(ty, rows, cols.div_ceil(BLOCK));
            }
        };
        per_row?.checked_mul(rows)
    }

    /// Bytes held, scales, offsets and padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::F32(values) => size_of_val(&values[..]),
            Store::F16(values) => size_of_val(&values[..]),
            Store::Q8(bands) => bands.bytes(),
        }
    }

    /// The weights as they are held, row by row: for kernels elsewhere.
    #[must_use]
    pub fn stored(&self) -> StoredWeights<'_> {
        match &self.store {
            Store::F32(values) => StoredWeights::F32(values),
            Store::F16(values) => StoredWeights::F16(values),
            Store::Q8(bands) => {
                let num_blocks = self.cols.div_ceil(BLOCK);
                let num_offsets = if bands.has_offsets() { num_blocks } else { 0 };
                let mut codes = vec![0; self.rows * num_blocks * BLOCK];
                let mut scales = vec![f16::ZERO; self.rows * num_blocks];
                let mut offsets = vec![f16::ZERO; self.rows * num_offsets];
                let mut row_offsets = offsets.chunks_exact_mut(num_blocks);
                let row_codes = codes.chunks_exact_mut(num_blocks * BLOCK);
                for (row, (codes, scales)) in
                    row_codes.zip(scales.chunks_exact_mut(num_blocks)).enumerate()
                {
                    let offsets = row_offsets.next().unwrap_or_default();
                    bands.unpack_row(row, Q8RowMut { codes, scales, offsets });
                }
                StoredWeights::Q8 { codes, scales, offsets }
            }
        }
    }

    /// Writes row `row`, decoded, to `out` `[cols]`: the embedding lookup.
    ///
    /// # Errors
    ///
    /// [`Error::RowOutOfRange`], and [`Error::LengthMismatch`] if `out` is not `[cols]`.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= self.rows {
            return Err(Error::RowOutOfRange { row, rows: self.rows });
        }
        check_len("the output row", self.cols, out.len())?;
        let start = row * self.cols;
        match &self.store {
            _ if self.cols == 0 => {}
            Store::F32(values) => out.copy_from_slice(&values[start..][..self.cols]),
            Store::F16(values) => {
                kernels::widen_f16(self.level, &values[start..][..self.cols], out);
            }
            Store::Q8(bands) => bands.decode_row(row, out),
        }
        Ok(())
    }

    /// `y = W x` for one vector: `x` `[cols]`, `y` `[rows]`, f32. No columns: zeros.
    ///
    /// A caller that multiplies several matrices with one vector saves time with [`gemv_many`].
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`] if `x` or `y` does not fit the shape.
    pub fn gemv(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.gemv_prepared(&mut Activations::new(x), y)
    }

    /// [`gemv`](Self::gemv) with a vector that other matrices share.
    ///
    /// # Errors
    ///
    /// As [`gemv`](Self::gemv).
    pub fn gemv_prepared(&self, x: &mut Activations<'_>, y: &mut [f32]) -> Result<()> {
        gemv_many(x, &mut [(self, y)])
    }

    /// `y[t] = W x[t]` for `n` vectors: `x` `[n, cols]`, `y` `[n, rows]`, f32, row-major.
    ///
    /// Up to four vectors go through [`gemv`](Self::gemv), with its bits. For more, weights are
    /// decoded to f32 by panels and the vectors are not quantized, so for the `Q8` form the result
    /// is a little closer to the truth, and not equal to that of `gemv` bit for bit. Scratch: about
    /// 3 MiB per thread. `n` = 0: nothing is done.
    ///
    /// The `Q8A8` form rounds more than four vectors to 8 bits, in blocks of 32 columns: elements move by up to 0.4 % of
    /// the block's largest magnitude. What that leaves is rounded and added, so that elements move by 0.0016 %, where
    /// the block's largest magnitude is half again the mean of its vector's blocks, and in all blocks of up to eight
    /// vectors. The result does not depend on which the other vectors are. Of elements beyond a hundredth of the largest
    /// f32 sums are not finite. It is computed in integers with AVX2,
    /// elsewhere in f32 of the rounded vectors, with scratch for these: some 1.3 bytes an element, or 5.
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`] if `x` or `y` does not fit the shape; [`Error::TooLarge`] if their
    /// size overflows.
    pub fn gemm(&self, x: &[f32], n: usize, y: &mut [f32]) -> Result<()> {
        let len =
            |width: usize| n.checked_mul(width).ok_or(Error::TooLarge { rows: n, cols: width });
        check_len("the input of gemm", len(self.cols)?, x.len())?;
        check_len("the output of gemm", len(self.rows)?, y.len())?;
        if n <= MAX_GEMV_VECTORS && !x.is_empty() {
            for (x, y) in x.chunks_exact(self.cols).zip(y.chunks_exact_mut(self.rows.max(1))) {
                self.gemv(x, y)?;
            }
            return Ok(());
        }
        if y.is_empty() {
            return Ok(());
        }
        match &self.store {
            Store::Q8(bands) if self.rounds_vectors => {
                let bands = bands.bands(0, self.rows.div_ceil(BAND));
                let batch = Batch::quantize(self.level, bands.form, x, self.cols);
                if !kernels::matmul_batch(self.level, bands, &batch, self.rows, y) {
                    kernels::matmul(self, &batch.values(bands.form), y);
                }
            }
            _ => kernels::matmul(self, x, y),
        }
        Ok(())
    }

    /// Rows `first..first + y.len()` of `W x`, on this thread; `first` is a multiple of [`BAND`].
    pub(super) fn gemv_rows(&self, first: usize, x: &Activations<'_>, y: &mut [f32]) {
        match &self.store {
            _ if self.cols == 0 => y.fill(0.0),
            Store::F32(values) => {
                let w = &values[first * self.cols..][..y.len() * self.cols];
                kernels::gemv_f32(self.level, w, x.values(), y);
            }
            Store::F16(values) => {
                let w = &values[first * self.cols..][..y.len() * self.cols];
                kernels::gemv_f16(self.level, w, x.values(), y);
            }
            Store::Q8(bands) => {
                let bands = bands.bands(first / BAND, y.len().div_ceil(BAND));
                kernels::gemv_bands(self.level, bands, x.blocks(), y);
            }
        }
    }

    /// Prepares what the tasks of one product share.
    pub(super) fn prepare(&self, x: &mut Activations<'_>) {
        if matches!(self.store, Store::Q8(_)) {
            x.quantize(self.level);
        }
    }
}

impl PanelSource for WeightMatrix {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn resident(&self, first: usize, num_rows: usize) -> Option<&[f32]> {
        let Store::F32(values) = &self.store else { return None };
        Some(&values[first * self.cols..][..num_rows * self.cols])
    }

    fn decode(&self, first: usize, num_rows: usize, out: &mut Vec<f32>) -> PanelLayout {
        let cols = self.cols;
        match &self.store {
            Store::F32(_) => unreachable!("f32 rows are resident"),
            Store::F16(values) => {
                let layout = PanelLayout::of_rows(cols);
                out.resize(num_rows * layout.row_stride, 0.0);
                let rows = values[first * cols..][..num_rows * cols].chunks_exact(cols);
                for (out, row) in out.chunks_exact_mut(layout.row_stride).zip(rows) {
                    kernels::widen_f16(self.level, row, &mut out[..cols]);
                }
                layout
            }
            Store::Q8(bands) => {
                let num_bands = num_rows.div_ceil(BAND);
                out.resize(num_bands * BAND * cols, 0.0);
                kernels::expand_bands(self.level, bands.bands(first / BAND, num_bands), cols, out);
                PanelLayout::of_columns(num_bands * BAND)
            }
        }
    }
}

/// Fails unless `actual` is `expected`.
pub(super) fn check_len(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if actual != expected {
        return Err(Error::LengthMismatch { what, expected, actual });
    }
    Ok(())
}

/// Rounds to f16; fails with the first finite value that would become infinite.
fn narrow(values: &[f32], out: &mut [f16]) -> Result<(), f32> {
    for (half, &value) in out.iter_mut().zip(values) {
        *half = f16::from_f32(value);
        if !half.is_finite() && value.is_finite() {
            return Err(value);
        }
    }
    Ok(())
}
