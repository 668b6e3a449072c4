//! The kernels whose instructions are counted, each with what it stands for in f64.

mod attention;

use anyhow::{Result, bail};
use heterokv_evict::{Rule, SelectScratch, Selector, TokenSet};
use heterokv_quant::weights::{ComputeType, TensorType, WeightMatrix};
use heterokv_quant::{
    FitInput, GroupQueries, KeyCoder, Level, Precision, PreparedQueries, RowFormat, ScoreRows,
    ScoredVectors, VectorList, WeightedRows,
};
use heterokv_testkit::Inputs;

use crate::synthetic;
use attention::{Exact, Prompt, Step};

/// What callers know them by.
pub(super) const NAMES: [&str; 14] = [
    "score/alloc/2",
    "score/int8-token",
    "rescore/int8",
    "values/int8",
    "exact/f16",
    "gemv/q8",
    "gemv/q4",
    "gemm/q4",
    "gemm/q4, q8a8",
    "gemm/q8, q8a8",
    "select/top-p",
    "prompt/attention",
    "step/hca:12.5%",
    "step/hca-rescore:6.25%",
];

const HEAD_DIM: usize = 64;
const GROUP_SIZE: usize = 3;

/// Tokens of a kernel that goes over tokens.
const TOKENS: usize = 4096;

/// Tokens of a prompt.
const PROMPT_TOKENS: usize = 192;

/// Vectors that are multiplied together.
const GEMM_VECTORS: usize = 64;

/// Rows and columns of a matrix.
const MATRIX: [usize; 2] = [192, 576];

/// How far rounding takes an answer from the truth, over its length.
const ROUNDING: f64 = 1e-3;

/// Mass of a selection.
const TOP_P: f64 = 0.97;

/// What the instructions of the kernel called `name` grow with, and how many of it there are: tokens of one KV head with three
/// query heads, of one query head where tokens are selected, or weights times vectors.
pub(super) fn work(name: &str) -> (usize, &'static str) {
    let num_weights = MATRIX[0] * MATRIX[1];
    match name.split('/').next() {
        Some("gemv") => (num_weights, "weights"),
        Some("gemm") => (num_weights * GEMM_VECTORS, "weights times vectors"),
        Some("prompt") => (PROMPT_TOKENS, "tokens"),
        Some("select") => (TOKENS, "tokens of a query head"),
        _ => (TOKENS, "tokens"),
    }
}

/// One kernel with its inputs.
pub(super) trait Kernel {
    /// Computes the answer.
    fn run(&mut self, level: Level);

    /// What the last run computed; NaN before the first.
    fn answer(&self) -> Vec<f32>;

    /// The same in f64, of the same length.
    fn expected(&self) -> Vec<f64>;

    /// How far the answer may be from that, over its length: by default what rounding does.
    fn error(&self) -> f64 {
        ROUNDING
    }
}

/// The kernel called `name`.
///
/// # Errors
/// If there is none, and what it refuses.
pub(super) fn build(name: &str, level: Level) -> Result<Box<dyn Kernel>> {
    Ok(match name {
        "score/alloc/2" => Box::new(Score::new("alloc/2", level)?),
        "score/int8-token" => Box::new(Score::new("int8-token", level)?),
        "rescore/int8" => Box::new(Rescore::new()?),
        "values/int8" => Box::new(Values::new()?),
        "exact/f16" => Box::new(Exact::new()),
        "gemv/q8" => Box::new(Gemv::of_bytes(1, ComputeType::Q8, level)?),
        "gemv/q4" => Box::new(Gemv::of_nibbles(1, ComputeType::Q8, level)?),
        "gemm/q4" => Box::new(Gemv::of_nibbles(GEMM_VECTORS, ComputeType::Q8, level)?),
        "gemm/q4, q8a8" => Box::new(Gemv::of_nibbles(GEMM_VECTORS, ComputeType::Q8A8, level)?),
        "gemm/q8, q8a8" => Box::new(Gemv::of_bytes(GEMM_VECTORS, ComputeType::Q8A8, level)?),
        "select/top-p" => Box::new(Select::new()?),
        "prompt/attention" => Box::new(Prompt::new()),
        "step/hca:12.5%" => Box::new(Step::new("hca:12.5%", level)?),
        "step/hca-rescore:6.25%" => Box::new(Step::new("hca-rescore:6.25%", level)?),
        _ => bail!("there is no kernel `{name}`; there are {}", NAMES.join(", ")),
    })
}

