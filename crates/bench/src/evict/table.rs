//! The table of all caches: what their rows come to, context by context.

use heterokv_eval::{Job, Outcome, Row, Steps};

use super::bars::Measured;
use super::grid::{Entry, Standing};
use crate::caches::FULL;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// Columns of the table.
const COLUMNS: [&str; 15] = [
    "context",
    "cache",
    "asked",
    "ratio",
    "KL",
    "recall KL",
    "top-1",
    "ppl",
    "passkey",
    "multikey",
    "device MiB",
    "host MiB",
    "tok/s",
    "of full",
    "note",
];

/// A cache that could not be measured at a context.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) name: String,
    pub(super) context: usize,
}

/// The rows that count: the last one of each cache and sample that were asked for.
pub(super) struct Board<'a> {
    entries: &'a [Entry],
    contexts: Vec<usize>,
    /// `[entries][contexts]`.
    figures: Vec<Vec<Figures>>,
    /// What made the rows.
    commits: Vec<&'a str>,
}

/// What the rows of a cache at a context come to.
#[derive(Debug, Default)]
struct Figures {
    /// Samples that have a row, and that should.
    num_rows: usize,
    num_jobs: usize,
    /// Steps of `kl` and `recall`.
    plain: Steps,
    recall: Steps,
    /// Right answers of those asked: of `passkey` and `multikey`.
    answers: [(f64, usize); 2],
    /// Of the samples of `kl`: the most bytes on the device over those of a full cache, those bytes, and on the host.
    ratio: f64,
    device_bytes: usize,
    host_bytes: usize,
    /// Medians of the samples of `kl`.
    step_seconds: Samples,
}

impl<'a> Board<'a> {
    pub(super) fn new(rows: &'a [Row], jobs: &[Job], entries: &'a [Entry]) -> Self {
        let mut contexts: Vec<usize> = Vec::new();
        for job in jobs {
            if !contexts.contains(&job.sample.length) {
                contexts.push(job.sample.length);
            }
        }
        let jobs: Vec<(&Job, String)> = jobs.iter().map(|job| (job, job.sample.digest())).collect();
        let mut commits = Vec::new();
        let mut of_entry = |entry: &Entry| {
            let cache = entry.candidate().map(|candidate| (&candidate.name, candidate.digest()));
            let mut of_context = |&context: &usize| {
                let jobs = jobs.iter().filter(|(job, _)| job.sample.length == context);
                let mut figures = Figures::default();
                for (job, sample_digest) in jobs {
                    figures.num_jobs += 1;
                    let Some((name, digest)) = &cache else { continue };
                    let is_it = |row: &&Row| {
                        (&row.task, &row.sample, row.context)
                            == (&job.task, &job.sample.name, job.sample.length)
                            && (&row.sample_digest, &row.cache) == (sample_digest, name)
                            && row.cache_digest == *digest
                    };
                    let Some(row) = rows.iter().rfind(is_it) else { continue };
                    figures.add(row);
                    if !commits.contains(&row.run.commit.as_str()) {
                        commits.push(row.run.commit.as_str());
                    }
                }
                figures
            };
            contexts.iter().map(&mut of_context).collect()
        };
        let figures = entries.iter().map(&mut of_entry).collect();
        Self { entries, contexts, figures, commits }
    }

    /// What bars are about; none where a row is missing. Speed is NaN where `full` was not asked for.
    pub(super) fn measured(&self, entry: &Entry, context: usize) -> Option<Measured> {
        let figures = self.figures(entry, context)?;
        let is_complete = figures.num_rows == figures.num_jobs;
        let mean = |steps: &Steps| steps.summary().map(|summary| summary.kl_mean);
        is_complete.then_some(())?;
        let full = self.entries.iter().find(|entry| entry.name == FULL);
        let full = full.and_then(|full| self.figures(full, context)).map(Figures::rate);
        Some(Measured {
            plain: mean(&figures.plain)?,
            recall: mean(&figures.recall)?,
            of_full: figures.rate() / full.unwrap_or(f64::NAN),
        })
    }

    /// The most bytes on the device over those of a full cache, where the samples of `kl` were measured.
    pub(super) fn ratio(&self, entry: &Entry, context: usize) -> Option<f64> {
        let figures = self.figures(entry, context)?;
        (!figures.plain.is_empty()).then_some(figures.ratio)
    }

    /// Whether every cache that can be measured was.
    pub(super) fn is_complete(&self) -> bool {
        let mut all = self.entries.iter().zip(&self.figures);
        all.all(|(entry, of_contexts)| {
            let has_all = |figures: &Figures| figures.num_rows == figures.num_jobs;
            entry.candidate().is_none() || of_contexts.iter().all(has_all)
        })
    }

