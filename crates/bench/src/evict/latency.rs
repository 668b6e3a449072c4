//! Where the time of a decode step goes over a long context, which is stored layer by layer and never passes through the
//! model.

use std::time::Instant;

use anyhow::{Result, ensure};
use heterokv_cache::{CachePlan, KvCache, StepTimes};
use heterokv_model::Model;

use super::grid::{Entry, Fit, Standing};
use super::{Part, Suite};
use crate::bars::{Bar, Limit, sheet};
use crate::caches::TINY;
use crate::interleave::interleaved;
use crate::memory;
use crate::outcome::Table;
use crate::prompt_rows::PromptRows;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// Tokens in the caches.
const CONTEXT: usize = 131_072;

/// Tokens of the text that pass through the model; a longer context repeats them.
const REAL_TOKENS: usize = 8192;

/// Tokens fed behind the context.
const FED_TOKENS: usize = 64;

/// What is measured where nothing else is asked for.
const SPECS: [&str; 4] = ["hca:12.5%", "hca-rescore:12.5%", "h2o:12.5%", "heterocache:50%"];

/// The most of a step that may go to selection and to what is noted for later.
const MOST_SHARE: f64 = 0.10;

/// Columns of the table.
const COLUMNS: [&str; 11] = [
    "context",
    "cache",
    "step, ms",
    "scores",
    "resident rows",
    "host rows",
    "selection",
    "policy",
    "the rest",
    "selection and policy, %",
    "note",
];

/// Measures every context.
///
/// # Errors
/// A cache that there is not, too little memory, and a hidden state that is not finite.
pub(super) fn run(suite: &Suite<'_>) -> Result<Part> {
    let arguments = suite.arguments;
    let specs: Vec<&str> = match (arguments.test, &arguments.caches[..]) {
        (true, _) => TINY.to_vec(),
        (false, []) => SPECS.to_vec(),
        (false, asked) => asked.iter().map(String::as_str).collect(),
    };
    let (shape, fingerprint) = (suite.opened.shape()?, suite.opened.fingerprint());
    let fit = Fit { shape: &shape, fingerprint: &fingerprint, heads: arguments.heads.as_deref() };
    let entries = match arguments.caches.is_empty() {
        true => specs.iter().map(|spec| fit.usual(spec)).collect(),
        false => fit.specs(&arguments.caches)?,
    };
    let model = suite.opened.model(suite.level)?;
    let num_rounds = if arguments.test { 2 } else { arguments.rounds };
    let title =
        format!("A decode step on {}: means over {num_rounds} steps, ms", suite.opened.name);
    let mut table = Sheet::new(title, &COLUMNS);
    let mut bars = Vec::new();
    for context in suite.contexts(&[CONTEXT], &[700]) {
        let latency = Latency { suite, model: &model, context, num_rounds };
        let profiles = latency.measure(&entries)?;
        for entry in &entries {
            let profile = profiles.iter().find(|profile| profile.name == entry.name);
            table.push(cells(entry, context, profile));
            bars.push(bar(entry, context, profile));
        }
    }
    let is_held = !arguments.check || !bars.is_empty() && bars.iter().all(Bar::is_held);
    let tables = vec![
        Table::new("evict-latency", table),
        Table::new("evict-latency-bars", sheet("Bars of a decode step", &bars)),
    ];
    Ok(Part { name: "latency", tables, is_held })
}

/// One context.
struct Latency<'a> {
    suite: &'a Suite<'a>,
    model: &'a Model,
    context: usize,
    num_rounds: usize,
}

/// A cache that takes the tokens behind the context.
struct Filled<'a> {
    name: &'a str,
    cache: KvCache,
    model: &'a Model,
    tokens: &'a [u32],
    num_fed: usize,
}

/// Where the time of a cache's steps went, seconds a step.
struct Profile {
    name: String,
    step: f64,
    parts: StepTimes,
    num_steps: usize,
}

impl Filled<'_> {
    /// Nanoseconds of the next token.
    fn sample(&mut self) -> Result<f64> {
        let token = self.tokens[self.num_fed % self.tokens.len()];
        let start = Instant::now();
        let hidden = self.model.extend(&[token], &mut self.cache)?;
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        let is_finite = hidden.iter().all(|x| x.is_finite());
        ensure!(is_finite, "{}: a hidden state is not finite", self.name);
        self.num_fed += 1;
        Ok(nanoseconds)
    }
}

