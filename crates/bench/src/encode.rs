//! How fast keys are encoded, by every format.

use std::time::Instant;

use anyhow::{Result, ensure};
use heterokv_quant::{FitInput, KeyCoder, KeyFormat, Level};
use heterokv_testkit::normalised_mean_square_error;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::conditions::Conditions;
use crate::samples::Samples;
use crate::scan::{PERIOD_TOKENS, ScanKeys};
use crate::sheet::{Cell, Sheet};

/// Encodes in every format, the formats taking turns, and gives a table.
///
/// # Errors
/// Codes that are wrong, and what formats refuse.
pub(crate) fn measure(
    formats: &[KeyFormat],
    conditions: &Conditions<'_>,
    say: &dyn Fn(&str),
) -> Result<Sheet> {
    let mut sheet = Sheet::new(
        "Encode: tokens per second of one KV head, all threads together",
        &["format", "head_dim", "Mtok/s", "± Mtok/s", "min", "max", "GB/s of f32", "samples"],
    );
    for &head_dim in &conditions.head_dims {
        say(&format!("encode: head_dim {head_dim}"));
        let keys = ScanKeys::new(head_dim);
        let mut encoders = Vec::new();
        for &format in formats {
            if format.layout(head_dim).is_ok() {
                encoders.push(Encoder::new(format, &keys, conditions)?);
            }
        }
        for _ in 0..conditions.num_rounds {
            encoders.iter_mut().for_each(Encoder::sample);
        }
        for encoder in encoders {
            encoder.check()?;
            let millions: Samples = encoder.rates.iter().map(|rate| 1e-6 * rate).collect();
            sheet.push(vec![
                Cell::text(encoder.coder.format().to_string()),
                Cell::Number(head_dim as f64, 0),
                Cell::Number(millions.median(), 3),
                Cell::Number(millions.deviation(), 3),
                Cell::Number(millions.min(), 3),
                Cell::Number(millions.max(), 3),
                Cell::Number(4e-3 * head_dim as f64 * millions.median(), 3),
                Cell::Number(millions.len() as f64, 0),
            ]);
        }
    }
    Ok(sheet)
}

/// One format, and what every thread encodes into.
struct Encoder<'a> {
    coder: KeyCoder,
    keys: &'a ScanKeys,
    pool: &'a ThreadPool,
    level: Level,
    /// The codes of each thread.
    lanes: Vec<Vec<u8>>,
    /// Times that the keys are encoded in a sample.
    num_passes: usize,
    rates: Samples,
}

impl<'a> Encoder<'a> {
    fn new(format: KeyFormat, keys: &'a ScanKeys, conditions: &Conditions<'a>) -> Result<Self> {
        let input = FitInput {
            head_dim: keys.head_dim,
            keys: &keys.keys,
            query_energy: &keys.query_energy,
            seed: 0,
            level: conditions.level,
        };
        let coder = KeyCoder::fit(format, &input)?;
        let codes = vec![0xA5; coder.layout().bytes(PERIOD_TOKENS)];
        let lanes = vec![codes; conditions.pool.current_num_threads()];
        let Conditions { pool, level, .. } = *conditions;
        let mut encoder =
            Self { coder, keys, pool, level, lanes, num_passes: 1, rates: Samples::default() };
        encoder.sample();
        encoder.check()?;
        let seconds = (PERIOD_TOKENS * encoder.lanes.len()) as f64 / encoder.rates.max();
        encoder.num_passes = ((conditions.sample_seconds / seconds) as usize).max(1);
        encoder.rates = Samples::default();
        Ok(encoder)
    }

    fn sample(&mut self) {
        let Self { coder, keys, num_passes, level, .. } = self;
        let lanes = &mut self.lanes;
        let num_tokens = *num_passes * PERIOD_TOKENS * lanes.len();
        let start = Instant::now();
        self.pool.install(|| {
            lanes.par_iter_mut().for_each(|codes| {
                for _ in 0..*num_passes {
                    // Finite keys of the right length, or the check after the timing fails.
                    let _ = coder.encode(*level, 0, &keys.keys, codes);
                }
            });
        });
        self.rates.push(num_tokens as f64 / start.elapsed().as_secs_f64());
    }

    /// Every thread's codes are those of the keys encoded a group at a time, and they decode to something
    /// closer to the keys than zeros are.
    fn check(&self) -> Result<()> {
        let (head_dim, layout) = (self.keys.head_dim, self.coder.layout());
        let name = self.coder.format().to_string();
        let mut expected = vec![0; layout.bytes(PERIOD_TOKENS)];
        for (i, group) in self.keys.keys.chunks_exact(layout.group_tokens * head_dim).enumerate() {
            self.coder.encode(self.level, i * layout.group_tokens, group, &mut expected)?;
        }
        ensure!(self.lanes.iter().all(|codes| *codes == expected), "{name}: codes differ");
        let mut decoded = vec![0.0; self.keys.keys.len()];
        self.coder.decode(0, &expected, &mut decoded);
        let keys: Vec<f64> = self.keys.keys.iter().map(|&x| f64::from(x)).collect();
        let error = normalised_mean_square_error(&decoded, &keys);
        ensure!(error < 1.0, "{name}: decoded keys are {error} from the keys");
        Ok(())
    }
}
