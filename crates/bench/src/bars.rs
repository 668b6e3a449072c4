//! Figures beside the bars that the project has set itself.

use crate::sheet::{Cell, Sheet};

/// One figure and its bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) what: String,
    /// What reached it, or a remark.
    pub(crate) by: String,
    pub(crate) reached: f64,
    pub(crate) limit: Limit,
}

/// On which side of a bar its figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    /// Whether the figure is on the right side; NaN is on none.
    pub(crate) fn is_held(&self) -> bool {
        match self.limit {
            Limit::AtLeast(bar) => self.reached >= bar,
            Limit::AtMost(bar) => self.reached <= bar,
        }
    }

    fn verdict(&self) -> &'static str {
        match self.reached.is_nan() {
            true => "not measured",
            false if self.is_held() => "held",
            false => "MISSED",
        }
    }
}

/// All of them as a table.
pub(crate) fn sheet(title: &str, bars: &[Bar]) -> Sheet {
    let mut sheet = Sheet::new(title, &["bar", "by", "reached", "needed", "value", "verdict"]);
    for bar in bars {
        let (side, value) = match bar.limit {
            Limit::AtLeast(value) => ("at least", value),
            Limit::AtMost(value) => ("at most", value),
        };
        sheet.push(vec![
            Cell::text(&bar.what),
            Cell::text(&bar.by),
            match bar.reached.is_nan() {
                true => Cell::text(""),
                false => Cell::Scientific(bar.reached),
            },
            Cell::text(side),
            Cell::Scientific(value),
            Cell::text(bar.verdict()),
        ]);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_holds_no_bar() {
        let bar = |reached, limit| {
            Bar { what: String::new(), by: String::new(), reached, limit }.is_held()
        };
        assert!(bar(2.0, Limit::AtLeast(2.0)) && bar(2.0, Limit::AtMost(2.0)));
        assert!(!bar(1.9, Limit::AtLeast(2.0)) && !bar(2.1, Limit::AtMost(2.0)));
        assert!(!bar(f64::NAN, Limit::AtLeast(2.0)) && !bar(f64::NAN, Limit::AtMost(2.0)));
    }

    #[test]
    fn a_table_tells_what_was_missed_from_what_was_not_measured() {
        let bar = |reached| {
            let limit = Limit::AtLeast(2.0);
            Bar { what: "speed".to_owned(), by: "full".to_owned(), reached, limit }
        };
        let shown = sheet("Bars", &[bar(2.5), bar(1.5), bar(f64::NAN)]).markdown();
        let rows: Vec<&str> = shown.lines().filter(|line| line.contains("speed")).collect();
        let ends = rows.iter().map(|row| row.trim_end_matches([' ', '|']));
        let verdicts: Vec<&str> = ends.filter_map(|row| row.rsplit("| ").next()).collect();
        assert_eq!(verdicts, ["held", "MISSED", "not measured"], "{shown}");
        assert!(!shown.contains("NaN"), "{shown}");
    }
}