impl Latency<'_> {
    /// All caches that there are, step by step in turns.
    fn measure(&self, entries: &[Entry]) -> Result<Vec<Profile>> {
        let Self { suite, model, context, num_rounds } = *self;
        let shape = model.kv_shape();
        let candidates: Vec<_> = entries.iter().filter_map(Entry::candidate).collect();
        // A layer's keys and values, once as they come and once by head.
        let mut needed = 4 * 4 * (shape.heads.kv_row_len() * context) as u64;
        for candidate in &candidates {
            let plan = CachePlan::new(&candidate.config, &shape, context)?;
            needed += (plan.most_device_bytes + plan.host_bytes + plan.score_scratch_bytes) as u64;
        }
        if let Some(lack) = memory::lack(needed) {
            anyhow::bail!("{lack}; name fewer caches by --cache, or give a shorter --contexts");
        }
        let num_real = context.min(REAL_TOKENS);
        let tokens = &suite.opened.tokens;
        ensure!(
            tokens.len() >= num_real + FED_TOKENS,
            "the text has {} tokens, {} are needed; pass a longer one by --corpus",
            tokens.len(),
            num_real + FED_TOKENS
        );
        suite.say(&format!("latency: prefill of {num_real} tokens"));
        let rows = PromptRows::of_model(model, &tokens[..num_real])?;
        let new = |config| KvCache::new(shape, config, suite.level, None);
        let mut caches: Vec<KvCache> =
            candidates.iter().map(|c| new(c.config.clone())).collect::<Result<_, _>>()?;
        for layer in 0..shape.num_layers {
            suite.say(&format!(
                "latency: {context} tokens, layer {} of {}",
                layer + 1,
                shape.num_layers
            ));
            rows.context(layer, context).store(&mut caches, layer, suite.level)?;
        }
        let filled = candidates.iter().zip(caches).map(|(candidate, cache)| Filled {
            name: &candidate.name,
            cache,
            model,
            tokens: &tokens[num_real..num_real + FED_TOKENS],
            num_fed: 0,
        });
        let mut filled: Vec<Filled<'_>> = filled.collect();
        for cache in &mut filled {
            cache.sample()?;
            cache.cache.reset_stats();
        }
        let samples = interleaved(&mut filled, num_rounds, Filled::sample)?;
        let profile = |(filled, samples): (&Filled<'_>, &Samples)| Profile {
            name: filled.name.to_owned(),
            step: 1e-9 * samples.iter().sum::<f64>() / samples.len() as f64,
            parts: filled.cache.step_times(),
            num_steps: samples.len(),
        };
        Ok(filled.iter().zip(&samples).map(profile).collect())
    }
}

impl Profile {
    /// Seconds of a part in a step.
    fn of(&self, part: std::time::Duration) -> f64 {
        part.as_secs_f64() / self.num_steps as f64
    }

    /// What of a step goes to selection and policy.
    fn share(&self) -> f64 {
        self.of(self.parts.selection + self.parts.policy) / self.step
    }
}

/// What was not measured holds no bar.
fn bar(entry: &Entry, context: usize, profile: Option<&Profile>) -> Bar {
    Bar {
        what: format!("selection and policy over a step, {context} tokens"),
        by: entry.name.clone(),
        reached: profile.map_or(f64::NAN, Profile::share),
        limit: Limit::AtMost(MOST_SHARE),
    }
}

/// A row of the table. Of what was not measured cells are empty.
fn cells(entry: &Entry, context: usize, profile: Option<&Profile>) -> Vec<Cell> {
    let mut cells = vec![Cell::Number(context as f64, 0), Cell::text(&entry.name)];
    match profile {
        None => cells.extend((0..8).map(|_| Cell::text(""))),
        Some(profile) => {
            let StepTimes { scores, resident, selection, host, policy } = profile.parts;
            let parts = [scores, resident, host, selection, policy].map(|part| profile.of(part));
            let rest = profile.step - parts.iter().sum::<f64>();
            let ms = std::iter::once(profile.step).chain(parts).chain([rest]);
            cells.extend(ms.map(|seconds| Cell::Number(1e3 * seconds, 2)));
            cells.push(Cell::Number(100.0 * profile.share(), 1));
        }
    }
    let note = match &entry.standing {
        Standing::Unreachable { least } => format!("unreachable, {least:.1} % at least"),
        standing => standing.word().to_owned(),
    };
    cells.push(Cell::text(note));
    cells
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::grid::tests::shape;
    use super::*;

    #[test]
    fn what_selection_takes_is_held_to_its_share_of_a_step() {
        let profile = |selection, policy| Profile {
            name: "x".to_owned(),
            step: 0.1,
            parts: StepTimes {
                selection: Duration::from_millis(selection),
                policy: Duration::from_millis(policy),
                scores: Duration::from_millis(500),
                ..StepTimes::default()
            },
            num_steps: 10,
        };
        assert!((profile(60, 30).share() - 0.09).abs() < 1e-9);
        let fit = Fit { shape: &shape(), fingerprint: "", heads: None };
        let entry = fit.usual("x");
        assert!(bar(&entry, 1, Some(&profile(60, 30))).is_held());
        assert!(!bar(&entry, 1, Some(&profile(60, 50))).is_held());
        assert!(!bar(&entry, 1, None).is_held(), "it was not measured");
    }
}