    fn figures(&self, entry: &Entry, context: usize) -> Option<&Figures> {
        let place = self.entries.iter().position(|other| other.name == entry.name)?;
        let context = self.contexts.iter().position(|&other| other == context)?;
        Some(&self.figures[place][context])
    }

    /// The table: contexts in order, in each `full`, then ratios as they were asked for, caches in order.
    pub(super) fn sheet(&self, model: &str, failures: &[Failure]) -> Sheet {
        let commits = self.commits.join(", ");
        let mut sheet = Sheet::new(format!("Presets on {model}, rows of {commits}"), &COLUMNS);
        let mut ratios: Vec<Option<f64>> = Vec::new();
        for entry in self.entries {
            if !ratios.contains(&entry.ratio) {
                ratios.push(entry.ratio);
            }
        }
        for &context in &self.contexts {
            let full = self.entries.iter().find(|entry| entry.name == FULL);
            let full = full.and_then(|full| self.figures(full, context)).map(Figures::rate);
            for ratio in &ratios {
                for entry in self.entries.iter().filter(|entry| entry.ratio == *ratio) {
                    let Some(figures) = self.figures(entry, context) else { continue };
                    let has_failed =
                        failures.iter().any(|f| f.name == entry.name && f.context == context);
                    sheet.push(cells(entry, context, figures, full, has_failed));
                }
            }
        }
        sheet
    }
}

impl Figures {
    fn add(&mut self, row: &Row) {
        self.num_rows += 1;
        match (&row.outcome, row.task.as_str()) {
            (Outcome::Divergence { steps, .. }, "recall") => self.recall.extend(steps),
            (Outcome::Divergence { steps, .. }, _) => {
                self.plain.extend(steps);
                self.step_seconds.push(row.time.step_seconds);
                for memory in &row.memory {
                    self.ratio = self.ratio.max(memory.ratio());
                    self.device_bytes = self.device_bytes.max(memory.device.total());
                    self.host_bytes = self.host_bytes.max(memory.host_bytes);
                }
            }
            (Outcome::Answers { answers, .. }, task) => {
                let (right, asked) = &mut self.answers[usize::from(task == "multikey")];
                *right += answers.iter().map(|answer| answer.score).sum::<f64>();
                *asked += answers.len();
            }
        }
    }

    /// Tokens per second.
    fn rate(&self) -> f64 {
        1.0 / self.step_seconds.median()
    }
}

/// A row of the table. Of what was not measured cells are empty.
fn cells(
    entry: &Entry,
    context: usize,
    figures: &Figures,
    full_rate: Option<f64>,
    has_failed: bool,
) -> Vec<Cell> {
    let own = if entry.preset.is_some() { "own" } else { "" };
    let asked = entry.ratio.map_or(own.to_owned(), |ratio| format!("{ratio} %"));
    let (plain, recall) = (figures.plain.summary(), figures.recall.summary());
    let number = |value: Option<f64>, digits| match value {
        Some(value) => Cell::Number(value, digits),
        None => Cell::text(""),
    };
    let loss = |kl: Option<f64>| kl.map_or(Cell::text(""), Cell::Scientific);
    let answers = |(right, asked): (f64, usize)| match asked {
        0 => Cell::text(""),
        _ => Cell::text(format!("{right:.0}/{asked}")),
    };
    let measured = (!figures.plain.is_empty()).then_some(figures);
    let ratio = match entry.standing {
        Standing::Unreachable { least } => Some(least),
        _ => measured.map(|figures| 100.0 * figures.ratio),
    };
    let is_above = ratio.zip(entry.ratio).is_some_and(|(ratio, asked)| ratio > asked);
    let note = match entry.standing.word() {
        "" if has_failed => "failed",
        "" if figures.num_rows == 0 => "unmeasured",
        "" if figures.num_rows < figures.num_jobs => "unfinished",
        "" if is_above => "above",
        word => word,
    };
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let rate = measured.map(Figures::rate);
    vec![
        Cell::Number(context as f64, 0),
        Cell::text(&entry.name),
        Cell::text(asked),
        number(ratio, 1),
        loss(plain.map(|summary| summary.kl_mean)),
        loss(recall.map(|summary| summary.kl_mean)),
        number(plain.map(|summary| 100.0 * summary.top1), 1),
        number(plain.map(|summary| summary.ppl), 3),
        answers(figures.answers[0]),
        answers(figures.answers[1]),
        number(measured.map(|figures| mib(figures.device_bytes)), 1),
        number(measured.map(|figures| mib(figures.host_bytes)), 1),
        number(rate, 1),
        number(rate.zip(full_rate).map(|(rate, full)| rate / full), 2),
        Cell::text(note),
    ]
}
