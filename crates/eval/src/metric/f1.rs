//! F1 of the words that two texts share.

use std::collections::HashMap;

use super::chinese;

/// F1 of English texts.
pub(super) fn english(reply: &str, reference: &str) -> f64 {
    let (reply, reference) = (normalized(reply), normalized(reference));
    of_words(
        &reply.split_whitespace().collect::<Vec<_>>(),
        &reference.split_whitespace().collect::<Vec<_>>(),
    )
}

/// F1 of Chinese texts.
pub(super) fn chinese(reply: &str, reference: &str) -> f64 {
    let clean = |text: &str| text.to_lowercase().replace(chinese::is_punctuation, " ");
    let (reply, reference) = (clean(reply), clean(reference));
    of_words(&chinese::words(&reply), &chinese::words(&reference))
}

/// `2 · precision · recall / (precision + recall)`, which is twice the words in common over all words; 0 where there
/// are none in common.
fn of_words(reply: &[&str], reference: &[&str]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in reference {
        *left.entry(word).or_default() += 1;
    }
    let mut num_common = 0_usize;
    for word in reply {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            num_common += 1;
        }
    }
    if num_common == 0 {
        return 0.0;
    }
    2.0 * num_common as f64 / (reply.len() + reference.len()) as f64
}

/// Lower case, without ASCII punctuation, and a space for every article.
///
/// Punctuation goes first and leaves nothing behind, so that `a-the` is a word and no article.
fn normalized(text: &str) -> String {
    let mut text = text.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        out.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        let next = behind.find(char::is_alphanumeric).unwrap_or(behind.len());
        let (between, behind) = behind.split_at(next);
        out.push_str(between);
        rest = behind;
    }
    out
}
