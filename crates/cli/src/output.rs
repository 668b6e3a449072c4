//! What goes to stdout and stderr: numbers for people, tables, lines.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, Table, presets};
use heterokv_cache::CacheSpec;

use crate::failure::Unwritable;

const KIB: f64 = 1024.0;

/// Writes to stdout at once.
///
/// # Errors
/// [`Unwritable`], which ends the program quietly if a pipe was closed.
pub(crate) fn print(text: &str) -> Result<(), Unwritable> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Unwritable)
}

/// [`print()`] and a line end.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_line(text: &str) -> Result<(), Unwritable> {
    print(&format!("{text}\n"))
}

/// Writes a line to stderr, where nobody may be listening.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Bytes with one decimal: `0 B`, `3.5 KiB`, `12.0 MiB`, `61.0 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let b = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ if b < KIB * KIB => format!("{:.1} KiB", b / KIB),
        _ if b < KIB * KIB * KIB => format!("{:.1} MiB", b / (KIB * KIB)),
        _ if b < KIB * KIB * KIB * KIB => format!("{:.1} GiB", b / (KIB * KIB * KIB)),
        _ => format!("{:.1} TiB", b / (KIB * KIB * KIB * KIB)),
    }
}

/// A share of 1 in percent with one decimal.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A count with its thousands apart: `4,096`.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of tokens, in words: `1 token`, `4,096 tokens`.
pub(crate) fn tokens(n: usize) -> String {
    format!("{} token{}", count(n), if n == 1 { "" } else { "s" })
}

/// Whether a ratio is above what `spec` promises from some length on.
pub(crate) fn is_above_promise(reached: f64, spec: &CacheSpec) -> bool {
    spec.promise().is_some_and(|promise| 100.0 * reached > promise.percent)
}

/// A ratio reached, and beside it what `spec` promises where that is less.
pub(crate) fn ratio(reached: f64, spec: &CacheSpec) -> String {
    match spec.promise() {
        Some(promise) if is_above_promise(reached, spec) => format!(
            "{}, {} % from {} tokens",
            percent(reached),
            promise.percent,
            count(promise.min_tokens)
        ),
        _ => percent(reached),
    }
}

/// A table without borders whose first column is words and whose others are numbers.
pub(crate) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let cells = |row: &[String]| -> Vec<Cell> {
        row.iter()
            .enumerate()
            .map(|(column, text)| {
                let side = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
                Cell::new(text).set_alignment(side)
            })
            .collect()
    };
    if !header.is_empty() {
        table.set_header(cells(header));
    }
    for row in rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    // The padding of the last column is nothing anyone wants to copy.
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let shown = [0, 1023, 1024, 1 << 20, 3 << 29, u64::MAX].map(bytes);
        let last = "16777216.0 TiB";
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.5 GiB", last]);
        assert_eq!([0, 999, 1000, 4_000_000].map(count), ["0", "999", "1,000", "4,000,000"]);
        assert_eq!(percent(0.12499), "12.5 %");
        assert_eq!([0, 1, 1000].map(tokens), ["0 tokens", "1 token", "1,000 tokens"]);
    }

    #[test]
    fn a_ratio_above_the_promise_says_so() {
        let spec: CacheSpec = "hca:12.5%".parse().unwrap();
        assert_eq!(ratio(0.171, &spec), "17.1 %, 12.5 % from 4,096 tokens");
        assert_eq!(ratio(0.125, &spec), "12.5 %");
        let spec: CacheSpec = "keys=lm2".parse().unwrap();
        assert_eq!(ratio(0.9, &spec), "90.0 %");
    }
}
