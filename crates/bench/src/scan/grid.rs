//! Every case of the scan, interleaved with its yardsticks.

use std::time::Instant;

use anyhow::{Context, Result};
use heterokv_quant::KeyFormat;

use super::probe::Probe;
use super::{
    Arithmetic, Coded, OurFormat, PERIOD_TOKENS, Place, Scan, ScanFormat, ScanKeys, ScanTask,
};
use crate::conditions::Conditions;
use crate::samples::Samples;

/// Codes of one thread that lie in its L2 cache beside scores and tables.
const CACHE_BYTES_PER_THREAD: usize = 256 * 1024;

/// The shape that the bars are set for; there, every arithmetic is measured.
pub(super) const BAR_SHAPE: (usize, usize) = (64, 3);

/// What one case gave.
#[derive(Clone, Debug)]
pub(crate) struct CaseResult {
    pub(crate) format: String,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) head_dim: usize,
    pub(crate) group_size: usize,
    pub(crate) place: Place,
    pub(crate) bytes_per_token: f64,
    pub(crate) tokens_per_second: Samples,
    /// Tokens per second over those of f16 just before.
    pub(crate) against_f16: Samples,
    /// Bytes per second over those of the probe just before.
    pub(crate) of_bandwidth: Samples,
}

/// What all cases and the probe gave.
#[derive(Debug, Default)]
pub(crate) struct GridResult {
    pub(crate) cases: Vec<CaseResult>,
    /// Bytes per second that the probe read from cache and from memory, a sample per sample of a case.
    pub(crate) cache_bandwidth: Samples,
    pub(crate) memory_bandwidth: Samples,
}

impl CaseResult {
    /// Whether it is one of those that the bars are set for.
    pub(super) fn is_at_bars(&self) -> bool {
        (self.head_dim, self.group_size) == BAR_SHAPE && self.place == Place::Memory
    }
}

impl GridResult {
    pub(crate) fn bandwidth(&self, place: Place) -> &Samples {
        match place {
            Place::Cache => &self.cache_bandwidth,
            Place::Memory => &self.memory_bandwidth,
        }
    }

    fn bandwidth_mut(&mut self, place: Place) -> &mut Samples {
        match place {
            Place::Cache => &mut self.cache_bandwidth,
            Place::Memory => &mut self.memory_bandwidth,
        }
    }
}

/// Measures the grid; `say` hears of each shape.
///
/// # Errors
/// An answer that is wrong, and what formats refuse.
pub(crate) fn measure(
    formats: &[Box<dyn ScanFormat + '_>],
    conditions: &Conditions<'_>,
    say: &dyn Fn(&str),
) -> Result<GridResult> {
    let mut result = GridResult::default();
    for &head_dim in &conditions.head_dims {
        let keys = ScanKeys::new(head_dim);
        let f16 = OurFormat(KeyFormat::F16).encode(&keys)?.context("f16 holds any row")?;
        let mut coded: Vec<(String, Box<dyn Coded>)> = Vec::new();
        for format in formats {
            let name = format.name();
            let encoded = format.encode(&keys).with_context(|| name.clone())?;
            match encoded.filter(|_| name != KeyFormat::F16.to_string()) {
                Some(encoded) => coded.push((name, encoded)),
                None if name == KeyFormat::F16.to_string() => {}
                None => say(&format!("{name} does not hold rows of {head_dim}")),
            }
        }
        for &group_size in &conditions.group_sizes {
            for place in [Place::Cache, Place::Memory] {
                say(&format!("scan: head_dim {head_dim}, G = {group_size}, {}", place.name()));
                let shape = Shape { conditions, keys: &keys, group_size, place };
                shape.measure(&*f16, &coded, &mut result)?;
            }
        }
    }
    Ok(result)
}

/// All cases of one shape and place.
struct Shape<'a> {
    conditions: &'a Conditions<'a>,
    keys: &'a ScanKeys,
    group_size: usize,
    place: Place,
}