/// Scores of coded keys.
struct Score {
    coder: KeyCoder,
    prepared: PreparedQueries,
    codes: Vec<u8>,
    queries: Vec<f32>,
    /// `[GROUP_SIZE, TOKENS]`.
    scores: Vec<f32>,
}

impl Score {
    fn new(format: &str, level: Level) -> Result<Self> {
        let head = synthetic::head(7, HEAD_DIM, GROUP_SIZE, TOKENS);
        let energy = synthetic::energy(&head.queries, HEAD_DIM);
        let input = FitInput {
            head_dim: HEAD_DIM,
            keys: &head.keys,
            query_energy: &energy,
            seed: 0,
            level,
        };
        let coder = KeyCoder::fit(format.parse()?, &input)?;
        let mut codes = vec![0; coder.layout().bytes(TOKENS)];
        coder.encode(level, 0, &head.keys, &mut codes)?;
        let queries = head.queries[head.queries.len() - GROUP_SIZE * HEAD_DIM..].to_vec();
        let mut prepared = PreparedQueries::default();
        coder.prepare(&queries, head.sm_scale, Precision::Exact, &mut prepared);
        Ok(Self { coder, prepared, codes, queries, scores: vec![f32::NAN; GROUP_SIZE * TOKENS] })
    }
}

impl Kernel for Score {
    fn run(&mut self, level: Level) {
        let rows = ScoreRows { scores: &mut self.scores, stride: TOKENS, maxima: &mut [] };
        self.coder.score(level, &self.prepared, &self.codes, TOKENS, rows);
    }

    fn answer(&self) -> Vec<f32> {
        self.scores.clone()
    }

    fn expected(&self) -> Vec<f64> {
        let mut keys = vec![0.0; TOKENS * HEAD_DIM];
        self.coder.decode(0, &self.codes, &mut keys);
        let dot = |query: &[f32], key: &[f32]| -> f64 {
            query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let sm_scale = 1.0 / (HEAD_DIM as f64).sqrt();
        let queries = self.queries.chunks_exact(HEAD_DIM);
        let scores = queries.flat_map(|q| keys.chunks_exact(HEAD_DIM).map(move |k| dot(q, k)));
        scores.map(|score| sm_scale * score).collect()
    }
}

/// Values of host rows under weights.
struct Values {
    /// `[TOKENS]` rows.
    rows: Vec<u8>,
    /// `[GROUP_SIZE, TOKENS]`.
    weights: Vec<f32>,
    sums: Vec<f32>,
}

impl Values {
    const FORMAT: RowFormat = RowFormat::Int8;

    fn new() -> Result<Self> {
        let mut inputs = Inputs::new(8);
        let values = inputs.gaussian_rows(TOKENS, HEAD_DIM, 1.0);
        let mut rows = vec![0; TOKENS * Self::FORMAT.bytes(HEAD_DIM)];
        let encoded = rows.chunks_exact_mut(Self::FORMAT.bytes(HEAD_DIM));
        for (value, row) in values.chunks_exact(HEAD_DIM).zip(encoded) {
            Self::FORMAT.encode(value, row)?;
        }
        let weights = (0..GROUP_SIZE * TOKENS).map(|_| inputs.unit() / TOKENS as f32).collect();
        Ok(Self { rows, weights, sums: vec![f32::NAN; GROUP_SIZE * HEAD_DIM] })
    }

