//! The charts of a report.

mod decode;
mod memory;
mod needles;
mod position;
mod tradeoff;

use serde::Serialize;

use super::cast::Cast;
use super::frame::Drawn;
use super::paint::Entry;
use crate::{Aggregate, Row};

/// A picture with what is written around it.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    title: String,
    /// An `<svg>` element.
    svg: String,
    legend: Vec<Entry>,
    /// What the picture does not say by itself; empty where there is nothing.
    note: String,
}

/// Charts that answer one question.
#[derive(Debug, Serialize)]
pub(super) struct Section {
    id: &'static str,
    heading: &'static str,
    about: &'static str,
    charts: Vec<Chart>,
}

/// All charts that the rows have data for; a section without one is left out.
pub(super) fn sections(
    rows: &[&Row],
    aggregates: &[Aggregate],
    cast: &Cast,
) -> Drawn<Vec<Section>> {
    let mut sections = vec![
        Section {
            id: "quality",
            heading: "Quality against device bytes",
            about: "Each mark is a cache, with its 95 % interval. The line is the Pareto front: no other cache is \
                    both smaller and better. Bytes are those on the device, as allocated, over those of the same \
                    tokens in a full f16 cache.",
            charts: tradeoff::charts(aggregates, cast)?,
        },
        Section {
            id: "needles",
            heading: "Needles by depth and length",
            about: "Mean score of what was hidden at a depth of a context: 1 is found, 0 is lost.",
            charts: needles::charts(rows, cast)?,
        },
        Section {
            id: "position",
            heading: "Divergence by position",
            about: "Mean KL(full ‖ cache) of the steps behind the context, in bins of equal width: a line that \
                    rises shows errors that accumulate.",
            charts: position::charts(rows, cast)?,
        },
        Section {
            id: "memory",
            heading: "Device memory over time",
            about: "Bytes on the device by component, as allocated, while the cache grows.",
            charts: memory::charts(rows, cast)?,
        },
        Section {
            id: "decode",
            heading: "Decode time against context",
            about: "Time of one token through the model and the cache: median of the samples' medians.",
            charts: decode::charts(rows, cast)?,
        },
    ];
    sections.retain(|section| !section.charts.is_empty());
    Ok(sections)
}