impl<'a> Shape<'a> {
    fn measure(
        &self,
        f16: &'a dyn Coded,
        coded: &'a [(String, Box<dyn Coded + 'a>)],
        result: &mut GridResult,
    ) -> Result<()> {
        let mut probe = Probe::new(self.num_bytes(), self.conditions.pool);
        let mut yardstick =
            Timed::new(f16.lay_out(&self.task(Arithmetic::Exact)?)?, self.conditions)?;
        let probe_passes = self.probe_passes(&mut probe);
        let (mut f16_rates, mut f16_shares) = (Samples::default(), Samples::default());
        for (name, coded) in coded {
            for &arithmetic in self.arithmetics(&**coded) {
                let scan = coded.lay_out(&self.task(arithmetic)?)?;
                let mut timed = Timed::new(scan, self.conditions)?;
                let (mut rates, mut ratios) = (Samples::default(), Samples::default());
                let mut shares = Samples::default();
                for _ in 0..self.conditions.num_rounds {
                    let start = Instant::now();
                    let bytes = probe.run(probe_passes) as f64;
                    let bandwidth = bytes / start.elapsed().as_secs_f64();
                    result.bandwidth_mut(self.place).push(bandwidth);
                    let f16_rate = yardstick.sample()?;
                    let rate = timed.sample()?;
                    f16_rates.push(f16_rate);
                    rates.push(rate);
                    ratios.push(rate / f16_rate);
                    shares.push(rate * coded.bytes_per_token() / bandwidth);
                    f16_shares.push(f16_rate * f16.bytes_per_token() / bandwidth);
                }
                timed.scan.check()?;
                result.cases.push(CaseResult {
                    format: name.clone(),
                    arithmetic,
                    bytes_per_token: coded.bytes_per_token(),
                    tokens_per_second: rates,
                    against_f16: ratios,
                    of_bandwidth: shares,
                    ..self.empty()
                });
            }
        }
        yardstick.scan.check()?;
        probe.check()?;
        result.cases.push(CaseResult {
            format: KeyFormat::F16.to_string(),
            arithmetic: Arithmetic::Exact,
            bytes_per_token: f16.bytes_per_token(),
            against_f16: f16_rates.iter().map(|_| 1.0).collect(),
            tokens_per_second: f16_rates,
            of_bandwidth: f16_shares,
            ..self.empty()
        });
        Ok(())
    }

    fn num_bytes(&self) -> usize {
        match self.place {
            Place::Cache => CACHE_BYTES_PER_THREAD * self.conditions.pool.current_num_threads(),
            Place::Memory => self.conditions.memory_bytes,
        }
    }

    fn task(&self, arithmetic: Arithmetic) -> Result<ScanTask<'a>> {
        Ok(ScanTask {
            keys: self.keys,
            queries: self.keys.queries(self.group_size)?,
            arithmetic,
            num_bytes: self.num_bytes(),
            level: self.conditions.level,
            pool: self.conditions.pool,
        })
    }

    fn arithmetics(&self, coded: &dyn Coded) -> &'static [Arithmetic] {
        let all = coded.arithmetics();
        let is_bar = (self.keys.head_dim, self.group_size) == BAR_SHAPE;
        if is_bar && self.place == Place::Memory { all } else { &all[..1] }
    }

    /// Passes of the probe that take about as long as a sample; from memory, one.
    fn probe_passes(&self, probe: &mut Probe<'_>) -> usize {
        probe.run(1);
        let start = Instant::now();
        probe.run(1);
        let passes = 0.2 * self.conditions.sample_seconds / start.elapsed().as_secs_f64();
        (passes as usize).max(1)
    }

    fn empty(&self) -> CaseResult {
        CaseResult {
            format: String::new(),
            arithmetic: Arithmetic::Exact,
            head_dim: self.keys.head_dim,
            group_size: self.group_size,
            place: self.place,
            bytes_per_token: 0.0,
            tokens_per_second: Samples::default(),
            against_f16: Samples::default(),
            of_bandwidth: Samples::default(),
        }
    }
}

/// A scan that was right, and the tokens that take about as long as a sample.
struct Timed<'a> {
    scan: Box<dyn Scan + 'a>,
    num_tokens: usize,
}

impl<'a> Timed<'a> {
    /// Checks and warms the scan, and finds out how fast it is.
    fn new(mut scan: Box<dyn Scan + 'a>, conditions: &Conditions<'_>) -> Result<Self> {
        scan.check()?;
        // A sample passes every different key, or the largest score could not be checked.
        let least = PERIOD_TOKENS * conditions.pool.current_num_threads();
        let mut timed = Self { scan, num_tokens: least };
        timed.sample()?;
        let rate = timed.sample()?;
        timed.num_tokens = least.max((rate * conditions.sample_seconds) as usize);
        Ok(timed)
    }

    /// Tokens per second of one sample.
    fn sample(&mut self) -> Result<f64> {
        let start = Instant::now();
        let num_tokens = self.scan.run(self.num_tokens)?;
        Ok(num_tokens as f64 / start.elapsed().as_secs_f64())
    }
}