    fn rows(&self) -> Vec<&[u8]> {
        self.rows.chunks_exact(Self::FORMAT.bytes(HEAD_DIM)).collect()
    }
}

impl Kernel for Values {
    fn run(&mut self, level: Level) {
        let mut sums = vec![0.0; self.sums.len()];
        let (vectors, soon) = (VectorList::Beside(&self.rows), VectorList::NONE);
        let rows = WeightedRows { vectors, soon, weights: &self.weights, stride: TOKENS };
        Self::FORMAT.weighted_sum(level, rows, &mut sums);
        self.sums = sums;
    }

    fn answer(&self) -> Vec<f32> {
        self.sums.clone()
    }

    fn expected(&self) -> Vec<f64> {
        let mut sums = vec![0.0; GROUP_SIZE * HEAD_DIM];
        let mut value = vec![0.0f32; HEAD_DIM];
        for (token, row) in self.rows().into_iter().enumerate() {
            Self::FORMAT.decode(row, &mut value);
            for (head, sums) in sums.chunks_exact_mut(HEAD_DIM).enumerate() {
                let weight = f64::from(self.weights[head * TOKENS + token]);
                sums.iter_mut().zip(&value).for_each(|(sum, x)| *sum += weight * f64::from(*x));
            }
        }
        sums
    }
}

/// Exact keys of host rows against the queries of a group.
struct Rescore {
    /// `[TOKENS]` rows; they serve as keys here.
    keys: Values,
    queries: Vec<f32>,
    /// `[GROUP_SIZE, TOKENS]`.
    scores: Vec<f32>,
}

impl Rescore {
    fn new() -> Result<Self> {
        let queries = Inputs::new(12).gaussian_rows(GROUP_SIZE, HEAD_DIM, 1.0);
        let scores = vec![f32::NAN; GROUP_SIZE * TOKENS];
        Ok(Self { keys: Values::new()?, queries, scores })
    }
}

impl Kernel for Rescore {
    fn run(&mut self, level: Level) {
        let rows = self.keys.rows();
        let vectors = VectorList::InRows { rows: &rows, at: 0 };
        let queries = GroupQueries { queries: &self.queries, head_dim: HEAD_DIM };
        let scored = ScoredVectors { queries, vectors, soon: vectors };
        Values::FORMAT.score(level, scored, &mut self.scores, TOKENS);
    }

    fn answer(&self) -> Vec<f32> {
        self.scores.clone()
    }

    fn expected(&self) -> Vec<f64> {
        let mut keys = vec![0.0f32; TOKENS * HEAD_DIM];
        for (key, row) in keys.chunks_exact_mut(HEAD_DIM).zip(self.keys.rows()) {
            Values::FORMAT.decode(row, key);
        }
        let of_head = |query: &[f32]| -> Vec<f64> {
            let dot = |key: &[f32]| {
                query.iter().zip(key).map(|(q, x)| f64::from(*q) * f64::from(*x)).sum()
            };
            keys.chunks_exact(HEAD_DIM).map(dot).collect()
        };
        self.queries.chunks_exact(HEAD_DIM).flat_map(of_head).collect()
    }
}

/// A matrix of 8-bit or 4-bit blocks times one vector or several.
struct Gemv {
    matrix: WeightMatrix,
    /// How far an answer may be off, over its length.
    error: f64,
    /// `[n, MATRIX[1]]`.
    x: Vec<f32>,
    /// `[n, MATRIX[0]]`.
    y: Vec<f32>,
}

impl Gemv {
    fn of_bytes(num_vectors: usize, compute: ComputeType, level: Level) -> Result<Self> {
        let mut inputs = Inputs::new(10);
        let weights = inputs.gaussian_rows(MATRIX[0], MATRIX[1], 0.05);
        let bytes: Vec<u8> = weights.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::new(TensorType::F32, &bytes, (inputs, num_vectors), compute, level)
    }

