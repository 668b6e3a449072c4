//! Our own formats as the scan takes them.

use std::sync::Mutex;

use anyhow::Result;
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level, PreparedQueries, ScoreRows};
use rayon::ThreadPool;

use super::{
    Arithmetic, Coded, Expected, PERIOD_TOKENS, SCORE_BLOCK, Scan, ScanFormat, ScanKeys, ScanTask,
    locked,
};

use crate::rounding;

/// A key format of `heterokv-quant`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OurFormat(pub(crate) KeyFormat);

impl ScanFormat for OurFormat {
    fn name(&self) -> String {
        self.0.to_string()
    }

    fn encode<'a>(&self, keys: &'a ScanKeys) -> Result<Option<Box<dyn Coded + 'a>>> {
        if self.0.layout(keys.head_dim).is_err() {
            return Ok(None);
        }
        let input = FitInput {
            head_dim: keys.head_dim,
            keys: &keys.keys,
            query_energy: &keys.query_energy,
            seed: 0,
            level: Level::detect(),
        };
        let coder = KeyCoder::fit(self.0, &input)?;
        let mut codes = vec![0; coder.layout().bytes(PERIOD_TOKENS)];
        coder.encode(input.level, 0, &keys.keys, &mut codes)?;
        let mut decoded = vec![0.0; keys.keys.len()];
        coder.decode(0, &codes, &mut decoded);
        Ok(Some(Box::new(Period { coder, codes, decoded })))
    }
}

/// The codes of all different keys.
struct Period {
    coder: KeyCoder,
    codes: Vec<u8>,
    /// `[PERIOD_TOKENS, head_dim]`.
    decoded: Vec<f32>,
}

impl Coded for Period {
    fn bytes_per_token(&self) -> f64 {
        self.codes.len() as f64 / PERIOD_TOKENS as f64
    }

    fn arithmetics(&self) -> &'static [Arithmetic] {
        match self.coder.format() {
            KeyFormat::F16 => &[Arithmetic::Exact],
            _ => &[Arithmetic::Exact, Arithmetic::Select],
        }
    }

    fn lay_out<'a>(&'a self, task: &ScanTask<'a>) -> Result<Box<dyn Scan + 'a>> {
        let num_threads = task.pool.current_num_threads();
        let share = task.num_bytes as f64 / num_threads as f64 / self.bytes_per_token();
        let num_tokens = (share as usize / SCORE_BLOCK).max(1) * SCORE_BLOCK;
        let num_heads = task.queries.len() / task.keys.head_dim;
        // Each thread writes its own codes, so that they lie where it will read them.
        let lanes = task.pool.broadcast(|_| {
            Mutex::new(Lane {
                codes: self.repeated(num_tokens),
                num_tokens,
                position: 0,
                num_scored: 0,
                scores: vec![0.0; num_heads * SCORE_BLOCK],
                maxima: vec![f32::NEG_INFINITY; num_heads],
            })
        });
        let mut prepared = PreparedQueries::default();
        let precision = task.arithmetic.precision();
        self.coder.prepare(task.queries, task.keys.sm_scale(), precision, &mut prepared);
        let rounding = rounding::largest(&self.coder, &prepared, num_heads, &self.codes);
        Ok(Box::new(CodedScan {
            coder: &self.coder,
            level: task.level,
            pool: task.pool,
            prepared,
            lanes,
            expected: Expected::new(task, &self.decoded).allowing(rounding),
        }))
    }
}

impl Period {
    /// The codes over and over, up to those of `num_tokens`, whole blocks.
    fn repeated(&self, num_tokens: usize) -> Vec<u8> {
        let mut left = self.coder.layout().bytes(num_tokens);
        let mut codes = Vec::with_capacity(left);
        while left > 0 {
            let part = left.min(self.codes.len());
            codes.extend_from_slice(&self.codes[..part]);
            left -= part;
        }
        codes
    }
}

/// What one thread scans.
struct Lane {
    codes: Vec<u8>,
    num_tokens: usize,
    /// The next token.
    position: usize,
    /// Tokens scored so far.
    num_scored: usize,
    /// `[num_heads, SCORE_BLOCK]`.
    scores: Vec<f32>,
    /// The largest scores so far `[num_heads]`.
    maxima: Vec<f32>,
}

struct CodedScan<'a> {
    coder: &'a KeyCoder,
    level: Level,
    pool: &'a ThreadPool,
    prepared: PreparedQueries,
    lanes: Vec<Mutex<Lane>>,
    expected: Expected,
}

impl CodedScan<'_> {
    /// Scores one block from `position` on into the lane's scores.
    fn score_block(&self, lane: &mut Lane, position: usize) {
        let layout = self.coder.layout();
        let codes = &lane.codes[layout.bytes(position)..][..layout.bytes(SCORE_BLOCK)];
        let rows =
            ScoreRows { scores: &mut lane.scores, stride: SCORE_BLOCK, maxima: &mut lane.maxima };
        self.coder.score(self.level, &self.prepared, codes, SCORE_BLOCK, rows);
    }
}

impl Scan for CodedScan<'_> {
    fn run(&mut self, num_tokens: usize) -> Result<usize> {
        let num_blocks = num_tokens.div_ceil(self.lanes.len() * SCORE_BLOCK).max(1);
        let this = &*self;
        this.pool.broadcast(|thread| {
            let lane = &mut *locked(&this.lanes[thread.index()]);
            for _ in 0..num_blocks {
                this.score_block(lane, lane.position);
                lane.position = (lane.position + SCORE_BLOCK) % lane.num_tokens;
            }
            lane.num_scored += num_blocks * SCORE_BLOCK;
        });
        Ok(num_blocks * SCORE_BLOCK * self.lanes.len())
    }

    fn check(&mut self) -> Result<()> {
        let name = self.coder.format().to_string();
        for lane in &self.lanes {
            let lane = &mut *locked(lane);
            if lane.num_scored >= lane.num_tokens.min(PERIOD_TOKENS) {
                self.expected.check_maxima(&name, &lane.maxima, lane.num_tokens)?;
            }
            let maxima = lane.maxima.clone();
            let middle = lane.num_tokens / SCORE_BLOCK / 2 * SCORE_BLOCK;
            for position in [0, middle, lane.num_tokens - SCORE_BLOCK] {
                // What is there must not pass for what is computed.
                lane.scores.fill(f32::NAN);
                self.score_block(lane, position);
                self.expected.check(&name, &lane.scores, position)?;
            }
            lane.maxima = maxima;
        }
        Ok(())
    }
}
