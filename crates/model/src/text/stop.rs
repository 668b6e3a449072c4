//! Stop strings in a stream of text.

use super::{Error, Result};

/// What one piece of the stream gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopMatch {
    /// Text that is safe to show. Never a part of a stop string that was or may yet be matched.
    pub text: String,
    /// Position, in the list given at the start, of the stop string that ended the stream. Set
    /// once, and the stream is over.
    pub stop_idx: Option<usize>,
}

/// Ends a stream of text at the first stop string that is complete.
///
/// First is the stop string whose last character comes first; of those that end at the same
/// character, the longest. The text before it is what the stream gives; how the text was cut into
/// pieces makes no difference.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The end of the stream so far that may be the beginning of a stop string.
    held: String,
    is_over: bool,
}

impl StopMatcher {
    /// A matcher of these strings; none match if there are none.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyStop`].
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::EmptyStop { index });
        }
        Ok(Self { stops, held: String::new(), is_over: false })
    }

    /// Takes the next piece of text. After a stop string was found, gives nothing more.
    pub fn push(&mut self, text: &str) -> StopMatch {
        if self.is_over {
            return StopMatch::default();
        }
        for c in text.chars() {
            self.held.push(c);
            if let Some(stop_idx) = self.complete_stop() {
                self.is_over = true;
                let mut text = std::mem::take(&mut self.held);
                text.truncate(text.len() - self.stops[stop_idx].len());
                return StopMatch { text, stop_idx: Some(stop_idx) };
            }
        }
        let keep = self.held_back_bytes();
        let rest = self.held.split_off(self.held.len() - keep);
        StopMatch { text: std::mem::replace(&mut self.held, rest), stop_idx: None }
    }

    /// Ends the stream and gives what was held back. Empty after a stop string was found.
    #[must_use = "the last text may be in it"]
    pub fn finish(self) -> String {
        self.held
    }

    /// The longest stop string at the end of what is held.
    fn complete_stop(&self) -> Option<usize> {
        let ends = |stop: &String| self.held.ends_with(stop.as_str());
        let complete = self.stops.iter().enumerate().filter(|(_, stop)| ends(stop));
        // Of equal ones the first in the list.
        complete.rev().max_by_key(|(_, stop)| stop.len()).map(|(index, _)| index)
    }

    /// Length of the longest end of what is held that a stop string begins with.
    fn held_back_bytes(&self) -> usize {
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        let start = self.held.len().saturating_sub(longest);
        (start..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .map_or(0, |start| self.held.len() - start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, on the whole text: look at every prefix in turn.
    fn naive(stops: &[String], text: &str) -> (String, Option<usize>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let mut best: Option<usize> = None;
            for (index, stop) in stops.iter().enumerate() {
                if text[..end].ends_with(stop.as_str())
                    && best.is_none_or(|best| stops[best].len() < stop.len())
                {
                    best = Some(index);
                }
            }
            if let Some(index) = best {
                return (text[..end - stops[index].len()].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn holds_back_what_may_be_a_stop() {
        let mut matcher = StopMatcher::new(["</s>", "User:"]).unwrap();
        let out: Vec<StopMatch> = ["a<", "/b", "Use", "r", ":x"].map(|t| matcher.push(t)).into();
        let texts: Vec<&str> = out.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(texts, ["a", "</b", "", "", ""]);
        assert_eq!(out[4].stop_idx, Some(1));
        assert_eq!(matcher.push("more"), StopMatch::default());
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn the_end_gives_what_was_held() {
        let mut matcher = StopMatcher::new(["END"]).unwrap();
        assert_eq!(matcher.push("the EN").text, "the ");
        assert_eq!(matcher.finish(), "EN");
    }

    #[test]
    fn no_stops_and_empty_stops() {
        let mut matcher = StopMatcher::new(Vec::<String>::new()).unwrap();
        assert_eq!(matcher.push("all of it").text, "all of it");
        assert!(matches!(StopMatcher::new(["a", ""]), Err(Error::EmptyStop { index: 1 })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_cut_gives_the_definition(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,5}", 0..8),
        ) {
            let mut matcher = StopMatcher::new(stops.clone()).unwrap();
            let (expected, expected_idx) = naive(&stops, &pieces.concat());
            let (mut text, mut stop_idx) = (String::new(), None);
            for piece in &pieces {
                let step = matcher.push(piece);
                text.push_str(&step.text);
                stop_idx = stop_idx.or(step.stop_idx);
                // Nothing shown has to be taken back.
                prop_assert!(expected.starts_with(&text));
            }
            text.push_str(&matcher.finish());
            prop_assert_eq!((text, stop_idx), (expected, expected_idx));
        }
    }
}
