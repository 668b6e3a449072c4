//! One vector times one or several matrices, spread over threads.

use rayon::prelude::*;

use super::{Activations, BAND, WeightMatrix, matrix::check_len};
use crate::Result;

/// Bytes of weights under which a further task costs more than it saves: a few microseconds of
/// reading, against about one for handing a task over.
const MIN_TASK_BYTES: usize = 48 << 10;

/// Tasks per thread, where the matrices are large enough: spare ones even out threads of unequal
/// speed.
const TASKS_PER_THREAD: usize = 4;

/// `y = W x` for several matrices and one vector, as one parallel region: q, k and v, or gate and up.
///
/// Each pair is a matrix `[rows, cols]` and its output `[rows]`, f32; all have the `cols` of `x`.
/// The result is that of [`WeightMatrix::gemv`] on each, bit for bit. No pairs: nothing is done.
///
/// # Errors
///
/// [`Error::LengthMismatch`](crate::Error::LengthMismatch) if a shape does not fit; no output is
/// written then.
pub fn gemv_many(
    x: &mut Activations<'_>,
    products: &mut [(&WeightMatrix, &mut [f32])],
) -> Result<()> {
    let mut total_bytes = 0;
    for (matrix, y) in &*products {
        check_len("the input vector", matrix.cols(), x.values().len())?;
        check_len("the output vector", matrix.rows(), y.len())?;
        matrix.prepare(x);
        total_bytes += matrix.bytes();
    }

    let num_threads = rayon::current_num_threads();
    let num_tasks = (total_bytes / MIN_TASK_BYTES).min(num_threads * TASKS_PER_THREAD);
    if num_threads == 1 || num_tasks <= 1 {
        for (matrix, y) in products {
            matrix.gemv_rows(0, x, y);
        }
        return Ok(());
    }

    let (x, task_bytes) = (&*x, total_bytes.div_ceil(num_tasks));
    products.par_iter_mut().with_max_len(1).for_each(|(matrix, y)| {
        let row_bytes = (matrix.bytes() / matrix.rows().max(1)).max(1);
        let task_rows = task_bytes.div_ceil(row_bytes).next_multiple_of(BAND);
        let tasks = y.par_chunks_mut(task_rows).with_max_len(1).enumerate();
        tasks.for_each(|(task, y)| matrix.gemv_rows(task * task_rows, x, y));
    });
    Ok(())
}
