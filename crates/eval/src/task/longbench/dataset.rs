//! The datasets: prompts, reply lengths and metrics, from `datasets.json`.
//!
//! Names, order, reply lengths and metrics are LongBench's. The prompts are worded here, in its form: the same parts in
//! the same order, and replies asked for in the form that the metrics need.

use std::sync::LazyLock;

use serde::Deserialize;

use super::record::Record;
use crate::metric::Metric;

static DATASETS: LazyLock<Vec<Dataset>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("datasets.json"))
        .expect("the file is a part of the program, and a test reads it")
});

/// One of the 21.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dataset {
    /// Its name, and that of its file.
    pub(super) name: String,
    /// The prompt, in our wording.
    pub(super) prompt: String,
    /// Most tokens of a reply.
    pub(super) max_tokens: usize,
    metric: Kind,
    /// Whether the chat template is used.
    pub(super) chat: bool,
    /// Whether only the first line of a reply counts.
    first_line: bool,
}

/// The metrics that datasets have, by their names in results.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    QaF1,
    QaF1Zh,
    RougeL,
    RougeLZh,
    Classification,
    Retrieval,
    Count,
    CodeSimilarity,
}

/// All of them, in LongBench's order.
pub(super) fn all() -> &'static [Dataset] {
    &DATASETS
}

/// Place in the order, and the dataset, of a record that says `name`; `_e` at its end, for LongBench-E, is no part
/// of the dataset's name.
pub(super) fn named(name: &str) -> Option<(usize, &'static Dataset)> {
    let name = name.strip_suffix("_e").unwrap_or(name);
    all().iter().enumerate().find(|(_, dataset)| dataset.name == name)
}

impl Dataset {
    /// Whether records must say which classes there are.
    pub(super) fn has_classes(&self) -> bool {
        self.metric == Kind::Classification
    }

    /// How a reply to the record is judged.
    pub(super) fn metric(&self, record: &Record) -> Metric {
        let metric = match self.metric {
            Kind::QaF1 => Metric::QaF1,
            Kind::QaF1Zh => Metric::QaF1Zh,
            Kind::RougeL => Metric::RougeL,
            Kind::RougeLZh => Metric::RougeLZh,
            Kind::Classification => {
                Metric::Classification { classes: record.all_classes.clone().unwrap_or_default() }
            }
            Kind::Retrieval => Metric::Retrieval,
            Kind::Count => Metric::Count,
            Kind::CodeSimilarity => Metric::CodeSimilarity,
        };
        if self.first_line { Metric::FirstLine(Box::new(metric)) } else { metric }
    }
}
