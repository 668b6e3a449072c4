//! What one run measured, as a file that a later run is compared with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::samples::Samples;

/// Of the form of the file; one more whenever an older program would misread it.
pub(crate) const VERSION: u32 = 1;

/// One run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) version: u32,
    /// The line to type for the same run.
    pub(crate) command: String,
    /// Of the working tree.
    pub(crate) commit: String,
    /// Day of the run, `YYYY-MM-DD`, in UTC.
    pub(crate) date: String,
    /// The machine: CPU, caches, level, threads.
    pub(crate) environment: BTreeMap<String, String>,
    /// What was measured on: the model or the synthetic rows, with their shape.
    pub(crate) subject: String,
    pub(crate) cases: Vec<Case>,
    /// What was asked for and not measured.
    pub(crate) left_out: Vec<LeftOut>,
}

/// One thing measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) suite: String,
    /// Begins with the suite; unique in a record.
    pub(crate) name: String,
    /// The cache's spec, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<String>,
    /// Tokens in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) context: Option<usize>,
    /// Nanoseconds, in the order taken; empty where something else is counted.
    pub(crate) samples_ns: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Summary>,
    /// Counted by callgrind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) instructions: Option<u64>,
    /// Everything else, by names that end in their units.
    pub(crate) figures: BTreeMap<String, f64>,
    /// What a reader has to know to read the case right.
    pub(crate) notes: Vec<String>,
}

/// What is said of samples.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Summary {
    pub(crate) median_ns: f64,
    /// Median absolute deviation from the median.
    pub(crate) mad_ns: f64,
    pub(crate) min_ns: f64,
    pub(crate) num_samples: usize,
}

/// Something asked for and not measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeftOut {
    pub(crate) name: String,
    pub(crate) reason: String,
}

impl Record {
    /// A record of nothing yet.
    pub(crate) fn new(environment: &Environment) -> Self {
        let mut fields: BTreeMap<String, String> =
            environment.fields().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut take = |name: &str| fields.remove(name).unwrap_or_default();
        Self {
            version: VERSION,
            command: take("command"),
            commit: take("commit"),
            date: today(),
            environment: fields,
            subject: String::new(),
            cases: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// The case called `name`.
    pub(crate) fn case(&self, name: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.name == name)
    }

    pub(crate) fn leave_out(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.left_out.push(LeftOut { name: name.into(), reason: reason.into() });
    }

    /// The name of its file: what computed, when, and which part of the suites, where it is not all.
    fn file_name(&self, filter: Option<&str>) -> String {
        let cpu = self.environment.get("cpu").map_or("unknown-cpu", String::as_str);
        let parts = [cpu, &self.date, filter.unwrap_or_default()].map(slug);
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}.json", parts.join("-"))
    }

    /// Where [`Record::save`] would put it.
    pub(crate) fn path(&self, folder: &Path, filter: Option<&str>) -> PathBuf {
        folder.join(self.file_name(filter))
    }

    /// Reads a record.
    ///
    /// # Errors
    /// A file that cannot be read, is no record, is of another version, or has samples that are no times.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| {
            format!("cannot read {shown}; give a record of `cargo xtask bench`")
        })?;
        let json: serde_json::Value = serde_json::from_str(&text).with_context(|| {
            format!("{shown} is not JSON; give a record of `cargo xtask bench`")
        })?;
        let version = json.get("version").and_then(serde_json::Value::as_u64);
        ensure!(
            version == Some(VERSION.into()),
            "{shown} is no record of version {VERSION}; measure again with `cargo xtask bench`"
        );
        let record: Self = serde_json::from_value(json).with_context(|| {
            format!("{shown} is damaged; measure again with `cargo xtask bench`")
        })?;
        for case in &record.cases {
            ensure!(
                case.samples_ns.iter().all(|&ns| ns > 0.0 && ns.is_finite()),
                "{shown}: a sample of `{}` is not a time; measure again with `cargo xtask bench`",
                case.name
            );
        }
        Ok(record)
    }

    /// Writes the record of the cases that `filter` selects into `folder`, which is made where it is not there, in
    /// the place of one of the same day, machine and filter; gives the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn save(&self, folder: &Path, filter: Option<&str>) -> Result<PathBuf> {
        let path = self.path(folder, filter);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        self.write(&path)?;
        Ok(path)
    }

    /// Writes the record to the file `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let text = serde_json::to_string_pretty(self).with_context(context)?;
        fs::write(path, text + "\n").with_context(context)
    }
}

/// The day in UTC, as `2026-11-28`.
pub(crate) fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}

/// The letters and digits of a text, what is between them a dash.
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

impl Case {
    pub(crate) fn new(suite: &str, name: impl Into<String>) -> Self {
        Self { suite: suite.to_owned(), name: name.into(), ..Self::default() }
    }

    /// With the samples and what is said of them.
    pub(crate) fn timed(mut self, samples: &Samples) -> Self {
        self.samples_ns = samples.as_slice().to_vec();
        self.summary = (samples.len() > 0).then(|| Summary {
            median_ns: samples.median(),
            mad_ns: samples.mad(),
            min_ns: samples.min(),
            num_samples: samples.len(),
        });
        self
    }

    /// With a figure; one that is not finite is left out, as JSON has no form for it.
    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        self.set(name, value);
        self
    }

    /// As [`Case::with`].
    pub(crate) fn set(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.figures.insert(name.to_owned(), value);
        }
    }

    pub(crate) fn noting(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// A figure, NaN where there is none.
    pub(crate) fn figure(&self, name: &str) -> f64 {
        self.figures.get(name).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;

    fn record() -> Record {
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 2));
        let samples: Samples = [3.0, 1.0, 2.5].into_iter().collect();
        let case = Case::new("model", "model/full@512").timed(&samples);
        let case = case.with("host_bytes", 0.1 + 0.2).with("nothing", f64::NAN).noting("tiled");
        record.cases.push(Case { cache: Some("full".to_owned()), context: Some(512), ..case });
        record.leave_out("model/full@524288", "memory");
        record
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = record();
        let path = record.save(&folder.path().join("a/b"), None).expect("it can be written");
        assert_eq!(Record::load(&path).expect("it is one"), record);
        let case = record.case("model/full@512").expect("it is there");
        let summary = case.summary.expect("it has samples");
        assert_eq!((summary.median_ns, summary.mad_ns, summary.min_ns), (2.5, 0.5, 1.0));
        assert!(case.figure("nothing").is_nan());
        let name = record.file_name(None);
        assert!(name.ends_with(&format!("-{}.json", record.date)) && record.date.len() == 10);
        let name = record.file_name(Some("attention/hca:25%"));
        assert!(name.ends_with("-attention-hca-25.json") && !name.contains([' ', ',', '/', ':']));
    }

    #[test]
    fn what_is_no_record_is_refused_by_name_and_remedy() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("old.json");
        let told = || format!("{:#}", Record::load(&path).expect_err("it is none"));
        assert!(told().contains("old.json") && told().contains("cargo xtask bench"), "{}", told());
        let written = serde_json::to_string(&record()).expect("it can be");
        for (text, expected) in [
            ("{", "is not JSON"),
            ("{}", "no record of version 1"),
            (&written.replacen("\"version\":1", "\"version\":2", 1), "no record of version 1"),
            (&written.replacen("\"cases\"", "\"case\"", 1), "is damaged"),
            (&written.replacen("[3.0,", "[-3.0,", 1), "`model/full@512` is not a time"),
        ] {
            fs::write(&path, text).expect("it can be written");
            assert!(told().contains(expected) && told().contains("old.json"), "{}", told());
        }
    }
}
