//! `heterokv report`: a page, or Markdown, of results.

use std::fs;

use anyhow::{Context, Result, bail};
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
    fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    say(&format!("{} rows in {}", rows.len(), out.display()));
    Ok(())
}
