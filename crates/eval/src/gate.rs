//! Figures that are written down, and whether those of another run are worse.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::aggregate::Aggregate;
use crate::results::read_file;
use crate::{Error, Result};

/// Figures that no run may be worse than. Its file is JSON, meant to be committed and read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// How it was made.
    pub command: String,
    /// Fingerprint of the model.
    pub fingerprint: String,
    /// The figures.
    pub figures: Vec<Gated>,
}

/// A figure of one cache on one task and length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gated {
    /// Name of the task.
    pub task: String,
    /// Tokens of context that were asked for.
    pub context: usize,
    /// What computed.
    pub engine: String,
    /// The cache as it was named.
    pub cache: String,
    /// Which samples it was measured on: [`Aggregate::samples`].
    pub samples: String,
    /// Name of the figure: `kl_mean`, `top1`, `score` or `ratio`.
    pub figure: String,
    /// Its value.
    pub value: f64,
}

/// A figure that is worse than what was written down, or was not measured on the same samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Regression {
    /// What was written down.
    pub gated: Gated,
    /// The worst that is let through.
    pub bound: f64,
    /// What was measured; none where it was not.
    pub actual: Option<f64>,
}

/// How a figure is held against the one written down.
struct Bound {
    name: &'static str,
    /// Whether more is worse.
    more_is_worse: bool,
    /// What is let through, as a share of the value...
    relative: f64,
    /// ...and beside it.
    absolute: f64,
}

/// On one machine and one level of instructions a run repeats its figures to the bit; elsewhere sums round otherwise, a
/// selection takes a token more or less, and a few steps fall out differently. That much is let through.
const BOUNDS: [Bound; 4] = [
    Bound { name: "kl_mean", more_is_worse: true, relative: 0.25, absolute: 2e-5 },
    Bound { name: "top1", more_is_worse: false, relative: 0.0, absolute: 0.025 },
    Bound { name: "score", more_is_worse: false, relative: 0.0, absolute: 0.2 },
    Bound { name: "ratio", more_is_worse: true, relative: 0.01, absolute: 0.0 },
];

impl Bound {
    /// The full cache is what all are held against: its own divergence is 0, or something is broken.
    fn exact(&self) -> Self {
        let absolute = if self.name == "kl_mean" { 0.0 } else { self.absolute };
        Self { relative: 0.0, absolute, ..*self }
    }

    fn worst(&self, value: f64) -> f64 {
        let slack = self.relative * value + self.absolute;
        if self.more_is_worse { value + slack } else { value - slack }
    }

    /// A figure that is no number does not hold.
    fn holds(&self, value: f64, actual: f64) -> bool {
        let worst = self.worst(value);
        if self.more_is_worse { actual <= worst } else { actual >= worst }
    }

    /// The figure of this name.
    fn of(&self, aggregate: &Aggregate) -> Option<f64> {
        match self.name {
            "ratio" => aggregate.ratio,
            name => aggregate.figure(name).map(|figure| figure.value),
        }
    }
}

impl Gate {
    /// The figures of `aggregates` that are gated.
    #[must_use]
    pub fn of(aggregates: &[Aggregate], command: &str) -> Self {
        let figures = aggregates.iter().flat_map(|aggregate| {
            BOUNDS.iter().filter_map(|bound| {
                Some(Gated {
                    task: aggregate.task.clone(),
                    context: aggregate.context,
                    engine: aggregate.engine.clone(),
                    cache: aggregate.cache.clone(),
                    samples: aggregate.samples.clone(),
                    figure: bound.name.to_owned(),
                    value: bound.of(aggregate)?,
                })
            })
        });
        Self {
            command: command.to_owned(),
            fingerprint: aggregates.first().map_or_else(String::new, |one| one.fingerprint.clone()),
            figures: figures.collect(),
        }
    }

