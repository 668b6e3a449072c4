//! Scores worked out by hand, scores of other programs, and what holds for all.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn score(metric: &Metric, reply: &str, reference: &str) -> f64 {
    metric.score(reply, &texts(&[reference]))
}

fn classes(names: &[&str]) -> Metric {
    Metric::Classification { classes: texts(names) }
}

fn all() -> Vec<Metric> {
    vec![
        Metric::ContainsAll,
        Metric::QaF1,
        Metric::QaF1Zh,
        Metric::RougeL,
        Metric::RougeLZh,
        classes(&["lamp", "oil"]),
        Metric::Retrieval,
        Metric::Count,
        Metric::CodeSimilarity,
        Metric::FirstLine(Box::new(Metric::QaF1)),
    ]
}

/// A pair of texts from `make.py`, and what the metric should give.
#[derive(Debug, Deserialize)]
struct Case {
    metric: String,
    reply: String,
    reference: String,
    score: f64,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../tests/fixtures/metric/cases.json")).unwrap()
}

fn of_case(name: &str) -> Metric {
    if let Some(inner) = name.strip_prefix("first_line ") {
        return Metric::FirstLine(Box::new(of_case(inner)));
    }
    all().into_iter().find(|metric| metric.name() == name).unwrap()
}

/// The first case whose score is not what it should be.
fn first_wrong(score: impl Fn(&Case) -> f64) -> Option<Case> {
    let is_right = |case: &Case| (score(case) - case.score).abs() < 1e-9;
    cases().into_iter().find(|case| !is_right(case))
}

#[test]
fn scores_are_those_of_python() {
    assert!(cases().len() > 400);
    let wrong = first_wrong(|case| score(&of_case(&case.metric), &case.reply, &case.reference));
    assert!(wrong.is_none(), "{wrong:?}");
}

#[test]
fn another_metric_is_told_from_the_right_one() {
    for metric in all() {
        let swapped = |case: &Case| {
            let is_it = of_case(&case.metric) == metric;
            let used = if is_it { Metric::ContainsAll } else { of_case(&case.metric) };
            score(&used, &case.reply, &case.reference)
        };
        let has_cases = cases().iter().any(|case| of_case(&case.metric) == metric);
        assert_eq!(first_wrong(swapped).is_some(), has_cases, "{metric:?}");
    }
    assert!(first_wrong(|case| case.score + 1e-6).is_some());
    assert!(first_wrong(|_| f64::NAN).is_some());
}

#[test]
fn the_share_of_references_that_a_reply_contains() {
    let references = texts(&["Lamp", "42"]);
    let score = |reply| Metric::ContainsAll.score(reply, &references);
    assert_eq!(score("the lamp, and 42."), 1.0);
    assert_eq!(score("4 2 LAMPS"), 0.5);
    assert_eq!(score(""), 0.0);
    assert_eq!(Metric::ContainsAll.score("anything", &[]), 0.0);
}

#[test]
fn f1_of_words() {
    let f1 = |reply, reference| score(&Metric::QaF1, reply, reference);
    assert_eq!(f1("The Lamp!", "a lamp"), 1.0);
    assert_eq!(f1("an oil lamp", "oil lamp"), 1.0);
    // One of three words, one of one: 2 · 1 / (3 + 1).
    assert_eq!(f1("lamp on deck", "lamp"), 0.5);
    assert_eq!(f1("lamp lamp", "lamp"), 2.0 / 3.0);
    assert_eq!(f1("oil", "lamp"), 0.0);
    // Articles are all there is.
    assert_eq!(f1("the", "the"), 0.0);
    assert_eq!(f1("a-the", "athe"), 1.0);
    assert_eq!(Metric::QaF1.score("oil", &texts(&["lamp", "oil", "whale oil"])), 1.0);
}

#[test]
fn f1_of_chinese_characters() {
    let f1 = |reply, reference| score(&Metric::QaF1Zh, reply, reference);
    assert_eq!(f1("《北京》。", "北 京"), 1.0);
    assert_eq!(f1("北海", "北京"), 0.5);
    // 2008 is one word: 1 of 3 and of 1.
    assert_eq!(f1("在2008年", "2008"), 0.5);
    assert_eq!(f1("二〇〇八", "二八"), 2.0 / 3.0);
    assert_eq!(f1("，。", "，。"), 0.0);
}

#[test]
fn rouge_l_counts_words_of_common_subsequences() {
    let rouge = |reply, reference| score(&Metric::RougeL, reply, reference);
    assert_eq!(rouge("the whale. it sank", "the whale. it sank"), 1.0);
    // The worked example of the paper: w1 w2 and w1 w3 w5 are four words of five; the reply has eight.
    assert_eq!(rouge("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5"), 8.0 / 13.0);
    // Of c b a in the order a b c, one word.
    assert_eq!(rouge("c b a", "a b c"), 1.0 / 3.0);
    assert_eq!(rouge("", "a"), 0.0);
    assert_eq!(rouge("...", "..."), 0.0);
    assert_eq!(score(&Metric::RougeLZh, "我在北京", "他在北京"), 0.75);
}

