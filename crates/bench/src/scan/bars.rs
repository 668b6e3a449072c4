//! How much faster than f16 the scan of each class of formats has to be.

use super::Arithmetic;
use super::grid::{CaseResult, GridResult};
use crate::bars::{Bar, Limit};

/// Formats of about the same bits, the fastest of which is held to the bar.
struct Class {
    name: &'static str,
    /// Tokens per second over those of f16.
    ratio: f64,
    candidates: &'static [&'static str],
}

const CLASSES: [Class; 4] = [
    Class { name: "int8", ratio: 1.6, candidates: &["int8-token", "int8-channel/64"] },
    Class {
        name: "4 bits",
        ratio: 2.6,
        candidates: &["int4-token", "int4-channel/64", "lm4", "alloc/4"],
    },
    Class { name: "2 bits", ratio: 4.0, candidates: &["int2-channel/64", "lm2", "alloc/2"] },
    Class { name: "1 bit", ratio: 5.0, candidates: &["lm1", "alloc/1"] },
];

/// Share of the read bandwidth that the f16 scan has to reach for the others to be judged by it.
const F16_SHARE: f64 = 0.85;

/// What the bars say of a run that has their shape.
pub(crate) struct Judgement {
    /// Of every class, exactly and for selection.
    pub(crate) classes: Vec<[Bar; 2]>,
    /// Whether the f16 yardstick was what it has to be; if not, the run says nothing.
    pub(crate) yardstick: Bar,
}

impl Judgement {
    /// Whether the run counts and every class has its bar in one arithmetic at least.
    pub(crate) fn is_held(&self) -> bool {
        self.yardstick.is_held() && self.classes.iter().all(|class| class.iter().any(Bar::is_held))
    }
}

/// Judges a run; `None` where it lacks the shape of the bars or the candidates of a class.
pub(crate) fn judge(result: &GridResult) -> Option<Judgement> {
    let at_shape: Vec<&CaseResult> = result.cases.iter().filter(|case| case.is_at_bars()).collect();
    let f16 = at_shape.iter().find(|case| case.format == "f16")?;
    let yardstick = Bar {
        what: "share of the read bandwidth".to_owned(),
        by: "f16, else the run is VOID".to_owned(),
        reached: f16.of_bandwidth.median(),
        limit: Limit::AtLeast(F16_SHARE),
    };
    let bar = |class: &Class, arithmetic: Arithmetic| {
        let fastest = at_shape
            .iter()
            .filter(|case| case.arithmetic == arithmetic)
            .filter(|case| class.candidates.contains(&case.format.as_str()))
            .max_by(|a, b| a.against_f16.median().total_cmp(&b.against_f16.median()))?;
        Some(Bar {
            what: format!("{}, {}: times f16", class.name, arithmetic.name()),
            by: fastest.format.clone(),
            reached: fastest.against_f16.median(),
            limit: Limit::AtLeast(class.ratio),
        })
    };
    let both = |class| Some([bar(class, Arithmetic::Exact)?, bar(class, Arithmetic::Select)?]);
    let classes = CLASSES.iter().map(both).collect::<Option<_>>()?;
    Some(Judgement { classes, yardstick })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats;
    use crate::scan::Place;

    fn result(times_f16: f64, f16_share: f64) -> GridResult {
        let case = |format: &str, arithmetic, ratio: f64| CaseResult {
            format: format.to_owned(),
            arithmetic,
            head_dim: 64,
            group_size: 3,
            place: Place::Memory,
            bytes_per_token: 128.0,
            tokens_per_second: [f16_share * ratio].into_iter().collect(),
            against_f16: [ratio].into_iter().collect(),
            of_bandwidth: [f16_share].into_iter().collect(),
        };
        let mut cases = vec![case("f16", Arithmetic::Exact, 1.0)];
        for class in &CLASSES {
            for (i, format) in class.candidates.iter().enumerate() {
                let ratio = times_f16 * class.ratio / (1.0 + i as f64);
                cases.push(case(format, Arithmetic::Exact, 0.5 * ratio));
                cases.push(case(format, Arithmetic::Select, ratio));
            }
        }
        GridResult { cases, ..GridResult::default() }
    }

    #[test]
    fn the_fastest_of_a_class_is_held_to_its_bar_and_a_slow_yardstick_voids_the_run() {
        let good = judge(&result(1.0, 0.85)).expect("it has the shape");
        assert_eq!(
            good.classes.iter().flatten().filter(|bar| bar.is_held()).count(),
            CLASSES.len()
        );
        assert_eq!(good.classes[0][1].by, "int8-token");
        assert!(good.is_held());
        assert!(!judge(&result(0.99, 0.9)).expect("it has the shape").is_held());
        let void = judge(&result(2.0, 0.84)).expect("it has the shape");
        assert!(void.classes.iter().all(|class| class[1].is_held()) && !void.is_held());
        assert!(judge(&GridResult::default()).is_none());
    }

    #[test]
    fn every_candidate_is_timed() {
        for class in &CLASSES {
            for format in class.candidates {
                assert!(formats::TIMED.contains(format), "{format}");
            }
        }
    }
}
