//! Needles in a haystack: magic numbers and UUIDs of keys.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{Asking, Made};
use crate::Result;
use crate::prompting::Asked;
use crate::task::haystack::{Haystack, NOISE, fresh_key};

/// Tokens of a reply: RULER's `tokens_to_generate` of these tasks.
const MAX_TOKENS: usize = 128;

/// Depths are drawn from this many, evenly spaced from the beginning to the end.
const NUM_DEPTHS: usize = 40;

/// Keys and values, what they are, and what they are hidden among.
pub(super) struct Needles {
    pub(super) among: Among,
    pub(super) amounts: Amounts,
    pub(super) key: Kind,
    pub(super) value: Kind,
}

/// What surrounds the needles.
pub(super) enum Among {
    /// One line over and over.
    Noise,
    /// Sentences.
    Text,
    /// Other needles.
    Needles,
}

/// How many there are of what.
#[derive(Clone, Copy)]
pub(super) struct Amounts {
    pub(super) num_keys: usize,
    /// Of each key.
    pub(super) num_values: usize,
    /// Keys that are asked for.
    pub(super) num_queries: usize,
}

impl Amounts {
    pub(super) const ONE: Self = Self { num_keys: 1, num_values: 1, num_queries: 1 };

    pub(super) const fn keys(num_keys: usize) -> Self {
        Self { num_keys, ..Self::ONE }
    }

    pub(super) const fn values(num_values: usize) -> Self {
        Self { num_values, ..Self::ONE }
    }

    /// As many keys, and all of them asked for.
    pub(super) const fn queries(num_queries: usize) -> Self {
        Self { num_keys: num_queries, num_queries, ..Self::ONE }
    }
}

/// What a key or a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Words, joined by hyphens.
    Word,
    /// Seven digits.
    Number,
    /// A random UUID.
    Uuid,
}

impl Kind {
    fn draw(self, random: &mut StdRng, taken: &[String]) -> String {
        match self {
            // Three words make enough names for the longest text of needles.
            Self::Word => fresh_key(random, taken, 3),
            Self::Number => random.random_range(1_000_000..10_000_000).to_string(),
            Self::Uuid => uuid(random),
        }
    }

    fn plural(self) -> &'static str {
        if self == Self::Uuid { "uuids" } else { "numbers" }
    }

    fn singular(self) -> &'static str {
        if self == Self::Uuid { "uuid" } else { "number" }
    }
}

/// A random UUID of version 4 (RFC 9562, section 5.4).
fn uuid(random: &mut StdRng) -> String {
    let bits: u128 = random.random();
    let bits = bits & !(0xF << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl Needles {
    pub(super) fn ask(&self, mut made: Made<'_>) -> Result<Asking> {
        let random = &mut made.random;
        let Amounts { num_keys, num_values, num_queries } = self.amounts;
        let mut keys: Vec<String> = Vec::new();
        for _ in 0..num_keys {
            keys.push(self.key.draw(random, &keys));
        }
        let values: Vec<Vec<String>> = keys
            .iter()
            .map(|_| (0..num_values).map(|_| self.value.draw(random, &[])).collect())
            .collect();
        let mut needles = Vec::new();
        for (key, values) in keys.iter().zip(&values) {
            for value in values {
                let depth = random.random_range(0..NUM_DEPTHS) as f64 / (NUM_DEPTHS - 1) as f64;
                needles.push((depth, self.sentence(key, value)));
            }
        }
        needles.shuffle(random);
        let is_one = num_values * num_queries == 1;
        let (some, what) = if is_one {
            ("A special magic", self.value.singular())
        } else {
            ("Some special magic", self.value.plural())
        };
        let before = format!(
            "{some} {what} {} hidden in the text below. Remember {}: you will be asked for {} at the end.\n",
            if is_one { "is" } else { "are" },
            if is_one { "it" } else { "them" },
            if is_one { "it" } else { "them" },
        );
        let asked = self.text(&mut made, &keys, &needles, &before)?;
        let names = match &keys[..num_queries] {
            [one] => one.clone(),
            [first @ .., last] => format!("{}, and {last}", first.join(", ")),
            [] => String::new(),
        };
        let is = if is_one { "is" } else { "are all" };
        Ok(Asking {
            asked,
            question: format!(
                "What {is} the special magic {what} for {names} that the text mentions?"
            ),
            reply: format!(
                " The special magic {what} for {names} that the text mentions {}",
                if is_one { "is" } else { "are" }
            ),
            answers: values[..num_queries].concat(),
            max_tokens: MAX_TOKENS,
        })
    }

    fn sentence(&self, key: &str, value: &str) -> String {
        format!("One of the special magic {} for {key} is: {value}.", self.value.plural())
    }

    /// The text with the needles in it.
    fn text(
        &self,
        made: &mut Made<'_>,
        keys: &[String],
        needles: &[(f64, String)],
        before: &str,
    ) -> Result<Asked> {
        let Made { room, haystack, random } = made;
        let haystack = match self.among {
            Among::Noise => Haystack::Repeated(NOISE),
            Among::Text => Haystack::of(*haystack, random.random()),
            Among::Needles => {
                let seed: u64 = random.random();
                let build = |pieces| {
                    let others = self.others(seed, pieces, keys);
                    let others = others.iter().map(String::as_str).collect();
                    format!("{before}{}\n\n", Haystack::Given(others).with(pieces, needles))
                };
                return Ok(room.fill(1, build)?.1);
            }
        };
        room.hide(needles, &haystack, before)
    }

    /// Needles that nobody asks for: like the others, with other keys than `keys`.
    fn others(&self, seed: u64, num: usize, keys: &[String]) -> Vec<String> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut other = || {
            let key = self.key.draw(&mut random, keys);
            self.sentence(&key, &self.value.draw(&mut random, &[]))
        };
        (0..num).map(|_| other()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_one_of_version_4() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let uuid = uuid(&mut random);
            assert_eq!(uuid.len(), 36);
            assert_eq!(&uuid[14..15], "4");
            assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        }
    }
}
