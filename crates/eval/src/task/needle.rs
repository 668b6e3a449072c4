//! Things hidden in a text and asked for at its end.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::Result;
use crate::metric::Metric;
use crate::prompting::Asked;
use crate::task::haystack::{Haystack, NOISE, Room, fresh_key, random};
use crate::task::{Inputs, Probe, Question, Sample, Task};

/// Tokens of a reply.
const MAX_TOKENS: usize = 16;

/// Facts of `multikey` beside the one that is asked for.
const NUM_OTHERS: usize = 3;

/// Questions of one conversation.
const NUM_TURNS: usize = 4;

/// A number among hundreds of lines that are all the same.
pub(super) struct PassKey;

/// A sentence among others, at every depth asked for.
pub(super) struct Needle;

/// The same beside sentences that say the like of other things.
pub(super) struct MultiKey;

/// Several sentences among others, asked for one after the other.
pub(super) struct MultiTurn;

impl Task for PassKey {
    fn name(&self) -> &'static str {
        "passkey"
    }

    fn about(&self) -> &'static str {
        "a number in a text that says one thing over and over (Mohtashami and Jaggi 2023)"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let before = "There is an important piece of information hidden inside a lot of irrelevant text. Find it and \
                      memorize it. I will quiz you about it.\n";
        at_depths(self.name(), inputs, context, |room, random, depth| {
            let key: u32 = random.random_range(10_000..100_000);
            let needle = format!("The pass key is {key}. Remember it. {key} is the pass key.");
            let asked = room.hide(&[(depth, needle)], &Haystack::Repeated(NOISE), before)?;
            let (question, reply) = ("What is the pass key?", " The pass key is");
            let tokens = inputs.prompting.first_question(&asked, question, reply)?;
            Ok((asked.context, vec![number_question(question, tokens, key)]))
        })
    }
}

/// A fact that nothing else in the text says.
struct Fact {
    thing: String,
    number: u32,
}

impl Fact {
    fn new(random: &mut StdRng, others: &[Self]) -> Self {
        let taken: Vec<String> = others.iter().map(|fact| fact.thing.replace(' ', "-")).collect();
        let thing = fresh_key(random, &taken, 2).replace('-', " ");
        Self { thing, number: random.random_range(1_000..10_000) }
    }

    fn sentence(&self) -> String {
        format!("The secret number of the {} is {}.", self.thing, self.number)
    }

    fn question(&self) -> String {
        format!("What is the secret number of the {}?", self.thing)
    }

    /// The words that the reply goes on behind.
    fn reply(&self) -> String {
        format!(" The secret number of the {} is", self.thing)
    }

    /// The text's tokens, and the question for this fact behind them.
    fn asked(&self, inputs: &Inputs<'_>, asked: Asked) -> Result<(Vec<u32>, Vec<Question>)> {
        let question = self.question();
        let tokens = inputs.prompting.first_question(&asked, &question, &self.reply())?;
        Ok((asked.context, vec![number_question(&question, tokens, self.number)]))
    }
}

impl Task for Needle {
    fn name(&self) -> &'static str {
        "needle"
    }

    fn about(&self) -> &'static str {
        "a sentence hidden in a text at a grid of depths and lengths (after Kamradt 2023)"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        at_depths(self.name(), inputs, context, |room, random, depth| {
            let fact = Fact::new(random, &[]);
            let haystack = Haystack::of(inputs.haystack, random.random());
            let asked = room.hide(&[(depth, fact.sentence())], &haystack, "")?;
            fact.asked(inputs, asked)
        })
    }
}

impl Task for MultiKey {
    fn name(&self) -> &'static str {
        "multikey"
    }

    fn about(&self) -> &'static str {
        "a sentence hidden among three of the same form, at a grid of depths (after RULER's niah_multikey_1)"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        at_depths(self.name(), inputs, context, |room, random, depth| {
            let mut facts = vec![Fact::new(random, &[])];
            let mut needles = vec![(depth, facts[0].sentence())];
            for _ in 0..NUM_OTHERS {
                let other = Fact::new(random, &facts);
                needles.push((random.random(), other.sentence()));
                facts.push(other);
            }
            let haystack = Haystack::of(inputs.haystack, random.random());
            facts[0].asked(inputs, room.hide(&needles, &haystack, "")?)
        })
    }
}

impl Task for MultiTurn {
    fn name(&self) -> &'static str {
        "multiturn"
    }

    fn about(&self) -> &'static str {
        "four hidden sentences asked for one after the other: what a selection made once has lost"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let sample = |index| {
            let mut random = random(inputs.settings.seed, self.name(), context, index);
            let mut facts: Vec<Fact> = Vec::new();
            for _ in 0..NUM_TURNS {
                facts.push(Fact::new(&mut random, &facts));
            }
            let haystack = Haystack::of(inputs.haystack, random.random());
            let place = |turn: usize| (turn as f64 + 0.5) / NUM_TURNS as f64;
            let needles: Vec<(f64, String)> = facts
                .iter()
                .enumerate()
                .map(|(turn, fact)| (place(turn), fact.sentence()))
                .collect();
            let room = Room { task: self.name(), prompting: inputs.prompting, length: context };
            let asked = room.hide(&needles, &haystack, "")?;
            let question = |(turn, fact): (usize, &Fact)| {
                let (text, reply) = (fact.question(), fact.reply());
                let tokens = match turn {
                    0 => inputs.prompting.first_question(&asked, &text, &reply)?,
                    _ => inputs.prompting.next_question(&text, &reply)?,
                };
                Ok(number_question(&text, tokens, fact.number))
            };
            let questions: Result<Vec<Question>> = facts.iter().enumerate().map(question).collect();
            Ok(Sample {
                part: None,
                name: format!("#{index}"),
                length: context,
                depth: None,
                context: asked.context,
                probe: Probe::Questions(questions?),
            })
        };
        (0..inputs.settings.num_samples).map(sample).collect()
    }
}

/// What is asked for is a number, and the reply ends with its sentence.
fn number_question(text: &str, tokens: Vec<u32>, number: u32) -> Question {
    Question {
        text: text.to_owned(),
        tokens,
        references: vec![number.to_string()],
        metric: Metric::ContainsAll,
        max_tokens: MAX_TOKENS,
        stops: vec![".".to_owned(), "\n".to_owned()],
    }
}

/// As many samples as are asked for at every depth.
fn at_depths(
    task: &'static str,
    inputs: &Inputs<'_>,
    context: usize,
    sample: impl Fn(Room<'_>, &mut StdRng, f64) -> Result<(Vec<u32>, Vec<Question>)>,
) -> Result<Vec<Sample>> {
    let room = Room { task, prompting: inputs.prompting, length: context };
    let mut samples = Vec::new();
    for (place, &depth) in inputs.settings.depths.iter().enumerate() {
        for index in 0..inputs.settings.num_samples {
            let number = place * inputs.settings.num_samples + index;
            let mut random = random(inputs.settings.seed, task, context, number);
            let (tokens, questions) = sample(room, &mut random, depth)?;
            samples.push(Sample {
                part: None,
                name: format!("depth {} % #{index}", 100.0 * depth),
                length: context,
                depth: Some(depth),
                context: tokens,
                probe: Probe::Questions(questions),
            });
        }
    }
    Ok(samples)
}
