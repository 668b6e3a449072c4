//! One decode step of a whole model: what `Model::extend` takes for one token, without the logits.
//!
//! The context is stored layer by layer and never passes through the model, so that lengths are in reach for which a
//! prefill is not. Over a text that was read, the hidden state of `full` is compared with that of the prefill; every
//! other cache's with that of `full`; and a copy of the cache has to give the same hidden state to the bit after the
//! timing, where there is memory for one.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use heterokv_cache::KvCache;
use heterokv_model::Model;

use crate::bootstrap;
use crate::caches::{FULL, Planned, Reads, distance};
use crate::interleave::interleaved;
use crate::machine::Ceilings;
use crate::memory::{self, Room};
use crate::prompt_rows::PromptRows;
use crate::record::{Case, Record};
use crate::samples::Samples;
use crate::settings::Settings;
use crate::subject::Subject;

pub(crate) const SUITE: &str = "model";

/// Up to what 24 GiB hold of a full cache of the default model.
const CONTEXTS: [usize; 6] = [512, 2048, 8192, 32_768, 131_072, 524_288];

/// How far the hidden state of `full`, whose keys and values are f16, may be from that of the prefill, whose are not.
const FULL_ERROR: f64 = 0.02;

/// The least cosine of a hidden state to that of `full` over a text that was read.
const REAL_COSINE: f64 = 0.7;

/// Measures every cache at every context.
///
/// # Errors
/// An answer that is wrong, bytes that are not those predicted, and what a cache refuses.
pub(crate) fn measure(
    settings: &Settings<'_>,
    subject: &Subject,
    rows: &PromptRows,
    ceilings: &Ceilings,
    room: Room,
    record: &mut Record,
) -> Result<()> {
    // The longest first: what it takes is free yet in one piece.
    let mut by_context = Vec::new();
    for &num_tokens in settings.contexts_or(&CONTEXTS).iter().rev() {
        let mut cases = Vec::new();
        let planned = plan(settings, rows, num_tokens, record)?;
        let suite = Suite { settings, subject, rows, ceilings, num_tokens };
        // Together where there is memory for all, so that they take turns; else each by itself.
        let total: u64 = planned.iter().map(|(_, planned)| planned.total_bytes()).sum();
        let together = room.lack(suite.scratch_bytes() + total).is_none();
        let batches: Vec<Vec<(String, Planned)>> = match together {
            true => vec![planned],
            false => planned.into_iter().map(|cache| vec![cache]).collect(),
        };
        let mut full = None;
        for batch in batches.into_iter().filter(|batch| !batch.is_empty()) {
            let needed: u64 = batch.iter().map(|(_, planned)| planned.total_bytes()).sum();
            if let Some(lack) = room.lack(suite.scratch_bytes() + needed) {
                batch.into_iter().for_each(|(name, _)| record.leave_out(name, lack.clone()));
                continue;
            }
            settings.say(&format!("{SUITE}: {num_tokens} tokens, {} caches", batch.len()));
            cases.extend(settings.pool.install(|| {
                suite
                    .run(batch, &mut full)
                    .with_context(|| format!("{SUITE} at {num_tokens} tokens"))
            })?);
        }
        by_context.push(cases);
    }
    record.cases.extend(by_context.into_iter().rev().flatten());
    Ok(())
}

/// The caches wanted at one length, with the names of their cases; with any of them `full`.
fn plan(
    settings: &Settings<'_>,
    rows: &PromptRows,
    num_tokens: usize,
    record: &mut Record,
) -> Result<Vec<(String, Planned)>> {
    let name = |spec: &str| format!("{SUITE}/{spec}@{num_tokens}");
    let is_any_wanted = settings.caches.iter().any(|spec| settings.selection.wants(&name(spec)));
    let mut planned = Vec::new();
    for spec in settings.caches.iter().filter(|_| is_any_wanted) {
        if spec != FULL && !settings.selection.wants(&name(spec)) {
            continue;
        }
        match Planned::new(spec, &rows.shape, num_tokens) {
            Ok(cache) => planned.push((name(spec), cache)),
            Err(error) => record.leave_out(name(spec), format!("{error:#}")),
        }
    }
    Ok(planned)
}

/// What `full` gave at a context, which the others are held against.
struct Full {
    /// The hidden state of the first token behind the context.
    hidden: Vec<f32>,
    samples: Samples,
}

/// One context.
struct Suite<'a> {
    settings: &'a Settings<'a>,
    subject: &'a Subject,
    rows: &'a PromptRows,
    ceilings: &'a Ceilings,
    num_tokens: usize,
}

