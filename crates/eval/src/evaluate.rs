//! Samples through caches: each context is taken in once, by all caches that have to do with it, and every probe
//! behind it is put to a fork of each.

mod probe;

use std::collections::BTreeSet;

use heterokv_cache::{CachePlan, KvCache};
use heterokv_model::text::Tokenizer;
use heterokv_model::{Model, Progress};

use crate::Result;
use crate::divergence::{Distribution, median};
use crate::hash::hex_digest;
use crate::reading::{ReadCache, Reading, read};
use crate::row::{Outcome, ROW_VERSION, Row, Run, Time};
use crate::subject::{Candidate, Subject};
use crate::task::{Probe, Sample};
use probe::Probed;

/// A sample of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Name of the task, as [`Row::task`] has it.
    pub task: String,
    /// The sample.
    pub sample: Sample,
}

impl Job {
    /// A sample of the task of that name.
    #[must_use]
    pub fn new(task: &str, sample: Sample) -> Self {
        let task = match &sample.part {
            Some(part) => format!("{task}/{part}"),
            None => task.to_owned(),
        };
        Self { task, sample }
    }
}

/// What looks on while samples are evaluated.
pub trait Watcher {
    /// Whether a row with these is at hand already, and need not be made again. `inputs` is [`Row::inputs`]. Asked for
    /// every sample and cache before the first context begins, so that a watcher may learn from it what was asked for.
    fn is_done(&mut self, task: &str, sample: &Sample, cache: &str, inputs: &str) -> bool;

    /// Context `index` of `total` is about to be taken in.
    fn begins(&mut self, index: usize, total: usize, sample: &Sample);

    /// The context is taken in: so much of it.
    fn reads(&mut self, done: usize, total: usize);

    /// A probe goes on: so much of it.
    fn probes(&mut self, job: &Job, done: usize, total: usize);

    /// A row is there.
    ///
    /// # Errors
    /// What ends the evaluation.
    fn row(&mut self, row: Row) -> Result<()>;
}

/// What computes.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl Engine<'_> {
    /// Tokens that end a reply.
    fn end_ids(&self) -> BTreeSet<u32> {
        let of_config = &self.model.config().eos_token_ids;
        self.tokenizer.end_ids().iter().chain(of_config).copied().collect()
    }

    /// Rows of the output projection that the tokenizer has no token for.
    fn nameless_ids(&self) -> BTreeSet<u32> {
        let ids = 0..u32::try_from(self.model.config().vocab_size).unwrap_or(u32::MAX);
        ids.filter(|&id| self.tokenizer.token_bytes(id).is_err()).collect()
    }

    /// All that a text does not go on with.
    fn unspoken_ids(&self) -> BTreeSet<u32> {
        &self.end_ids() | &self.nameless_ids()
    }
}

/// Puts every sample to every candidate and hands the rows to `watcher`, sample by sample, candidates in order.
///
/// Where distributions are compared, they are compared with those of a cache `full` of its own, step by step side by
/// side: a candidate that is `full` itself is decoded independently. Samples with the same context share its
/// prefill. What is done already (by [`Watcher::is_done`]) is left out, and with it contexts of which nothing is left.
///
/// # Errors
/// [`Error::NotCompressed`](crate::Error::NotCompressed) for a cache that holds more bytes than its plan or its name
/// says, behind the prompt or while tokens come; a distribution that is not finite; what the model, a cache or the watcher refuses.
pub fn evaluate(
    engine: Engine<'_>,
    jobs: &[Job],
    candidates: &[Candidate<'_>],
    run: &Run,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let mut groups: Vec<Vec<Pending<'_>>> = Vec::new();
    for job in jobs {
        let pending = Pending::of(job, candidates, run, watcher);
        let same =
            groups.iter_mut().find(|group| group[0].job.sample.context == job.sample.context);
        match same {
            Some(group) => group.push(pending),
            None => groups.push(vec![pending]),
        }
    }
    groups.iter_mut().for_each(|group| group.retain(|pending| !pending.candidates.is_empty()));
    groups.retain(|group| !group.is_empty());
    let total = groups.len();
    for (index, group) in groups.iter().enumerate() {
        watcher.begins(index, total, &group[0].job.sample);
        Group { engine, candidates, run }.evaluate(group, watcher)?;
    }
    Ok(())
}

/// What is left to do of a job.
struct Pending<'a> {
    job: &'a Job,
    /// Indices of candidates, and what tells their rows from others.
    candidates: Vec<(usize, String)>,
}

impl<'a> Pending<'a> {
    fn of(
        job: &'a Job,
        candidates: &[Candidate<'_>],
        run: &Run,
        watcher: &mut dyn Watcher,
    ) -> Self {
        let mut pending = Vec::new();
        for (index, candidate) in candidates.iter().enumerate() {
            let inputs = inputs_digest(&job.sample, candidate, run);
            if !watcher.is_done(&job.task, &job.sample, &candidate.name, &inputs) {
                pending.push((index, inputs));
            }
        }
        Self { job, candidates: pending }
    }
}

/// What [`Row::inputs`] is for a candidate on a sample.
#[must_use]
pub fn inputs_digest(sample: &Sample, candidate: &Candidate<'_>, run: &Run) -> String {
    let own = [sample.digest(), candidate.digest()];
    let of_run = [&run.engine, &run.build, &run.fingerprint, &run.conditions];
    hex_digest(own.iter().chain(of_run).map(|part| part.as_bytes()))
}

/// Samples with one context.
struct Group<'a> {
    engine: Engine<'a>,
    candidates: &'a [Candidate<'a>],
    run: &'a Run,
}

