//! A matrix times many vectors in f32, panel by panel.
//!
//! A task is a tile: [`PANEL_ROWS`] rows of the matrix (fewer where rows are long), decoded to f32 (bands
//! column by column, which the multiplication packs fastest), times [`TILE_TOKENS`] vectors, multiplied by
//! the `gemm` crate on one thread. Workers take the tiles of a panel together, which is decoded once for them, and those of
//! the last panels one by one, so that all workers end at the same time. The split into tiles depends on the shapes alone,
//! hence so does the result.
//!
//! The `gemm` crate picks its own kernel for the CPU; the level of this crate governs the decoding.
#![expect(unsafe_code, reason = "tiles of one output are written from several threads")]

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::output::Output;

/// Rows of a panel, at most; few enough that small matrices still have several panels.
const PANEL_ROWS: usize = 96;

/// Rows of a panel, at least, however long they are.
const MIN_PANEL_ROWS: usize = 48;

/// Bytes of a decoded panel, at most, unless [`MIN_PANEL_ROWS`] take more.
const PANEL_BYTES: usize = 2 << 20;

/// Panels are multiples of this: of a band's rows, and of those that the multiplication's AVX2 kernel takes at
/// a time.
const KERNEL_ROWS: usize = 48;

/// Unused f32 values after each decoded row. Without them, rows of 4096 columns would compete for the
/// same few cache lines while they are packed (measured: 13 instead of 22 GFLOP/s for 8 vectors).
const ROW_GAP: usize = 16;

/// Vectors of a tile.
const TILE_TOKENS: usize = 256;

/// A matrix whose rows can be had as f32.
pub(crate) trait PanelSource: Sync {
    /// Rows and columns.
    fn shape(&self) -> [usize; 2];

    /// Rows `first..first + num_rows`, `[num_rows, cols]`, if they lie in memory as f32.
    fn resident(&self, first: usize, num_rows: usize) -> Option<&[f32]>;

    /// Decodes rows `first..first + num_rows` into `out`, resized to what they take; `first` is a multiple of 48.
    /// Not called where rows are resident.
    fn decode(&self, first: usize, num_rows: usize, out: &mut Vec<f32>) -> PanelLayout;
}

/// Where the elements of a panel are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelLayout {
    /// From a row to the next, in elements.
    pub(crate) row_stride: usize,
    /// From a column to the next, in elements.
    pub(crate) column_stride: usize,
}

impl PanelLayout {
    /// Decoded rows of so many columns, one after the other with a gap.
    pub(crate) fn of_rows(cols: usize) -> Self {
        Self { row_stride: cols + ROW_GAP, column_stride: 1 }
    }

    /// Columns of so many rows, one after the other.
    pub(crate) fn of_columns(num_rows: usize) -> Self {
        Self { row_stride: 1, column_stride: num_rows }
    }

    /// Elements from the first to behind the last of a panel of that shape, neither of which is 0.
    fn extent(self, num_rows: usize, cols: usize) -> usize {
        (num_rows - 1) * self.row_stride + (cols - 1) * self.column_stride + 1
    }
}

/// `y[t, r] = sum w[r, c] x[t, c]`: `x` `[n, cols]`, `y` `[n, rows]`; `n` is what their lengths say.
/// No columns: zeros.
pub(crate) fn matmul(w: &impl PanelSource, x: &[f32], y: &mut [f32]) {
    let [rows, cols] = w.shape();
    if y.is_empty() {
        return;
    }
    let n = y.len() / rows;
    assert!(y.len() == n * rows && x.len() == n * cols, "vectors do not fit the matrix");
    if cols == 0 {
        return y.fill(0.0);
    }

    let panel_rows = (PANEL_BYTES / (4 * cols)).clamp(MIN_PANEL_ROWS, PANEL_ROWS);
    let panel_rows = panel_rows / KERNEL_ROWS * KERNEL_ROWS;
    let (num_panels, num_blocks) = (rows.div_ceil(panel_rows), n.div_ceil(TILE_TOKENS));
    let num_workers = rayon::current_num_threads().min(num_panels * num_blocks);
    let num_whole = (num_panels / num_workers).saturating_sub(1) * num_workers;
    let num_tasks = num_whole + (num_panels - num_whole) * num_blocks;
    let output = Output::new(y, rows);
    let next_task = AtomicUsize::new(0);
    let work = || {
        let mut scratch = Vec::new();
        let mut decoded = None;
        loop {
            let task = next_task.fetch_add(1, Ordering::Relaxed);
            if task >= num_tasks {
                return;
            }
            let tiles = match task.checked_sub(num_whole) {
                None => task * num_blocks..(task + 1) * num_blocks,
                Some(single) => {
                    num_whole * num_blocks + single..num_whole * num_blocks + single + 1
                }
            };
            for tile in tiles {
                let (row, token) =
                    (tile / num_blocks * panel_rows, tile % num_blocks * TILE_TOKENS);
                let num_rows = panel_rows.min(rows - row);
                let num_tokens = TILE_TOKENS.min(n - token);
                let (panel, layout) = match w.resident(row, num_rows) {
                    Some(panel) => (panel, PanelLayout { row_stride: cols, column_stride: 1 }),
                    None => {
                        let layout = match decoded {
                            Some((of_row, layout)) if of_row == row => layout,
                            _ => w.decode(row, num_rows, &mut scratch),
                        };
                        decoded = Some((row, layout));
                        (&scratch[..], layout)
                    }
                };
                let x = &x[token * cols..][..num_tokens * cols];
                let panel = Panel { values: panel, layout, num_rows, cols };
                // SAFETY: `next_task` gives each tile to one worker, and tiles do not overlap.
                unsafe { panel.multiply(x, &output, row, token) };
            }
        }
    };
    if num_workers == 1 {
        return work();
    }
    (0..num_workers).into_par_iter().with_max_len(1).for_each(|_| work());
}

/// Decoded rows, none of them empty.
struct Panel<'a> {
    values: &'a [f32],
    layout: PanelLayout,
    num_rows: usize,
    cols: usize,
}

impl Panel<'_> {
    /// Writes `y[token + t, row + r] = sum self[r, c] x[t, c]` for all rows of the panel and vectors of `x`
    /// `[num_tokens, cols]`.
    ///
    /// # Safety
    ///
    /// - No concurrent call writes the same elements.
    unsafe fn multiply(&self, x: &[f32], y: &Output<'_>, row: usize, token: usize) {
        let Self { values, layout, num_rows, cols } = *self;
        let num_tokens = x.len() / cols;
        assert!(layout.extent(num_rows, cols) <= values.len(), "the panel has all its elements");
        assert_eq!(x.len(), num_tokens * cols, "whole vectors");
        let tile = y.tile([token, row], [num_tokens, num_rows]);
        // SAFETY: the tile is inside the output, whose vectors are `tile.stride` apart, and the caller's alone; the
        // operands are whole matrices by the assertions; the output is not read (`read_dst` is false).
        unsafe {
            gemm::gemm(
                num_rows,
                num_tokens,
                cols,
                tile.first,
                tile.stride.cast_signed(),
                1,
                false,
                values.as_ptr(),
                layout.column_stride.cast_signed(),
                layout.row_stride.cast_signed(),
                x.as_ptr(),
                cols.cast_signed(),
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
