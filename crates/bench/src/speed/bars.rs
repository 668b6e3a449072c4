//! What the figures of a run are held to, each against others of the same run. What was not measured holds no bar.

use super::contexts::{ONE_THREAD, SCALING_CONTEXT};
use super::long::{REAL_TOKENS, Tiling};
use super::program::{FIRST_TOKEN, GENERATE};
use super::{LLAMA_F16, LLAMA_Q8, OURS, Part, case_name};
use crate::bars::{Bar, Limit};
use crate::bootstrap;
use crate::record::{Case, Record};
use crate::slope::fit;

/// How many times as fast as llama.cpp's f16 a decode step has to be: context, cache, times.
pub(super) const DECODE: [(usize, &str, f64); 8] = [
    (512, "full", 1.0),
    (4096, "full", 1.8),
    (4096, "hca:25%", 2.5),
    (4096, "hca:12.5%", 3.0),
    // "No slower": the bar of `hca:12.5%`.
    (4096, "hca-rescore:6.25%", 3.0),
    (7900, "full", 2.0),
    (7900, "hca:25%", 3.3),
    (7900, "hca:12.5%", 4.0),
];

/// How many times as fast a prompt has to be: context, cache, whose yardstick, times.
const PREFILL: [(usize, &str, &str, f64); 2] =
    [(7900, "hca:12.5%", LLAMA_F16, 1.7), (7900, "hca:12.5%", LLAMA_Q8, 5.0)];

/// What a step costs per token of context over what its bytes cost at the bandwidth of the run, at most.
const SLOPES: [(&str, f64); 3] = [("full", 1.6), ("hca:12.5%", 2.5), ("hca-rescore:6.25%", 2.5)];

/// Caches of which one thread is held against two.
const SCALED: [&str; 2] = ["full", "hca:12.5%"];

/// How many times as fast two threads have to be as one at a prompt.
const PREFILL_SCALING: f64 = 1.7;

/// And at a decode step, of the ratio of the read bandwidths.
const DECODE_SCALING: f64 = 0.9;

/// The context of the memory of both programs.
pub(super) const MEMORY_CONTEXT: usize = 7900;

/// Of the whole program with one token of a short prompt, the files once read, seconds.
const FIRST_TOKEN_SECONDS: f64 = 0.5;

/// How many times as fast as `full` a step over a long context has to be: context, cache, times.
pub(super) const LONG: (usize, &str, f64) = (131_072, "hca:12.5%", 3.5);

/// The bars of the parts that are wanted.
pub(super) fn of_parts(record: &Record, wants: impl Fn(Part) -> bool) -> Vec<Bar> {
    let mut bars = Vec::new();
    if wants(Part::Contexts) {
        bars.extend(contexts(record));
    }
    if wants(Part::Long) {
        bars.extend(long(record));
    }
    if wants(Part::Program) {
        bars.extend([memory(record), first_token(record)]);
    }
    bars
}

/// Those that a model of any shape is held to.
fn contexts(record: &Record) -> Vec<Bar> {
    let decode = DECODE.iter().map(|&(context, cache, times)| Bar {
        what: format!("decode at {context}, times as fast as {LLAMA_F16}"),
        by: cache.to_owned(),
        reached: times_as_fast(record, "decode", context, &format!("{OURS}{cache}"), LLAMA_F16),
        limit: Limit::AtLeast(times),
    });
    let prefill = PREFILL.iter().map(|&(context, cache, yardstick, times)| Bar {
        what: format!("prefill at {context}, times as fast as {yardstick}"),
        by: cache.to_owned(),
        reached: times_as_fast(record, "prefill", context, &format!("{OURS}{cache}"), yardstick),
        limit: Limit::AtLeast(times),
    });
    let slopes = SLOPES.iter().map(|&(cache, times)| Bar {
        what: "slope of decode over the context, over that of its bytes".to_owned(),
        by: cache.to_owned(),
        reached: slope_over_bytes(record, &steps(record, "decode", cache)),
        limit: Limit::AtMost(times),
    });
    decode.chain(prefill).chain(slopes).chain(scaling(record)).collect()
}

