//! The cases of the scan as tables.

use super::Place;
use super::grid::{BAR_SHAPE, CaseResult, GridResult};
use crate::samples::Samples;
use crate::sheet::{Cell, Sheet};

/// What is said of a case.
const FIGURES: [&str; 10] = [
    "B/token",
    "Mtok/s",
    "± Mtok/s",
    "min",
    "max",
    "GB/s",
    "of bandwidth, %",
    "times f16",
    "± times f16",
    "samples",
];

/// Every case, one row each.
pub(crate) fn scan_sheet(result: &GridResult) -> Sheet {
    let columns = [&["format", "scores", "head_dim", "G", "codes in"][..], &FIGURES].concat();
    let mut sheet =
        Sheet::new("Scan: tokens per second of one KV head, all threads together", &columns);
    for case in &result.cases {
        let mut row = vec![
            Cell::text(&case.format),
            Cell::text(case.arithmetic.name()),
            Cell::Number(case.head_dim as f64, 0),
            Cell::Number(case.group_size as f64, 0),
            Cell::text(case.place.name()),
        ];
        row.extend(figures(case));
        sheet.push(row);
    }
    sheet
}

/// The cases that the bars are set for, by which their figures can be followed.
pub(crate) fn bar_shape_sheet(result: &GridResult) -> Sheet {
    let (head_dim, group_size) = BAR_SHAPE;
    let title = format!(
        "Scan from memory by head_dim {head_dim} and G = {group_size}, which the bars are set for"
    );
    let mut sheet = Sheet::new(title, &[&["format", "scores"][..], &FIGURES].concat());
    for case in result.cases.iter().filter(|case| case.is_at_bars()) {
        let mut row = vec![Cell::text(&case.format), Cell::text(case.arithmetic.name())];
        row.extend(figures(case));
        sheet.push(row);
    }
    sheet
}

/// The cells of [`FIGURES`].
fn figures(case: &CaseResult) -> [Cell; FIGURES.len()] {
    let millions = scaled(&case.tokens_per_second, 1e-6);
    [
        Cell::Number(case.bytes_per_token, 2),
        Cell::Number(millions.median(), 1),
        Cell::Number(millions.deviation(), 1),
        Cell::Number(millions.min(), 1),
        Cell::Number(millions.max(), 1),
        Cell::Number(1e-3 * millions.median() * case.bytes_per_token, 2),
        Cell::Number(100.0 * case.of_bandwidth.median(), 1),
        Cell::Number(case.against_f16.median(), 2),
        Cell::Number(case.against_f16.deviation(), 2),
        Cell::Number(millions.len() as f64, 0),
    ]
}

/// Every sample of every case, in the order taken.
pub(crate) fn samples_sheet(result: &GridResult) -> Sheet {
    let columns = ["format", "scores", "head_dim", "G", "codes in", "sample", "tok/s"];
    let mut sheet = Sheet::new("Samples of the scan", &columns);
    for case in &result.cases {
        for (sample, rate) in case.tokens_per_second.iter().enumerate() {
            sheet.push(vec![
                Cell::text(&case.format),
                Cell::text(case.arithmetic.name()),
                Cell::Number(case.head_dim as f64, 0),
                Cell::Number(case.group_size as f64, 0),
                Cell::text(case.place.name()),
                Cell::Number(sample as f64, 0),
                Cell::Number(rate, 0),
            ]);
        }
    }
    sheet
}

/// A row per format and a column per shape: tokens per second of codes in one place.
pub(crate) fn shapes_sheet(result: &GridResult, place: Place) -> Sheet {
    let here = || result.cases.iter().filter(|case| case.place == place);
    let mut shapes: Vec<(usize, usize)> = Vec::new();
    let mut formats: Vec<(&str, &str)> = Vec::new();
    for case in here() {
        let (shape, format) =
            ((case.head_dim, case.group_size), (&*case.format, case.arithmetic.name()));
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    let mut columns = vec!["format".to_owned(), "scores".to_owned()];
    columns.extend(shapes.iter().map(|(head_dim, group)| format!("{head_dim}, G = {group}")));
    let title = format!("Scan from {}: million tokens per second, by head_dim and G", place.name());
    let mut sheet = Sheet::new(title, &columns);
    for (format, scores) in formats {
        let mut row = vec![Cell::text(format), Cell::text(scores)];
        row.extend(shapes.iter().map(|&shape| {
            let case = here().find(|case| {
                (&*case.format, case.arithmetic.name()) == (format, scores)
                    && (case.head_dim, case.group_size) == shape
            });
            match case {
                Some(case) => Cell::Number(1e-6 * case.tokens_per_second.median(), 1),
                None => Cell::text(""),
            }
        }));
        sheet.push(row);
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
