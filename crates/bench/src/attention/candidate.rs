//! One cache whose attention steps are timed.

use std::time::Instant;

use anyhow::{Result, ensure};
use heterokv_cache::{KvCache, KvShape};

use crate::caches::{Planned, Reads};
use crate::record::Case;

/// A filled cache, and what it answered before it was timed.
pub(crate) struct Candidate<'a> {
    pub(crate) case: Case,
    pub(crate) planned: Planned,
    cache: KvCache,
    /// What is asked, in turn: `[num_qo_heads, head_dim]` each.
    queries: &'a [&'a [f32]],
    /// The outputs of all queries before the timing.
    pub(crate) before: Vec<f32>,
    /// Times that all queries are asked in a sample.
    num_passes: usize,
    /// Into which a timed step writes.
    out: Vec<f32>,
}

impl<'a> Candidate<'a> {
    /// Asks every query once, and then until a sample is long enough.
    pub(crate) fn new(
        case: Case,
        planned: Planned,
        mut cache: KvCache,
        queries: &'a [&'a [f32]],
        sample_seconds: f64,
    ) -> Result<Self> {
        let before = answers(&mut cache, queries)?;
        let is_finite = before.iter().all(|x| x.is_finite());
        ensure!(is_finite, "{}: an output is not finite", planned.spec);
        let out = vec![0.0; queries.first().map_or(0, |query| query.len())];
        let mut candidate = Self { case, planned, cache, queries, before, num_passes: 1, out };
        let seconds = 1e-9 * candidate.sample()? * queries.len() as f64;
        candidate.num_passes = (sample_seconds / seconds).ceil().max(1.0) as usize;
        Ok(candidate)
    }

    /// Nanoseconds of a step, mean over the queries.
    pub(crate) fn sample(&mut self) -> Result<f64> {
        // What was counted before is not that of whole passes.
        self.cache.reset_stats();
        let start = Instant::now();
        for _ in 0..self.num_passes {
            for query in self.queries {
                self.cache.attend(0, query, &mut self.out)?;
            }
        }
        let num_steps = self.num_passes * self.queries.len();
        Ok(1e9 * start.elapsed().as_secs_f64() / num_steps as f64)
    }

    /// What a step reads, mean over the queries.
    pub(crate) fn reads(&self, shape: &KvShape, num_tokens: usize) -> Result<Reads> {
        let stats = self.cache.stats();
        Ok(Reads {
            device: self.planned.device_bytes_read(shape, num_tokens)? as f64,
            host: stats.host_bytes as f64 / stats.steps.max(1) as f64,
            row_bytes: self.planned.host_row_bytes(shape),
        })
    }

    /// The answers after the timing, and those of a copy, are those before it.
    pub(crate) fn check_again(&self) -> Result<()> {
        let mut copy = self.cache.fork()?;
        for when in ["of a copy after the timing", "of the copy when asked again"] {
            let answers = answers(&mut copy, self.queries)?;
            ensure!(
                same_bits(&answers, &self.before),
                "{}: the outputs {when} differ",
                self.planned.spec
            );
        }
        let last = &self.before[self.before.len() - self.out.len()..];
        ensure!(same_bits(&self.out, last), "{}: the last timed output differs", self.planned.spec);
        Ok(())
    }
}

/// The outputs of all queries, one after the other.
fn answers(cache: &mut KvCache, queries: &[&[f32]]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for query in queries {
        // What is there must not pass for what is computed.
        let mut out = vec![f32::NAN; query.len()];
        cache.attend(0, query, &mut out)?;
        all.extend(out);
    }
    Ok(all)
}

/// Whether all values are the same to the bit.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
