//! Words of Chinese text, without a dictionary.

/// Runs of ASCII letters and digits, and every other character that is not white space, in order.
pub(super) fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(run.max(first.len_utf8()));
        if !first.is_whitespace() {
            words.push(word);
        }
        rest = behind;
    }
    words
}

/// Whether `c` is punctuation: of ASCII, or of those that Chinese texts have, full width and half width. The
/// numeral 〇 and the repetition mark 々 lie among them and are none.
pub(super) fn is_punctuation(c: char) -> bool {
    let is_in_a_block = matches!(
        c,
        '\u{2010}'..='\u{2027}' | '\u{3000}'..='\u{303F}' | '\u{FE30}'..='\u{FE4F}' | '\u{FF00}'..='\u{FF65}'
    );
    c.is_ascii_punctuation() || (is_in_a_block && !c.is_alphanumeric())
}
