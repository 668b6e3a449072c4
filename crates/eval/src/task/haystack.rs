//! Text to hide things in: of a file, generated, or one line over and over; cut to a length in tokens.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::prompting::{Asked, Prompting};
use crate::{Error, Result};

/// The line of the pass-key test (Mohtashami and Jaggi, "Landmark Attention", 2023), which RULER uses too.
pub(super) const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// What stands between two pieces of a haystack.
const BETWEEN: &str = " ";

pub(super) const ADJECTIVES: [&str; 48] = [
    "amber", "ancient", "bitter", "bold", "brave", "bright", "broken", "calm", "careful", "clever",
    "cold", "copper", "curious", "distant", "dusty", "early", "empty", "faithful", "famous",
    "gentle", "golden", "grand", "green", "hidden", "hollow", "humble", "iron", "lazy", "little",
    "lonely", "lucky", "modern", "narrow", "nervous", "noble", "patient", "polite", "proud",
    "purple", "quiet", "rapid", "rusty", "silver", "simple", "sleepy", "solid", "tall", "wooden",
];

pub(super) const NOUNS: [&str; 48] = [
    "anchor", "apple", "basket", "bell", "bridge", "candle", "carpet", "castle", "clock", "coat",
    "desk", "door", "engine", "farmer", "field", "forest", "garden", "guitar", "hammer", "harbor",
    "island", "kettle", "ladder", "lantern", "letter", "market", "meadow", "mirror", "mountain",
    "needle", "orchard", "painter", "pencil", "piano", "pilot", "river", "sailor", "school",
    "shadow", "station", "stone", "table", "teacher", "tower", "tunnel", "village", "window",
    "winter",
];

const VERBS: [&str; 16] = [
    "passed",
    "painted",
    "remembered",
    "described",
    "repaired",
    "followed",
    "noticed",
    "visited",
    "measured",
    "admired",
    "crossed",
    "avoided",
    "ignored",
    "sketched",
    "watched",
    "found",
];

const WHENS: [&str; 16] = [
    "before noon",
    "in the rain",
    "on a Monday",
    "without a word",
    "after the harvest",
    "for the second time",
    "at the end of May",
    "with some effort",
    "during the concert",
    "on the way home",
    "in the fog",
    "by accident",
    "as the wind rose",
    "in good time",
    "late in the evening",
    "with a smile",
];

/// Random numbers of sample `index` of a task at a length: the same for the same seed, different for each.
pub(super) fn random(seed: u64, task: &str, length: usize, index: usize) -> StdRng {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(format!("{seed} {task} {length} {index}"));
    StdRng::from_seed(hash.into())
}

