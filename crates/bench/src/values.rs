//! How fast values are summed under the weights of a group of query heads, by every row format, from memory.
//!
//! Two walks: all rows of a page, and a quarter of them, as a selection leaves them. Sums run over [`SUM_ROWS`] rows,
//! then begin again at 0, beside the read bandwidth of the machine measured in turns with them.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use heterokv_quant::{GroupSize, Level, RowFormat, VectorList, WeightedRows};
use heterokv_testkit::{Inputs, Tolerance, compare};
use rayon::ThreadPool;

use crate::conditions::Conditions;
use crate::samples::Samples;
use crate::scan::{Probe, locked};
use crate::sheet::{Cell, Sheet};

/// The formats that are measured.
const FORMATS: [RowFormat; 3] =
    [RowFormat::F16, RowFormat::Int8, RowFormat::Int4 { group: GroupSize::G32 }];

/// Different rows; longer streams repeat theirs.
const PERIOD_ROWS: usize = 4096;

/// Rows that are summed at a time.
const SUM_ROWS: usize = 512;

/// Of so many rows one is summed where a selection is.
const SELECTED_OF: usize = 4;

/// Sums in every format and gives a table.
///
/// # Errors
/// Sums that are wrong.
pub(crate) fn measure(conditions: &Conditions<'_>, say: &dyn Fn(&str)) -> Result<Sheet> {
    let mut sheet = Sheet::new(
        "Weighted sums of values from memory: rows per second of one KV head, all threads together",
        &[
            "values",
            "head_dim",
            "G",
            "rows",
            "Mrow/s",
            "± Mrow/s",
            "GB/s",
            "of bandwidth",
            "samples",
        ],
    );
    let mut probe = Probe::new(conditions.memory_bytes, conditions.pool);
    probe.run(1);
    for &head_dim in &conditions.head_dims {
        for &group_size in &conditions.group_sizes {
            say(&format!("values: head_dim {head_dim}, G = {group_size}"));
            for format in FORMATS {
                for step in [1, SELECTED_OF] {
                    let mut walk = Walk::new(format, head_dim, group_size, step, conditions)?;
                    let (mut rates, mut shares) = (Samples::default(), Samples::default());
                    for _ in 0..conditions.num_rounds {
                        let start = Instant::now();
                        let bandwidth = probe.run(1) as f64 / start.elapsed().as_secs_f64();
                        let rate = walk.sample();
                        rates.push(1e-6 * rate);
                        shares.push(100.0 * rate * format.bytes(head_dim) as f64 / bandwidth);
                    }
                    walk.check()?;
                    sheet.push(vec![
                        Cell::text(format.to_string()),
                        Cell::Number(head_dim as f64, 0),
                        Cell::Number(group_size as f64, 0),
                        Cell::text(if step == 1 { "all" } else { "a quarter" }),
                        Cell::Number(rates.median(), 1),
                        Cell::Number(rates.deviation(), 1),
                        Cell::Number(1e-3 * rates.median() * format.bytes(head_dim) as f64, 2),
                        Cell::text(format!("{:.0} %", shares.median())),
                        Cell::Number(rates.len() as f64, 0),
                    ]);
                }
            }
        }
    }
    probe.check()?;
    Ok(sheet)
}

/// The rows of every thread in one format, and how they are walked.
struct Walk<'a> {
    format: RowFormat,
    head_dim: usize,
    level: Level,
    pool: &'a ThreadPool,
    /// The rows of a sum, counted from where it begins.
    picked: Vec<usize>,
    /// `[group_size, SUM_ROWS]`.
    weights: Vec<f32>,
    /// What the values are decoded to `[PERIOD_ROWS, head_dim]`.
    decoded: Vec<f32>,
    lanes: Vec<Mutex<Lane>>,
    /// Sums of a sample, in every thread.
    num_sums: usize,
}

/// What one thread sums.
struct Lane {
    rows: Vec<u8>,
    /// The row from which the next sum begins.
    position: usize,
    /// `[group_size, head_dim]`.
    sums: Vec<f32>,
}

