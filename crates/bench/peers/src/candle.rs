//! `candle-core`'s quantized matrices as the scan takes them: keys are the rows, queries the left side.
//!
//! Candle rounds the left side to 8 bits in blocks of 32, shares the rows of one product among threads of its
//! own, and writes a new tensor of scores. How many rows a product best has depends on its threads and on the
//! shape: of a few sizes, the fastest is taken.

use std::borrow::Cow;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{CpuStorage, Device, Module, Storage, Tensor};
use heterokv_bench::scan::{
    Arithmetic, Coded, Expected, PERIOD_TOKENS, Scan, ScanFormat, ScanKeys, ScanTask,
};

/// Channels that share a scale, of keys and of queries.
const BLOCK: usize = 32;

/// Periods of keys that one product may have as rows.
const PERIODS_PER_PRODUCT: [usize; 3] = [1, 4, 16];

/// The formats of llama.cpp that the scan is compared with.
pub(crate) fn formats() -> Vec<Box<dyn ScanFormat>> {
    vec![Box::new(Candle(GgmlDType::Q8_0)), Box::new(Candle(GgmlDType::Q4_0))]
}

struct Candle(GgmlDType);

impl ScanFormat for Candle {
    fn name(&self) -> String {
        format!("candle {:?}", self.0).to_lowercase()
    }

    fn encode<'a>(&self, keys: &'a ScanKeys) -> Result<Option<Box<dyn Coded + 'a>>> {
        if !keys.head_dim.is_multiple_of(BLOCK) {
            return Ok(None);
        }
        let shape = (PERIOD_TOKENS, keys.head_dim);
        let matrix = Tensor::from_slice(&keys.keys, shape, &Device::Cpu)?;
        let quantized = QTensor::quantize(&matrix, self.0)?;
        let decoded = quantized.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        let codes = quantized.data()?.into_owned();
        Ok(Some(Box::new(Period { name: self.name(), dtype: self.0, codes, decoded })))
    }
}

/// The codes of all different keys.
struct Period {
    name: String,
    dtype: GgmlDType,
    codes: Vec<u8>,
    /// `[PERIOD_TOKENS, head_dim]`.
    decoded: Vec<f32>,
}

impl Coded for Period {
    fn bytes_per_token(&self) -> f64 {
        self.codes.len() as f64 / PERIOD_TOKENS as f64
    }

    fn arithmetics(&self) -> &'static [Arithmetic] {
        &[Arithmetic::Own]
    }

    fn lay_out<'a>(&'a self, task: &ScanTask<'a>) -> Result<Box<dyn Scan + 'a>> {
        let num_periods = (task.num_bytes / self.codes.len()).max(1);
        let mut fastest = (f64::INFINITY, 1);
        for periods in PERIODS_PER_PRODUCT.into_iter().filter(|&periods| periods <= num_periods) {
            let mut scan = self.scan(task, periods, periods)?;
            // The first products lay the rows out anew for the instructions of this CPU.
            let mut seconds = f64::INFINITY;
            for _ in 0..8 {
                let start = Instant::now();
                scan.product()?;
                seconds = seconds.min(start.elapsed().as_secs_f64() / periods as f64);
            }
            if seconds < fastest.0 {
                fastest = (seconds, periods);
            }
        }
        Ok(Box::new(self.scan(task, num_periods, fastest.1)?))
    }
}

impl Period {
    fn scan<'a>(
        &'a self,
        task: &ScanTask<'a>,
        num_periods: usize,
        periods_per_product: usize,
    ) -> Result<CandleScan<'a>> {
        let head_dim = task.keys.head_dim;
        let rows = periods_per_product * PERIOD_TOKENS;
        let mut matrices = Vec::new();
        for _ in 0..num_periods / periods_per_product {
            let codes = Cow::Owned(self.codes.repeat(periods_per_product));
            let storage = QStorage::from_data(codes, &Device::Cpu, self.dtype)?;
            matrices.push(QMatMul::from_qtensor(QTensor::new(storage, (rows, head_dim))?)?);
        }
        let num_heads = task.queries.len() / head_dim;
        let scaled: Vec<f32> = task.queries.iter().map(|q| q * task.keys.sm_scale()).collect();
        Ok(CandleScan {
            name: &self.name,
            queries: Tensor::from_vec(scaled, (num_heads, head_dim), &Device::Cpu)?,
            matrices,
            next: 0,
            num_products: 0,
            rows,
            maxima: vec![f32::NEG_INFINITY; num_heads],
            expected: Expected::new(task, &self.decoded).allowing(self.rounding(task)),
        })
    }

    /// How far scores may be off since queries are rounded: by half a step of 1/127 of the largest element of
    /// their block, and by the rounding of the step to f16.
    fn rounding(&self, task: &ScanTask<'_>) -> f64 {
        let head_dim = task.keys.head_dim;
        let error_of = |query: &[f32]| -> Vec<f64> {
            let blocks = query.chunks(BLOCK).flat_map(|block| {
                let largest = block.iter().map(|q| f64::from(q.abs())).fold(0.0, f64::max);
                block.iter().map(move |q| largest / 254.0 + f64::from(q.abs()) / 1024.0)
            });
            blocks.collect()
        };
        let mut worst = 0.0f64;
        for query in task.queries.chunks_exact(head_dim) {
            let errors = error_of(query);
            for key in self.decoded.chunks_exact(head_dim) {
                let sum: f64 = errors.iter().zip(key).map(|(e, k)| e * f64::from(k.abs())).sum();
                worst = worst.max(sum);
            }
        }
        f64::from(task.keys.sm_scale()) * worst
    }
}

