//! The page of results in headless Chromium: nothing on the console, no text that leaves its place at either width,
//! and the numbers of the rows, digit for digit.

mod browser;
mod rows;

use heterokv_eval::{Aggregate, Row, aggregate, html};

use browser::{Browser, Cell, Found};
use rows::{EVIL, rows};

/// Window widths of a desk and of a telephone.
const WIDTHS: [u32; 2] = [1280, 390];

/// Words smaller than this cannot be read.
const MIN_LABEL_HEIGHT: f64 = 9.0;

/// What is wrong with how the page looks.
fn faults(found: &Found) -> Vec<String> {
    let mut faults = Vec::new();
    faults.extend(found.console.iter().map(|line| format!("on the console: {line}")));
    faults.extend(found.overflowing.iter().map(|text| format!("overflows: {text}")));
    faults.extend(found.overlapping.iter().map(|texts| format!("overlap: {texts}")));
    if let Some(height) = found.smallest_label.filter(|height| *height < MIN_LABEL_HEIGHT) {
        faults.push(format!("a word of {height} pixels"));
    }
    faults
}

/// The rows as a reader of a results file has them.
fn through_json(rows: &[Row]) -> Vec<Row> {
    let reread = |row: &Row| serde_json::from_str(&serde_json::to_string(row).unwrap()).unwrap();
    rows.iter().map(reread).collect()
}

#[test]
fn the_page_is_whole_at_both_widths() {
    let Some(browser) = Browser::or_skip() else { return };
    let rows = rows();
    assert!(rows.len() >= 200);
    let page = html(&rows, "Quality of key-value caches").unwrap();
    for width in WIDTHS {
        let found = browser.look(&page, width);
        assert_eq!(found.width, width);
        assert!(found.num_texts > 500, "{} texts", found.num_texts);
        let faults = faults(&found);
        assert!(faults.is_empty(), "at {width} pixels:\n{}", faults.join("\n"));
        // Tradeoff: four contexts of kl and needle, one of multiturn; a heat map and a memory chart a cache.
        assert_eq!((found.num_charts, found.num_untitled), (9 + 8 + 4 + 8 + 1, 0));
        assert_eq!(found.headings.len(), 6, "{:?}", found.headings);
    }
}

#[test]
fn numbers_on_the_page_are_those_of_the_rows() {
    let Some(browser) = Browser::or_skip() else { return };
    let rows = rows();
    let aggregates = aggregate(&through_json(&rows));
    let cells = browser.look(&html(&rows, "x").unwrap(), WIDTHS[0]).cells;
    assert!(cells.iter().any(|cell| cell.cache == EVIL), "the odd name is shown as it is");
    let differing = differing(&cells, &aggregates);
    assert!(differing.is_empty(), "{differing:#?}");
    // A page of other rows is told from this one.
    let mut others = rows;
    let heterokv_eval::Outcome::Divergence { steps, .. } = &mut others[0].outcome else {
        panic!("a row of divergence")
    };
    steps.kl[0] += 1e-9;
    assert!(!self::differing(&cells, &aggregate(&others)).is_empty());
}

/// Numbers that the page lacks or has otherwise, and cells that belong to no aggregate.
fn differing(cells: &[Cell], aggregates: &[Aggregate]) -> Vec<String> {
    let number = |text: &str| text.parse::<f64>().unwrap();
    let mut differing = Vec::new();
    let mut num_expected = 0;
    for aggregate in aggregates {
        let mut expected = vec![
            ("context", Some(aggregate.context as f64), None, None),
            ("num_samples", Some(aggregate.num_samples as f64), None, None),
            ("ratio", aggregate.ratio, None, None),
            ("device_bytes", aggregate.device_bytes.map(|bytes| bytes as f64), None, None),
            ("host_bytes", aggregate.host_bytes.map(|bytes| bytes as f64), None, None),
            ("rows_read", aggregate.rows_read, None, None),
            ("step_seconds", aggregate.step_seconds, None, None),
            ("prefill_rate", aggregate.prefill_rate, None, None),
        ];
        let figures = aggregate.figures.iter();
        expected.extend(figures.map(|f| (f.name, Some(f.value), f.low, f.high)));
        for (name, value, low, high) in expected {
            let Some(value) = value else { continue };
            num_expected += 1;
            let cell = cells.iter().find(|cell| {
                (&cell.task, &cell.fingerprint) == (&aggregate.task, &aggregate.fingerprint)
                    && cell.engine.as_ref() == Some(&aggregate.engine)
                    && (&cell.cache, &*cell.name) == (&aggregate.cache, name)
                    && number(&cell.context) == aggregate.context as f64
            });
            let shown = cell.map(|cell| {
                let of = |end: &Option<String>| end.as_deref().map(number);
                (number(&cell.value), of(&cell.low), of(&cell.high))
            });
            if shown != Some((value, low, high)) {
                let cache = &aggregate.cache;
                differing.push(format!("{cache} {name}: {:?}, not {shown:?}", (value, low, high)));
            }
        }
    }
    if cells.len() != num_expected {
        differing.push(format!("{} cells, not {num_expected}", cells.len()));
    }
    differing
}

