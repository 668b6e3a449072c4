//! Heat maps: the score by depth and length of the context.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Chart;
use crate::report::cast::{Cast, Member, add};
use crate::report::frame::{Area, Drawn, SIZE, svg, width, write};
use crate::report::paint::{HEAT, INK, MUTED};
use crate::report::text::{percent, tokens};
use crate::{Outcome, Row};

/// Height of a cell.
const CELL: i32 = 60;

/// Rows of pixels above and below the cells, for text.
const MARGIN: (i32, i32) = (66, 100);

/// Cells across at most. Beyond, the numbers would not fit.
const MAX_COLUMNS: usize = 8;

/// Scores at depths and lengths of contexts.
struct Grid {
    /// From the beginning of the context to its end.
    depths: Vec<f64>,
    contexts: Vec<usize>,
    /// By depth, then by context; none where nothing was hidden.
    scores: Vec<Vec<Option<f64>>>,
}

/// One chart for each model, task and cache that was asked for something at a depth; several where there are more
/// lengths than a chart has room for.
pub(super) fn charts(rows: &[&Row], cast: &Cast) -> Drawn<Vec<Chart>> {
    let mut tasks: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.depth.is_some()) {
        add(&mut tasks, row.task.as_str());
    }
    let mut charts = Vec::new();
    for (fingerprint, _) in cast.models() {
        for task in &tasks {
            for member in cast.members() {
                let is_of = |row: &&&Row| {
                    (&row.run.fingerprint, row.task.as_str()) == (fingerprint, *task)
                        && Member::from(**row) == *member
                };
                let cells = cells(rows.iter().filter(is_of).copied());
                let subject = format!("{task}: {}", cast.label(member));
                for grid in grids(&cells) {
                    let title = cast.subject(fingerprint, &subject);
                    let about = format!("Score by depth and length: {title}");
                    let height = MARGIN.0 + MARGIN.1 + CELL * grid.depths.len() as i32;
                    let svg = svg((SIZE.0, height as u32), &about, |area| draw(area, &grid))?;
                    charts.push(Chart { title, svg, legend: vec![], note: String::new() });
                }
            }
        }
    }
    Ok(charts)
}

/// Depth, context and score of each row that has all three.
fn cells<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<(f64, usize, f64)> {
    let cell = |row: &Row| match (&row.outcome, row.depth) {
        (Outcome::Answers { score, .. }, Some(depth)) if depth.is_finite() && score.is_finite() => {
            // Depths are given to a thousandth of the context.
            Some(((depth * 1000.0).round() / 1000.0, row.context, *score))
        }
        _ => None,
    };
    rows.filter_map(cell).collect()
}

fn grids(cells: &[(f64, usize, f64)]) -> Vec<Grid> {
    let mut depths: Vec<f64> = Vec::new();
    let mut contexts: Vec<usize> = Vec::new();
    for &(depth, context, _) in cells {
        add(&mut depths, depth);
        add(&mut contexts, context);
    }
    depths.sort_by(f64::total_cmp);
    contexts.sort_unstable();
    let mean = |depth: f64, context: usize| {
        let here = cells.iter().filter(|cell| cell.0 == depth && cell.1 == context);
        let (sum, count) = here.fold((0.0, 0), |(sum, count), cell| (sum + cell.2, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    };
    let grid = |contexts: &[usize]| Grid {
        scores: depths
            .iter()
            .map(|&depth| contexts.iter().map(|&context| mean(depth, context)).collect())
            .collect(),
        depths: depths.clone(),
        contexts: contexts.to_vec(),
    };
    contexts.chunks(MAX_COLUMNS).map(grid).collect()
}

fn draw(area: &Area<'_>, grid: &Grid) -> Drawn {
    let (top, left) = (MARGIN.0, width("12.5 %") + 24);
    let right = SIZE.0 as i32 - 8;
    let columns = grid.contexts.len() as i32;
    let column = |i: usize| left + (right - left) * i as i32 / columns;
    let row = |i: usize| top + CELL * i as i32;
    write(area, "depth", INK, (2, 4), (HPos::Left, VPos::Top))?;
    for (i, (depth, scores)) in grid.depths.iter().zip(&grid.scores).enumerate() {
        let middle = row(i) + CELL / 2;
        write(area, &percent(*depth), MUTED, (left - 12, middle), (HPos::Right, VPos::Center))?;
        for (j, score) in scores.iter().enumerate() {
            let Some(score) = score else { continue };
            let corners = [(column(j) + 2, row(i) + 2), (column(j + 1) - 2, row(i + 1) - 2)];
            let last = HEAT.len() - 1;
            let (fill, ink) = HEAT[((score * last as f64).round() as usize).min(last)];
            area.draw(&Rectangle::new(corners, fill.light.filled()))?;
            let centre = ((column(j) + column(j + 1)) / 2, middle);
            write(area, &format!("{score:.2}"), ink, centre, (HPos::Center, VPos::Center))?;
        }
    }
    let bottom = row(grid.depths.len());
    for (j, &context) in grid.contexts.iter().enumerate() {
        let at = ((column(j) + column(j + 1)) / 2, bottom + 10);
        write(area, &tokens(context as f64), MUTED, at, (HPos::Center, VPos::Top))?;
    }
    write(area, "tokens of context", INK, (right, bottom + 58), (HPos::Right, VPos::Top))
}
