//! The cases of the scan as tables.

use super::Place;
use super::grid::GridResult;
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// Every case, one row each.
pub(crate) fn scan_sheet(result: &GridResult) -> Sheet {
    let mut sheet = Sheet::new(
        "Scan: tokens per second of one KV head, all threads together",
        &[
            "format",
            "scores",
            "head_dim",
            "G",
            "codes in",
            "B/token",
            "Mtok/s",
            "± Mtok/s",
            "min",
            "max",
            "GB/s",
            "of bandwidth, %",
            "times f16",
            "samples",
        ],
    );
    for case in &result.cases {
        let millions: Samples = scaled(&case.tokens_per_second, 1e-6);
        let bytes_per_second = case.tokens_per_second.median() * case.bytes_per_token;
        let bandwidth = result.bandwidth(case.place).max();
        let ratio = if case.format == "f16" { 1.0 } else { case.against_f16.median() };
        sheet.push(vec![
            Cell::text(&case.format),
            Cell::text(case.arithmetic.name()),
            Cell::Number(case.head_dim as f64, 0),
            Cell::Number(case.group_size as f64, 0),
            Cell::text(case.place.name()),
            Cell::Number(case.bytes_per_token, 2),
            Cell::Number(millions.median(), 1),
            Cell::Number(millions.deviation(), 1),
            Cell::Number(millions.min(), 1),
            Cell::Number(millions.max(), 1),
            Cell::Number(bytes_per_second / 1e9, 2),
            Cell::Number(100.0 * bytes_per_second / bandwidth, 1),
            Cell::Number(ratio, 2),
            Cell::Number(millions.len() as f64, 0),
        ]);
    }
    sheet
}

/// What the probe read.
pub(crate) fn bandwidth_sheet(result: &GridResult) -> Sheet {
    let columns = ["from", "best GB/s", "median GB/s", "± GB/s", "samples"];
    let mut sheet = Sheet::new("Read bandwidth of this machine in the same run", &columns);
    for place in [Place::Cache, Place::Memory] {
        let rates = scaled(result.bandwidth(place), 1e-9);
        sheet.push(vec![
            Cell::text(place.name()),
            Cell::Number(rates.max(), 2),
            Cell::Number(rates.median(), 2),
            Cell::Number(rates.deviation(), 2),
            Cell::Number(rates.len() as f64, 0),
        ]);
    }
    sheet
}

fn scaled(samples: &Samples, factor: f64) -> Samples {
    samples.iter().map(|x| factor * x).collect()
}
