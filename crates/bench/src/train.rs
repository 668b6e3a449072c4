//! Fitting product quantization for a whole model, and encoding the next token of all its heads.

use std::time::Instant;

use anyhow::{Result, ensure};
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::bars::{Bar, Limit};
use crate::samples::Samples;
use crate::synthetic;

/// The (layer, KV head) pairs of SmolLM2-135M, and the length of its keys.
const SMOLLM2_HEADS: usize = 30 * 3;
const SMOLLM2_HEAD_DIM: usize = 64;

/// Two channels a group, 32 groups, 256 centroids.
pub(crate) const FORMAT: KeyFormat =
    KeyFormat::Pq { width: 2, code_bits: 8, is_rotated: false, num_exact: 0 };

/// What the fit of all heads and the encoding of a token may take.
const FIT_SECONDS: f64 = 15.0;
const ENCODE_MICROSECONDS: f64 = 50.0;

/// How much is done.
pub(crate) struct Settings<'a> {
    pub(crate) num_heads: usize,
    pub(crate) num_tokens: usize,
    pub(crate) pool: &'a ThreadPool,
    pub(crate) level: Level,
}

impl<'a> Settings<'a> {
    /// What the bars are set for.
    pub(crate) fn full(pool: &'a ThreadPool, level: Level) -> Self {
        Self { num_heads: SMOLLM2_HEADS, num_tokens: 4096, pool, level }
    }
}

/// What was measured beside its bars.
pub(crate) struct Trained {
    pub(crate) fit: Bar,
    /// By one thread and by all; one way is enough.
    pub(crate) encode: [Bar; 2],
}

impl Trained {
    pub(crate) fn is_held(&self) -> bool {
        self.fit.is_held() && self.encode.iter().any(Bar::is_held)
    }
}

/// Fits, encodes, checks, and puts the times beside their bars.
///
/// # Errors
/// Codes that are wrong, and what the format refuses.
pub(crate) fn measure(settings: &Settings<'_>, say: &dyn Fn(&str)) -> Result<Trained> {
    let Settings { num_heads, num_tokens, pool, level } = *settings;
    say(&format!("fit: {FORMAT}, {num_heads} heads of {num_tokens} tokens"));
    let rows = pool.install(|| {
        let rows = (0..num_heads as u64).into_par_iter();
        let rows = rows.map(|seed| synthetic::head(seed, SMOLLM2_HEAD_DIM, 1, num_tokens));
        rows.collect::<Vec<_>>()
    });
    let energies: Vec<Vec<f32>> =
        rows.iter().map(|rows| synthetic::energy(&rows.queries, SMOLLM2_HEAD_DIM)).collect();
    let start = Instant::now();
    let coders: Vec<KeyCoder> = pool.install(|| {
        let heads = rows.par_iter().zip(&energies).enumerate();
        let fit = heads.map(|(head, (rows, query_energy))| {
            let input = FitInput {
                head_dim: SMOLLM2_HEAD_DIM,
                keys: &rows.keys,
                query_energy,
                seed: head as u64,
                level,
            };
            KeyCoder::fit(FORMAT, &input)
        });
        fit.collect::<heterokv_quant::Result<_>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: Vec<usize> = (0..num_tokens / 2 * 2).step_by(17).collect();
    let mut heads: Vec<Head<'_>> = coders
        .iter()
        .zip(&rows)
        .map(|(coder, rows)| Head {
            coder,
            level,
            keys: &rows.keys,
            codes: vec![0; coder.layout().bytes(1) * tokens.len()],
        })
        .collect();
    let threads = |n: usize| format!("{FORMAT}, {n} thread{}", if n == 1 { "" } else { "s" });
    let num_threads = pool.current_num_threads();
    let fit = Bar {
        what: format!("fit of {num_heads} heads, s"),
        by: threads(num_threads),
        reached: seconds,
        limit: Limit::AtMost(FIT_SECONDS),
    };
    say("encode: the next token of all heads");
    let alone = next_tokens(&mut heads, &tokens, |heads, nth, token| {
        heads.iter_mut().for_each(|head| head.encode(nth, token));
    })?;
    let share = heads.len().div_ceil(num_threads);
    // From inside the pool, as an engine does.
    let shared = pool.install(|| {
        next_tokens(&mut heads, &tokens, |heads, nth, token| {
            heads.par_chunks_mut(share).for_each(|heads| {
                heads.iter_mut().for_each(|head| head.encode(nth, token));
            });
        })
    })?;
    let encode = [(1, alone), (num_threads, shared)].map(|(by, microseconds)| Bar {
        what: format!("encode a token of {num_heads} heads, µs"),
        by: threads(by),
        reached: microseconds.median(),
        limit: Limit::AtMost(ENCODE_MICROSECONDS),
    });
    Ok(Trained { fit, encode })
}

/// One head and the codes of some of its tokens, each in blocks of its own.
struct Head<'a> {
    coder: &'a KeyCoder,
    level: Level,
    keys: &'a [f32],
    codes: Vec<u8>,
}

impl Head<'_> {
    fn encode(&mut self, nth: usize, token: usize) {
        let key = &self.keys[token * SMOLLM2_HEAD_DIM..][..SMOLLM2_HEAD_DIM];
        let bytes = self.coder.layout().bytes(1);
        // A finite key of the right length, or the check of the codes fails.
        let _ = self.coder.encode(self.level, 0, key, &mut self.codes[nth * bytes..][..bytes]);
    }

    /// Whether the code is that of the token among its neighbours.
    fn check(&self, nth: usize, token: usize) -> Result<()> {
        let first = token & !1;
        let keys = &self.keys[first * SMOLLM2_HEAD_DIM..][..2 * SMOLLM2_HEAD_DIM];
        let layout = self.coder.layout();
        let mut codes = vec![0; layout.bytes(2)];
        self.coder.encode(self.level, 0, keys, &mut codes)?;
        let decode = |coder: &KeyCoder, codes: &[u8], num_tokens: usize| {
            let mut out = vec![0.0; num_tokens * SMOLLM2_HEAD_DIM];
            coder.decode(0, codes, &mut out);
            out
        };
        let both = decode(self.coder, &codes, 2);
        let alone = decode(self.coder, &self.codes[nth * layout.bytes(1)..], 1);
        let expected = &both[(token - first) * SMOLLM2_HEAD_DIM..][..SMOLLM2_HEAD_DIM];
        ensure!(alone == expected, "{FORMAT}: token {token} has another code alone");
        Ok(())
    }
}

/// Microseconds per token, one token of all heads after the other.
fn next_tokens(
    heads: &mut [Head<'_>],
    tokens: &[usize],
    encode: impl Fn(&mut [Head<'_>], usize, usize),
) -> Result<Samples> {
    heads.iter_mut().for_each(|head| head.codes.fill(0));
    let mut samples = Samples::default();
    for (nth, &token) in tokens.iter().enumerate() {
        let start = Instant::now();
        encode(heads, nth, token);
        samples.push(1e6 * start.elapsed().as_secs_f64());
    }
    for (nth, &token) in tokens.iter().enumerate() {
        heads.iter().try_for_each(|head| head.check(nth, token))?;
    }
    Ok(samples)
}
