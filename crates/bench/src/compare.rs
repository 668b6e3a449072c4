//! A run against an earlier one of the same machine: what became slower, beyond the noise of both, or larger.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use crate::bootstrap::{self, Ratio};
use crate::machine;
use crate::record::{Case, Record};
use crate::selection::Selection;
use crate::sheet::{Cell, Sheet};

/// Samples without which an interval says nothing.
const MIN_SAMPLES: usize = 3;

/// How much more instructions a kernel may take: they hardly vary from run to run.
const ALLOWED_INSTRUCTIONS: f64 = 1.02;

/// Bytes that a cache counts, and how much more there may be: they do not vary, but capacities are rounded up.
const COUNTED: [&str; 2] = ["device_bytes_counted", "host_bytes_counted"];
const ALLOWED_COUNTED: f64 = 1.01;

/// Bytes as the operating system sees them, which vary about as times do.
const RESIDENT: [&str; 2] = ["rss_peak_bytes", "rss_steady_bytes"];

/// What a comparison lets pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// New time over old up to which the lower end of the interval may reach, and new resident memory over old.
    pub(crate) ratio: f64,
    /// Compare records of different machines or subjects, too.
    pub(crate) across: bool,
}

/// The shared cases of two records.
#[derive(Debug)]
pub(crate) struct Comparison {
    rows: Vec<Row>,
    /// Cases of the old record that the new one lacks.
    missing: Vec<String>,
    allowed: f64,
}

#[derive(Debug)]
struct Row {
    name: String,
    ratio: Ratio,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Held,
    Regressed,
    /// Of the machine, not of this code.
    Machine,
    TooFewSamples,
}

/// Compares `new` with those cases of `old` that are wanted.
///
/// # Errors
/// Records of different machines or subjects, unless allowed, and records that share no case.
pub(crate) fn compare(
    new: &Record,
    old: &Record,
    wanted: &Selection,
    allowance: Allowance,
) -> Result<Comparison> {
    if !allowance.across {
        check_same_machine(new, old)?;
    }
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for before in old.cases.iter().filter(|case| wanted.wants(&case.name)) {
        let Some(case) = new.case(&before.name) else {
            missing.push(before.name.clone());
            continue;
        };
        rows.extend(time(case, before, allowance.ratio));
        rows.extend(memory(case, before, allowance.ratio));
        missing.extend(lost(case, before));
    }
    ensure!(
        !rows.is_empty(),
        "the two records share no case that is wanted; measure the same suites"
    );
    Ok(Comparison { rows, missing, allowed: allowance.ratio })
}

/// The environments say the same, and both ran on the same model.
fn check_same_machine(new: &Record, old: &Record) -> Result<()> {
    let names: BTreeSet<&String> = new.environment.keys().chain(old.environment.keys()).collect();
    for name in names {
        let of = |record: &'_ Record| {
            record.environment.get(name).map_or_else(|| "unknown".to_owned(), String::clone)
        };
        let (before, value) = (of(old), of(new));
        if before != value {
            bail!(
                "the old record is of another machine or setting: {name} was `{before}` and is `{value}`; \
                 compare records of one machine, or pass --across"
            );
        }
    }
    // Suites without a model leave the subject open.
    let subjects = [&new.subject, &old.subject];
    if subjects.iter().all(|subject| !subject.is_empty()) && new.subject != old.subject {
        bail!(
            "the old record is of `{}`, this one of `{}`; measure the same model, or pass --across",
            old.subject,
            new.subject
        );
    }
    Ok(())
}

/// A ratio that is known without noise.
fn exact(name: String, ratio: f64, allowed: f64) -> Row {
    let verdict = if ratio <= allowed { Verdict::Held } else { Verdict::Regressed };
    Row { name, ratio: Ratio { median: ratio, low: ratio, high: ratio }, verdict }
}

/// The bytes that both have.
fn memory(case: &Case, before: &Case, allowed: f64) -> Vec<Row> {
    let counted = COUNTED.map(|name| (name, ALLOWED_COUNTED));
    let of = |(name, allowed): (&str, f64)| {
        let (new, old) = (case.figures.get(name)?, before.figures.get(name)?);
        (*old > 0.0).then(|| exact(format!("{} {name}", case.name), new / old, allowed))
    };
    counted.into_iter().chain(RESIDENT.map(|name| (name, allowed))).filter_map(of).collect()
}

