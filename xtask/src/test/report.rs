//! The steps of a test run: wall time, outcome, the final table and the closing line.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::tally::Tally;

/// A step before it runs.
pub(super) struct Step {
    name: &'static str,
    /// How long it should take on a machine of two cores; more is pointed out and fails nothing.
    limit: Option<Duration>,
}

impl Step {
    /// A step without a limit.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, limit: None }
    }

    /// The same step, meant to end in time.
    pub(super) fn within_minutes(self, num_minutes: u64) -> Self {
        Self { limit: Some(Duration::from_secs(60 * num_minutes)), ..self }
    }
}

/// A step that ran.
struct Row {
    step: Step,
    wall: Duration,
    tally: Tally,
}

/// All steps so far.
pub(super) struct Report {
    began: Instant,
    rows: Vec<Row>,
}

impl Report {
    /// No steps yet; the clock runs.
    pub(super) fn begin() -> Self {
        Self { began: Instant::now(), rows: Vec::new() }
    }

    /// Runs one step and keeps what came of it; an error is printed and counts as one failure. True if nothing
    /// failed.
    pub(super) fn step(&mut self, step: Step, work: impl FnOnce() -> Result<Tally>) -> bool {
        println!("\n== {}", step.name);
        let began = Instant::now();
        let tally = work().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Tally::of_check(false)
        });
        let row = Row { step, wall: began.elapsed(), tally };
        println!("-- {}: {}, {}", row.step.name, seconds(row.wall), row.tally);
        let passed = row.tally.num_failed == 0;
        self.rows.push(row);
        passed
    }

    /// Prints the table, the names of the tests that failed and, alone on the last line, the sum; true if nothing
    /// failed.
    pub(super) fn end(self) -> bool {
        let total = total(&self.rows);
        println!("\n{}", table(&self.rows, self.began.elapsed(), &total));
        for line in failures(&self.rows) {
            println!("{line}");
        }
        println!("{total}");
        total.num_failed == 0
    }
}

fn total(rows: &[Row]) -> Tally {
    let mut total = Tally::default();
    for row in rows {
        total += row.tally.clone();
    }
    total
}

/// One line per test that failed: its step and its name.
fn failures(rows: &[Row]) -> Vec<String> {
    let of = |row: &Row| -> Vec<String> {
        let line = |test: &String| format!("failed: {}: {test}", row.step.name);
        row.tally.failed_tests.iter().map(line).collect()
    };
    rows.iter().flat_map(of).collect()
}

/// One line per step, and one for all of them.
fn table(rows: &[Row], wall: Duration, total: &Tally) -> String {
    let line = |name: &str, wall: &str, tally: &Tally, note: &str| {
        let Tally { num_passed, num_failed, num_skipped, .. } = tally;
        format!("{name:<26} {wall:>9} {num_passed:>7} {num_failed:>7} {num_skipped:>8}  {note}")
            .trim_end()
            .to_owned()
    };
    let head =
        format!("{:<26} {:>9} {:>7} {:>7} {:>8}", "step", "wall", "passed", "failed", "skipped");
    let mut lines = vec![head];
    for row in rows {
        let note = match row.step.limit {
            Some(limit) if row.wall > limit => format!("over its {}", seconds(limit)),
            _ => String::new(),
        };
        lines.push(line(row.step.name, &seconds(row.wall), &row.tally, &note));
    }
    lines.push(line("all", &seconds(wall), total, ""));
    lines.join("\n")
}

fn seconds(wall: Duration) -> String {
    format!("{:.1} s", wall.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_failure_and_later_steps_still_run() {
        let mut report = Report::begin();
        assert!(report.step(Step::new("first"), || Ok(Tally::of_check(true))));
        assert!(!report.step(Step::new("second"), || anyhow::bail!("no")));
        assert!(report.step(Step::new("third"), || Ok(Tally::of_skip())));
        assert_eq!(total(&report.rows).to_string(), "1 passed, 1 failed, 1 skipped");
        assert!(!report.end());
    }

    #[test]
    fn tests_that_failed_are_named_with_their_step() {
        let tally = Tally { failed_tests: vec!["a b::c".into()], ..Tally::of_check(false) };
        let mut report = Report::begin();
        report.step(Step::new("first"), || Ok(Tally::of_check(false)));
        report.step(Step::new("second"), || Ok(tally));
        assert_eq!(failures(&report.rows), ["failed: second: a b::c"]);
    }

    #[test]
    fn a_report_without_failures_ends_well() {
        let mut report = Report::begin();
        report.step(Step::new("only"), || Ok(Tally::of_check(true)));
        assert!(report.end());
    }

    #[test]
    fn a_step_over_its_limit_is_pointed_out() {
        let row = |wall| Row {
            step: Step::new("build").within_minutes(1),
            wall: Duration::from_secs(wall),
            tally: Tally::default(),
        };
        let table = table(&[row(60), row(61)], Duration::from_secs(121), &Tally::default());
        let over: Vec<bool> = table.lines().map(|line| line.ends_with("over its 60.0 s")).collect();
        assert_eq!(over, [false, false, true, false], "{table}");
    }
}