/// The median of the ratios of the rounds, the yardstick's time over ours; NaN where either was not measured.
fn times_as_fast(record: &Record, phase: &str, context: usize, ours: &str, yardstick: &str) -> f64 {
    let samples = |name: &str| {
        let case = record.case(&case_name(phase, name, context));
        case.map_or_else(Vec::new, |case| case.samples_ns.clone())
    };
    let (ours, yardstick) = (samples(ours), samples(yardstick));
    match ours.is_empty() || yardstick.is_empty() {
        true => f64::NAN,
        false => bootstrap::of_pairs(&yardstick, &ours).median,
    }
}

fn scaling(record: &Record) -> Vec<Bar> {
    let bandwidths = read_gb_s(record, record_threads(record)) / read_gb_s(record, 1);
    let bar = |phase: &str, cache: &str, least: f64| {
        let one = format!("{OURS}{cache}{ONE_THREAD}");
        let all = format!("{OURS}{cache}");
        Bar {
            what: format!("{phase} at {SCALING_CONTEXT}, one thread's time over that of all"),
            by: cache.to_owned(),
            reached: times_as_fast(record, phase, SCALING_CONTEXT, &all, &one),
            limit: Limit::AtLeast(least),
        }
    };
    let prefill = SCALED.iter().map(|cache| bar("prefill", cache, PREFILL_SCALING));
    // Without the bandwidths the bar is NaN, and nothing is at least that.
    let decode = SCALED.iter().map(|cache| bar("decode", cache, DECODE_SCALING * bandwidths));
    prefill.chain(decode).collect()
}

/// Threads of the run.
pub(super) fn record_threads(record: &Record) -> usize {
    record.environment.get("threads").and_then(|threads| threads.parse().ok()).unwrap_or(0)
}

/// The read bandwidth of the run on so many threads; NaN where it was not measured.
pub(super) fn read_gb_s(record: &Record, num_threads: usize) -> f64 {
    let case = record.case(&format!("machine/read/{num_threads} threads"));
    case.map_or(f64::NAN, |case| case.figure("gb_s"))
}

/// Operations of f32 a nanosecond that the run found so many threads to do at most; NaN where that was not measured.
pub(super) fn gflop_s(record: &Record, num_threads: usize) -> f64 {
    let case = record.case(&format!("machine/multiply-adds/{num_threads} threads"));
    case.map_or(f64::NAN, |case| case.figure("gflop_s"))
}

/// The steps of a cache of ours over all contexts.
fn steps<'a>(record: &'a Record, phase: &str, cache: &str) -> Vec<&'a Case> {
    let begin = format!("speed/{phase}/{OURS}{cache}@");
    record.cases.iter().filter(|case| case.name.starts_with(&begin)).collect()
}

/// Nanoseconds that the bytes of a step take at the read bandwidth of the run.
pub(super) fn floor_ns(record: &Record, case: &Case) -> f64 {
    let bytes = case.figure("device_bytes_read") + case.figure("host_bytes_read");
    bytes / read_gb_s(record, record_threads(record))
}

/// The slope of the time of steps over their contexts, over the slope of what their bytes take; NaN of fewer than two
/// contexts.
fn slope_over_bytes(record: &Record, steps: &[&Case]) -> f64 {
    let slope = |of: &dyn Fn(&Case) -> f64| -> f64 {
        let points: Vec<(f64, f64)> = steps
            .iter()
            .map(|case| (case.context.map_or(f64::NAN, |context| context as f64), of(case)))
            .collect();
        fit(&points).map_or(f64::NAN, |line| line.slope)
    };
    let time = slope(&|case| case.summary.map_or(f64::NAN, |summary| summary.median_ns));
    time / slope(&|case| floor_ns(record, case))
}

