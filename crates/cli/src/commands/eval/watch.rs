//! Rows as they come: to the results file, to stdout, and progress to the terminal.

use std::path::Path;

use anyhow::Result;
use heterokv_eval::{Candidate, Job, Results, Row, Run, Sample, Watcher, inputs_digest};

use crate::output::print_line;
use crate::progress::Bar;

/// Takes rows in, and knows those that are there already.
pub(super) struct Watch {
    results: Option<Results>,
    /// Rows of this run, where there is no results file.
    rows: Vec<Row>,
    is_json: bool,
    bar: Option<Bar>,
}

impl Watch {
    /// Goes on with the results file, if there is one.
    ///
    /// # Errors
    /// A file that is in use, or is no results file.
    pub(super) fn new(out: Option<&Path>, is_json: bool) -> Result<Self> {
        let results = out.map(Results::open).transpose()?;
        Ok(Self { results, rows: Vec::new(), is_json, bar: None })
    }

    fn all(&self) -> &[Row] {
        self.results.as_ref().map_or(&self.rows, Results::rows)
    }

    /// How many rows are still to be measured.
    pub(super) fn num_left(
        &mut self,
        jobs: &[Job],
        candidates: &[Candidate<'_>],
        run: &Run,
    ) -> usize {
        let mut num_left = 0;
        for job in jobs {
            for candidate in candidates {
                let inputs = inputs_digest(&job.sample, candidate, run);
                num_left +=
                    usize::from(!self.is_done(job.task, &job.sample, &candidate.name, &inputs));
            }
        }
        num_left
    }

    /// The rows of these samples and caches, whenever they were measured, in that order.
    pub(super) fn into_rows(
        self,
        jobs: &[Job],
        candidates: &[Candidate<'_>],
        run: &Run,
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        for job in jobs {
            for candidate in candidates {
                let inputs = inputs_digest(&job.sample, candidate, run);
                let is_it = |row: &&Row| {
                    row.inputs == inputs
                        && (row.task.as_str(), &row.sample, &row.cache)
                            == (job.task, &job.sample.name, &candidate.name)
                };
                rows.extend(self.all().iter().find(is_it).cloned());
            }
        }
        rows
    }
}

impl Watcher for Watch {
    fn is_done(&mut self, task: &str, sample: &Sample, cache: &str, inputs: &str) -> bool {
        let results = self.results.as_ref();
        results.is_some_and(|results| results.has(task, &sample.name, sample.length, cache, inputs))
    }

    fn begins(&mut self, index: usize, total: usize, sample: &Sample) {
        let tokens = crate::output::tokens(sample.context.len());
        self.bar = Some(Bar::new(format!("context {} of {total}, {tokens}", index + 1)));
    }

    fn reads(&mut self, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set(done, total);
        }
    }

    fn probes(&mut self, job: &Job, done: usize, total: usize) {
        if done == 1 {
            self.bar = Some(Bar::new(format!("{} {}", job.task, job.sample.name)));
        }
        self.reads(done, total);
    }

    fn row(&mut self, row: Row) -> heterokv_eval::Result<()> {
        if self.is_json {
            // A reader that has gone ends the run when the tables are printed; rows go on to the file until then.
            let line = serde_json::to_string(&row).unwrap_or_default();
            let _ = print_line(&line);
        }
        match &mut self.results {
            Some(results) => results.push(row)?,
            None => self.rows.push(row),
        }
        self.bar = None;
        Ok(())
    }
}