/// A cache that has taken the context in.
struct Held<'a> {
    candidate: &'a Candidate<'a>,
    subject: Box<dyn Subject>,
    /// How long the prefill took that it shared with others.
    prefill_seconds: f64,
    /// How many caches that prefill filled.
    prefill_caches: usize,
}

/// All caches that have.
struct Prefilled<'a> {
    /// What others are held against.
    reference: Box<dyn Subject>,
    /// As many as are wanted, in order.
    held: Vec<Held<'a>>,
    /// What `full` says comes next.
    last: Distribution,
}

impl Group<'_> {
    fn evaluate(&self, group: &[Pending<'_>], watcher: &mut dyn Watcher) -> Result<()> {
        let context = &group[0].job.sample.context;
        let is_wanted = |index: &usize| {
            group.iter().any(|pending| pending.candidates.iter().any(|(wanted, _)| wanted == index))
        };
        let wanted: Vec<usize> = (0..self.candidates.len()).filter(is_wanted).collect();
        let mut progress = |done, total| watcher.reads(done, total);
        let Prefilled { reference, held, last } = self.prefill(context, &wanted, &mut progress)?;
        for pending in group {
            let sample = &pending.job.sample;
            let mut probed: Vec<Probed> = Vec::new();
            let mut rows = Vec::new();
            for (index, inputs) in &pending.candidates {
                // What is pending of a job is wanted of its group, and held in the same order.
                let held = &held[wanted.partition_point(|wanted| wanted < index)];
                probed.push(Probed::new(&held.candidate.name, held.subject.fork()?));
                rows.push((held, inputs));
            }
            let mut progress = |done, total| watcher.probes(pending.job, done, total);
            let mut diverge = |feed| {
                let reference = Probed::new("full", reference.fork()?);
                probe::diverge(self.engine, reference, &mut probed, feed, &mut progress)
            };
            let outcomes = match &sample.probe {
                Probe::Tokens(tokens) => diverge(probe::Feed::Given(tokens))?,
                Probe::OwnText { num_steps } => {
                    diverge(probe::Feed::Own { num_steps: *num_steps, last: &last })?
                }
                Probe::Questions(questions) => {
                    probe::ask(self.engine, &mut probed, questions, &mut progress)?
                }
            };
            let time = |held: &Held<'_>, probed: &Probed| Time {
                prefill_seconds: held.prefill_seconds,
                prefill_caches: held.prefill_caches,
                step_seconds: median(&probed.step_seconds),
                num_steps: probed.step_seconds.len(),
            };
            for (((held, inputs), probed), outcome) in rows.into_iter().zip(probed).zip(outcomes) {
                let time = time(held, &probed);
                let inputs = inputs.clone();
                watcher.row(self.row(
                    pending.job,
                    held.candidate,
                    inputs,
                    probed,
                    outcome,
                    time,
                )?)?;
            }
        }
        Ok(())
    }

    /// What came of a job with a cache, whose bytes are held against its plan.
    fn row(
        &self,
        Job { task, sample }: &Job,
        candidate: &Candidate<'_>,
        inputs: String,
        probed: Probed,
        outcome: Outcome,
        time: Time,
    ) -> Result<Row> {
        let Probed { subject, mut memory, .. } = probed;
        for memory in &mut memory {
            let plan = self.plan(candidate, memory.num_tokens)?;
            memory.predicted_device_bytes = Some(plan.device.total());
            candidate.check_bytes(memory, &plan)?;
        }
        Ok(Row {
            version: ROW_VERSION,
            task: task.clone(),
            sample: sample.name.clone(),
            context: sample.length,
            num_tokens: sample.context.len(),
            depth: sample.depth,
            cache: candidate.name.clone(),
            spec: candidate.config.to_string(),
            cache_digest: candidate.digest(),
            sample_digest: sample.digest(),
            inputs,
            outcome,
            rows_read: Some(subject.rows_read()),
            memory,
            time,
            run: self.run.clone(),
        })
    }

    fn plan(&self, candidate: &Candidate<'_>, num_tokens: usize) -> Result<CachePlan> {
        let shape = self.engine.model.kv_shape();
        Ok(CachePlan::new(&candidate.config, &shape, num_tokens)?)
    }

    /// The context in a cache `full`, which is read with exact attention, and in each of the wanted candidates.
    fn prefill(
        &self,
        context: &[u32],
        wanted: &[usize],
        progress: Progress<'_>,
    ) -> Result<Prefilled<'_>> {
        let model = self.engine.model;
        let chosen = wanted.iter().map(|&index| &self.candidates[index]);
        let mut caches = vec![new_cache(model, &Candidate::full())?];
        for candidate in chosen.clone() {
            caches.push(new_cache(model, candidate)?);
        }
        let Reading { caches, last } = read(model, context, caches, Some(progress))?;
        let last = Distribution::of_logits(&model.logits(&last)?);
        let mut caches = caches.into_iter();
        let reference = caches.next().expect("the full one").cache;
        let mut held = Vec::new();
        for (candidate, read) in chosen.zip(caches) {
            let ReadCache { cache, seconds, num_together } = read;
            let plan = self.plan(candidate, context.len())?;
            let subject: Box<dyn Subject> = match candidate.replace {
                Some(replace) => replace(context, cache)?,
                None => Box::new(cache),
            };
            candidate.check_bytes(&subject.memory(), &plan)?;
            held.push(Held {
                candidate,
                subject,
                prefill_seconds: seconds,
                prefill_caches: num_together,
            });
        }
        Ok(Prefilled { reference: Box::new(reference), held, last })
    }
}

fn new_cache(model: &Model, candidate: &Candidate<'_>) -> Result<KvCache> {
    let profile = candidate.profile.as_ref().map(|(profile, _)| *profile);
    Ok(KvCache::new(model.kv_shape(), candidate.config.clone(), model.level(), profile)?)
}