    fn of_nibbles(num_vectors: usize, compute: ComputeType, level: Level) -> Result<Self> {
        let mut inputs = Inputs::new(10);
        let blocks = inputs.gaussian_rows(MATRIX[0] * MATRIX[1] / 32, 18, 0.02);
        let block = |row: &[f32]| {
            let fields = row[..2].iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes());
            let codes = row[2..].iter().map(|x| x.to_bits() as u8);
            fields.chain(codes).collect::<Vec<u8>>()
        };
        let bytes: Vec<u8> = blocks.chunks_exact(18).flat_map(block).collect();
        Self::new(TensorType::Q4_1, &bytes, (inputs, num_vectors), compute, level)
    }

    fn new(
        ty: TensorType,
        bytes: &[u8],
        (mut inputs, num_vectors): (Inputs, usize),
        compute: ComputeType,
        level: Level,
    ) -> Result<Self> {
        let matrix = WeightMatrix::from_tensor(ty, bytes, MATRIX, |row| row, compute, level)?;
        let x = inputs.gaussian_rows(num_vectors, MATRIX[1], 1.0);
        // Vectors of 8 bits are off by half a percent of their length.
        let error = if compute == ComputeType::Q8A8 { 0.01 } else { ROUNDING };
        Ok(Self { matrix, error, x, y: vec![f32::NAN; num_vectors * MATRIX[0]] })
    }
}

impl Kernel for Gemv {
    fn run(&mut self, _: Level) {
        let num_vectors = self.x.len() / MATRIX[1];
        let multiplied = match num_vectors {
            1 => self.matrix.gemv(&self.x, &mut self.y),
            n => self.matrix.gemm(&self.x, n, &mut self.y),
        };
        if multiplied.is_err() {
            // The check that follows fails on it.
            self.y.fill(f32::NAN);
        }
    }

    fn answer(&self) -> Vec<f32> {
        self.y.clone()
    }

    fn error(&self) -> f64 {
        self.error
    }

    fn expected(&self) -> Vec<f64> {
        let mut row = vec![0.0f32; MATRIX[1]];
        let mut expected = vec![f64::NAN; self.y.len()];
        for index in 0..MATRIX[0] {
            if self.matrix.row(index, &mut row).is_err() {
                continue;
            }
            let products = expected.chunks_exact_mut(MATRIX[0]).zip(self.x.chunks_exact(MATRIX[1]));
            for (y, x) in products {
                y[index] = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            }
        }
        expected
    }
}

/// The choice of the heaviest tokens of one query head.
struct Select {
    selector: Selector,
    weights: Vec<f32>,
    scratch: SelectScratch,
    taken: TokenSet,
    /// Tokens that were taken, as told; NaN before the first run.
    count: f32,
}

impl Select {
    fn new() -> Result<Self> {
        let mut inputs = Inputs::new(11);
        let weights: Vec<f32> = (0..TOKENS).map(|_| (2.0 * inputs.gaussian()).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let weights = weights.iter().map(|weight| weight / sum).collect();
        let selector = Selector::new(Rule::TopP(TOP_P as f32), 0, usize::MAX)?;
        let (scratch, taken) = (SelectScratch::default(), TokenSet::default());
        Ok(Self { selector, weights, scratch, taken, count: f32::NAN })
    }
}

impl Kernel for Select {
    fn run(&mut self, _: Level) {
        let count = self.selector.select(&self.weights, 0.0, &mut self.scratch, &mut self.taken);
        // The check that follows fails on it.
        self.count = count.map_or(f32::NAN, |count| count as f32);
    }

    /// The share of all mass that was taken, and the share of tokens.
    fn answer(&self) -> Vec<f32> {
        let positions = self.taken.positions();
        let mass: f32 = positions.into_iter().map(|token| self.weights[token as usize]).sum();
        vec![mass, self.count / TOKENS as f32]
    }

    fn expected(&self) -> Vec<f64> {
        let mut sorted: Vec<f64> = self.weights.iter().map(|&w| f64::from(w)).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let (mut mass, mut count) = (0.0, 0);
        while mass < TOP_P && count < TOKENS {
            mass += sorted[count];
            count += 1;
        }
        vec![mass, count as f64 / TOKENS as f64]
    }
}