/// A filled cache.
struct Candidate<'a> {
    case: Case,
    planned: Planned,
    cache: KvCache,
    /// As it was filled, where there is memory for it.
    copy: Option<KvCache>,
    model: &'a Model,
    /// Tokens to be fed.
    tokens: &'a [u32],
    num_fed: usize,
    /// The hidden state of the first token.
    hidden: Vec<f32>,
}

impl Candidate<'_> {
    /// Nanoseconds of the next token.
    fn sample(&mut self) -> Result<f64> {
        let token = self.tokens[self.num_fed % self.tokens.len()];
        let start = Instant::now();
        let hidden = self.model.extend(&[token], &mut self.cache)?;
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        let is_finite = hidden.iter().all(|x| x.is_finite());
        ensure!(is_finite, "{}: a hidden state is not finite", self.planned.spec);
        if self.num_fed == 0 {
            self.hidden = hidden;
        }
        self.num_fed += 1;
        Ok(nanoseconds)
    }

    /// The copy gives what the cache gave before the timing.
    fn check_again(&mut self) -> Result<()> {
        let Some(mut copy) = self.copy.take() else {
            self.case.notes.push("not repeated by a copy: no memory for one".to_owned());
            return Ok(());
        };
        let again = self.model.extend(&self.tokens[..1], &mut copy)?;
        let same = again.iter().zip(&self.hidden).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(same, "{}: the hidden state of a copy after the timing differs", self.planned.spec);
        Ok(())
    }
}

