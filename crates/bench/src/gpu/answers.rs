//! Whether a layer's kernels are right, by their formulas in f64: for the first and the last of what each works on.

use anyhow::Result;
use bytemuck::Pod;
use heterokv_attn::device::QueryEnergy;
use heterokv_gpu::{Buffer, Gpu};

use super::kernels::{Kernel, Shape};
use super::measured::{EPS, Stage, V_FIRST, Weights, Z_FIRST, near, number};

/// A number of the inputs.
fn wide(i: usize) -> f64 {
    f64::from(number(i))
}

pub(super) fn read<T: Pod>(gpu: &Gpu, buffer: &Buffer, first: usize, len: usize) -> Result<Vec<T>> {
    let bytes = |len: usize| (len * size_of::<T>()) as u64;
    Ok(bytemuck::pod_collect_to_vec(&gpu.read(buffer, bytes(first), bytes(len))?))
}

/// The output of a query over keys and values, both `[tokens, head_dim]`, and the log-sum-exp.
pub(super) fn attended(
    query: impl Fn(usize) -> f64,
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    sm_scale: f32,
) -> (Vec<f64>, f64) {
    let score = |key: &Vec<f64>| {
        let terms = key.iter().enumerate().map(|(c, k)| query(c) * k);
        f64::from(sm_scale) * terms.sum::<f64>()
    };
    let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let of_channel =
        |c: usize| -> f64 { weights.iter().zip(values).map(|(w, value)| w * value[c]).sum() };
    let out = (0..values[0].len()).map(|c| of_channel(c) / sum);
    (out.collect(), sum.ln())
}

impl Stage {
    /// Holds what a kernel has written to what is right.
    pub(super) fn check(&self, kernel: Kernel) -> Result<()> {
        let (gpu, shape) = (self.device.gpu(), &self.shape);
        let Shape { hidden_size, intermediate_size, block, .. } = *shape;
        let tokens = [0, block - 1];
        match kernel {
            Kernel::Embed => self.rows(&tokens, hidden_size, 1.0, |token, col| {
                Weights::value(Stage::id(shape, token) as usize, col)
            }),
            Kernel::RmsNorm => {
                let scale = |token: usize| {
                    let row = token * hidden_size..(token + 1) * hidden_size;
                    let squares: f64 = row.map(|i| wide(i) * wide(i)).sum();
                    1.0 / (squares / hidden_size as f64 + f64::from(EPS)).sqrt()
                };
                let scales = tokens.map(scale);
                self.rows(&tokens, hidden_size, 1.0, |token, col| {
                    let scale = scales[usize::from(token > 0)];
                    scale * wide(token * hidden_size + col) * wide(Z_FIRST + col)
                })
            }
            Kernel::Gemv(_) => self.products(&tokens[..1]),
            Kernel::Gemm => self.products(&tokens),
            Kernel::Rope => {
                let (dim, half) = (shape.head_dim, shape.head_dim / 2);
                self.rows(&tokens, shape.heads().qo_row_len(), 1.0, |token, col| {
                    let (own, pair) = (token * shape.heads().qo_row_len() + col, col % half);
                    let turn = 2 * (token * half + pair);
                    let (cos, sin) = (wide(turn), wide(turn + 1));
                    match col % dim < half {
                        true => wide(own) * cos - wide(own + half) * sin,
                        false => wide(own) * cos + wide(own - half) * sin,
                    }
                })
            }
            Kernel::SwiGlu => self.rows(&tokens, intermediate_size, 1.0, |token, col| {
                let i = token * intermediate_size + col;
                wide(i) / (1.0 + (-wide(i)).exp()) * wide(Z_FIRST + i)
            }),
            Kernel::QueryEnergy => {
                let heads = shape.heads();
                let stretches = [0, (block - 1) / QueryEnergy::STRETCH];
                self.rows(&stretches, heads.kv_row_len(), 1e3, |stretch, col| {
                    let first = stretch * QueryEnergy::STRETCH;
                    let (kv_head, channel) = (col / heads.head_dim, col % heads.head_dim);
                    let of_query = |token: usize, head: usize| {
                        let head = kv_head * heads.group_size() + head;
                        wide((token * heads.num_qo_heads + head) * heads.head_dim + channel).powi(2)
                    };
                    (first..block.min(first + QueryEnergy::STRETCH))
                        .flat_map(|token| (0..heads.group_size()).map(move |head| (token, head)))
                        .map(|(token, head)| of_query(token, head))
                        .sum()
                })
            }
            Kernel::Prefill => self.check_prefill(),
            Kernel::StoreRows => self.rows.check_stored(gpu, shape),
            Kernel::Encode(format) => self.encoders[&format].check(gpu, shape),
            Kernel::FrameQueries => self.codes.check_tables(gpu, shape),
            Kernel::GroupTables => self.groups.check_tables(gpu, shape),
            Kernel::ScorePlanes => self.codes.check_scores(gpu, shape),
            Kernel::ScoreKeys(format) => self.by_channel[&format].check(gpu, shape),
            Kernel::ScoreGroups => self.groups.check_scores(gpu, shape),
            Kernel::Select => self.codes.check_selected(gpu, shape),
            Kernel::AttendRows => self.rows.check_attended(gpu, shape),
            Kernel::MergeStates => self.rows.check_merged(gpu, shape, [&self.y, &self.lse]),
            Kernel::Argmax => self.tokens.check_argmax(gpu, shape),
            Kernel::Sample => self.tokens.check_sample(gpu, shape),
        }
    }

