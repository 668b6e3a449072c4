//! Rows as they come: to the results file, to stdout, and progress to the terminal.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use heterokv_eval::{Candidate, Job, Results, Row, Run, Sample, Watcher, inputs_digest};

use crate::failure::Unwritable;
use crate::output::print_line;
use crate::progress::Bar;

/// Takes rows in, and knows those that are there already.
pub(super) struct Watch {
    results: Option<Results>,
    /// Rows of this run, where there is no results file.
    rows: Vec<Row>,
    /// [`Row::inputs`] of what was asked for.
    seen: HashSet<String>,
    is_json: bool,
    /// [`Row::inputs`] of rows printed as JSON when they were made.
    printed: HashSet<String>,
    bar: Option<Bar>,
}

impl Watch {
    /// Goes on with the results file, if there is one.
    ///
    /// # Errors
    /// A file that is in use, or is no results file.
    pub(super) fn new(out: Option<&Path>, is_json: bool) -> Result<Self> {
        let results = out.map(Results::open).transpose()?;
        let (rows, seen, printed) = (Vec::new(), HashSet::new(), HashSet::new());
        Ok(Self { results, rows, seen, is_json, printed, bar: None })
    }

    /// Whether a row is still to be measured.
    pub(super) fn is_any_left(
        &mut self,
        jobs: &[Job],
        candidates: &[Candidate<'_>],
        run: &Run,
    ) -> bool {
        jobs.iter().any(|job| {
            candidates.iter().any(|candidate| {
                let inputs = inputs_digest(&job.sample, candidate, run);
                !self.is_done(&job.task, &job.sample, &candidate.name, &inputs)
            })
        })
    }

    /// The rows that were asked for, made now or found made, each once: in the order of the samples, caches in the order
    /// in which they were measured.
    ///
    /// # Errors
    /// What was found made and cannot be printed as JSON now.
    pub(super) fn into_rows(self, jobs: &[Job]) -> Result<Vec<Row>> {
        let all = self.results.as_ref().map_or(&self.rows[..], Results::rows);
        let place = |row: &Row| {
            jobs.iter().position(|job| {
                (&job.task, &job.sample.name, job.sample.length)
                    == (&row.task, &row.sample, row.context)
            })
        };
        let asked = all.iter().filter(|row| self.seen.contains(&row.inputs));
        let mut rows: Vec<(usize, Row)> =
            asked.filter_map(|row| Some((place(row)?, row.clone()))).collect();
        rows.sort_by_key(|(place, _)| *place);
        let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
        for row in rows.iter().filter(|row| self.is_json && !self.printed.contains(&row.inputs)) {
            print_line(&serde_json::to_string(row)?)?;
        }
        Ok(rows)
    }
}

impl Watcher for Watch {
    fn is_done(&mut self, task: &str, sample: &Sample, cache: &str, inputs: &str) -> bool {
        self.seen.insert(inputs.to_owned());
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
            let line = serde_json::to_string(&row).map_err(std::io::Error::from);
            let printed =
                line.and_then(|line| print_line(&line).map_err(|Unwritable(source)| source));
            // Without a file the rows are for the reader alone, and end with it.
            if let (Err(source), None) = (printed, &self.results) {
                return Err(heterokv_eval::Error::Io { path: "stdout".into(), source });
            }
            self.printed.insert(row.inputs.clone());
        }
        match &mut self.results {
            Some(results) => results.push(row)?,
            None => self.rows.push(row),
        }
        self.bar = None;
        Ok(())
    }
}
