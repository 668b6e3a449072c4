//! `heterokv report`: a page, or Markdown, of results.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use heterokv_eval::{html, markdown};

use super::eval::read_results;
use crate::args::ReportArgs;
use crate::output::{print, say};

/// What the page is called.
const TITLE: &str = "Quality of KV caches";

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let mut rows = Vec::new();
    for path in &args.results {
        rows.extend(read_results(path)?);
    }
    let Some(out) = &args.out else { return Ok(print(&markdown(&rows))?) };
    let text = match out.extension().and_then(|extension| extension.to_str()) {
        Some("html" | "htm") => html(&rows, TITLE)?,
        Some("md") => markdown(&rows),
        _ => bail!("{} should end in .html, for a page, or .md, for Markdown", out.display()),
    };
    let is_input = |path: &PathBuf| {
        path.canonicalize().ok().is_some_and(|path| out.canonicalize().is_ok_and(|out| out == path))
    };
    ensure!(
        !args.results.iter().any(is_input),
        "{} is one of the results; give another name",
        out.display()
    );
    fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    say(&format!("{} rows in {}", rows.len(), out.display()));
    Ok(())
}