    /// Holds rows of `y` of a length to what is right at a row and column.
    fn rows(
        &self,
        rows: &[usize],
        len: usize,
        size: f64,
        expected: impl Fn(usize, usize) -> f64,
    ) -> Result<()> {
        for &row in rows {
            let values: Vec<f32> = read(self.device.gpu(), &self.y, row * len, len)?;
            for (col, value) in values.into_iter().enumerate() {
                near(&format!("column {col} of row {row}"), value, expected(row, col), size)?;
            }
        }
        Ok(())
    }

    /// Rows of a matrix times tokens.
    fn products(&self, tokens: &[usize]) -> Result<()> {
        let Shape { hidden_size, intermediate_size, .. } = self.shape;
        self.rows(tokens, intermediate_size, hidden_size as f64, |token, row| {
            let term = |col| Weights::value(row, col) * wide(token * hidden_size + col);
            (0..hidden_size).map(term).sum()
        })
    }

    /// The first query of the first head, and the last of the last.
    fn check_prefill(&self) -> Result<()> {
        let (heads, Shape { block, seen, .. }) = (self.shape.heads(), self.shape);
        let dim = heads.head_dim;
        for (token, head) in [(0, 0), (block - 1, heads.num_qo_heads - 1)] {
            let query = (token * heads.num_qo_heads + head) * dim;
            let rows = |first: usize| -> Vec<Vec<f64>> {
                let of_key = |key: usize| {
                    let at = (key * heads.num_kv_heads + head / heads.group_size()) * dim;
                    (first + at..first + at + dim).map(wide).collect()
                };
                (0..=seen - block + token).map(of_key).collect()
            };
            let (out, lse) =
                attended(|c| wide(query + c), &rows(0), &rows(V_FIRST), heads.sm_scale);
            let actual: Vec<f32> = read(self.device.gpu(), &self.y, query, dim)?;
            for (channel, (actual, expected)) in actual.into_iter().zip(out).enumerate() {
                near(&format!("channel {channel} of token {token}"), actual, expected, 0.1)?;
            }
            let at = token * heads.num_qo_heads + head;
            let actual: Vec<f32> = read(self.device.gpu(), &self.lse, at, 1)?;
            near(&format!("the lse of token {token}"), actual[0], lse, 1.0)?;
        }
        Ok(())
    }
}
