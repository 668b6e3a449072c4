//! The slope of step time over the bytes that a step reads, from the steps of the ladder and of `full`.

use crate::caches::FULL;
use crate::record::{Case, Record, Summary};
use crate::slope::{Line, falls, fit};

use super::{LADDER_BITS, SUITE, ladder_name};

/// The longest contexts, through which the line goes: in shorter ones what every step costs hides the slope, and
/// caches hold what is read.
const NUM_CONTEXTS: usize = 4;

/// Adds a case for the slope of `full` and of every step of the ladder that was measured at two contexts at least.
pub(super) fn derive(record: &mut Record) {
    let ladder = LADDER_BITS.map(ladder_name);
    let names = std::iter::once(FULL).chain(ladder.iter().map(String::as_str));
    let mut above: Option<Line> = None;
    let mut has_any = false;
    for name in names {
        let Some(Lines { tokens, least, bytes, contexts }) = lines(record, name) else { continue };
        let mut case = Case::new(SUITE, format!("{SUITE}/slope/{name}"))
            .with("slope_ns_per_token", tokens.slope)
            .with("slope_error_ns_per_token", tokens.slope_error)
            .with("slope_of_least_ns_per_token", least.slope)
            .with("slope_ns_per_kib", 1024.0 * bytes.slope)
            .with("offset_ns", tokens.offset)
            .with("r_squared", tokens.r_squared)
            .noting(format!("contexts {contexts:?}"));
        if let Some(more) = &above {
            let verdict = if falls(&tokens, more) { FALLS } else { RISES };
            case.notes.push(verdict.to_owned());
        }
        // `full` scores no codes and reads no rows of the host: no step of the ladder stands below it.
        has_any = true;
        above = (name != FULL).then_some(tokens);
        record.cases.push(case);
    }
    if !has_any && record.cases.iter().any(|case| case.suite == SUITE) {
        record.leave_out(format!("{SUITE}/slope"), "needs two contexts of `full` or of the ladder");
    }
}

/// What is said where fewer bits cost less time.
const FALLS: &str = "the time per token falls with the bits";

/// What is said where they do not.
const RISES: &str = "DOES NOT FALL: fewer bits cost no less time per token, so that it is not reading them that binds";

/// The lines through the steps of one cache.
struct Lines {
    /// Median time over tokens.
    tokens: Line,
    /// The least sample over tokens: what a busy neighbour disturbs least.
    least: Line,
    /// Median time over bytes read.
    bytes: Line,
    /// The contexts that they go through.
    contexts: Vec<usize>,
}

/// None where fewer than two contexts were measured.
fn lines(record: &Record, name: &str) -> Option<Lines> {
    let prefix = format!("{SUITE}/{name}@");
    let mut cases: Vec<&Case> =
        record.cases.iter().filter(|case| case.name.starts_with(&prefix)).collect();
    cases.sort_by_key(|case| case.context);
    let cases = &cases[cases.len().saturating_sub(NUM_CONTEXTS)..];
    let line = |x: &dyn Fn(&Case) -> f64, y: &dyn Fn(Summary) -> f64| -> Option<Line> {
        let points: Option<Vec<_>> =
            cases.iter().map(|case| Some((x(case), y(case.summary?)))).collect();
        fit(&points?)
    };
    let held = |case: &Case| case.context.unwrap_or(0) as f64;
    let read = |case: &Case| case.figure("device_bytes_read") + case.figure("host_bytes_read");
    Some(Lines {
        tokens: line(&held, &|summary| summary.median_ns)?,
        least: line(&held, &|summary| summary.min_ns)?,
        bytes: line(&read, &|summary| summary.median_ns)?,
        contexts: cases.iter().filter_map(|case| case.context).collect(),
    })
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;
    use crate::samples::Samples;

    fn notes_of(ns_per_token: [f64; 2]) -> Vec<String> {
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 1));
        for (bits, slope) in ["8", "4"].into_iter().zip(ns_per_token) {
            for context in [8192usize, 32_768, 131_072] {
                let samples: Samples = [1000.0 + slope * context as f64].into_iter().collect();
                let name = format!("{SUITE}/{}@{context}", ladder_name(bits));
                let case = Case::new(SUITE, name).timed(&samples);
                let case = case.with("device_bytes_read", 100.0 * context as f64);
                let case = case.with("host_bytes_read", 256.0);
                record.cases.push(Case { context: Some(context), ..case });
            }
        }
        derive(&mut record);
        let slope = record.case("attention/slope/bits/alloc/4").expect("three contexts");
        assert!((slope.figure("slope_ns_per_token") - ns_per_token[1]).abs() < 1e-9);
        assert!((slope.figure("slope_ns_per_kib") - 10.24 * ns_per_token[1]).abs() < 1e-9);
        slope.notes.clone()
    }

    #[test]
    fn a_codec_whose_time_does_not_fall_with_its_bits_is_told() {
        assert!(notes_of([2.0, 1.0]).contains(&FALLS.to_owned()));
        assert!(notes_of([1.0, 1.0]).contains(&RISES.to_owned()));
        assert!(notes_of([1.0, 3.0]).contains(&RISES.to_owned()));
    }
}
