//! KL by position behind the context.

use super::Chart;
use crate::report::axis::{Axis, Ladder};
use crate::report::cast::{Cast, Member, add};
use crate::report::frame::{Drawn, Frame, SIZE, svg};
use crate::report::paint::entry;
use crate::report::text::{short, tokens};
use crate::{Outcome, Row};

/// Bins of positions at most.
const MAX_BINS: usize = 24;

/// Marks along a line at most.
const MAX_MARKS: usize = 6;

/// One chart for each model, task and context with a cache that diverges at two bins or more.
pub(super) fn charts(rows: &[&Row], cast: &Cast) -> Drawn<Vec<Chart>> {
    let mut groups: Vec<(&str, &str, usize)> = Vec::new();
    for row in rows.iter().filter(|row| matches!(row.outcome, Outcome::Divergence { .. })) {
        add(&mut groups, (&row.run.fingerprint, &row.task, row.context));
    }
    let mut charts = Vec::new();
    for (fingerprint, task, context) in groups {
        let is_of = |row: &&&Row| {
            (&*row.run.fingerprint, &*row.task, row.context) == (fingerprint, task, context)
        };
        let of_group: Vec<&Row> = rows.iter().filter(is_of).copied().collect();
        let subject = format!("{task} at {} tokens", tokens(context as f64));
        charts.extend(chart(&of_group, &cast.subject(fingerprint, &subject), cast)?);
    }
    Ok(charts)
}

fn chart(rows: &[&Row], title: &str, cast: &Cast) -> Drawn<Option<Chart>> {
    let num_steps = rows.iter().map(|row| divergences(row).len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    for member in cast.members() {
        let is_of = |row: &&&Row| Member::from(**row) == *member;
        let samples: Vec<&[f64]> = rows.iter().filter(is_of).map(|row| divergences(row)).collect();
        let line = binned(&samples, num_steps);
        if line.len() > 1 {
            let look = cast.look(member);
            lines.push((look, line));
            legend.push(entry(look, &cast.label(member))?);
        }
    }
    let values = lines.iter().flat_map(|(_, line)| line.iter().map(|&(_, kl)| kl));
    let Some(y) = Axis::log("mean KL(full ‖ cache), nats", values, Ladder::Tens, short) else {
        return Ok(None);
    };
    let Some(x) = Axis::even("steps behind the context", [num_steps as f64]) else {
        return Ok(None);
    };
    let svg = svg(SIZE, &format!("Divergence by position: {title}"), |area| {
        let frame = Frame::new(area, x, y)?;
        for (look, line) in &lines {
            frame.line(line, look.stroke())?;
            for &(step, kl) in line.iter().step_by(line.len().div_ceil(MAX_MARKS)) {
                look.mark(area, frame.at(step, kl))?;
            }
        }
        Ok(())
    })?;
    Ok(Some(Chart { title: title.to_owned(), svg, legend, note: String::new() }))
}

fn divergences(row: &Row) -> &[f64] {
    match &row.outcome {
        Outcome::Divergence { steps, .. } => &steps.kl,
        Outcome::Answers { .. } => &[],
    }
}

/// The middle of each bin of steps with the mean over all samples, where that is above 0.
fn binned(samples: &[&[f64]], num_steps: usize) -> Vec<(f64, f64)> {
    let num_bins = num_steps.min(MAX_BINS);
    let mut line = Vec::new();
    for bin in 0..num_bins {
        let [first, end] = [bin, bin + 1].map(|bin| bin * num_steps / num_bins);
        let of_bin =
            |sample: &&[f64]| sample.get(first..end.min(sample.len())).unwrap_or_default().to_vec();
        let values: Vec<f64> = samples.iter().flat_map(of_bin).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        if mean.is_finite() && mean > 0.0 {
            line.push(((first + end) as f64 / 2.0, mean));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_means_over_steps_and_samples() {
        let long: Vec<f64> = (0..48).map(f64::from).collect();
        let line = binned(&[&long, &[0.0, 3.0]], 48);
        assert_eq!(line.len(), 24);
        assert_eq!(line[0], (1.0, 1.0));
        assert_eq!(line[23], (47.0, 46.5));
        assert_eq!(binned(&[&[0.0; 48]], 48), [], "0 is not on a logarithmic axis");
        assert_eq!(binned(&[&[f64::NAN], &[]], 1), []);
        assert_eq!(binned(&[], 0), []);
    }
}