fn long(record: &Record) -> Vec<Bar> {
    let (context, cache, times) = LONG;
    let phase = Tiling::Near.phase();
    let case = record.case(&case_name(phase, &format!("{OURS}{cache}"), context));
    let full = steps(record, phase, "full");
    let is_of = |case: &&&Case| [Some(REAL_TOKENS), Some(context)].contains(&case.context);
    let full: Vec<&Case> = full.iter().filter(is_of).copied().collect();
    vec![
        Bar {
            what: format!("a step at {context}, near tiles, times as fast as full"),
            by: cache.to_owned(),
            reached: case.map_or(f64::NAN, |case| case.figure("times_full")),
            limit: Limit::AtLeast(times),
        },
        Bar {
            what: format!("slope from {REAL_TOKENS} to {context} over that of its bytes"),
            by: "full".to_owned(),
            reached: slope_over_bytes(record, &full),
            limit: Limit::AtMost(SLOPES[0].1),
        },
    ]
}

fn memory(record: &Record) -> Bar {
    let peak = |phase: &str, name: &str| {
        let case = record.case(&case_name(phase, name, MEMORY_CONTEXT));
        case.map_or(f64::NAN, |case| case.figure("rss_peak_bytes"))
    };
    Bar {
        what: format!("peak memory at {MEMORY_CONTEXT} over that of {LLAMA_F16}"),
        by: format!("{GENERATE}, {}", super::program::CACHE),
        reached: peak("memory", GENERATE) / peak("prefill", LLAMA_F16),
        limit: Limit::AtMost(1.0),
    }
}

