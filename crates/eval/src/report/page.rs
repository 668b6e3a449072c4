//! Results as one page that needs no network.

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;

use super::cast::{Cast, add};
use super::chart::{Section, sections};
use super::paint::{Rule, rules};
use super::table::{Table, tables};
use crate::aggregate::{aggregate, distinct};
use crate::{Error, Result, Row};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the template shows.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    style: &'a str,
    script: &'a str,
    paints: Vec<Rule>,
    facts: Vec<Fact>,
    commands: Vec<String>,
    sections: Vec<Section>,
    tables: Vec<Table>,
}

/// Something that all rows have, with each value once.
#[derive(Serialize)]
struct Fact {
    name: &'static str,
    values: Vec<String>,
}

/// The results as one HTML page: by what they were made; charts of quality against device bytes, needles, divergence
/// by position, memory and decode time; and tables of all aggregates, whose cells hold each number with every digit
/// in `data-value`. It loads nothing. A chart without data is left out.
///
/// # Errors
/// [`Error::NoResults`] of no rows; [`Error::Chart`] and [`Error::Page`] where they cannot be made.
pub fn html(rows: &[Row], title: &str) -> Result<String> {
    if rows.is_empty() {
        return Err(Error::NoResults);
    }
    let cast = Cast::of(rows);
    let aggregates = aggregate(rows);
    let mut commands = Vec::new();
    for row in rows {
        add(&mut commands, row.run.command.clone());
    }
    let page = Page {
        title,
        style: STYLE,
        script: SCRIPT,
        paints: rules(),
        facts: facts(rows),
        commands,
        sections: sections(&distinct(rows), &aggregates, &cast)?,
        tables: tables(&aggregates, &cast),
    };
    // The ending of the name has all text escaped.
    let mut environment = Environment::new();
    environment
        .add_template("page.html", PAGE)
        .and_then(|()| environment.get_template("page.html"))
        .and_then(|template| template.render(Serde(&page)))
        .map_err(Error::Page)
}

/// By what the rows were made.
fn facts(rows: &[Row]) -> Vec<Fact> {
    let fact = |name, value: fn(&Row) -> String| {
        let mut values = Vec::new();
        for row in rows {
            add(&mut values, value(row));
        }
        Fact { name, values }
    };
    vec![
        fact("Model", |row| format!("{} ({})", row.run.model, row.run.fingerprint)),
        fact("Engine", |row| format!("{} {}", row.run.engine, row.run.version)),
        fact("Commit", |row| row.run.commit.clone()),
        fact("Date", |row| row.run.date.clone()),
        fact("Conditions", |row| row.run.conditions.clone()),
        fact("Threads", |row| row.run.threads.to_string()),
        fact("Seed", |row| row.run.seed.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rows::{answers, divergence};

    #[test]
    fn no_rows_are_an_error() {
        assert!(matches!(html(&[], "x"), Err(Error::NoResults)));
    }

    #[test]
    fn what_has_no_data_is_left_out() {
        let mut row = answers("passkey", 512, "full", None, &[]);
        row.memory.clear();
        row.time.num_steps = 0;
        let page = html(&[row], "one").unwrap();
        assert!(!page.contains("<svg"), "no chart");
        assert!(page.contains(r#"data-name="num_samples" data-value="1""#));
    }

    #[test]
    fn numbers_that_are_none_break_nothing() {
        let mut odd = divergence("kl", 8, "odd", &[f64::NAN, f64::INFINITY]);
        odd.time.step_seconds = f64::NAN;
        odd.depth = Some(f64::NAN);
        odd.rows_read = Some(f64::INFINITY);
        let mut lost = answers("needle", 8, "odd", Some(f64::NAN), &[f64::NAN]);
        lost.memory[0].full_bytes = 0;
        assert!(html(&[odd, lost], "odd").unwrap().contains("NaN"));
    }

    #[test]
    fn text_of_others_is_text() {
        let evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>";
        let mut rows = vec![
            divergence(evil, 1024, evil, &[0.1; 64]),
            answers(evil, 1024, evil, Some(0.5), &[1.0]),
        ];
        for row in &mut rows {
            row.run.command = evil.to_owned();
            row.run.model = evil.to_owned();
        }
        let page = html(&rows, evil).unwrap();
        assert!(page.contains("<svg") && page.contains("&lt;script"));
        assert!(!page.contains("<script>alert") && !page.contains("<img"), "{page}");
    }

    #[test]
    fn nothing_is_loaded() {
        let page = html(&[divergence("kl", 1024, "hca:25%", &[0.1; 64])], "x").unwrap();
        for word in ["http://", "https://", " src=", "@import", "url(", "<link"] {
            assert!(!page.contains(word), "{word}");
        }
    }
}
