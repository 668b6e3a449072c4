//! What a suite hands over to be printed and kept.

use crate::sheet::Sheet;

/// A table and where it goes.
pub(crate) struct Table {
    /// Of its file.
    pub(crate) stem: &'static str,
    pub(crate) sheet: Sheet,
    /// How far it goes.
    pub(crate) reach: Reach,
}

impl Table {
    pub(crate) fn new(stem: &'static str, sheet: Sheet) -> Self {
        Self { stem, sheet, reach: Reach::Page }
    }

    pub(crate) fn reaching(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }
}

/// Where a table is shown, each place with all those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// In its file alone.
    File,
    /// On the terminal, too.
    Terminal,
    /// On the page, too.
    Page,
}

/// What a suite gave.
pub(crate) struct Outcome {
    /// From the details to the verdict.
    pub(crate) tables: Vec<Table>,
    /// Whether every bar was measured and held.
    pub(crate) is_held: bool,
    /// Whether the yardsticks of the run were too noisy or slow to judge by.
    pub(crate) is_void: bool,
}