#[test]
fn classes_that_a_reply_names() {
    let metric = classes(&["Date", "Order", "Abbreviation", "Expression of Date"]);
    assert_eq!(score(&metric, "Type: Date", "Date"), 1.0);
    assert_eq!(score(&metric, "Date or Order", "Date"), 0.5);
    assert_eq!(score(&metric, "Order", "Date"), 0.0);
    assert_eq!(score(&metric, "date", "Date"), 0.0);
    assert_eq!(score(&metric, "", "Date"), 0.0);
    // Date is a part of the right name, and does not count beside it; the other way round both do.
    assert_eq!(score(&metric, "Expression of Date", "Expression of Date"), 1.0);
    assert_eq!(score(&metric, "Expression of Date", "Date"), 0.5);
    assert_eq!(score(&classes(&[]), "Date", "Date"), 0.0);
}

#[test]
fn numbers_that_a_reply_names() {
    assert_eq!(score(&Metric::Count, "There are 7, I think 7, or 17", "7"), 2.0 / 3.0);
    assert_eq!(score(&Metric::Count, "seven", "7"), 0.0);
    assert_eq!(score(&Metric::Retrieval, "It is 3 or 4", "Paragraph 4"), 0.5);
    assert_eq!(score(&Metric::Retrieval, "段落4", "段落4"), 1.0);
    assert_eq!(score(&Metric::Retrieval, "4", "the fourth"), 0.0);
    assert_eq!(score(&Metric::Retrieval, "", "Paragraph 4"), 0.0);
}

#[test]
fn lines_of_code() {
    let code = |reply, reference| score(&Metric::CodeSimilarity, reply, reference);
    assert_eq!(code("\n```rust\n// twice\nlet a = 1;\nlet b = 2;", "let a = 1;"), 1.0);
    // ab and cd match: 2 · 4 / 9 is 88.9 %.
    assert_eq!(code("abxcd", "abcd"), 0.89);
    assert_eq!(code("# none", "abcd"), 0.0);
    assert_eq!(code("", "abcd"), 0.0);
    // 62.5 and 87.5 %: halves go to the even one.
    assert_eq!(code("abcdezzz", "abcdeyyy"), 0.62);
    assert_eq!(code("abcdefgz", "abcdefgy"), 0.88);
}

#[test]
fn the_first_line_is_what_counts() {
    let f1 = Metric::FirstLine(Box::new(Metric::QaF1));
    assert_eq!(score(&f1, "\n\nlamp\nQuestion: oil", "lamp"), 1.0);
    assert!(score(&Metric::QaF1, "\n\nlamp\nQuestion: oil", "lamp") < 1.0);
    assert_eq!(score(&f1, " \nlamp", "lamp"), 0.0);
    assert_eq!(score(&f1, "\n\n", "lamp"), 0.0);
    assert_eq!(f1.name(), "qa_f1");
}

#[test]
fn nothing_scores_nothing() {
    for metric in all() {
        assert_eq!(metric.score("lamp 4", &[]), 0.0, "{metric:?}");
        assert_eq!(metric.score("", &texts(&["lamp 4"])), 0.0, "{metric:?}");
    }
}

/// Words of every kind, so that texts have some in common, and characters of any kind between.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => "[a-c]{1,2} ",
        2 => "[北京。，]{1,3}",
        1 => "(the |Paragraph 4|lamp|[.] ?|\n|#|`|７)",
        1 => "\\PC",
    ];
    prop::collection::vec(word, 0..25).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn scores_are_from_0_to_1(reply in any_text(), references in prop::collection::vec(any_text(), 0..3)) {
        for metric in all() {
            let score = metric.score(&reply, &references);
            prop_assert!((0.0..=1.0).contains(&score), "{metric:?}: {score}");
        }
    }

    #[test]
    fn a_further_reference_never_costs(reply in any_text(), a in any_text(), b in any_text()) {
        for metric in all().into_iter().filter(|metric| *metric != Metric::ContainsAll) {
            let best = score(&metric, &reply, &a).max(score(&metric, &reply, &b));
            prop_assert_eq!(metric.score(&reply, &[a.clone(), b.clone()]), best);
        }
    }

    #[test]
    fn a_text_is_like_itself(text in any_text()) {
        let text = format!("{text} word 京");
        for metric in [Metric::ContainsAll, Metric::QaF1, Metric::QaF1Zh, Metric::RougeL, Metric::RougeLZh] {
            prop_assert_eq!(score(&metric, &text, &text), 1.0, "{:?}", metric);
        }
        let line = text.replace(['\n', '`', '#', '/'], " ");
        prop_assert_eq!(score(&Metric::CodeSimilarity, &line, &line), 1.0);
    }

    #[test]
    fn f1_takes_either_way_round(a in any_text(), b in any_text()) {
        for metric in [Metric::QaF1, Metric::QaF1Zh] {
            prop_assert_eq!(score(&metric, &a, &b), score(&metric, &b, &a));
        }
    }

    #[test]
    fn f1_takes_words_in_any_order(words in Just(vec!["whale", "oil", "lamp", "oil"]).prop_shuffle()) {
        prop_assert_eq!(score(&Metric::QaF1, &words.join(" "), "oil lamp oil whale"), 1.0);
    }
}
