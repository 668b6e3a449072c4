//! A table of results: aligned on the terminal, CSV in a file, Markdown in a page.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Cell as TableCell, CellAlignment, Table, TableStyle, presets};

/// One field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Text(String),
    /// A value and the digits behind its point that people are shown; files have all of them.
    Number(f64, usize),
    /// A value over many orders of magnitude: three digits that count.
    Scientific(f64),
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value, digits) => format!("{value:.digits$}"),
            Self::Scientific(value) if *value == 0.0 => "0".to_owned(),
            Self::Scientific(value) => {
                let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
                format!("{value:.digits$}")
            }
        }
    }

    fn in_file(&self) -> String {
        match self {
            Self::Number(value, _) | Self::Scientific(value) => value.to_string(),
            _ => self.shown(),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Number(..) | Self::Scientific(_))
    }
}

/// Named columns and rows of as many cells.
#[derive(Clone, Debug)]
pub(crate) struct Sheet {
    /// What stands above it.
    pub(crate) title: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Sheet {
    pub(crate) fn new(title: impl Into<String>, columns: &[impl ToString]) -> Self {
        let columns = columns.iter().map(ToString::to_string).collect();
        Self { title: title.into(), columns, rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "a cell per column of `{}`", self.title);
        self.rows.push(row);
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Title and table for a terminal.
    pub(crate) fn aligned(&self) -> String {
        format!("{}\n{}\n", self.title, self.table(presets::NOTHING))
    }

    /// Title and table for a page.
    pub(crate) fn markdown(&self) -> String {
        format!("### {}\n\n{}\n", self.title, self.table(presets::ASCII_MARKDOWN))
    }

    fn table(&self, style: TableStyle) -> String {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header(&self.columns);
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| {
                let alignment =
                    if cell.is_number() { CellAlignment::Right } else { CellAlignment::Left };
                TableCell::new(cell.shown()).set_alignment(alignment)
            }));
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    /// Writes the table as CSV, every digit of it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write_csv(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let mut writer = csv::Writer::from_path(path).with_context(context)?;
        writer.write_record(&self.columns).with_context(context)?;
        for row in &self.rows {
            writer.write_record(row.iter().map(Cell::in_file)).with_context(context)?;
        }
        writer.flush().with_context(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let mut sheet = Sheet::new("t", &["name", "rate", "error"]);
        sheet.push(vec![Cell::text("a, b"), Cell::Number(1.0 / 3.0, 2), Cell::Scientific(0.0)]);
        sheet.push(vec![Cell::text("c"), Cell::text(""), Cell::Scientific(0.000_123_45)]);
        sheet
    }

    #[test]
    fn people_see_rounded_numbers_and_files_all_digits() {
        let shown = sheet().aligned();
        assert!(shown.contains("0.33") && !shown.contains("0.333"), "{shown}");
        assert!(shown.contains("0.000123"), "{shown}");
        assert!(sheet().markdown().contains("| a, b | 0.33 |"), "{}", sheet().markdown());
        let folder = std::env::temp_dir().join(format!("heterokv-sheet-{}", std::process::id()));
        sheet().write_csv(&folder).expect("it can be written");
        let text = std::fs::read_to_string(&folder).expect("it is there");
        std::fs::remove_file(&folder).expect("it is ours");
        assert_eq!(text, "name,rate,error\n\"a, b\",0.3333333333333333,0\nc,,0.00012345\n");
    }
}
