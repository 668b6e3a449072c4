//! Quality against device bytes, with the Pareto front.

use plotters::style::Color;

use super::Chart;
use crate::report::axis::{Axis, Ladder};
use crate::report::cast::{Cast, Member, comparable};
use crate::report::frame::{Drawn, Frame, SIZE, svg};
use crate::report::paint::{INK, Look, dashes_entry, entry};
use crate::report::text::{percent, short, tokens};
use crate::{Aggregate, Figure};

/// A cache in the chart.
struct Point {
    look: Look,
    /// Percent of the bytes of a full f16 cache.
    size: f64,
    figure: Figure,
}

/// A quality by which caches are compared.
struct Quality {
    figure: &'static str,
    title: &'static str,
    is_better: fn(f64, f64) -> bool,
}

const QUALITIES: [Quality; 2] = [
    Quality { figure: "kl_mean", title: "mean KL(full ‖ cache), nats", is_better: |a, b| a < b },
    Quality { figure: "score", title: "mean score", is_better: |a, b| a > b },
];

/// One chart for each model, task, context and quality with a cache of which both are known.
pub(super) fn charts(aggregates: &[Aggregate], cast: &Cast) -> Drawn<Vec<Chart>> {
    let mut charts = Vec::new();
    for group in comparable(aggregates) {
        for quality in &QUALITIES {
            charts.extend(chart(&group, quality, cast)?);
        }
    }
    Ok(charts)
}

fn chart(group: &[&Aggregate], quality: &Quality, cast: &Cast) -> Drawn<Option<Chart>> {
    let mut points = Vec::new();
    let mut legend = Vec::new();
    for aggregate in group {
        let (Some(figure), Some(ratio)) = (aggregate.figure(quality.figure), aggregate.ratio)
        else {
            continue;
        };
        if ratio > 0.0 && figure.value.is_finite() {
            let member = Member::from(*aggregate);
            let look = cast.look(&member);
            points.push(Point { look, size: 100.0 * ratio, figure: *figure });
            let size = percent(ratio);
            let label = cast.label(&member);
            legend.push(entry(look, &format!("{label}: {} at {size}", short(figure.value)))?);
        }
    }
    let sizes = points.iter().map(|point| point.size);
    let title = "device bytes, % of full f16";
    let Some(x) = Axis::log(title, sizes, Ladder::Doublings(100.0), short) else { return Ok(None) };
    let ends = points.iter().flat_map(|Point { figure, .. }| {
        [Some(figure.value), figure.low, figure.high].into_iter().flatten()
    });
    let is_log = quality.figure == "kl_mean";
    let y = if is_log {
        Axis::log(quality.title, ends, Ladder::Tens, short)
    } else {
        Axis::even(quality.title, ends.chain([1.0]))
    };
    // Where all are exactly `full`, there is nothing to compare.
    let Some(y) = y else { return Ok(None) };
    let first = group[0];
    let task = format!("{} at {} tokens", first.task, tokens(first.context as f64));
    let title = cast.subject(&first.fingerprint, &task);
    let svg = svg(SIZE, &format!("Quality against device bytes: {title}"), |area| {
        let frame = Frame::new(area, x, y)?;
        let corners = front(&points, quality.is_better);
        frame.dashes(&corners, INK.light.stroke_width(3))?;
        for Point { look, size, figure } in &points {
            if let (Some(low), Some(high)) = (figure.low, figure.high) {
                frame.line(&[(*size, low), (*size, high)], look.stroke())?;
            }
            look.mark(area, frame.at(*size, figure.value))?;
        }
        Ok(())
    })?;
    legend.push(dashes_entry(INK, "Pareto front")?);
    let is_exact = |point: &Point| is_log && point.figure.value <= 0.0;
    let note =
        if points.iter().any(is_exact) { "A divergence of 0 is on the lower edge." } else { "" };
    Ok(Some(Chart { title, svg, legend, note: note.to_owned() }))
}

/// Corners of the front from small to large: sizes with the quality that is had for that much.
fn front(points: &[Point], is_better: fn(f64, f64) -> bool) -> Vec<(f64, f64)> {
    let mut sorted: Vec<(f64, f64)> =
        points.iter().map(|point| (point.size, point.figure.value)).collect();
    sorted.sort_by(|a, b| {
        let better_first = if is_better(a.1, b.1) {
            std::cmp::Ordering::Less
        } else {
            std::cmp::Ordering::Greater
        };
        a.0.total_cmp(&b.0).then(if a.1 == b.1 { std::cmp::Ordering::Equal } else { better_first })
    });
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for (size, value) in sorted {
        match corners.last() {
            Some(&(_, best)) if !is_better(value, best) => {}
            Some(&(_, best)) => corners.extend([(size, best), (size, value)]),
            None => corners.push((size, value)),
        }
    }
    corners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_leaves_out_what_another_beats() {
        let point = |(size, value)| Point {
            look: Look::Reference,
            size,
            figure: Figure { name: "kl_mean", value, low: None, high: None },
        };
        let points = [(50.0, 0.2), (12.5, 0.3), (25.0, 0.1), (100.0, 0.0), (12.5, 0.4)].map(point);
        let lower = front(&points, |a, b| a < b);
        let expected = [(12.5, 0.3), (25.0, 0.3), (25.0, 0.1), (100.0, 0.1), (100.0, 0.0)];
        assert_eq!(lower, expected);
        assert_eq!(front(&points, |a, b| a > b), [(12.5, 0.4)]);
        assert_eq!(front(&[], |a, b| a < b), []);
    }
}