struct CandleScan<'a> {
    name: &'a str,
    /// Times `sm_scale`, `[num_heads, head_dim]`.
    queries: Tensor,
    matrices: Vec<QMatMul>,
    /// The matrix of the next product.
    next: usize,
    num_products: usize,
    /// Rows of every matrix, whole periods.
    rows: usize,
    /// The largest scores so far `[num_heads]`.
    maxima: Vec<f32>,
    expected: Expected,
}

impl CandleScan<'_> {
    /// The next product, its scores consumed and gone.
    fn product(&mut self) -> Result<()> {
        let scores = self.matrices[self.next].forward(&self.queries)?;
        let (storage, _) = scores.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(scores)) = &*storage else {
            bail!("{}: scores that are not f32 in memory", self.name)
        };
        for (maximum, scores) in self.maxima.iter_mut().zip(scores.chunks_exact(self.rows)) {
            *maximum = largest(scores, *maximum);
        }
        self.next = (self.next + 1) % self.matrices.len();
        self.num_products += 1;
        Ok(())
    }
}

impl Scan for CandleScan<'_> {
    fn run(&mut self, num_tokens: usize) -> Result<usize> {
        let num_products = num_tokens.div_ceil(self.rows).max(1);
        for _ in 0..num_products {
            self.product()?;
        }
        Ok(num_products * self.rows)
    }

    fn check(&mut self) -> Result<()> {
        if self.num_products > 0 {
            self.expected.check_maxima(self.name, &self.maxima, PERIOD_TOKENS)?;
        }
        let (first, last) = (self.matrices.first(), self.matrices.last());
        for matrix in [first, last].into_iter().flatten() {
            let scores = matrix.forward(&self.queries)?.flatten_all()?.to_vec1::<f32>()?;
            self.expected.check(self.name, &scores, 0)?;
        }
        Ok(())
    }
}

/// The largest of `start` and `scores`, in lanes that the compiler turns into vector code.
fn largest(scores: &[f32], start: f32) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = scores.as_chunks::<16>();
    let mut lanes = [start; 16];
    for chunk in chunks {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, score);
        }
    }
    lanes.iter().chain(rest).copied().fold(start, larger)
}

#[cfg(test)]
mod tests {
    use heterokv_bench::quality::{HeadKeys, published};
    use heterokv_bench::synthetic;

    use super::*;

    /// The block formats of the rate–distortion report are written from their definition; candle's are
    /// another implementation of it.
    #[test]
    fn the_block_formats_of_the_report_are_those_of_candle() {
        let rows = synthetic::head(1, 64, 1, 256);
        let head = HeadKeys {
            index: 0,
            head_dim: 64,
            keys: &rows.keys,
            query_energy: &[1.0; 64],
            queries: &rows.queries[..16 * 64],
            sm_scale: 0.125,
            profile: None,
        };
        for (dtype, name) in
            [(GgmlDType::Q8_0, "llama.cpp q8_0"), (GgmlDType::Q4_0, "llama.cpp q4_0")]
        {
            let matrix = Tensor::from_slice(&rows.keys, (256, 64), &Device::Cpu).unwrap();
            let decoded =
                QTensor::quantize(&matrix, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
            let decoded: Vec<f32> = decoded.flatten_all().unwrap().to_vec1().unwrap();
            let codecs = published();
            let codec = codecs.iter().find(|codec| codec.name() == name).unwrap();
            let ours = codec.scores(&head).unwrap().unwrap();
            assert_eq!(ours.scores, head.scores_of(&decoded), "{name}");
            assert_eq!(ours.bits_per_element, 8.0 * dtype.type_size() as f64 / 32.0);
        }
    }
}
