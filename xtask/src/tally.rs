//! Counting tests out of what nextest and libtest print.
//!
//! A test that cannot check anything, because a file it needs is absent, prints a line that begins with
//! [`ANNOUNCEMENT`] and returns. The runner calls that a pass; here it is a skip, so that a green total never
//! hides what was not looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

/// How a test says that it checked nothing; the reason follows on the same line.
pub(crate) const ANNOUNCEMENT: &str = "SKIPPED: ";

/// Outcomes, each test or check counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) num_passed: u64,
    pub(crate) num_failed: u64,
    pub(crate) num_skipped: u64,
    /// Names of tests that failed; a check that has none is counted only.
    pub(crate) failed_tests: Vec<String>,
}

impl Tally {
    /// One check that passed or failed.
    pub(crate) fn of_check(passed: bool) -> Self {
        Self { num_passed: u64::from(passed), num_failed: u64::from(!passed), ..Self::default() }
    }

    /// One check that could not be made.
    pub(crate) fn of_skip() -> Self {
        Self { num_skipped: 1, ..Self::default() }
    }

    /// Tests that the runner came to, whatever became of them.
    pub(crate) fn num_tests(&self) -> u64 {
        self.num_passed + self.num_failed + self.num_skipped
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.num_passed += other.num_passed;
        self.num_failed += other.num_failed;
        self.num_skipped += other.num_skipped;
        self.failed_tests.extend(other.failed_tests);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { num_passed, num_failed, num_skipped, .. } = self;
        write!(f, "{num_passed} passed, {num_failed} failed, {num_skipped} skipped")
    }
}

/// Whose lines are read: nextest shows libtest's own lines inside each test's output, so the two cannot be told
/// apart by the line alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runner {
    Nextest,
    Libtest,
}

/// Reads one stream of a test runner, line by line.
pub(crate) struct RunnerOutput {
    runner: Runner,
    /// Sum of the runner's own summary lines; libtest prints one per binary.
    summed: Tally,
    num_summaries: u64,
    /// The test whose output is being printed.
    current: Option<String>,
    announced: BTreeSet<String>,
    failed: BTreeSet<String>,
    reasons: Vec<String>,
}

impl RunnerOutput {
    /// Nothing read yet.
    pub(crate) fn of(runner: Runner) -> Self {
        Self {
            runner,
            summed: Tally::default(),
            num_summaries: 0,
            current: None,
            announced: BTreeSet::new(),
            failed: BTreeSet::new(),
            reasons: Vec::new(),
        }
    }

    /// Takes the next line.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(reason) = line.strip_prefix(ANNOUNCEMENT) {
            if let Some(name) = &self.current
                && self.announced.insert(name.clone())
            {
                self.reasons.push(reason.to_owned());
            }
            return;
        }
        match self.runner {
            Runner::Nextest => self.nextest_line(line),
            Runner::Libtest => self.libtest_line(line),
        }
    }

    fn nextest_line(&mut self, line: &str) {
        if let Some(tally) = nextest_summary(line) {
            self.summarise(tally);
        } else if let Some((name, passed)) = nextest_status(line) {
            if !passed {
                self.failed.insert(name.to_owned());
            }
            self.current = Some(name.to_owned());
        }
    }

    fn libtest_line(&mut self, line: &str) {
        // Names repeat from binary to binary, so the number of binaries finished is part of the key.
        let key = |name: &str| format!("{} {name}", self.num_summaries);
        if let Some(tally) = libtest_summary(line) {
            self.summarise(tally);
        } else if let Some(name) = enclosed(line, "---- ", " stdout ----") {
            self.current = Some(key(name));
        } else if let Some(name) = enclosed(line, "test ", " ... FAILED") {
            let name = key(name);
            self.failed.insert(name);
        }
    }

    /// The name in a key of [`RunnerOutput::failed`].
    fn name_of<'k>(&self, key: &'k str) -> &'k str {
        match self.runner {
            Runner::Nextest => key,
            Runner::Libtest => key.split_once(' ').map_or(key, |(_, name)| name),
        }
    }

    fn summarise(&mut self, tally: Tally) {
        self.summed += tally;
        self.num_summaries += 1;
        self.current = None;
    }

    /// What ran: announced skips taken from the passes, and tests that libtest ignored among the skips.
    ///
    /// Nextest's own count of skips is left out, since it holds what its filter set aside; the caller knows the
    /// ignored ones from the list of tests. `None` if no summary was seen, so that a runner that died is never
    /// taken for one that had nothing to do.
    pub(crate) fn tally(&self) -> Option<Tally> {
        if self.num_summaries == 0 {
            return None;
        }
        let num_announced = self.announced.difference(&self.failed).count() as u64;
        let Tally { num_passed, num_failed, num_skipped, .. } = self.summed;
        Some(Tally {
            num_passed: num_passed.saturating_sub(num_announced),
            num_failed,
            num_skipped: num_skipped + num_announced,
            failed_tests: self.failed.iter().map(|key| self.name_of(key).to_owned()).collect(),
        })
    }

    /// The reasons announced, one per test, in the order of printing.
    pub(crate) fn reasons(&self) -> &[String] {
        &self.reasons
    }
}

/// `Summary [ 0.5s] 12 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped`.
/// What is skipped here was ignored or set aside by the filter, and is left at 0.
fn nextest_summary(line: &str) -> Option<Tally> {
    let rest = line.strip_prefix("Summary [")?;
    let (_, counts) = rest.split_once(" run: ")?;
    let mut tally = Tally::default();
    for part in without_parentheses(counts).split(',') {
        let (number, outcome) = part.trim().split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match outcome.trim() {
            "passed" => tally.num_passed += number,
            "skipped" => {}
            // Failed, timed out, could not be executed: all the same to the one who counts.
            _ => tally.num_failed += number,
        }
    }
    Some(tally)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
fn libtest_summary(line: &str) -> Option<Tally> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let count = |outcome: &str| {
        counts.split(';').find_map(|part| part.trim().strip_suffix(outcome)?.trim().parse().ok())
    };
    Some(Tally {
        num_passed: count("passed")?,
        num_failed: count("failed")?,
        num_skipped: count("ignored")?,
        ..Tally::default()
    })
}

/// `PASS [   0.004s] (1/2) heterokv-quant tests::name`, with whether it is a pass; `None` for other lines.
fn nextest_status(line: &str) -> Option<(&str, bool)> {
    let (status, rest) = line.split_once(" [")?;
    let passed = match status.trim() {
        "PASS" | "LEAK" => true,
        "FAIL" | "TIMEOUT" | "ABORT" | "LEAK-FAIL" | "XFAIL" => false,
        status if status.starts_with("SIG") => false,
        _ => return None,
    };
    let (_, name) = rest.split_once("] ")?;
    // A progress counter in parentheses stands before the name.
    let name = name.trim();
    let name = match name.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
        Some((_, name)) => name.trim(),
        None => name,
    };
    Some((name, passed))
}

fn enclosed<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.strip_suffix(after)
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0_u32;
    let mut kept = String::new();
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            c if depth == 0 => kept.push(c),
            _ => {}
        }
    }
    kept
}

#[cfg(test)]
mod tests;
