//! Which cases are wanted.

/// A filter over the names of cases, `suite/what@context`; a suite's name is one that fits all of its cases.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    filter: Option<String>,
}

impl Selection {
    /// Cases whose names contain `filter`; all without one.
    pub(crate) fn new(filter: Option<String>) -> Self {
        Self { filter }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// Whether the filter begins with the suite's name, so that no case of another suite can be meant.
    pub(crate) fn names(&self, suite: &str) -> bool {
        let rest = self.filter.as_ref().and_then(|filter| filter.strip_prefix(suite));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_selects_and_nothing_selects_all() {
        let wants = |filter: &str, name: &str| Selection::new(Some(filter.to_owned())).wants(name);
        assert!(wants("model", "model/full@512") && !wants("model", "attention/full@512"));
        assert!(wants("full@512", "attention/full@512") && !wants("full@5120", "model/full@512"));
        assert!(Selection::new(None).wants("model/full@512"));
        let names = |filter: &str, suite| Selection::new(Some(filter.to_owned())).names(suite);
        assert!(names("model", "model") && names("model/full", "model"));
        assert!(!names("full", "model") && !names("models", "model") && !names("mod", "model"));
        assert!(!Selection::new(None).names("model"));
    }
}
