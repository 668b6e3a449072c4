//! Time of a step against the length of the context.

use super::Chart;
use crate::Row;
use crate::divergence::median;
use crate::report::axis::{Axis, Ladder};
use crate::report::cast::{Cast, Member, add};
use crate::report::frame::{Drawn, Frame, SIZE, svg};
use crate::report::paint::entry;
use crate::report::text::tokens;

/// One chart for each model whose steps were timed.
pub(super) fn charts(rows: &[&Row], cast: &Cast) -> Drawn<Vec<Chart>> {
    let mut charts = Vec::new();
    for (fingerprint, name) in cast.models() {
        let is_of = |row: &&&Row| {
            let time = &row.time;
            row.run.fingerprint == *fingerprint && time.num_steps > 0 && time.step_seconds > 0.0
        };
        let timed: Vec<&Row> = rows.iter().filter(is_of).copied().collect();
        charts.extend(chart(&timed, name, cast)?);
    }
    Ok(charts)
}

fn chart(rows: &[&Row], title: &str, cast: &Cast) -> Drawn<Option<Chart>> {
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    for member in cast.members() {
        let is_of = |row: &&&Row| Member::from(**row) == *member;
        let line = medians(rows.iter().filter(is_of).copied());
        if !line.is_empty() {
            let look = cast.look(member);
            lines.push((look, line));
            legend.push(entry(look, &cast.label(member))?);
        }
    }
    let points = || lines.iter().flat_map(|(_, line)| line);
    let contexts = points().map(|&(context, _)| context);
    let times = points().map(|&(_, time)| time);
    let (Some(x), Some(y)) = (
        Axis::log("tokens of context", contexts, Ladder::Doublings(1.0), tokens),
        Axis::even("milliseconds per token", times),
    ) else {
        return Ok(None);
    };
    let svg = svg(SIZE, &format!("Decode time against context: {title}"), |area| {
        let frame = Frame::new(area, x, y)?;
        for (look, line) in &lines {
            frame.line(line, look.stroke())?;
            for &(context, time) in line {
                look.mark(area, frame.at(context, time))?;
            }
        }
        Ok(())
    })?;
    Ok(Some(Chart { title: title.to_owned(), svg, legend, note: String::new() }))
}

/// Contexts from short to long, with the median of the rows' times in milliseconds.
fn medians<'a>(rows: impl Iterator<Item = &'a Row> + Clone) -> Vec<(f64, f64)> {
    let mut contexts: Vec<usize> = Vec::new();
    for row in rows.clone() {
        add(&mut contexts, row.context);
    }
    contexts.sort_unstable();
    let at = |context: usize| {
        let here = rows.clone().filter(|row| row.context == context);
        let times: Vec<f64> = here.map(|row| 1000.0 * row.time.step_seconds).collect();
        (context as f64, median(&times))
    };
    contexts.into_iter().map(at).collect()
}
