//! Splicing results into a page between marks, so that every figure there was printed by a command.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The page of the figures of `quant`.
pub(crate) fn quant_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/quant-report.md")
}

/// The page of the figures of decode steps and prompts.
pub(crate) fn report_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/bench/REPORT.md")
}

/// The first page, which has the table beside other programs.
pub(crate) fn readme_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")
}

/// A page of the docs.
pub(crate) fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// Replaces what stands between `<!-- begin: name -->` and `<!-- end: name -->` in the page at `path`.
///
/// # Errors
/// If the page cannot be read or written or has no such marks.
pub(crate) fn splice(path: &Path, name: &str, content: &str) -> Result<()> {
    let page =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = spliced(&page, name, content)
        .with_context(|| format!("{} has no marks for `{name}`", path.display()))?;
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn spliced(page: &str, name: &str, content: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- begin: {name} -->"), format!("<!-- end: {name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", content.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page =
            "# A\n<!-- begin: x -->\nold\n<!-- end: x -->\n<!-- begin: y -->\n<!-- end: y -->\nz\n";
        let once = spliced(page, "x", "new\n").expect("it has the marks");
        assert!(once.contains("<!-- begin: x -->\n\nnew\n\n<!-- end: x -->\n<!-- begin: y -->"));
        assert!(once.starts_with("# A\n") && once.ends_with("z\n") && !once.contains("old"));
        assert_eq!(spliced(&once, "x", "new"), Some(once));
        assert_eq!(spliced(page, "w", "new"), None);
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = fs::read_to_string(quant_path()).expect("it is there");
        for name in ["scan", "quality"] {
            assert!(spliced(&page, name, "").is_some(), "{name}");
        }
    }
}