impl<'a> Walk<'a> {
    fn new(
        format: RowFormat,
        head_dim: usize,
        group_size: usize,
        step: usize,
        conditions: &Conditions<'a>,
    ) -> Result<Self> {
        let mut inputs = Inputs::new(head_dim as u64);
        let values = inputs.gaussian_rows(PERIOD_ROWS, head_dim, 1.0);
        let row_bytes = format.bytes(head_dim);
        let mut period = vec![0; PERIOD_ROWS * row_bytes];
        let mut decoded = vec![0.0; values.len()];
        for (i, row) in period.chunks_exact_mut(row_bytes).enumerate() {
            format.encode(&values[i * head_dim..][..head_dim], row)?;
            format.decode(row, &mut decoded[i * head_dim..][..head_dim]);
        }
        let share = conditions.memory_bytes / conditions.pool.current_num_threads();
        let num_periods = share.div_ceil(period.len());
        // Each thread writes its own rows, so that they lie where it will read them.
        let lanes = conditions.pool.broadcast(|_| {
            let sums = vec![0.0; group_size * head_dim];
            Mutex::new(Lane { rows: period.repeat(num_periods), position: 0, sums })
        });
        let mut walk = Self {
            format,
            head_dim,
            level: conditions.level,
            pool: conditions.pool,
            picked: (0..SUM_ROWS).map(|i| i * step + inputs.below(step)).collect(),
            weights: (0..group_size * SUM_ROWS).map(|_| inputs.unit() / SUM_ROWS as f32).collect(),
            decoded,
            lanes,
            num_sums: 1,
        };
        walk.sample();
        walk.check()?;
        let rows_per_second = walk.sample();
        let per_thread = rows_per_second * conditions.sample_seconds / walk.lanes.len() as f64;
        walk.num_sums = ((per_thread / SUM_ROWS as f64) as usize).max(1);
        Ok(walk)
    }

    /// Rows from the beginning of one sum to that of the next: a divisor of the period.
    fn stride(&self) -> usize {
        (self.picked[SUM_ROWS - 1] + 1).next_multiple_of(SUM_ROWS)
    }

    /// Sums the rows picked from the lane's position on.
    fn sum<'r>(
        &self,
        rows: &'r [u8],
        position: usize,
        vectors: &mut Vec<&'r [u8]>,
        sums: &mut [f32],
    ) {
        let row_bytes = self.format.bytes(self.head_dim);
        vectors.clear();
        vectors
            .extend(self.picked.iter().map(|i| &rows[(position + i) * row_bytes..][..row_bytes]));
        sums.fill(0.0);
        let (vectors, soon) = (VectorList::InRows { rows: vectors, at: 0 }, VectorList::NONE);
        let rows = WeightedRows { vectors, soon, weights: &self.weights, stride: SUM_ROWS };
        self.format.weighted_sum(self.level, rows, sums);
    }

    /// Rows summed per second, all threads together.
    fn sample(&mut self) -> f64 {
        let this = &*self;
        let start = Instant::now();
        this.pool.broadcast(|thread| {
            let Lane { rows, position, sums } = &mut *locked(&this.lanes[thread.index()]);
            let num_rows = rows.len() / this.format.bytes(this.head_dim);
            let mut vectors = Vec::with_capacity(SUM_ROWS);
            for _ in 0..this.num_sums {
                *position = (*position + this.stride()) % num_rows;
                this.sum(rows, *position, &mut vectors, sums);
            }
        });
        let num_rows = this.num_sums * SUM_ROWS * this.lanes.len();
        num_rows as f64 / start.elapsed().as_secs_f64()
    }

    /// Compares the last sums of every thread with sums in f64 of what the rows are decoded to.
    fn check(&self) -> Result<()> {
        self.lanes.iter().try_for_each(|lane| {
            let Lane { position, sums, .. } = &*locked(lane);
            self.compare(sums, *position)
        })
    }

    fn compare(&self, sums: &[f32], position: usize) -> Result<()> {
        let mut expected = vec![0.0f64; sums.len()];
        let mut largest = 0.0f64;
        let heads =
            expected.chunks_exact_mut(self.head_dim).zip(self.weights.chunks_exact(SUM_ROWS));
        for (expected, weights) in heads {
            for (i, &weight) in self.picked.iter().zip(weights) {
                let row = (position + i) % PERIOD_ROWS * self.head_dim;
                let value = &self.decoded[row..][..self.head_dim];
                for (sum, &x) in expected.iter_mut().zip(value) {
                    *sum += f64::from(weight) * f64::from(x);
                    largest = largest.max(f64::from(x).abs());
                }
            }
        }
        // Weights add up to 1 at most; one rounding per product and sum.
        let absolute = SUM_ROWS as f64 * f64::from(f32::EPSILON) * largest;
        compare(sums, &expected, Tolerance { absolute, relative: 0.0 })
            .with_context(|| format!("{}: sums from row {position} on", self.format))?;
        Ok(())
    }
}