    /// Reads a file of figures.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::BadGate`] for a file that is none, holds no figure, or one that is not gated.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |reason: String| Error::BadGate { path: path.to_owned(), reason };
        let bytes = read_file(path)?;
        let gate: Self = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if gate.figures.is_empty() {
            return Err(bad("it has no figure".to_owned()));
        }
        for gated in &gate.figures {
            if bound_of(gated).is_none() {
                return Err(bad(format!("`{}` is not a figure that is gated", gated.figure)));
            }
        }
        Ok(gate)
    }

    /// Whether figures can be written to `path`: a file of figures, an empty one, or none yet in a folder that is there.
    ///
    /// # Errors
    /// [`Error::BadGate`] for any other file, which is left alone, [`Error::NoFile`] and [`Error::Io`].
    pub fn check_place(path: &Path) -> Result<()> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        match path.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => Ok(()),
            Ok(metadata) if !metadata.is_file() => Err(Error::NoFile { path: path.to_owned() }),
            Ok(_) => Self::read(path).map(drop),
            Err(_) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                folder.unwrap_or(Path::new(".")).metadata().map(drop).map_err(io)
            }
        }
    }

    /// Writes it to a file, which is replaced.
    ///
    /// # Errors
    /// As [`Gate::check_place`].
    pub fn write(&self, path: &Path) -> Result<()> {
        Self::check_place(path)?;
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut text = serde_json::to_string_pretty(self).map_err(|error| io(error.into()))?;
        text.push('\n');
        std::fs::write(path, text).map_err(io)
    }

    /// The figures that `aggregates` do not reach.
    #[must_use]
    pub fn regressions(&self, aggregates: &[Aggregate]) -> Vec<Regression> {
        let regression = |gated: &Gated| {
            let bound = bound_of(gated)?;
            let same = |aggregate: &&Aggregate| {
                let Aggregate { engine, task, context, cache, samples, .. } = aggregate;
                (engine, task, *context, cache, samples)
                    == (&gated.engine, &gated.task, gated.context, &gated.cache, &gated.samples)
            };
            let actual = aggregates.iter().find(same).and_then(|aggregate| bound.of(aggregate));
            let bound = if gated.cache == "full" { &bound.exact() } else { bound };
            let holds = actual.is_some_and(|actual| bound.holds(gated.value, actual));
            let bound = bound.worst(gated.value);
            (!holds).then(|| Regression { gated: gated.clone(), bound, actual })
        };
        self.figures.iter().filter_map(regression).collect()
    }
}

fn bound_of(gated: &Gated) -> Option<&'static Bound> {
    BOUNDS.iter().find(|bound| bound.name == gated.figure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::aggregate;
    use crate::test_rows::divergence;

    fn aggregates(kl: f64) -> Vec<Aggregate> {
        aggregate(&[
            divergence("kl", 2048, "hca:25%", &[kl, kl]),
            divergence("kl", 2048, "full", &[0.0]),
        ])
    }

    #[test]
    fn the_same_figures_pass_and_a_little_worse_too() {
        let gate = Gate::of(&aggregates(0.01), "heterokv eval");
        assert_eq!(gate.figures.len(), 6);
        assert_eq!(gate.regressions(&aggregates(0.01)), []);
        assert_eq!(gate.regressions(&aggregates(0.012)), []);
        assert_eq!(gate.regressions(&aggregates(0.001)), []);
    }

    #[test]
    fn worse_figures_and_missing_ones_are_named() {
        let gate = Gate::of(&aggregates(0.01), "heterokv eval");
        let worse = gate.regressions(&aggregates(0.013));
        assert_eq!(worse.len(), 1);
        assert_eq!((worse[0].gated.figure.as_str(), worse[0].actual), ("kl_mean", Some(0.013)));
        assert!((worse[0].bound - 0.01252).abs() < 1e-12);
        let missing = gate.regressions(&aggregates(0.01)[1..]);
        assert_eq!(missing.len(), 3);
        assert!(missing.iter().all(|regression| regression.actual.is_none()));
        let mut others = aggregates(0.01);
        others[0].samples = "other".to_owned();
        assert_eq!(gate.regressions(&others).len(), 3, "other samples");
        let mut full = aggregates(0.01);
        full[1].figures[0].value = 1e-12;
        assert_eq!(gate.regressions(&full).len(), 1, "full is exact");
        let mut nan = aggregates(0.01);
        nan[0].figures[0].value = f64::NAN;
        assert_eq!(gate.regressions(&nan).len(), 1);
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.json");
        assert!(matches!(Gate::read(&path), Err(Error::Io { .. })));
        let letter = folder.path().join("letter");
        std::fs::write(&letter, "Dear").unwrap();
        let gate = Gate::of(&aggregates(0.1), "heterokv eval");
        assert!(matches!(gate.write(&letter), Err(Error::BadGate { .. })));
        assert_eq!(std::fs::read_to_string(&letter).unwrap(), "Dear");
        assert!(matches!(gate.write(&letter.join("x")), Err(Error::Io { .. })));
        let gate = Gate::of(&aggregates(0.1 + 0.2), "heterokv eval");
        gate.write(&path).unwrap();
        assert_eq!(Gate::read(&path).unwrap(), gate);
        let text = std::fs::read_to_string(&path).unwrap();
        let empty = r#"{"command": "", "fingerprint": "", "figures": []}"#;
        for wrong in ["[]", empty, &text.replace("kl_mean", "kl_mode"), &text[..40]] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(Gate::read(&path), Err(Error::BadGate { .. })), "{wrong}");
        }
    }
}