#[test]
fn tables_are_sorted_by_any_column_both_ways() {
    let Some(browser) = Browser::or_skip() else { return };
    let found = browser.look(&html(&rows(), "x").unwrap(), WIDTHS[0]);
    assert!(found.sorts.len() > 60, "{}", found.sorts.len());
    for sort in &found.sorts {
        let heading = &sort.heading;
        assert_eq!(sort.stated.as_ref(), Some(&sort.expected), "{heading}");
        assert_eq!(sort.others, 1, "{heading}");
        assert!(sort.is_focused, "{heading} can be reached by the keyboard");
        let is_ascending = sort.expected == "ascending";
        let numbers: Vec<Option<f64>> = sort
            .values
            .iter()
            .map(|value| value.as_ref().map(|value| value.parse().unwrap()))
            .collect();
        let is_text = numbers.iter().all(Option::is_none);
        let is_in_order = |pair: &[Option<f64>]| match (pair[0], pair[1]) {
            (Some(a), Some(b)) => {
                if is_ascending {
                    a <= b
                } else {
                    a >= b
                }
            }
            (None, Some(_)) => false,
            (_, None) => true,
        };
        if is_text {
            let ends = [sort.texts.first().unwrap(), sort.texts.last().unwrap()];
            let (low, high) = if is_ascending { (ends[0], ends[1]) } else { (ends[1], ends[0]) };
            assert!(low < high, "{heading}: {ends:?}");
        } else {
            assert!(
                numbers.windows(2).all(is_in_order),
                "{heading} {}: {numbers:?}",
                sort.expected
            );
        }
    }
}

#[test]
fn few_and_odd_rows_make_a_whole_page() {
    let Some(browser) = Browser::or_skip() else { return };
    let mut rows: Vec<Row> = rows().into_iter().take(3).collect();
    rows[0].memory.clear();
    rows[1].time.num_steps = 0;
    rows[2].time.step_seconds = f64::NAN;
    rows[2].run.command = "x".repeat(2_000);
    rows[2].cache = "a-name-without-end-".repeat(12);
    let title = "UnbreakableTitle".repeat(20);
    for width in WIDTHS {
        let found = browser.look(&html(&rows, &title).unwrap(), width);
        assert_eq!(faults(&found), Vec::<String>::new(), "at {width} pixels");
    }
}

#[test]
fn what_is_wrong_is_seen() {
    let Some(browser) = Browser::or_skip() else { return };
    let rows: Vec<Row> = rows().into_iter().take(12).collect();
    let page = html(&rows, "x").unwrap();
    assert_eq!(faults(&browser.look(&page, WIDTHS[1])), Vec::<String>::new());
    let with = |addition: &str| page.replace("<main>", &format!("<main>{addition}"));
    let pages = [
        ("on the console", with("<script>throw new Error('broken')</script>")),
        ("on the console", with(r#"<img src="https://example.org/x.png" alt="">"#)),
        (
            "overflows: wide",
            with(
                r#"<p style="white-space:nowrap">wide wide wide wide wide wide wide wide wide wide</p>"#,
            ),
        ),
        ("overflows: the page", with(r#"<div style="width:500px">&nbsp;</div>"#)),
        (
            "overflows: left",
            with(r#"<svg viewBox="0 0 100 50"><text x="90" y="20">left out</text></svg>"#),
        ),
        (
            "overlap: one / two",
            with(
                r#"<svg viewBox="0 0 300 50"><text x="9" y="20">one</text><text x="15" y="22">two</text></svg>"#,
            ),
        ),
        ("a word of", with(r#"<svg viewBox="0 0 9000 500"><text x="9" y="90">tiny</text></svg>"#)),
    ];
    for (fault, page) in pages {
        let faults = faults(&browser.look(&page, WIDTHS[1]));
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{fault}: {faults:?}");
    }
}
