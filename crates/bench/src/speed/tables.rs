//! The tables of a run.

use super::bars::{floor_ns, gflop_s, read_gb_s, record_threads};
use super::contexts::ONE_THREAD;
use super::long::Tiling;
use super::program::{FIRST_TOKEN, GENERATE};
use super::{LLAMA_F16, SUITE};
use crate::bars::Bar;
use crate::record::{Case, Record};
use crate::sheet::{Cell, Sheet};

/// Prompts and steps beside llama.cpp.
pub(super) fn beside(record: &Record) -> Vec<Sheet> {
    [decode(record), prefill(record)].into_iter().filter(|sheet| sheet.num_rows() > 0).collect()
}

/// What stands above them.
#[cfg(test)]
pub(super) fn titles(record: &Record) -> [String; 2] {
    [decode(record), prefill(record)].map(|sheet| sheet.title)
}

/// The cases of a phase, in the order measured.
fn of_phase<'a>(record: &'a Record, phase: &str) -> Vec<&'a Case> {
    let begin = format!("{SUITE}/{phase}/");
    record.cases.iter().filter(|case| case.name.starts_with(&begin)).collect()
}

fn head(case: &Case) -> Vec<Cell> {
    vec![
        Cell::Number(case.context.map_or(f64::NAN, |context| context as f64), 0),
        Cell::text(case.cache.clone().unwrap_or_default()),
    ]
}

fn median_ms(case: &Case) -> f64 {
    case.summary.map_or(f64::NAN, |summary| 1e-6 * summary.median_ns)
}

/// A number, or nothing where there is none.
fn number(value: f64, digits: usize) -> Cell {
    if value.is_finite() { Cell::Number(value, digits) } else { Cell::text("") }
}

/// Median, least and most of the ratios of rounds.
fn times(case: &Case) -> Cell {
    let [median, low, high] =
        ["", "_low", "_high"].map(|end| case.figure(&format!("times_f16{end}")));
    match median.is_finite() {
        true => Cell::text(format!("{median:.2} [{low:.2}, {high:.2}]")),
        false => Cell::text(""),
    }
}

fn decode(record: &Record) -> Sheet {
    let mut sheet = Sheet::new(
        "Decode, ms a token, and what its bytes take at the read bandwidth of the run",
        &[
            "context",
            "cache",
            "ms",
            "MAD %",
            "× llama.cpp f16",
            "weights and device MB",
            "host MB",
            "rows read %",
            "floor ms",
            "over floor",
            "× f16 at the floor",
        ],
    );
    for case in of_phase(record, "decode") {
        let (ms, floor) = (median_ms(case), 1e-6 * floor_ns(record, case));
        let f16 = case
            .context
            .and_then(|context| record.case(&super::case_name("decode", LLAMA_F16, context)));
        let mut row = head(case);
        row.push(number(ms, 2));
        row.push(number(case.summary.map_or(f64::NAN, |s| 100.0 * s.mad_ns / s.median_ns), 1));
        row.push(times(case));
        row.push(number(1e-6 * case.figure("device_bytes_read"), 1));
        row.push(number(1e-6 * case.figure("host_bytes_read"), 1));
        row.push(number(100.0 * case.figure("rows_read"), 1));
        row.push(number(floor, 2));
        row.push(number(ms / floor, 2));
        row.push(number(f16.map_or(f64::NAN, median_ms) / floor, 2));
        sheet.push(row);
    }
    sheet
}

fn prefill(record: &Record) -> Sheet {
    let mut sheet = Sheet::new(
        "Prefill, tokens a second, beside what its operations would take as multiply-adds of f32 in registers",
        &[
            "context",
            "cache",
            "tok/s",
            "MAD %",
            "× llama.cpp f16",
            "G operations",
            "f32 s",
            "× f32",
            "peak MiB",
        ],
    );
    for case in of_phase(record, "prefill") {
        let mut row = head(case);
        row.push(number(case.figure("tokens_per_second"), 0));
        row.push(number(case.summary.map_or(f64::NAN, |s| 100.0 * s.mad_ns / s.median_ns), 1));
        row.push(times(case));
        let operations = case.figure("operations");
        let is_on_one = case.cache.as_ref().is_some_and(|cache| cache.ends_with(ONE_THREAD));
        let num_threads = if is_on_one { 1 } else { record_threads(record) };
        let f32_ns = operations / gflop_s(record, num_threads);
        row.push(number(1e-9 * operations, 0));
        row.push(number(1e-9 * f32_ns, 2));
        row.push(number(1e6 * median_ms(case) / f32_ns, 2));
        row.push(number(case.figure("rss_peak_bytes") / f64::from(1 << 20), 0));
        sheet.push(row);
    }
    sheet
}

