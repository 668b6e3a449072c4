//! ROUGE-L of whole texts.

use std::collections::HashSet;

use super::chinese;

/// ROUGE-L of texts whose words stand between white space.
pub(super) fn english(reply: &str, reference: &str) -> f64 {
    let (reply, reference) = (sentences(reply), sentences(reference));
    let mut common: HashSet<&str> = HashSet::new();
    for of_reference in &reference {
        for of_reply in &reply {
            common.extend(common_subsequence(of_reference, of_reply));
        }
    }
    let num_words = |text: &[Vec<&str>]| text.iter().flatten().collect::<HashSet<_>>().len();
    if common.is_empty() {
        return 0.0;
    }
    2.0 * common.len() as f64 / (num_words(&reply) + num_words(&reference)) as f64
}

/// ROUGE-L of Chinese texts.
pub(super) fn chinese(reply: &str, reference: &str) -> f64 {
    english(&chinese::words(reply).join(" "), &chinese::words(reference).join(" "))
}

/// The words of every sentence. Sentences end at full stops. One of white space alone has one word, which is empty:
/// so it is in the package, where it counts like any other.
fn sentences(text: &str) -> Vec<Vec<&str>> {
    text.split('.').filter(|sentence| !sentence.is_empty()).map(words).collect()
}

fn words(sentence: &str) -> Vec<&str> {
    if sentence.trim().is_empty() {
        return vec![""];
    }
    sentence.split_whitespace().collect()
}

/// The longest common subsequence. Of several, the one that is found from the ends by leaving out the last word of the
/// reply wherever that costs nothing: the score depends on which it is, since words are counted once.
fn common_subsequence<'a>(reference: &[&'a str], reply: &[&str]) -> Vec<&'a str> {
    let width = reply.len() + 1;
    // Length of the subsequence of the first `i` and `j` words, `[i][j]`.
    let mut lengths = vec![0_u32; (reference.len() + 1) * width];
    for (i, word) in reference.iter().enumerate() {
        for (j, other) in reply.iter().enumerate() {
            lengths[(i + 1) * width + j + 1] = if word == other {
                lengths[i * width + j] + 1
            } else {
                lengths[i * width + j + 1].max(lengths[(i + 1) * width + j])
            };
        }
    }
    let (mut i, mut j) = (reference.len(), reply.len());
    let mut common = Vec::new();
    while i > 0 && j > 0 {
        if reference[i - 1] == reply[j - 1] {
            common.push(reference[i - 1]);
            (i, j) = (i - 1, j - 1);
        } else if lengths[(i - 1) * width + j] > lengths[i * width + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    common
}
