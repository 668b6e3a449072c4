//! How replies are held against right answers.

mod chinese;
mod code;
mod f1;
mod label;
mod rouge;
#[cfg(test)]
mod tests;

/// How a reply is held against right answers. All give a score from 0 to 1.
///
/// Those that say LongBench (arXiv 2308.14508) are the scores of its `metrics.py` and `eval.py`, written from what
/// these compute; where they differ, the variant says so. Such a score is that of the reference that fits best, and
/// 0 for a reply of no words.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    /// The share of the references that the reply contains, letter case aside: RULER's `string_match_all` (arXiv
    /// 2404.06654, appendix B). For a single reference: whether it is there.
    ContainsAll,
    /// F1 of the words that reply and reference share, each as often as both have it; letter case, ASCII punctuation
    /// and the words a, an and the aside. LongBench, after SQuAD (arXiv 1606.05250).
    QaF1,
    /// [`Metric::QaF1`] of Chinese: no punctuation, no white space. LongBench takes the words that `jieba` finds by its
    /// dictionary; here every character is a word, and so is a run of ASCII letters and digits. A reply that shares
    /// parts of words scores higher than there.
    QaF1Zh,
    /// ROUGE-L of whole texts (Lin, "ROUGE", 2004, section 3.2), as LongBench has it from the package `rouge` 1.0:
    /// sentences end at full stops; of every reference sentence, the words of its longest common subsequences with
    /// the sentences of the reply are found; their number, over the number of words in the reference and over that in
    /// the reply, are recall and precision, and the score is their F1. A word counts once, however often it is there.
    /// Left out is the 10⁻⁸ that the package adds below the fraction.
    RougeL,
    /// [`Metric::RougeL`] of Chinese, with the words of [`Metric::QaF1Zh`], punctuation kept. LongBench takes the words
    /// of `jieba`, which gives other scores.
    RougeLZh,
    /// Of the classes named in the reply, the one over how many there are if the right one is among them, else 0.
    /// Classes whose names are a part of the right one's name do not count. LongBench.
    Classification {
        /// Names of all classes.
        classes: Vec<String>,
    },
    /// The share of the numbers in the reply that are the number of the right paragraph, which the reference gives as
    /// `Paragraph 7` or `段落7`; 0 where it gives none. LongBench.
    Retrieval,
    /// The share of the numbers in the reply that are, digit by digit, the reference. LongBench.
    Count,
    /// How much of the first line of code and of the reference is the same, in whole percent: twice the characters in
    /// the matching blocks of Python's `difflib`, over all characters. Lines with `` ` ``, `#` or `//` in them are no
    /// code. LongBench, by `fuzzywuzzy`'s `ratio`.
    CodeSimilarity,
    /// The first line of the reply that is not empty, by another metric. LongBench does so where the reply would
    /// otherwise go on with examples of its own.
    FirstLine(Box<Metric>),
}

impl Metric {
    /// Its name in results. [`Metric::FirstLine`] has the name of the metric in it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ContainsAll => "contains_all",
            Self::QaF1 => "qa_f1",
            Self::QaF1Zh => "qa_f1_zh",
            Self::RougeL => "rouge_l",
            Self::RougeLZh => "rouge_l_zh",
            Self::Classification { .. } => "classification",
            Self::Retrieval => "retrieval",
            Self::Count => "count",
            Self::CodeSimilarity => "code_similarity",
            Self::FirstLine(metric) => metric.name(),
        }
    }

    /// The score of `reply`, from 0 to 1; 0 where there are no references.
    ///
    /// [`Metric::RougeL`], [`Metric::RougeLZh`] and [`Metric::CodeSimilarity`] take time by the product of both lengths
    /// at least.
    #[must_use]
    pub fn score(&self, reply: &str, references: &[String]) -> f64 {
        let best = |score: &dyn Fn(&str) -> f64| {
            references.iter().map(|reference| score(reference)).fold(0.0, f64::max)
        };
        match self {
            Self::ContainsAll => share_contained(reply, references),
            Self::QaF1 => best(&|reference| f1::english(reply, reference)),
            Self::QaF1Zh => best(&|reference| f1::chinese(reply, reference)),
            Self::RougeL => best(&|reference| rouge::english(reply, reference)),
            Self::RougeLZh => best(&|reference| rouge::chinese(reply, reference)),
            Self::Classification { classes } => {
                best(&|reference| label::classification(reply, reference, classes))
            }
            Self::Retrieval => best(&|reference| label::retrieval(reply, reference)),
            Self::Count => best(&|reference| label::count(reply, reference)),
            Self::CodeSimilarity => best(&|reference| code::similarity(reply, reference)),
            Self::FirstLine(metric) => metric.score(first_line(reply), references),
        }
    }
}

fn share_contained(reply: &str, references: &[String]) -> f64 {
    let reply = reply.to_lowercase();
    let found = references.iter().filter(|reference| reply.contains(&reference.to_lowercase()));
    if references.is_empty() { 0.0 } else { found.count() as f64 / references.len() as f64 }
}

/// The first line that is not empty; a line of spaces is one. Empty where all lines are.
fn first_line(reply: &str) -> &str {
    reply.trim_start_matches('\n').split('\n').next().unwrap_or_default()
}