/// What the old case was compared by, and the new one lacks.
fn lost(case: &Case, before: &Case) -> Vec<String> {
    let figures = COUNTED.iter().chain(&RESIDENT).copied();
    let figures = figures
        .filter(|name| before.figures.contains_key(*name) && !case.figures.contains_key(*name));
    let times = (case.samples_ns.is_empty() && !before.samples_ns.is_empty()).then_some("times");
    let instructions =
        (case.instructions.is_none() && before.instructions.is_some()).then_some("instructions");
    let lost = figures.chain(times).chain(instructions);
    lost.map(|what| format!("{} {what}", case.name)).collect()
}

/// None for cases that are not timed.
fn time(case: &Case, before: &Case, allowed: f64) -> Option<Row> {
    let name = case.name.clone();
    if let (Some(new), Some(old)) = (case.instructions, before.instructions) {
        return Some(exact(name, new as f64 / old as f64, ALLOWED_INSTRUCTIONS));
    }
    let fewest = case.samples_ns.len().min(before.samples_ns.len());
    if fewest == 0 {
        return None;
    }
    let ratio = bootstrap::of_medians(&case.samples_ns, &before.samples_ns);
    let verdict = match () {
        () if case.suite == machine::SUITE => Verdict::Machine,
        () if fewest < MIN_SAMPLES => Verdict::TooFewSamples,
        () if ratio.low <= allowed => Verdict::Held,
        () => Verdict::Regressed,
    };
    Some(Row { name, ratio, verdict })
}

impl Comparison {
    /// Whether no case is slower or larger than allowed, none is missing, and there were samples enough to tell.
    pub(crate) fn is_held(&self) -> bool {
        let is_judged = |row: &Row| matches!(row.verdict, Verdict::Held | Verdict::Machine);
        self.missing.is_empty() && self.rows.iter().all(is_judged)
    }

    /// All shared cases.
    pub(crate) fn sheet(&self) -> Sheet {
        let mut sheet = Sheet::new("New over old", &["case", "ratio", "from", "to", "verdict"]);
        for Row { name, ratio, verdict } in &self.rows {
            sheet.push(vec![
                Cell::text(name),
                Cell::Number(ratio.median, 3),
                Cell::Number(ratio.low, 3),
                Cell::Number(ratio.high, 3),
                Cell::text(match verdict {
                    Verdict::Held => "held",
                    Verdict::Regressed => "REGRESSED",
                    Verdict::Machine => "the machine's own, not judged",
                    Verdict::TooFewSamples => "TOO FEW SAMPLES",
                }),
            ]);
        }
        sheet
    }

