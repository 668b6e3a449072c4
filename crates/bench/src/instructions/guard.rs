//! The counts that are kept beside the code, and the guard that no kernel needs more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::record::Record;

/// New count over the kept one, at most.
const MOST: f64 = 1.05;

/// Below this the kept count says too little of what the kernel needs now.
const LEAST: f64 = 0.95;

/// How the counts are written anew.
const ANEW: &str = "`cargo xtask bench instructions --baseline` writes them anew";

/// Instructions of every kernel, and by what they were compiled and counted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counts {
    /// As `rustc --version` says.
    pub(super) rustc: String,
    /// Level of the kernels, and the version of valgrind.
    pub(super) counted_by: String,
    pub(super) kernels: BTreeMap<String, u64>,
}

/// What comparing counts with the kept ones came to.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Remarks on kernels that need fewer.
    Held(Vec<String>),
    /// The kernels that need more, or were never kept.
    Missed(Vec<String>),
    /// Why they say nothing of each other.
    NotCompared(String),
}

/// The file in the repository.
pub(super) fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json")
}

impl Counts {
    /// Those of a record; none where it has no kernels.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let mut counted_by = String::new();
        let mut kernels = BTreeMap::new();
        for case in &record.cases {
            if let Some(count) = case.instructions {
                counted_by = case.notes.first().cloned().unwrap_or_default();
                kernels.insert(case.name.clone(), count);
            }
        }
        (!kernels.is_empty()).then(|| Self { rustc: rustc(), counted_by, kernels })
    }

    /// Reads those that were kept.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {shown}; {ANEW}"))?;
        serde_json::from_str(&text).with_context(|| format!("{shown} is damaged; {ANEW}"))
    }

    /// These, and of `kept` the kernels that were not counted now, where both can be compared.
    pub(super) fn beside(mut self, kept: &Self) -> Self {
        if self.difference(kept).is_none() {
            for (name, &count) in &kept.kernels {
                self.kernels.entry(name.clone()).or_insert(count);
            }
        }
        self
    }

    /// Keeps them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let text = serde_json::to_string_pretty(self).with_context(context)?;
        fs::write(path, text + "\n").with_context(context)
    }

    /// What makes these counts others than `kept` before any kernel is looked at: other compilers and other levels make other
    /// programs of the same source.
    fn difference(&self, kept: &Self) -> Option<String> {
        let compiled = ("compiled by", &self.rustc, &kept.rustc);
        let counted = ("counted by", &self.counted_by, &kept.counted_by);
        let differs = [compiled, counted].into_iter().find(|(_, now, then)| now != then);
        differs.map(|(what, now, then)| format!("{what} {now}, those kept by {then}; {ANEW}"))
    }

    /// Holds these to `kept`: kernels that were counted now, each by itself.
    pub(super) fn against(&self, kept: &Self) -> Verdict {
        if let Some(difference) = self.difference(kept) {
            return Verdict::NotCompared(difference);
        }
        let (mut fewer, mut missed) = (Vec::new(), Vec::new());
        for (name, &count) in &self.kernels {
            let Some(&kept) = kept.kernels.get(name) else {
                missed.push(format!("{name} was never kept; {ANEW}"));
                continue;
            };
            let ratio = count as f64 / kept as f64;
            let told =
                format!("{name}: {count} instructions, {kept} kept, {ratio:.3} times as many");
            if ratio > MOST || ratio.is_nan() {
                missed.push(told);
            } else if ratio < LEAST {
                fewer.push(format!("{told}; {ANEW}"));
            }
        }
        if missed.is_empty() { Verdict::Held(fewer) } else { Verdict::Missed(missed) }
    }
}

/// What compiles here; `unknown` where there is no compiler.
fn rustc() -> String {
    let mut command = Command::new("rustc");
    command.arg("--version").current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::super::kernels::NAMES;
    use super::super::{SUITE, level};
    use super::*;

    fn counts(kernels: &[(&str, u64)]) -> Counts {
        Counts {
            rustc: "rustc 1".to_owned(),
            counted_by: "avx2, valgrind-3".to_owned(),
            kernels: kernels.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
        }
    }

    #[test]
    fn kernels_that_were_not_counted_stay_as_they_were_kept() {
        let kept = counts(&[("a", 1000), ("b", 1000)]);
        let both = counts(&[("b", 7)]).beside(&kept);
        assert_eq!(both, counts(&[("a", 1000), ("b", 7)]));
        let others = Counts { rustc: "rustc 2".to_owned(), ..counts(&[("b", 7)]) };
        assert_eq!(others.clone().beside(&kept), others, "of another compiler");
    }

    #[test]
    fn a_twentieth_more_is_held_and_anything_beyond_is_not() {
        let kept = counts(&[("a", 1000), ("b", 1000)]);
        assert_eq!(counts(&[("a", 1050)]).against(&kept), Verdict::Held(Vec::new()));
        let Verdict::Held(fewer) = counts(&[("a", 900), ("b", 1000)]).against(&kept) else {
            panic!("fewer are no fault")
        };
        assert!(fewer.len() == 1 && fewer[0].contains("a: 900 instructions, 1000 kept"));
        for worse in [&[("a", 1051), ("b", 1000)][..], &[("a", 1000), ("c", 1)]] {
            let Verdict::Missed(missed) = counts(worse).against(&kept) else {
                panic!("{worse:?} is worse")
            };
            assert_eq!(missed.len(), 1, "{missed:?}");
        }
        let zero = counts(&[("a", 0)]);
        assert!(matches!(zero.against(&zero), Verdict::Missed(_)), "nothing was kept of it");
    }

    #[test]
    fn counts_of_another_compiler_or_level_are_not_compared() {
        let kept = counts(&[("a", 1000)]);
        for other in [
            Counts { rustc: "rustc 2".to_owned(), ..counts(&[("a", 2000)]) },
            Counts { counted_by: "scalar, valgrind-3".to_owned(), ..counts(&[("a", 2000)]) },
        ] {
            assert!(matches!(other.against(&kept), Verdict::NotCompared(_)));
        }
    }

    #[test]
    fn what_is_kept_is_read_as_it_was_written_and_has_every_kernel() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("counts.json");
        let written = counts(&[("a", 7)]);
        written.write(&path).expect("it can be written");
        assert_eq!(Counts::load(&path).expect("it is there"), written);
        fs::write(&path, "{}").expect("it can be written");
        let told = Counts::load(&path).expect_err("it is damaged").to_string();
        assert!(told.contains("--baseline"), "{told}");
        let kept = Counts::load(&super::path()).expect("every checkout has it");
        for name in NAMES {
            assert!(kept.kernels.contains_key(&format!("{SUITE}/{name}")), "{name}");
        }
        assert!(!level().to_string().is_empty() && !kept.rustc.is_empty());
    }
}
