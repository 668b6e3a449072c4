//! Figures held against those of a file.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use heterokv_eval::{Aggregate, Gate, Regression};

use crate::failure::Worse;
use crate::load::Opened;
use crate::output::{count, say};

/// The figures of a file, which are of this model.
pub(super) fn read(path: &Path, opened: &Opened) -> Result<Gate> {
    let gate = Gate::read(path)?;
    ensure!(
        gate.fingerprint == opened.fingerprint(),
        "the figures of {} are of another model; write new ones with --write-gate",
        path.display()
    );
    Ok(gate)
}

/// Writes the figures of this run.
pub(super) fn write(path: &Path, aggregates: &[Aggregate], command: &str) -> Result<()> {
    let gate = Gate::of(aggregates, command);
    gate.write(path)?;
    say(&format!("{} figures written to {}", count(gate.figures.len()), path.display()));
    Ok(())
}

/// Fails where a figure is worse than the one written down, or was not measured.
pub(super) fn hold(gate: &Gate, aggregates: &[Aggregate]) -> Result<()> {
    let regressions = gate.regressions(aggregates);
    if regressions.is_empty() {
        say(&format!("{} figures hold", count(gate.figures.len())));
        return Ok(());
    }
    for Regression { gated, bound, actual } in &regressions {
        let actual =
            actual.map_or("was not measured".to_owned(), |actual| format!("is {actual:.6}"));
        say(&format!(
            "worse: {} of {} on {} at {} {actual}; written down is {:.6}, let through {bound:.6}",
            gated.figure,
            gated.cache,
            gated.task,
            count(gated.context),
            gated.value
        ));
    }
    bail!(Worse { num_worse: regressions.len(), num_figures: gate.figures.len() })
}
