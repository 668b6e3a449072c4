//! Words that a text has more often than others.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::{Asking, Made};
use crate::Result;
use crate::task::haystack::{ADJECTIVES, NOUNS};

/// Tokens of a reply about common words, RULER's `tokens_to_generate`.
const MAX_COMMON_TOKENS: usize = 120;

/// Words that are common, how often each occurs, and how often every other (RULER's `num_cw`, `freq_cw`, `freq_ucw`).
const NUM_COMMON: usize = 10;
const COMMON_TIMES: usize = 30;
const OTHER_TIMES: usize = 3;

/// Tokens of a reply about frequent words, RULER's `tokens_to_generate`.
const MAX_FREQUENT_TOKENS: usize = 50;

/// Frequent words that are asked for, behind the most frequent one, which is written as dots.
const NUM_FREQUENT: usize = 3;

/// Letters of a coded word.
const CODED_LETTERS: usize = 6;

/// Exponent of the words' frequencies: the word of rank r occurs in proportion to r to the minus this.
const ALPHA: f64 = 2.0;

/// Coded words; the rarest hardly occur.
const NUM_CODED: usize = 200;

pub(super) fn ask_common(mut made: Made<'_>) -> Result<Asking> {
    let mut pool = word_pool();
    pool.shuffle(&mut made.random);
    let common: Vec<String> = pool.drain(..NUM_COMMON).collect();
    let seed: u64 = made.random.random();
    let build = |num_others: usize| {
        let others = pool.iter().take(num_others);
        let mut list: Vec<&str> = common
            .iter()
            .flat_map(|word| std::iter::repeat_n(word.as_str(), COMMON_TIMES))
            .chain(others.flat_map(|word| std::iter::repeat_n(word.as_str(), OTHER_TIMES)))
            .collect();
        list.shuffle(&mut StdRng::seed_from_u64(seed));
        let numbered: Vec<String> =
            list.iter().enumerate().map(|(index, word)| format!("{}. {word}", index + 1)).collect();
        format!(
            "Below is a numbered list of words. Some of them are in it far more often than the others. Remember which.\n\
             {}\n\n",
            numbered.join(" ")
        )
    };
    let (num_others, asked) = made.room.fill(1, build)?;
    if num_others >= pool.len() {
        return Err(made.room.short_haystack(&asked));
    }
    Ok(Asking {
        asked,
        question: format!("Which {NUM_COMMON} words does the list have most often?"),
        reply: format!(" The {NUM_COMMON} words that the list has most often are:"),
        answers: common,
        max_tokens: MAX_COMMON_TOKENS,
    })
}

/// Adjectives, nouns, and compounds of two and of three: over 100,000 words, enough for lists of 300,000 entries.
fn word_pool() -> Vec<String> {
    let single = ADJECTIVES.iter().chain(&NOUNS).map(|&word| word.to_owned());
    let compound = NOUNS.iter().flat_map(|first| {
        NOUNS
            .iter()
            .filter(move |second| *second != first)
            .map(move |second| format!("{first}{second}"))
    });
    let joined = ADJECTIVES
        .iter()
        .flat_map(|first| NOUNS.iter().map(move |second| format!("{first}{second}")));
    let long = ADJECTIVES.iter().flat_map(|first| {
        let second = NOUNS.iter().flat_map(|second| NOUNS.iter().map(move |third| (second, third)));
        second.map(move |(second, third)| format!("{first}{second}{third}"))
    });
    single.chain(compound).chain(joined).chain(long).collect()
}

pub(super) fn ask_frequent(mut made: Made<'_>) -> Result<Asking> {
    let mut words: Vec<String> = Vec::new();
    while words.len() < NUM_CODED {
        let word: String =
            (0..CODED_LETTERS).map(|_| made.random.random_range('a'..='z')).collect();
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let total: f64 = (1..=NUM_CODED).map(|rank| (rank as f64).powf(-ALPHA)).sum();
    let seed: u64 = made.random.random();
    let build = |num_words: usize| {
        // The counts are those expected, not drawn, so that the order of the words is never a tie by chance.
        let times =
            |rank: usize| ((rank as f64).powf(-ALPHA) / total * num_words as f64).round() as usize;
        let mut text: Vec<&str> = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let word = if index == 0 { "..." } else { word.as_str() };
            text.extend(std::iter::repeat_n(word, times(index + 1)));
        }
        text.shuffle(&mut StdRng::seed_from_u64(seed));
        format!(
            "The text below is in code. Count its coded words; the dots are no word.\n{}\n\n",
            text.join(" ")
        )
    };
    // From this many words on, the three most frequent occur differently often, and more often than all others.
    let least = 60;
    let (_, asked) = made.room.fill(least, build)?;
    Ok(Asking {
        asked,
        question: format!("Which {NUM_FREQUENT} coded words does the text have most often?"),
        reply: format!(" The {NUM_FREQUENT} coded words that the text has most often are:"),
        answers: words[1..=NUM_FREQUENT].to_vec(),
        max_tokens: MAX_FREQUENT_TOKENS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_has_no_word_twice() {
        let mut pool = word_pool();
        let len = pool.len();
        pool.sort();
        pool.dedup();
        assert_eq!(pool.len(), len);
        assert!(len > 100_000, "{len}");
    }
}
