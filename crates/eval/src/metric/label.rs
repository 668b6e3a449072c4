//! Scores of replies that are to name a class or a number.

/// One over the classes that `reply` names, if `reference` is among them.
pub(super) fn classification(reply: &str, reference: &str, classes: &[String]) -> f64 {
    let is_named = |class: &&String| {
        let is_part = class.as_str() != reference && reference.contains(class.as_str());
        reply.contains(class.as_str()) && !is_part
    };
    let named: Vec<&String> = classes.iter().filter(is_named).collect();
    if named.iter().any(|class| *class == reference) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// The share of the numbers in `reply` that are the number of the paragraph that `reference` names.
pub(super) fn retrieval(reply: &str, reference: &str) -> f64 {
    let number = ["Paragraph ", "段落"].iter().find_map(|name| number_behind(name, reference));
    number.map_or(0.0, |number| count(reply, number))
}

/// The share of the numbers in `reply` that are `number` as it is written.
pub(super) fn count(reply: &str, number: &str) -> f64 {
    let numbers = || reply.split(|c| !is_digit(c)).filter(|run| !run.is_empty());
    let num_right = numbers().filter(|found| *found == number).count();
    if num_right == 0 { 0.0 } else { num_right as f64 / numbers().count() as f64 }
}

/// The digits behind the first `name` that has some.
fn number_behind<'a>(name: &str, text: &'a str) -> Option<&'a str> {
    text.match_indices(name).find_map(|(at, _)| {
        let behind = &text[at + name.len()..];
        let number = &behind[..behind.find(|c| !is_digit(c)).unwrap_or(behind.len())];
        (!number.is_empty()).then_some(number)
    })
}

/// A digit, full width too, which makes a number that is no reference.
fn is_digit(c: char) -> bool {
    matches!(c, '0'..='9' | '\u{FF10}'..='\u{FF19}')
}
