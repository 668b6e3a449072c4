//! Tables of aggregates: which columns, what is written in a cell, and the number behind it.

use serde::Serialize;

use super::cast::{Cast, Member};
use super::text::{bytes, percent, short, tokens};
use crate::{Aggregate, Figure};

/// A table of one model and task.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    title: String,
    task: String,
    fingerprint: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Column {
    /// What a program finds it by.
    name: &'static str,
    heading: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Cell {
    text: String,
    /// The 95 % interval as people read it; empty where there is none.
    interval: String,
    /// The number with every digit; none in a cell of text, and where there is no number.
    value: Option<String>,
    low: Option<String>,
    high: Option<String>,
}

/// What is written over a figure, in the order of columns.
pub(super) const FIGURES: [(&str, &str); 11] = [
    ("score", "score"),
    ("kl_mean", "mean KL"),
    ("kl_median", "median KL"),
    ("kl_p99", "p99 KL"),
    ("kl_max", "max KL"),
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("ppl", "perplexity"),
    ("full_ppl", "perplexity of full"),
    ("ppl_change", "perplexity change"),
    ("probability_change", "probability change"),
];

/// Figures that are shares.
const SHARES: [&str; 3] = ["top1", "top5", "ppl_change"];

/// A figure's number as people read it.
pub(super) fn shown(name: &str, value: f64) -> String {
    if SHARES.contains(&name) { percent(value) } else { short(value) }
}

/// A figure's interval as people read it; none where it has none.
pub(super) fn interval(figure: &Figure) -> Option<String> {
    let (low, high) = (figure.low?, figure.high?);
    Some(format!("{} to {}", shown(figure.name, low), shown(figure.name, high)))
}

/// One table for each model and task.
pub(super) fn tables(aggregates: &[Aggregate], cast: &Cast) -> Vec<Table> {
    let mut groups: Vec<Vec<&Aggregate>> = Vec::new();
    for aggregate in aggregates {
        let is_like = |first: &Aggregate| {
            first.fingerprint == aggregate.fingerprint && first.task == aggregate.task
        };
        match groups.iter_mut().find(|group| is_like(group[0])) {
            Some(group) => group.push(aggregate),
            None => groups.push(vec![aggregate]),
        }
    }
    groups.iter().map(|group| table(group, cast)).collect()
}

fn table(group: &[&Aggregate], cast: &Cast) -> Table {
    let of = |aggregate: &&Aggregate| cells(aggregate, cast);
    let rows: Vec<Vec<(Column, Cell)>> = group.iter().map(of).collect();
    // A column that no row has anything in is left out; all rows have the same ones.
    let is_used = |place: usize| {
        rows.iter().any(|row| row[place].1.value.is_some() || !row[place].1.text.is_empty())
    };
    let used: Vec<usize> = (0..rows[0].len()).filter(|&place| is_used(place)).collect();
    let first = group[0];
    Table {
        title: cast.subject(&first.fingerprint, &first.task),
        task: first.task.clone(),
        fingerprint: first.fingerprint.clone(),
        columns: used.iter().map(|&place| rows[0][place].0.clone()).collect(),
        rows: rows
            .iter()
            .map(|row| used.iter().map(|&place| row[place].1.clone()).collect())
            .collect(),
    }
}

/// Every column that there is, the cache first.
fn cells(aggregate: &Aggregate, cast: &Cast) -> Vec<(Column, Cell)> {
    let engine = if cast.has_engines() { aggregate.engine.as_str() } else { "" };
    let note = cast.distinction(&Member::from(aggregate));
    let mut cells = vec![
        (Column { name: "cache", heading: "cache" }, text(&aggregate.cache)),
        (Column { name: "engine", heading: "engine" }, text(engine)),
        (Column { name: "of", heading: "of" }, text(&note)),
        whole("context", "context", Some(aggregate.context), |context| tokens(context as f64)),
        whole("num_samples", "samples", Some(aggregate.num_samples), |count| count.to_string()),
        number("ratio", "of full f16", aggregate.ratio, percent),
        whole("device_bytes", "device", aggregate.device_bytes, |count| bytes(count as f64)),
        whole("host_bytes", "host", aggregate.host_bytes, |count| bytes(count as f64)),
    ];
    for (name, heading) in FIGURES {
        let figure = aggregate.figure(name);
        let (column, mut cell) =
            number(name, heading, figure.map(|figure| figure.value), |value| shown(name, value));
        cell.interval = figure.and_then(interval).unwrap_or_default();
        cell.low = figure.and_then(|figure| figure.low).map(exact);
        cell.high = figure.and_then(|figure| figure.high).map(exact);
        cells.push((column, cell));
    }
    cells.push(number("rows_read", "rows read", aggregate.rows_read, percent));
    let milliseconds = |seconds: f64| format!("{} ms", short(1000.0 * seconds));
    cells.push(number("step_seconds", "step", aggregate.step_seconds, milliseconds));
    cells.push(number("prefill_rate", "prefill, tokens/s", aggregate.prefill_rate, short));
    cells
}

fn text(text: &str) -> Cell {
    Cell { text: text.to_owned(), ..Cell::default() }
}

fn whole(
    name: &'static str,
    heading: &'static str,
    value: Option<usize>,
    shown: impl Fn(usize) -> String,
) -> (Column, Cell) {
    let cell = Cell {
        text: value.map(shown).unwrap_or_default(),
        value: value.map(|value| value.to_string()),
        ..Cell::default()
    };
    (Column { name, heading }, cell)
}

fn number(
    name: &'static str,
    heading: &'static str,
    value: Option<f64>,
    shown: impl Fn(f64) -> String,
) -> (Column, Cell) {
    let cell = Cell {
        text: value.map(shown).unwrap_or_default(),
        value: value.map(exact),
        ..Cell::default()
    };
    (Column { name, heading }, cell)
}

/// Digits that read back as the same number.
fn exact(value: f64) -> String {
    format!("{value:?}")
}
