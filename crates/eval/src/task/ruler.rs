//! The synthetic tasks of RULER (Hsieh et al., arXiv 2404.06654, section 3 and appendix B), by their published
//! definitions and in words of our own: numbers are comparable among caches, not with published tables.
//!
//! All are scored by the share of the right answers that the reply contains. Where RULER hides things in essays,
//! they are hidden in the haystack that is given, or in generated text.

mod needles;
mod variables;
mod words;

use rand::rngs::StdRng;

use crate::Result;
use crate::metric::Metric;
use crate::prompting::Asked;
use crate::task::haystack::{Room, random};
use crate::task::{Inputs, Probe, Question, Sample, Task};
use needles::{Among, Amounts, Kind, Needles};

/// All of them.
pub(super) const TASKS: [Ruler; 11] = [
    Ruler::needles("niah_single_1", Among::Noise, Amounts::ONE, Kind::Word, Kind::Number),
    Ruler::needles("niah_single_2", Among::Text, Amounts::ONE, Kind::Word, Kind::Number),
    Ruler::needles("niah_single_3", Among::Text, Amounts::ONE, Kind::Word, Kind::Uuid),
    Ruler::needles("niah_multikey_1", Among::Text, Amounts::keys(4), Kind::Word, Kind::Number),
    Ruler::needles("niah_multikey_2", Among::Needles, Amounts::ONE, Kind::Word, Kind::Number),
    Ruler::needles("niah_multikey_3", Among::Needles, Amounts::ONE, Kind::Uuid, Kind::Uuid),
    Ruler::needles("niah_multivalue", Among::Text, Amounts::values(4), Kind::Word, Kind::Number),
    Ruler::needles("niah_multiquery", Among::Text, Amounts::queries(4), Kind::Word, Kind::Number),
    Ruler {
        name: "vt",
        about: "variables set to each other in a chain of four hops (RULER)",
        form: Form::Variables,
    },
    Ruler {
        name: "cwe",
        about: "the ten words that a list has most often (RULER)",
        form: Form::CommonWords,
    },
    Ruler {
        name: "fwe",
        about: "the three coded words that a text has most often (RULER)",
        form: Form::FrequentWords,
    },
];

/// One of them.
pub(super) struct Ruler {
    name: &'static str,
    about: &'static str,
    form: Form,
}

/// What is hidden, and how.
enum Form {
    Needles(Needles),
    Variables,
    CommonWords,
    FrequentWords,
}

/// What a task asks, once its text has the right length.
struct Asking {
    asked: Asked,
    question: String,
    /// First words of the reply.
    reply: String,
    answers: Vec<String>,
    max_tokens: usize,
}

/// What a text is made with.
struct Made<'a> {
    room: Room<'a>,
    haystack: Option<&'a str>,
    random: StdRng,
}

impl Ruler {
    const fn needles(
        name: &'static str,
        among: Among,
        amounts: Amounts,
        key: Kind,
        value: Kind,
    ) -> Self {
        let about = match (&among, amounts.num_keys, amounts.num_values, amounts.num_queries) {
            (Among::Needles, ..) => "a needle among needles (RULER)",
            (_, _, _, 2..) => "several needles, all asked for (RULER)",
            (_, _, 2.., _) => "several values of one key (RULER)",
            (_, 2.., ..) => "a needle among others like it (RULER)",
            _ => "a needle in a text (RULER)",
        };
        Self { name, about, form: Form::Needles(Needles { among, amounts, key, value }) }
    }
}

impl Task for Ruler {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let sample = |index| {
            let made = Made {
                room: Room { task: self.name, prompting: inputs.prompting, length: context },
                haystack: inputs.haystack,
                random: random(inputs.settings.seed, self.name, context, index),
            };
            let asking = match &self.form {
                Form::Needles(needles) => needles.ask(made)?,
                Form::Variables => variables::ask(made)?,
                Form::CommonWords => words::ask_common(made)?,
                Form::FrequentWords => words::ask_frequent(made)?,
            };
            let Asking { asked, question, reply, answers, max_tokens } = asking;
            let question = Question {
                tokens: inputs.prompting.first_question(&asked, &question, &reply)?,
                text: question,
                references: answers,
                metric: Metric::ContainsAll,
                max_tokens,
                stops: Vec::new(),
            };
            Ok(Sample {
                part: None,
                name: format!("#{index}"),
                length: context,
                depth: None,
                context: asked.context,
                probe: Probe::Questions(vec![question]),
            })
        };
        (0..inputs.settings.num_samples).map(sample).collect()
    }
}
