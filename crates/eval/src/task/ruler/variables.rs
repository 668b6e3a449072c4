//! Variables that are set to each other: the names of one chain are asked for by its value.

use rand::RngExt;
use rand::rngs::StdRng;

use super::{Asking, Made};
use crate::Result;
use crate::task::haystack::{Haystack, NOISE};

/// Tokens of a reply: RULER's `tokens_to_generate` of this task.
const MAX_TOKENS: usize = 30;

/// Assignments behind the first of a chain.
const NUM_HOPS: usize = 4;

pub(super) fn ask(mut made: Made<'_>) -> Result<Asking> {
    let random = &mut made.random;
    let mut names: Vec<String> = Vec::new();
    while names.len() <= NUM_HOPS {
        let name: String = (0..5).map(|_| random.random_range('A'..='Z')).collect();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value = random.random_range(10_000..100_000);
    let mut depths: Vec<f64> = (0..=NUM_HOPS).map(|_| depth(random)).collect();
    depths.sort_by(f64::total_cmp);
    let assign = |index: usize| match index {
        0 => format!("VAR {} = {value}.", names[0]),
        _ => format!("VAR {} = VAR {}.", names[index], names[index - 1]),
    };
    let needles: Vec<(f64, String)> =
        depths.iter().enumerate().map(|(index, &depth)| (depth, assign(index))).collect();
    let before = "Follow the variables hidden in the text below: each is set to a number or to another variable.\n";
    Ok(Asking {
        asked: made.room.hide(&needles, &Haystack::Repeated(NOISE), before)?,
        question: format!("Which variables have the value {value}, directly or through others?"),
        reply: format!(" These {} variables have the value {value}:", names.len()),
        answers: names,
        max_tokens: MAX_TOKENS,
    })
}

/// Anywhere in the text.
fn depth(random: &mut StdRng) -> f64 {
    random.random_range(0.0..1.0)
}
