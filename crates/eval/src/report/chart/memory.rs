//! Bytes on the device by component while a cache grows.

use heterokv_cache::DeviceBytes;
use plotters::style::Color;

use super::Chart;
use crate::report::axis::Axis;
use crate::report::cast::{Cast, Member};
use crate::report::frame::{Drawn, Frame, SIZE, svg};
use crate::report::paint::{INK, SERIES, area_entry, dashes_entry};
use crate::report::text::{byte_unit, bytes, percent, tokens};
use crate::{Memory, Row};

/// From the ground up.
const COMPONENTS: [&str; 6] = [
    "resident (sinks, or all)",
    "recent window",
    "codes of keys",
    "tables",
    "values",
    "evidence of tokens",
];

/// Bytes of the components, in their order.
fn parts(bytes: &DeviceBytes) -> [usize; 6] {
    let DeviceBytes { resident, window, codes, tables, values, evidence } = *bytes;
    [resident, window, codes, tables, values, evidence]
}

/// One chart for each model and cache that was counted at two lengths or more.
pub(super) fn charts(rows: &[&Row], cast: &Cast) -> Drawn<Vec<Chart>> {
    let mut charts = Vec::new();
    for (fingerprint, _) in cast.models() {
        for member in cast.members() {
            let is_of =
                |row: &&&Row| row.run.fingerprint == *fingerprint && Member::from(**row) == *member;
            let points = points(rows.iter().filter(is_of).copied());
            let title = cast.subject(fingerprint, &cast.label(member));
            charts.extend(chart(&points, &title)?);
        }
    }
    Ok(charts)
}

/// One a length, the largest, from short to long.
fn points<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<Memory> {
    let mut points: Vec<Memory> = rows.flat_map(|row| row.memory.iter().copied()).collect();
    points.sort_by_key(|memory| (memory.num_tokens, std::cmp::Reverse(memory.device.total())));
    points.dedup_by_key(|memory| memory.num_tokens);
    points
}

fn chart(points: &[Memory], title: &str) -> Drawn<Option<Chart>> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(None) };
    if first.num_tokens == last.num_tokens {
        return Ok(None);
    }
    let predicted: Vec<(f64, f64)> = points
        .iter()
        .filter_map(|memory| {
            Some((memory.num_tokens as f64, memory.predicted_device_bytes? as f64))
        })
        .collect();
    let totals = points.iter().map(|memory| memory.device.total() as f64);
    let largest = totals.clone().chain(predicted.iter().map(|&(_, y)| y)).fold(0.0, f64::max);
    let (unit, size) = byte_unit(largest);
    let lengths = points.iter().map(|memory| memory.num_tokens as f64);
    let (Some(x), Some(y)) = (
        Axis::close("tokens held", lengths),
        Axis::even(&format!("device memory, {unit}"), [largest / size]),
    ) else {
        return Ok(None);
    };
    let mut legend = Vec::new();
    let svg = svg(SIZE, &format!("Device memory by component: {title}"), |area| {
        let frame = Frame::new(area, x, y)?;
        let mut ground = vec![0.0; points.len()];
        for (component, (name, paint)) in COMPONENTS.into_iter().zip(SERIES).enumerate() {
            let mut band = Vec::new();
            for (memory, ground) in points.iter().zip(&mut ground) {
                let low = *ground;
                *ground += parts(&memory.device)[component] as f64 / size;
                band.push((memory.num_tokens as f64, low, *ground));
            }
            if band.iter().any(|(_, low, high)| low < high) {
                frame.band(&band, paint)?;
                legend.push(area_entry(paint, name)?);
            }
        }
        if predicted.len() > 1 {
            let line: Vec<_> = predicted.iter().map(|&(x, y)| (x, y / size)).collect();
            frame.dashes(&line, INK.light.stroke_width(3))?;
            legend.push(dashes_entry(INK, "predicted by the plan")?);
        }
        Ok(())
    })?;
    let note = format!(
        "At {} tokens {} on the device, {} of the {} of a full f16 cache, and {} on the host.",
        tokens(last.num_tokens as f64),
        bytes(last.device.total() as f64),
        percent(last.ratio()),
        bytes(last.full_bytes as f64),
        bytes(last.host_bytes as f64),
    );
    Ok(Some(Chart { title: title.to_owned(), svg, legend, note }))
}