/// A text in pieces, as long as is needed.
pub(super) enum Haystack<'a> {
    /// One line over and over.
    Repeated(&'a str),
    /// Sentences made up by rule, hardly any of them twice.
    Generated {
        /// What they begin with.
        seed: u64,
    },
    /// The sentences of a text that somebody gave, from its beginning on.
    Given(Vec<&'a str>),
}

impl<'a> Haystack<'a> {
    /// The sentences of `text`, or generated ones where there is none.
    pub(super) fn of(text: Option<&'a str>, seed: u64) -> Self {
        match text {
            Some(text) => Self::Given(sentences(text)),
            None => Self::Generated { seed },
        }
    }

    /// The first `num_pieces` pieces. Of a text that somebody gave there may be fewer.
    fn pieces(&self, num_pieces: usize) -> Vec<String> {
        match self {
            Self::Repeated(line) => vec![(*line).to_owned(); num_pieces],
            Self::Generated { seed } => {
                let mut random = StdRng::seed_from_u64(*seed);
                (0..num_pieces).map(|_| sentence(&mut random)).collect()
            }
            Self::Given(sentences) => {
                sentences.iter().take(num_pieces).map(|&sentence| sentence.to_owned()).collect()
            }
        }
    }

    /// The text of `num_pieces` pieces with `needles` among them, each at its depth: 0 stands before all pieces, 1
    /// behind them. Needles of one depth keep their order.
    pub(super) fn with(&self, num_pieces: usize, needles: &[(f64, String)]) -> String {
        let mut needles: Vec<&(f64, String)> = needles.iter().collect();
        needles.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let pieces = self.pieces(num_pieces);
        let place = |depth: f64| (depth * pieces.len() as f64).round() as usize;
        let mut text: Vec<&str> = Vec::with_capacity(pieces.len() + needles.len());
        let mut needles = needles.into_iter().peekable();
        for index in 0..=pieces.len() {
            while let Some((_, needle)) = needles.next_if(|(depth, _)| place(*depth) == index) {
                text.push(needle);
            }
            text.extend(pieces.get(index).map(String::as_str));
        }
        text.join(BETWEEN)
    }

    /// Most pieces that there are; none where there is no end.
    fn num_pieces(&self) -> Option<usize> {
        match self {
            Self::Given(sentences) => Some(sentences.len()),
            _ => None,
        }
    }
}

/// Cuts a text into sentences, each with what ends it; lines are joined and white space is single.
fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    for paragraph in text.split("\n\n") {
        let ends = paragraph.match_indices(['.', '!', '?']).filter(|(at, mark)| {
            paragraph[at + mark.len()..].chars().next().is_none_or(char::is_whitespace)
        });
        let mut from = 0;
        for (at, mark) in ends {
            sentences.push(paragraph[from..at + mark.len()].trim());
            from = at + mark.len();
        }
        sentences.push(paragraph[from..].trim());
    }
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

/// A sentence that says nothing that anyone will ask for.
fn sentence(random: &mut StdRng) -> String {
    let mut pick = |words: &[&'static str]| words.choose(random).copied().unwrap_or_default();
    format!(
        "The {} {} {} the {} {} {}.",
        pick(&ADJECTIVES),
        pick(&NOUNS),
        pick(&VERBS),
        pick(&ADJECTIVES),
        pick(&NOUNS),
        pick(&WHENS)
    )
}

/// A name that is not among `taken`, of as many words as are needed that there be enough of them.
pub(super) fn fresh_key(random: &mut StdRng, taken: &[String], num_words: usize) -> String {
    loop {
        let mut words = vec![ADJECTIVES[random.random_range(0..ADJECTIVES.len())]];
        words.extend((1..num_words).map(|_| NOUNS[random.random_range(0..NOUNS.len())]));
        let key = words.join("-");
        if !taken.contains(&key) {
            return key;
        }
    }
}

/// The tokens that a task has for a text.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) task: &'static str,
    pub(super) prompting: &'a Prompting<'a>,
    /// How many there are.
    pub(super) length: usize,
}

impl Room<'_> {
    /// A text of as many pieces as fit, and how many these are.
    ///
    /// `build` writes it for a number of pieces, the more the longer.
    ///
    /// # Errors
    /// [`Error::ShortTaskContext`] where not even `least` pieces fit, and what the tokenizer refuses.
    pub(super) fn fill(
        self,
        least: usize,
        build: impl Fn(usize) -> String,
    ) -> Result<(usize, Asked)> {
        let Self { task, prompting, length } = self;
        let least_asked = prompting.context(&build(least))?;
        if least_asked.context.len() > length {
            let needed_tokens = least_asked.context.len();
            return Err(Error::ShortTaskContext { task, context: length, needed_tokens });
        }
        let (mut fits, mut best) = (least, least_asked);
        // Doubles until it is too long, then halves the gap.
        let mut too_long = None;
        loop {
            let pieces = match too_long {
                None => (2 * fits).max(least + 8),
                Some(too_long) if too_long - fits <= 1 => return Ok((fits, best)),
                Some(too_long) => usize::midpoint(fits, too_long),
            };
            let asked = prompting.context(&build(pieces))?;
            if asked.context.len() > length {
                too_long = Some(pieces);
            } else if asked.context.len() == best.context.len() && too_long.is_none() {
                // A text that somebody gave has come to its end.
                return Ok((fits, asked));
            } else {
                (fits, best) = (pieces, asked);
            }
        }
    }

    /// `before`, behind it a haystack with needles in it, and a blank line.
    ///
    /// # Errors
    /// As [`Room::fill`], and [`Error::ShortHaystack`] where the text given comes to its end before the context does.
    pub(super) fn hide(
        self,
        needles: &[(f64, String)],
        haystack: &Haystack<'_>,
        before: &str,
    ) -> Result<Asked> {
        let build = |pieces| format!("{before}{}\n\n", haystack.with(pieces, needles));
        let (pieces, asked) = self.fill(1, build)?;
        match haystack.num_pieces() {
            Some(all) if pieces >= all => Err(self.short_haystack(&asked)),
            _ => Ok(asked),
        }
    }

    /// The text has come to its end before the room has.
    pub(super) fn short_haystack(self, asked: &Asked) -> Error {
        Error::ShortHaystack {
            task: self.task,
            haystack_tokens: asked.context.len(),
            needed_tokens: self.length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_stand_where_they_are_asked_for() {
        let haystack = Haystack::Given(vec!["a.", "b.", "c.", "d."]);
        let needles = [
            (1.0, "Z".to_owned()),
            (0.0, "A".to_owned()),
            (0.5, "M".to_owned()),
            (0.5, "N".to_owned()),
        ];
        assert_eq!(haystack.with(4, &needles), "A a. b. M N c. d. Z");
        assert_eq!(haystack.with(2, &needles[1..2]), "A a. b.");
    }

    #[test]
    fn sentences_end_where_sentences_end() {
        let text = "Call me Ishmael. It was 3.5 miles\noff! Why?\n\nA heading\n\n  No end";
        let expected =
            ["Call me Ishmael.", "It was 3.5 miles\noff!", "Why?", "A heading", "No end"];
        assert_eq!(sentences(text), expected);
        assert_eq!(sentences(" \n\n "), [""; 0]);
    }

    #[test]
    fn generated_text_is_the_same_for_the_same_seed_and_hardly_repeats() {
        let of = |seed| Haystack::Generated { seed }.pieces(500);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let mut unique = of(1);
        unique.sort();
        unique.dedup();
        assert!(unique.len() > 495, "{}", unique.len());
    }
}
