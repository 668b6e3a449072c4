//! One decode step over a context that no prompt reaches: keys and values of a real prompt, over and over, stored layer by
//! layer.
//!
//! Where a query finds its keys decides how many rows a selection reads. `plain` tiles keep the positions of the prompt:
//! all of them are as far from the query as no text of the model's training was, attention spreads over all tokens, and
//! most rows are read. `near` tiles are turned to where the prompt's tokens would be if it were the last there is, a few
//! tokens apart from each other: attention spreads over the tiles as it does over the prompt.

use anyhow::{Result, bail};
use clap::ValueEnum;
use heterokv_cache::KvCache;
use heterokv_model::Model;
use heterokv_quant::Level;

use super::ours::{self, Decode};
use super::{OURS, SUITE, case_name};
use crate::caches::{FULL, Planned};
use crate::memory;
use crate::prompt_rows::{PromptRows, Tiles};
use crate::record::{Case, Record};
use crate::samples::Samples;

/// Tokens of the text that pass through the model.
pub(super) const REAL_TOKENS: usize = 8192;

/// How the prompt is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Tiling {
    /// Turned to positions near the query, as a text's are
    Near,
    /// At the positions of the prompt, all of them far from the query
    Plain,
}

impl Tiling {
    /// The phase of its cases.
    pub(super) fn phase(self) -> &'static str {
        match self {
            Self::Near => "near tiles",
            Self::Plain => "plain tiles",
        }
    }
}

/// What is measured.
pub(super) struct Long<'a> {
    pub(super) model: &'a Model,
    /// The prompt, and what is fed behind it.
    pub(super) tokens: &'a [u32],
    /// Of the prompt.
    pub(super) num_real: usize,
    /// Tokens in the caches.
    pub(super) context: usize,
    /// Beside `full`, which is measured over the prompt alone, too.
    pub(super) specs: &'a [&'a str],
    pub(super) num_steps: usize,
    pub(super) level: Level,
}

impl Long<'_> {
    /// Measures the tilings one after the other; cases go into `record`.
    ///
    /// # Errors
    /// Too little memory, what a cache refuses, and logits that are not finite.
    pub(super) fn measure(
        &self,
        tilings: &[Tiling],
        say: &dyn Fn(&str),
        record: &mut Record,
    ) -> Result<()> {
        let Self { model, context, num_real, .. } = *self;
        let shape = model.kv_shape();
        assert!(context >= num_real, "the prompt that is repeated fits");
        let plan = |spec: &&str| Planned::new(spec, &shape, context);
        let mut planned =
            vec![Planned::new(FULL, &shape, num_real)?, Planned::new(FULL, &shape, context)?];
        planned.extend(self.specs.iter().map(plan).collect::<Result<Vec<_>>>()?);
        // A layer's keys and values, once as they come and once by head.
        let scratch = 4 * 4 * (shape.heads.kv_row_len() * context) as u64;
        let needed = planned.iter().map(Planned::total_bytes).sum::<u64>() + scratch;
        if let Some(lack) = memory::lack(needed) {
            bail!("{lack}; give a shorter --long");
        }
        say(&format!("long: prefill of {num_real} tokens"));
        let rows = PromptRows::of_model(model, &self.tokens[..num_real])?;
        let frequencies = model.config().rope.inverse_frequencies(shape.heads.head_dim);
        for &tiling in tilings {
            say(&format!("long: {context} tokens in {}", tiling.phase()));
            let tiles = match tiling {
                Tiling::Near => Tiles::Near { frequencies: &frequencies },
                Tiling::Plain => Tiles::Plain,
            };
            let filled = self.fill(&planned, &rows, tiles)?;
            let decodes = ours::decode(model, filled, &self.tokens[num_real..], self.num_steps)?;
            record.cases.extend(cases(tiling, context, &decodes));
        }
        Ok(())
    }

    fn fill(
        &self,
        planned: &[Planned],
        rows: &PromptRows,
        tiles: Tiles<'_>,
    ) -> Result<Vec<(Planned, KvCache)>> {
        let shape = self.model.kv_shape();
        let new = |planned: &Planned| KvCache::new(shape, planned.config.clone(), self.level, None);
        let mut caches: Vec<KvCache> = planned.iter().map(new).collect::<Result<_, _>>()?;
        let (short, long) = caches.split_at_mut(1);
        for layer in 0..shape.num_layers {
            rows.tiled(layer, self.num_real, tiles).store(short, layer, self.level)?;
            rows.tiled(layer, self.context, tiles).store(long, layer, self.level)?;
        }
        Ok(planned.iter().cloned().zip(caches).collect())
    }
}

/// A case for each cache, with how much faster than `full` it is and how often it finds the same token.
fn cases(tiling: Tiling, context: usize, decodes: &[Decode]) -> Vec<Case> {
    let full = decodes.iter().find(|decode| decode.cache == FULL && decode.context == context);
    let case = |decode: &Decode| {
        let name = format!("{OURS}{}", decode.cache);
        let samples: Samples = std::iter::once(decode.nanoseconds).collect();
        let mut case =
            Case::new(SUITE, case_name(tiling.phase(), &name, decode.context)).timed(&samples);
        case.cache = Some(name);
        case.context = Some(decode.context);
        case.set("device_bytes_read", decode.device_bytes);
        case.set("host_bytes_read", decode.host_bytes);
        case.set("rows_read", decode.rows_read);
        if let Some(full) = full.filter(|full| full.context == decode.context) {
            case.set("times_full", full.nanoseconds / decode.nanoseconds);
            let same = decode.tokens.iter().zip(&full.tokens).filter(|(ours, full)| ours == full);
            case.set("tokens_as_full", same.count() as f64 / decode.tokens.len() as f64);
        }
        case
    };
    decodes.iter().map(case).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caches::TINY;
    use crate::environment::Environment;
    use crate::subject::Place;

    #[test]
    fn every_cache_is_measured_in_both_tilings() {
        let level = Level::detect();
        let subject = Place::tiny().load(300 + ours::fed_tokens(9), level).expect("it is there");
        let mut record = Record::new(&Environment::detect(level, 1));
        let long = Long {
            model: &subject.model,
            tokens: &subject.tokens,
            num_real: 300,
            context: 700,
            specs: &TINY[1..],
            num_steps: 9,
            level,
        };
        long.measure(&[Tiling::Near, Tiling::Plain], &|_| {}, &mut record).expect("it runs");
        assert_eq!(record.cases.len(), 2 * (1 + TINY.len()));
        let full = record.case("speed/near tiles/heterokv full@700").expect("it is there");
        assert_eq!((full.figure("times_full"), full.figure("tokens_as_full")), (1.0, 1.0));
        let short = record.case("speed/near tiles/heterokv full@300").expect("it is there");
        assert!(short.figure("device_bytes_read") < full.figure("device_bytes_read"));
    }
}
