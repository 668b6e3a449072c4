//! How replies are held against right answers.

/// How a reply is held against right answers. All give a score from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    /// The share of the references that the reply contains, letter case aside: RULER's `string_match_all` (arXiv
    /// 2404.06654, appendix B). For a single reference: whether it is there.
    ContainsAll,
}

impl Metric {
    /// Its name in results.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ContainsAll => "contains_all",
        }
    }

    /// The score of `reply`, from 0 to 1; 0 where there are no references.
    #[must_use]
    pub fn score(&self, reply: &str, references: &[String]) -> f64 {
        match self {
            Self::ContainsAll => share_contained(reply, references),
        }
    }
}

fn share_contained(reply: &str, references: &[String]) -> f64 {
    let reply = reply.to_lowercase();
    let found = references.iter().filter(|reference| reply.contains(&reference.to_lowercase()));
    if references.is_empty() { 0.0 } else { found.count() as f64 / references.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_references_that_a_reply_contains() {
        let references = ["Lamp".to_owned(), "42".to_owned()];
        let score = |reply| Metric::ContainsAll.score(reply, &references);
        assert_eq!(score("the lamp, and 42."), 1.0);
        assert_eq!(score("4 2 LAMPS"), 0.5);
        assert_eq!(score(""), 0.0);
        assert_eq!(Metric::ContainsAll.score("anything", &[]), 0.0);
    }
}