    /// What was found, in words and numbers.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!(
            "{} held, {} regressed (lower end of the 95 % interval or resident memory above {:.2}; \
             instructions above {:.2}; bytes counted above {:.2}), {} of the machine not judged",
            self.num(Verdict::Held),
            self.num(Verdict::Regressed),
            self.allowed,
            ALLOWED_INSTRUCTIONS,
            ALLOWED_COUNTED,
            self.num(Verdict::Machine),
        );
        let num_few = self.num(Verdict::TooFewSamples);
        if num_few > 0 {
            text = format!(
                "{text}; {num_few} with fewer than {MIN_SAMPLES} samples, which fails: raise --rounds"
            );
        }
        if !self.missing.is_empty() {
            text = format!("{text}; MISSING, in the old record alone: {}", self.missing.join(", "));
        }
        text
    }

    fn num(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;
    use crate::samples::Samples;

    const NOISE: [f64; 7] = [0.98, 1.03, 1.0, 0.99, 1.02, 1.01, 0.97];

    fn record(suite: &str, factor: f64) -> Record {
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 2));
        let samples: Samples = NOISE.iter().map(|noise| 1e6 * factor * noise).collect();
        record.cases.push(Case::new(suite, format!("{suite}/full@512")).timed(&samples));
        record
    }

    fn compare_all(new: &Record, old: &Record, allowance: Allowance) -> Result<Comparison> {
        compare(new, old, &Selection::new(None), allowance)
    }

    const TENTH: Allowance = Allowance { ratio: 1.1, across: false };

    #[test]
    fn equal_runs_pass_and_a_slower_one_does_not() {
        let old = record("model", 1.0);
        let same = compare_all(&record("model", 1.0), &old, TENTH).expect("one machine");
        assert!(same.is_held(), "{}", same.summary());
        let slower = compare_all(&record("model", 1.3), &old, TENTH).expect("one machine");
        assert!(!slower.is_held(), "{}", slower.summary());
        assert!(slower.sheet().aligned().contains("REGRESSED"));
        let more_allowed = Allowance { ratio: 1.4, ..TENTH };
        assert!(compare_all(&record("model", 1.3), &old, more_allowed).expect("it runs").is_held());
        assert!(compare_all(&record("model", 0.5), &old, TENTH).expect("one machine").is_held());
    }

    #[test]
    fn the_machine_and_too_few_samples_are_told_and_not_judged() {
        let machine = compare_all(&record("machine", 3.0), &record("machine", 1.0), TENTH);
        let machine = machine.expect("one machine");
        assert!(machine.is_held() && machine.summary().contains("1 of the machine not judged"));
        let mut few = record("model", 3.0);
        few.cases[0].samples_ns.truncate(2);
        let few = compare_all(&few, &record("model", 1.0), TENTH).expect("one machine");
        assert!(!few.is_held() && few.summary().contains("1 with fewer than 3 samples"));
    }

    #[test]
    fn instructions_are_held_tightly() {
        let counted = |count| {
            let mut record = record("instructions", 1.0);
            record.cases[0].samples_ns.clear();
            record.cases[0].instructions = Some(count);
            record
        };
        let held =
            |count| compare_all(&counted(count), &counted(1000), TENTH).expect("it runs").is_held();
        assert!(held(1000) && held(1020) && !held(1021));
    }

    #[test]
    fn bytes_are_held_too() {
        let counted = |name, bytes| {
            let mut record = record("end-to-end", 1.0);
            record.cases[0].set(name, bytes);
            record
        };
        for (name, allowed) in [("device_bytes_counted", 1.01), ("rss_peak_bytes", 1.1)] {
            let held = |factor: f64| {
                let (new, old) = (counted(name, 1e6 * factor), counted(name, 1e6));
                compare_all(&new, &old, TENTH).expect("it runs").is_held()
            };
            assert!(held(1.0) && held(0.1) && held(allowed) && !held(allowed + 0.005), "{name}");
        }
        let gone = compare_all(&record("end-to-end", 1.0), &counted("rss_peak_bytes", 1e6), TENTH);
        assert!(!gone.expect("it runs").is_held(), "bytes that are gone are no bytes that held");
        let more = compare_all(&counted("rss_peak_bytes", 1e6), &record("end-to-end", 1.0), TENTH);
        assert!(more.expect("it runs").is_held(), "bytes that nobody had before are not compared");
    }

    #[test]
    fn other_machines_and_subjects_are_refused_by_name_unless_allowed() {
        let mut old = record("model", 1.0);
        old.environment.insert("threads".to_owned(), "64".to_owned());
        let new = record("model", 1.0);
        let told = format!("{:#}", compare_all(&new, &old, TENTH).expect_err("another setting"));
        assert!(
            told.contains("threads was `64` and is `2`") && told.contains("--across"),
            "{told}"
        );
        assert!(compare_all(&new, &old, Allowance { across: true, ..TENTH }).is_ok());
        let (mut a, mut b) = (record("model", 1.0), record("model", 1.0));
        (a.subject, b.subject) = ("x".to_owned(), "y".to_owned());
        assert!(format!("{:#}", compare_all(&a, &b, TENTH).expect_err("others")).contains("`y`"));
    }

    #[test]
    fn records_without_a_shared_case_are_refused_and_missing_cases_told() {
        let none = compare_all(&record("model", 1.0), &record("attention", 1.0), TENTH);
        assert!(none.is_err());
        let mut old = record("model", 1.0);
        old.cases.push(Case::new("model", "model/hca:25%@512"));
        let compared = compare_all(&record("model", 1.0), &old, TENTH).expect("one is shared");
        assert!(compared.summary().contains("model/hca:25%@512"), "{}", compared.summary());
        assert!(!compared.is_held(), "a case that is gone is no case that held");
        let wanted = Selection::new(Some("full".to_owned()));
        let compared = compare(&record("model", 1.0), &old, &wanted, TENTH);
        assert!(compared.expect("one is shared").is_held(), "it was not asked for");
    }
}
