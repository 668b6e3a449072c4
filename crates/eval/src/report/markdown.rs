//! Results as Markdown for a pull request.

use std::fmt::Write as _;

use super::cast::{Cast, Member, add, comparable};
use super::table::{FIGURES, interval, shown};
use super::text::{percent, short, tokens};
use crate::{Aggregate, Row, aggregate};

/// Figures that a pull request is judged by. The page has all.
const SHOWN: [&str; 6] = ["score", "kl_mean", "kl_p99", "top1", "ppl_change", "probability_change"];

/// The results as compact tables, one for each model, task and context length, with what made them: model, engine,
/// commit, day and command. Intervals are of 95 %. No rows give the line `No results.`.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No results.\n".to_owned();
    }
    let cast = Cast::of(rows);
    let aggregates = aggregate(rows);
    let mut text = made_by(rows);
    for group in comparable(&aggregates) {
        table(&mut text, &group, &cast);
    }
    text
}

/// A line for each way in which rows were made, then the commands.
fn made_by(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    let mut commands = Vec::new();
    for Row { run, .. } in rows {
        let line = format!(
            "{} by {} {}, commit {}, {}; {}, {} threads, seed {}",
            run.model,
            run.engine,
            run.version,
            run.commit,
            run.date,
            run.conditions,
            run.threads,
            run.seed
        );
        add(&mut lines, literal(&line));
        add(&mut commands, run.command.replace(['\n', '\r'], " "));
    }
    let mut text = lines.iter().map(|line| format!("{line}\n\n")).collect::<String>();
    for command in commands {
        // Indented by four, it is code whatever it holds.
        let _ = writeln!(text, "    {command}");
    }
    text
}

fn table(text: &mut String, group: &[&Aggregate], cast: &Cast) {
    let first = group[0];
    let subject = format!("{} at {} tokens", first.task, tokens(first.context as f64));
    let _ = writeln!(text, "\n**{}**\n", literal(&cast.subject(&first.fingerprint, &subject)));
    let is_there = |name: &&str| group.iter().any(|aggregate| aggregate.figure(name).is_some());
    let figures: Vec<&str> = SHOWN.into_iter().filter(is_there).collect();
    let heading =
        |name: &&str| FIGURES.iter().find(|(known, _)| known == name).map(|found| found.1);
    let headings: Vec<&str> = figures.iter().filter_map(heading).collect();
    let _ =
        writeln!(text, "| cache | of full f16 | {} | step, ms | samples |", headings.join(" | "));
    let _ = writeln!(text, "|:--|--:|{}--:|--:|", "--:|".repeat(headings.len()));
    for aggregate in group {
        let cell = |name: &&str| match aggregate.figure(name) {
            None => String::new(),
            Some(figure) => {
                let value = shown(name, figure.value);
                interval(figure).map_or(value.clone(), |interval| format!("{value} ({interval})"))
            }
        };
        let figures: Vec<String> = figures.iter().map(cell).collect();
        let step = aggregate.step_seconds.map(|step| short(1000.0 * step)).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {step} | {} |",
            literal(&cast.label(&Member::from(*aggregate))),
            aggregate.ratio.map(percent).unwrap_or_default(),
            figures.join(" | "),
            aggregate.num_samples,
        );
    }
}

/// Text that Markdown shows as it is, in one line and in one cell.
fn literal(text: &str) -> String {
    let mut literal = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => literal.push(' '),
            '<' => literal.push_str("&lt;"),
            '&' => literal.push_str("&amp;"),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '#' | '~' => literal.extend(['\\', c]),
            c => literal.push(c),
        }
    }
    literal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rows::{answers, divergence};

    #[test]
    fn a_table_has_a_line_for_each_cache_and_the_command() {
        let rows = [
            divergence("kl", 1024, "full", &[0.0; 128]),
            divergence("kl", 1024, "hca:25%", &[0.01; 128]),
            answers("needle", 512, "hca:25%", Some(0.5), &[1.0, 0.0]),
        ];
        let text = markdown(&rows).replace('\u{a0}', " ");
        assert!(text.contains("    heterokv eval"), "{text}");
        assert!(text.contains("**kl at 1Ki tokens**") && text.contains("**needle at 512 tokens**"));
        assert!(text.contains("| hca:25% | 25 % | 0.01 (0.01 to 0.01) | 0.01 |"), "{text}");
        assert!(text.contains("| hca:25% | 25 % | 0.5 |"), "two answers have no interval: {text}");
        for table in text.split("\n**").skip(1) {
            let bars: Vec<usize> = table
                .lines()
                .filter(|line| line.starts_with('|'))
                .map(|line| line.matches('|').count())
                .collect();
            assert!(bars.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        }
    }

    #[test]
    fn names_cannot_become_markup() {
        let text = markdown(&[divergence("kl", 8, "<b>|x*\n`y", &[0.1])]);
        assert!(text.contains(r"| &lt;b>\|x\* \`y |"), "{text}");
        assert_eq!(markdown(&[]), "No results.\n");
    }
}
