//! Rows as they come, into their file; what is there already; and how long the rest will take.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use heterokv_eval::{Candidate, Job, Probe, Results, Row, Run, Sample, Watcher, inputs_digest};

/// How long nothing is said at most.
const SILENCE: Duration = Duration::from_secs(60);

/// Steps that a cache could take while a context is stored in it, about.
const STEPS_OF_A_STORE: usize = 40;

/// The file of rows, and how far the run is.
pub(super) struct Watch {
    results: Results,
    run: Run,
    /// Where rows of other builds count: [`Candidate::digest`] of every cache, by its name.
    of_any_build: Option<BTreeMap<String, String>>,
    /// Steps of the rows that are to come, and of those that came.
    expected: usize,
    done: usize,
    num_rows: usize,
    begun: Instant,
    said: Instant,
    is_quiet: bool,
}

impl Watch {
    /// Goes on with the file at `path`, or begins it.
    ///
    /// # Errors
    /// A file that is in use, or is none of rows.
    pub(super) fn new(
        path: &Path,
        run: &Run,
        of_any_build: Option<BTreeMap<String, String>>,
        is_quiet: bool,
    ) -> Result<Self> {
        let (begun, run) = (Instant::now(), run.clone());
        let results = Results::open(path)?;
        let (expected, done, num_rows) = (0, 0, 0);
        Ok(Self {
            results,
            run,
            of_any_build,
            expected,
            done,
            num_rows,
            begun,
            said: begun,
            is_quiet,
        })
    }

    /// Whether a row is still to be measured.
    pub(super) fn is_left(&self, job: &Job, candidate: &Candidate<'_>, run: &Run) -> bool {
        let inputs = inputs_digest(&job.sample, candidate, run);
        !self.has(&job.task, &job.sample, &candidate.name, &inputs)
    }

    fn has(&self, task: &str, sample: &Sample, cache: &str, inputs: &str) -> bool {
        self.results.has(task, &sample.name, sample.length, cache, inputs)
            || self.has_of_any_build(task, sample, cache)
    }

    /// So many rows of a job are to come.
    pub(super) fn expect(&mut self, job: &Job, num_rows: usize) {
        self.expected += num_rows * num_steps(&job.sample);
    }

    /// Says how far the run is.
    fn say(&mut self, what: &str) {
        self.said = Instant::now();
        if !self.is_quiet {
            let rest = rest(self.begun.elapsed(), self.done, self.expected);
            eprintln!("evict: {what}; {} rows, {rest}", self.num_rows);
        }
    }

    /// Whether there is a row of the same sample and cache on the same model, made by whatever build.
    fn has_of_any_build(&self, task: &str, sample: &Sample, cache: &str) -> bool {
        let Some(digest) = self.of_any_build.as_ref().and_then(|digests| digests.get(cache)) else {
            return false;
        };
        let Run { engine, fingerprint, conditions, .. } = &self.run;
        let is_it = |row: &&Row| {
            (row.task.as_str(), row.sample.as_str(), row.cache.as_str())
                == (task, &sample.name, cache)
                && row.context == sample.length
                && (&row.cache_digest, &row.run.engine) == (digest, engine)
                && (&row.run.fingerprint, &row.run.conditions) == (fingerprint, conditions)
        };
        let mut rows = self.results.rows().iter().filter(is_it).peekable();
        if rows.peek().is_none() {
            return false;
        }
        let sample_digest = sample.digest();
        rows.any(|row| row.sample_digest == sample_digest)
    }
}

/// About how much a row takes: what is fed, and a store of the context.
fn num_steps(sample: &Sample) -> usize {
    STEPS_OF_A_STORE
        + match &sample.probe {
            Probe::Tokens(tokens) => tokens.len(),
            Probe::OwnText { num_steps } => *num_steps,
            Probe::Questions(questions) => questions.iter().map(|q| q.max_tokens).sum(),
        }
}

/// The time gone, and what is left by the rate so far.
fn rest(gone: Duration, done: usize, expected: usize) -> String {
    let minutes = |seconds: f64| (seconds / 60.0).ceil();
    let gone = gone.as_secs_f64();
    let gone_minutes = minutes(gone);
    if done == 0 {
        return format!("{gone_minutes} min gone, no estimate yet");
    }
    let left = minutes(gone / done as f64 * expected.saturating_sub(done) as f64);
    let share = 100.0 * done as f64 / expected.max(1) as f64;
    format!("{share:.0} % of this run, {gone_minutes} min gone, about {left} min left")
}

impl Watcher for Watch {
    fn is_done(&mut self, task: &str, sample: &Sample, cache: &str, inputs: &str) -> bool {
        self.has(task, sample, cache, inputs)
    }

    fn begins(&mut self, _: usize, _: usize, sample: &Sample) {
        self.say(&format!("reading {} tokens", sample.context.len()));
    }

    fn reads(&mut self, done: usize, total: usize) {
        if self.said.elapsed() > SILENCE {
            self.say(&format!("{done} of {total} blocks read"));
        }
    }

    fn probes(&mut self, job: &Job, done: usize, total: usize) {
        if self.said.elapsed() > SILENCE {
            let Job { task, sample } = job;
            let name = &sample.name;
            self.say(&format!("{task} at {} tokens, {name}: {done} of {total}", sample.length));
        }
    }

    fn row(&mut self, row: Row) -> heterokv_eval::Result<()> {
        self.done += STEPS_OF_A_STORE
            + match &row.outcome {
                heterokv_eval::Outcome::Divergence { steps, .. } => steps.len() + 1,
                heterokv_eval::Outcome::Answers { .. } => row.time.num_steps,
            };
        self.num_rows += 1;
        self.results.push(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_by_the_rate_so_far() {
        let of = |seconds, done| rest(Duration::from_secs(seconds), done, 400);
        assert_eq!(of(60, 0), "1 min gone, no estimate yet");
        assert_eq!(of(600, 100), "25 % of this run, 10 min gone, about 30 min left");
        assert_eq!(of(600, 400), "100 % of this run, 10 min gone, about 0 min left");
    }
}