impl Suite<'_> {
    /// One layer of the context in f32, and once more by head while it is stored.
    fn scratch_bytes(&self) -> u64 {
        2 * 4 * (self.rows.shape.heads.kv_row_len() * self.num_tokens) as u64 * 4 / 3
    }

    /// Tokens that follow the context, or those of the beginning behind a text's end.
    fn tokens(&self) -> &[u32] {
        let tokens = &self.subject.tokens;
        &tokens[if self.num_tokens < tokens.len() { self.num_tokens } else { 0 }..]
    }

    fn run(&self, batch: Vec<(String, Planned)>, full: &mut Option<Full>) -> Result<Vec<Case>> {
        let mut candidates = self.fill(batch)?;
        // The first token warms up and is the answer that is checked.
        for candidate in &mut candidates {
            candidate.sample()?;
            candidate.cache.reset_stats();
        }
        let samples = interleaved(&mut candidates, self.settings.num_rounds, Candidate::sample)?;
        let is_paired = candidates.len() > 1;
        let mut cases = Vec::new();
        for (mut candidate, samples) in candidates.into_iter().zip(samples) {
            candidate.check_again()?;
            if candidate.planned.spec == FULL {
                self.check_full(&candidate.hidden)?;
                *full = Some(Full { hidden: candidate.hidden.clone(), samples: samples.clone() });
            }
            cases.push(self.case(candidate, &samples, full.as_ref(), is_paired)?);
        }
        Ok(cases)
    }

    /// Empty caches, filled layer by layer.
    fn fill(&self, batch: Vec<(String, Planned)>) -> Result<Vec<Candidate<'_>>> {
        let (shape, level) = (self.rows.shape, self.settings.level);
        let new = |planned: &Planned| KvCache::new(shape, planned.config.clone(), level, None);
        let mut filled: Vec<KvCache> =
            batch.iter().map(|(_, planned)| new(planned)).collect::<Result<_, _>>()?;
        for layer in 0..shape.num_layers {
            self.rows.context(layer, self.num_tokens).store(&mut filled, layer, level)?;
        }
        let mut candidates = Vec::new();
        for ((name, planned), cache) in batch.into_iter().zip(filled) {
            let mut case = Case::new(SUITE, name);
            planned.count_bytes(&cache, &mut case)?;
            let has_memory = memory::lack(planned.total_bytes()).is_none();
            let copy = has_memory.then(|| cache.fork()).transpose()?;
            candidates.push(Candidate {
                case,
                planned,
                cache,
                copy,
                model: &self.subject.model,
                tokens: self.tokens(),
                num_fed: 0,
                hidden: Vec::new(),
            });
        }
        Ok(candidates)
    }

    /// Holds `full` to the prefill, where that has read the token behind the context.
    fn check_full(&self, hidden: &[f32]) -> Result<()> {
        let width = hidden.len();
        let Some(expected) = self.rows.hidden.chunks_exact(width).nth(self.num_tokens) else {
            return Ok(());
        };
        let (_, error) = distance(hidden, expected);
        // Written so that NaN fails.
        ensure!(
            error <= FULL_ERROR,
            "full: the hidden state is {error:.2e} from the prefill's, and may be {FULL_ERROR}"
        );
        Ok(())
    }

    fn case(
        &self,
        candidate: Candidate<'_>,
        samples: &Samples,
        full: Option<&Full>,
        is_paired: bool,
    ) -> Result<Case> {
        let Candidate { case, planned, cache, hidden, model, .. } = candidate;
        let mut case = case.timed(samples).with("tokens_per_second", 1e9 / samples.median());
        let device = planned.device_bytes_read(&self.rows.shape, self.num_tokens)?;
        let tokens = cache.stats().steps as f64 / self.rows.shape.num_layers as f64;
        let reads = Reads {
            device: (device + model.layer_weight_bytes()) as f64,
            host: cache.stats().host_bytes as f64 / tokens.max(1.0),
            row_bytes: planned.host_row_bytes(&self.rows.shape),
        };
        reads.describe(self.ceilings, samples.median(), &mut case);
        case.set("weight_bytes", model.layer_weight_bytes() as f64);
        if let Some(full) = full {
            let (cosine, error) = distance(&hidden, &full.hidden);
            let is_near =
                cosine >= REAL_COSINE || !self.rows.is_real(self.num_tokens) && cosine.is_finite();
            ensure!(
                is_near,
                "{}: the cosine to full is {cosine:.3}, and must be {REAL_COSINE}",
                planned.spec
            );
            case.set("cosine_to_full", cosine);
            case.set("relative_error_to_full", error);
            let ratio = match is_paired {
                true => bootstrap::of_pairs(samples.as_slice(), full.samples.as_slice()),
                false => bootstrap::of_medians(samples.as_slice(), full.samples.as_slice()),
            };
            case.set("ratio_to_full", ratio.median);
            case.set("ratio_to_full_low", ratio.low);
            case.set("ratio_to_full_high", ratio.high);
        }
        if !is_paired {
            case.notes.push("alone in memory: it took no turns with other caches".to_owned());
        }
        if !self.rows.is_real(self.num_tokens) {
            case.notes.push(format!("the first {} tokens over and over", self.rows.num_tokens));
        }
        Ok(Case { cache: Some(planned.spec), context: Some(self.num_tokens), ..case })
    }
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::caches::TINY;
    use crate::environment::Environment;
    use crate::machine::{Sizes, threads};
    use crate::selection::Selection;
    use crate::subject::Place;

    #[test]
    fn steps_are_held_to_the_prefill_and_a_wrong_hidden_state_ends_the_run() {
        let (level, pool) = (Level::detect(), threads(2).expect("threads"));
        let mut record = Record::new(&Environment::detect(level, 2));
        let settings = Settings {
            selection: Selection::new(Some("model".to_owned())),
            caches: TINY.map(str::to_owned).to_vec(),
            contexts: vec![300, 700],
            num_rounds: 2,
            sample_seconds: 0.0,
            level,
            pool: &pool,
        };
        let folder = tempfile::tempdir().expect("a folder");
        let sizes = Sizes::small(1);
        let selection = &settings.selection;
        let ceilings = crate::machine::measure(selection, sizes, &pool, folder.path(), &mut record);
        let ceilings = ceilings.expect("it runs");
        let subject = Place::tiny().load(310, level).expect("every checkout has it");
        let mut rows = PromptRows::of_model(&subject.model, &subject.tokens).expect("it computes");
        measure(&settings, &subject, &rows, &ceilings, Room::new(), &mut record)
            .expect("it is right");
        assert_eq!(record.cases.len(), 2 * TINY.len());
        for case in &record.cases {
            assert_eq!(case.samples_ns.len(), 2, "{}", case.name);
            assert_eq!(
                case.context == Some(700),
                case.notes.iter().any(|note| note.contains("over"))
            );
            assert!(case.figure("device_bytes_read") > case.figure("weight_bytes"));
        }
        let full = record.case("model/full@300").expect("it is there");
        assert_eq!(full.figure("relative_error_to_full"), 0.0);

        // Off by one position: what the prefill had for the token before.
        let width = subject.model.config().hidden_size;
        rows.hidden.rotate_right(width);
        let told = measure(&settings, &subject, &rows, &ceilings, Room::new(), &mut record);
        let told = format!("{:#}", told.expect_err("it is another token's"));
        assert!(told.contains("at 300 tokens: full: the hidden state is"), "{told}");
    }
}
