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
    }
}