fn first_token(record: &Record) -> Bar {
    let summary = record.case(FIRST_TOKEN).and_then(|case| case.summary);
    Bar {
        what: "first token of a short prompt, the program run again, s".to_owned(),
        by: format!("{GENERATE}, {}", super::program::CACHE),
        reached: summary.map_or(f64::NAN, |summary| 1e-9 * summary.median_ns),
        limit: Limit::AtMost(FIRST_TOKEN_SECONDS),
    }
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;
    use crate::samples::Samples;
    use crate::speed::{SUITE, tables};

    fn empty() -> Record {
        Record::new(&Environment::detect(Level::SCALAR, 2))
    }

    fn push(record: &mut Record, phase: &str, name: &str, context: usize, ns: f64, bytes: f64) {
        let samples: Samples = [ns, 3.0 * ns, 2.0 * ns].into_iter().collect();
        let case = Case::new(SUITE, case_name(phase, name, context)).timed(&samples);
        let case = case.with("device_bytes_read", bytes).with("host_bytes_read", 0.0);
        let case = case.with("rss_peak_bytes", bytes).with("times_full", 3.6);
        record.cases.push(Case { cache: Some(name.to_owned()), context: Some(context), ..case });
    }

    /// A run that holds every bar: of 10 GB/s, a step of `full` takes what its bytes take, and llama.cpp 4.5 times that.
    fn held() -> Record {
        let mut record = empty();
        for (threads, rate) in [(1, 8.0), (2, 10.0)] {
            let case = Case::new("machine", format!("machine/read/{threads} threads"));
            record.cases.push(case.with("gb_s", rate));
        }
        let caches = ["full", "hca:25%", "hca:12.5%", "hca-rescore:6.25%"];
        for context in [512, 4096, 7900] {
            // The samples' median is twice what is given.
            let bytes = 1e6 + 1e3 * context as f64;
            let ns = 0.5 * bytes / 10.0;
            for cache in caches {
                push(&mut record, "decode", &format!("{OURS}{cache}"), context, ns, bytes);
                push(&mut record, "prefill", &format!("{OURS}{cache}"), context, ns, bytes);
            }
            push(&mut record, "decode", LLAMA_F16, context, 4.5 * ns, 0.0);
            push(&mut record, "prefill", LLAMA_F16, context, 1.75 * ns, 1e9);
        }
        push(&mut record, "prefill", LLAMA_Q8, 7900, 0.5 * 6.0 * 8.9e5, 0.0);
        for cache in SCALED {
            let bytes = 1e6 + 1e3 * 4096.0;
            let one = format!("{OURS}{cache}{ONE_THREAD}");
            push(&mut record, "decode", &one, 4096, 1.13 * 0.5 * bytes / 10.0, bytes);
            push(&mut record, "prefill", &one, 4096, 1.8 * 0.5 * bytes / 10.0, bytes);
        }
        for context in [REAL_TOKENS, LONG.0] {
            let bytes = 1e6 + 1e3 * context as f64;
            push(
                &mut record,
                Tiling::Near.phase(),
                "heterokv full",
                context,
                0.5 * bytes / 10.0,
                bytes,
            );
        }
        push(&mut record, Tiling::Near.phase(), "heterokv hca:12.5%", LONG.0, 1e6, 1e6);
        push(&mut record, "memory", GENERATE, MEMORY_CONTEXT, 1.0, 0.9e9);
        let samples: Samples = [0.4e9].into_iter().collect();
        record.cases.push(Case::new(SUITE, FIRST_TOKEN).timed(&samples));
        record
    }

    fn all(record: &Record) -> Vec<Bar> {
        of_parts(record, |_| true)
    }

    #[test]
    fn a_good_run_holds_every_bar_and_a_run_of_nothing_none() {
        let bars = all(&held());
        assert_eq!(bars.len(), DECODE.len() + PREFILL.len() + SLOPES.len() + 4 + 2 + 2);
        for bar in &bars {
            assert!(bar.is_held(), "{bar:?}");
        }
        for bar in all(&empty()) {
            assert!(!bar.is_held(), "{bar:?} was not measured");
        }
        assert!(tables::missed(&bars).is_empty());
        assert_eq!(tables::missed(&all(&empty())).len(), bars.len());
        // A part that is not wanted has none.
        assert_eq!(of_parts(&empty(), |part| part == Part::Long).len(), 2);
    }

    #[test]
    fn each_bar_falls_by_what_it_is_about_and_nothing_else() {
        // What is changed, how many times as long it takes, and what is missed then.
        let slower: [(&str, f64, &[&str]); 7] = [
            ("speed/decode/heterokv hca:25%@4096", 2.0, &["decode at 4096"]),
            (
                "speed/prefill/heterokv hca:12.5%@7900",
                1.4,
                &[
                    "prefill at 7900, times as fast as llama.cpp f16",
                    "prefill at 7900, times as fast as llama.cpp q8_0",
                ],
            ),
            ("speed/decode/heterokv hca-rescore:6.25%@7900", 3.0, &["slope of decode"]),
            ("speed/prefill/heterokv full, 1 thread@4096", 0.9, &["prefill at 4096, one thread"]),
            ("speed/decode/heterokv full, 1 thread@4096", 0.9, &["decode at 4096, one thread"]),
            ("speed/near tiles/heterokv full@131072", 1.7, &["slope from 8192"]),
            (FIRST_TOKEN, 2.0, &["first token"]),
        ];
        for (name, factor, expected) in slower {
            let mut record = held();
            let case = record.cases.iter_mut().find(|case| case.name == name).expect(name);
            let samples: Samples = case.samples_ns.iter().map(|ns| factor * ns).collect();
            *case = case.clone().timed(&samples);
            let bars = all(&record);
            let missed: Vec<&str> =
                bars.iter().filter(|bar| !bar.is_held()).map(|bar| bar.what.as_str()).collect();
            assert_eq!(missed.len(), expected.len(), "{name}: {missed:?}");
            for (missed, expected) in missed.iter().zip(expected) {
                assert!(missed.starts_with(expected), "{name}: {missed}");
            }
        }
        let figures = [
            ("speed/near tiles/heterokv hca:12.5%@131072", "times_full", 3.4, "a step at 131072"),
            ("speed/memory/heterokv generate@7900", "rss_peak_bytes", 1.1e9, "peak memory"),
        ];
        for (name, figure, value, expected) in figures {
            let mut record = held();
            let case = record.cases.iter_mut().find(|case| case.name == name).expect(name);
            case.set(figure, value);
            let missed = tables::missed(&all(&record));
            assert!(missed.len() == 1 && missed[0].contains(expected), "{name}: {missed:?}");
        }
    }

    #[test]
    fn the_bandwidth_of_the_run_decides_what_two_threads_have_to_give() {
        let mut record = held();
        record
            .cases
            .iter_mut()
            .find(|case| case.name == "machine/read/2 threads")
            .expect("it is there")
            .set("gb_s", 11.0);
        let missed = tables::missed(&all(&record));
        assert_eq!(missed.len(), 2, "{missed:?}");
        assert!(missed.iter().all(|bar| bar.contains("decode at 4096, one thread")));
    }
}
