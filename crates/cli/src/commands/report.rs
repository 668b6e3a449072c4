//! `heterokv report`: a page, or Markdown, of results.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use heterokv_eval::{Row, html, markdown};

use super::eval::read_results;
use crate::args::ReportArgs;
use crate::output::{print, say};

/// What the page is called.
const TITLE: &str = "Quality of KV caches";

/// What a report is written as.
#[derive(Clone, Copy)]
enum Form {
    Page,
    Markdown,
}

impl Form {
    fn of(out: &Path) -> Result<Self> {
        let extension = out.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("html" | "htm") => Ok(Self::Page),
            Some("md") => Ok(Self::Markdown),
            _ => bail!("{} should end in .html, for a page, or .md, for Markdown", out.display()),
        }
    }
}

/// Refuses a name that says no form.
pub(super) fn check(out: &Path) -> Result<()> {
    Form::of(out).map(drop)
}

/// Writes the report of rows.
pub(super) fn write(rows: &[Row], out: &Path) -> Result<()> {
    let text = match Form::of(out)? {
        Form::Page => html(rows, TITLE)?,
        Form::Markdown => markdown(rows),
    };
    fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    say(&format!("{} rows in {}", rows.len(), out.display()));
    Ok(())
}

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let mut rows = Vec::new();
    for path in &args.results {
        rows.extend(read_results(path)?);
    }
    let Some(out) = &args.out else { return Ok(print(&markdown(&rows))?) };
    check(out)?;
    let is_input = |path: &PathBuf| {
        path.canonicalize().ok().is_some_and(|path| out.canonicalize().is_ok_and(|out| out == path))
    };
    ensure!(
        !args.results.iter().any(is_input),
        "{} is one of the results; give another name",
        out.display()
    );
    write(&rows, out)
}