/// Steps over a long context.
pub(super) fn long(record: &Record) -> Option<Sheet> {
    let mut sheet = Sheet::new(
        "Decode steps over repeated prompts",
        &[
            "tiles",
            "tokens",
            "cache",
            "ms",
            "× full",
            "rows read %",
            "GB read",
            "floor ms",
            "over floor",
            "tokens as full %",
        ],
    );
    for tiling in [Tiling::Near, Tiling::Plain] {
        for case in of_phase(record, tiling.phase()) {
            let (ms, floor) = (median_ms(case), 1e-6 * floor_ns(record, case));
            let bytes = case.figure("device_bytes_read") + case.figure("host_bytes_read");
            let mut row = vec![Cell::text(tiling.phase())];
            row.extend(head(case));
            row.push(number(ms, 1));
            row.push(number(case.figure("times_full"), 2));
            row.push(number(100.0 * case.figure("rows_read"), 1));
            row.push(number(1e-9 * bytes, 3));
            row.push(number(floor, 1));
            row.push(number(ms / floor, 2));
            row.push(number(100.0 * case.figure("tokens_as_full"), 0));
            sheet.push(row);
        }
    }
    (sheet.num_rows() > 0).then_some(sheet)
}

/// What the machine reads, what the program takes of it, and when it begins to answer.
pub(super) fn machine(record: &Record) -> Sheet {
    let mut sheet = Sheet::new("The machine and the program", &["what", "value"]);
    let mut push = |what: String, value: f64, digits: usize| {
        if value.is_finite() {
            sheet.push(vec![Cell::text(what), Cell::Number(value, digits)]);
        }
    };
    let most = record_threads(record);
    let counts = if most == 1 { vec![1] } else { vec![1, most] };
    for &threads in &counts {
        push(format!("read bandwidth, threads: {threads}, GB/s"), read_gb_s(record, threads), 1);
    }
    for &threads in &counts {
        let what = format!("multiply-adds of f32, threads: {threads}, G operations/s");
        push(what, gflop_s(record, threads), 0);
    }
    for case in of_phase(record, "memory") {
        let context = case.context.unwrap_or(0);
        push(
            format!("{GENERATE} at {context} tokens, peak MiB"),
            case.figure("rss_peak_bytes") / f64::from(1 << 20),
            0,
        );
    }
    if let Some(case) = record.case(FIRST_TOKEN) {
        push("first token of a short prompt, run again, s".to_owned(), 1e-3 * median_ms(case), 2);
    }
    sheet
}

/// The bars that are not held, a line each.
pub(super) fn missed(bars: &[Bar]) -> Vec<String> {
    let line = |bar: &Bar| match bar.reached.is_nan() {
        true => format!("{}, {}: not measured", bar.what, bar.by),
        false => format!("{}, {}: {:.3}", bar.what, bar.by, bar.reached),
    };
    bars.iter().filter(|bar| !bar.is_held()).map(line).collect()
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;
    use crate::samples::Samples;
    use crate::speed::case_name;

    #[test]
    fn a_step_stands_beside_its_floor_and_the_peer() {
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 2));
        assert!(beside(&record).is_empty() && long(&record).is_none());
        record.cases.push(Case::new("machine", "machine/read/2 threads").with("gb_s", 10.0));
        let case = Case::new("machine", "machine/multiply-adds/2 threads");
        record.cases.push(case.with("gflop_s", 50.0));
        let mut push = |phase: &str, name: &str, ns: f64, bytes: f64| {
            let samples: Samples = [ns].into_iter().collect();
            let case = Case::new(SUITE, case_name(phase, name, 4096)).timed(&samples);
            let case = case.with("device_bytes_read", bytes).with("host_bytes_read", 0.0);
            let case = case.with("operations", 1e11);
            let case =
                case.with("times_f16", 2.0).with("times_f16_low", 1.5).with("times_f16_high", 2.5);
            record.cases.push(Case { cache: Some(name.to_owned()), context: Some(4096), ..case });
        };
        push("decode", "heterokv full", 8e6, 4e7);
        push("decode", LLAMA_F16, 16e6, f64::NAN);
        push("prefill", "heterokv full", 4e9, f64::NAN);
        push(Tiling::Plain.phase(), "heterokv full", 8e6, 4e7);
        let [decode, prefill] = &beside(&record)[..] else { panic!("there are both") };
        let shown = decode.markdown();
        // 40 MB at 10 GB/s are 4 ms: half of ours, a quarter of theirs.
        assert!(shown.contains("| 2.00 [1.50, 2.50] |"), "{shown}");
        assert!(shown.contains(" 4.00 |       2.00 |") && shown.contains(" 4.00 |\n"), "{shown}");
        // 100 G operations at 50 a second are 2 s, and it took 4.
        assert!(prefill.markdown().contains(" 100 |  2.00 |  2.00 |"), "{}", prefill.markdown());
        assert!(long(&record).expect("it is there").markdown().contains("| plain tiles |"));
        assert!(machine(&record).markdown().contains("read bandwidth, threads: 2"));
    }
}
