//! A record as tables, suite by suite.

use crate::record::{Case, Record};
use crate::sheet::{Cell, Sheet};
use crate::{attention, end_to_end, instructions, machine, model_step, peers};

/// The parts of the report, in its order.
pub(crate) const SUITES: [&str; 6] = [
    machine::SUITE,
    attention::SUITE,
    model_step::SUITE,
    end_to_end::SUITE,
    peers::SUITE,
    instructions::SUITE,
];

/// The tables of one suite; none where nothing of it was measured.
pub(crate) fn of_suite(record: &Record, suite: &str) -> Vec<Sheet> {
    let cases: Vec<&Case> = record.cases.iter().filter(|case| case.suite == suite).collect();
    let has = |figure: &str| -> Vec<&Case> {
        cases.iter().copied().filter(|case| case.figures.contains_key(figure)).collect()
    };
    let sheets = match suite {
        machine::SUITE => vec![machine_sheet(&cases)],
        attention::SUITE => {
            let timed = has("device_bytes_read");
            vec![
                time_sheet("One decode step of one layer", &timed),
                tiers_sheet("One layer: what a step reads, by tier", &timed),
                slopes_sheet(&has("slope_ns_per_token")),
                bytes_sheet("One layer: bytes", &timed),
            ]
        }
        model_step::SUITE => vec![
            time_sheet("One decode step of the whole model", &cases),
            tiers_sheet(
                "Whole model: what a step reads, by tier (weights with the device)",
                &cases,
            ),
            bytes_sheet("Whole model: bytes", &cases),
        ],
        end_to_end::SUITE => vec![
            phases_sheet(&cases),
            resident_sheet(&has("rss_peak_bytes")),
            bytes_sheet("End to end: bytes behind the prompt", &has("device_bytes_counted")),
        ],
        peers::SUITE => vec![peers_sheet(&cases)],
        _ => vec![instructions_sheet(&cases)],
    };
    sheets.into_iter().filter(|sheet| sheet.num_rows() > 0).collect()
}

/// What was asked for and not measured.
pub(crate) fn left_out(record: &Record) -> Sheet {
    let mut sheet = Sheet::new("Left out", &["case", "why"]);
    for left_out in &record.left_out {
        sheet.push(vec![Cell::text(&left_out.name), Cell::text(&left_out.reason)]);
    }
    sheet
}

/// The case's name without its suite.
fn short_name(case: &Case) -> Cell {
    let short = case.name.strip_prefix(&format!("{}/", case.suite));
    Cell::text(short.unwrap_or(&case.name))
}

/// A figure divided by `unit`; an empty field where there is none.
fn figure(case: &Case, name: &str, unit: f64, digits: usize) -> Cell {
    case.figures
        .get(name)
        .map_or_else(|| Cell::text(""), |value| Cell::Number(value / unit, digits))
}

/// Median, deviation, minimum and number of samples, nanoseconds divided by `unit`.
fn times(case: &Case, unit: f64, digits: usize) -> [Cell; 4] {
    match case.summary {
        None => std::array::from_fn(|_| Cell::text("")),
        Some(summary) => [
            Cell::Number(summary.median_ns / unit, digits),
            Cell::Number(summary.mad_ns / unit, digits),
            Cell::Number(summary.min_ns / unit, digits),
            Cell::Number(summary.num_samples as f64, 0),
        ],
    }
}

fn ratio(case: &Case) -> [Cell; 2] {
    let interval = match case.figures.contains_key("ratio_to_full") {
        true => format!(
            "{:.3}–{:.3}",
            case.figure("ratio_to_full_low"),
            case.figure("ratio_to_full_high")
        ),
        false => String::new(),
    };
    [figure(case, "ratio_to_full", 1.0, 3), Cell::text(interval)]
}

fn notes(case: &Case) -> Cell {
    Cell::text(case.notes.join("; "))
}

fn machine_sheet(cases: &[&Case]) -> Sheet {
    let columns = ["case", "GB/s", "ms", "MAD ms", "min ms", "samples", "notes"];
    let mut sheet = Sheet::new("The machine", &columns);
    for case in cases {
        let mut row = vec![short_name(case), figure(case, "gb_s", 1.0, 2)];
        row.extend(times(case, 1e6, 2));
        row.push(notes(case));
        sheet.push(row);
    }
    sheet
}

fn time_sheet(title: &str, cases: &[&Case]) -> Sheet {
    let columns = [
        "cache@context",
        "µs",
        "MAD µs",
        "min µs",
        "samples",
        "× full",
        "95 %",
        "cosine to full",
        "error",
        "notes",
    ];
    let mut sheet = Sheet::new(title, &columns);
    for case in cases {
        let mut row = vec![short_name(case)];
        row.extend(times(case, 1e3, 1));
        row.extend(ratio(case));
        row.push(figure(case, "cosine_to_full", 1.0, 4));
        row.push(figure(case, "relative_error_to_full", 1.0, 4));
        row.push(notes(case));
        sheet.push(row);
    }
    sheet
}

fn tiers_sheet(title: &str, cases: &[&Case]) -> Sheet {
    let columns = [
        "cache@context",
        "device MiB",
        "device attainable GB/s",
        "device achieved GB/s",
        "host MiB",
        "host attainable GB/s",
        "host achieved GB/s",
        "attainable µs",
        "of attainable",
        "overlap",
    ];
    let mut sheet = Sheet::new(title, &columns);
    const MIB: f64 = (1 << 20) as f64;
    for case in cases {
        let median = case.summary.map_or(f64::NAN, |summary| summary.median_ns);
        sheet.push(vec![
            short_name(case),
            figure(case, "device_bytes_read", MIB, 3),
            figure(case, "device_attainable_gb_s", 1.0, 1),
            figure(case, "device_achieved_gb_s", 1.0, 2),
            figure(case, "host_bytes_read", MIB, 3),
            figure(case, "host_attainable_gb_s", 1.0, 1),
            figure(case, "host_achieved_gb_s", 1.0, 2),
            figure(case, "attainable_ns", 1e3, 1),
            Cell::text(format!("{:.0} %", 100.0 * case.figure("attainable_ns") / median)),
            figure(case, "overlap_efficiency", 1.0, 2),
        ]);
    }
    sheet
}

/// Prefill and decoding of one cache and context in one row.
fn peers_sheet(cases: &[&Case]) -> Sheet {
    let columns = [
        "cache",
        "tokens",
        "prefill tok/s",
        "prefill × llama.cpp f16 [least, most]",
        "decode tok/s",
        "decode × llama.cpp f16 [least, most]",
        "MAD %",
        "peak MiB",
        "samples",
    ];
    let mut sheet = Sheet::new("Speed beside other programs", &columns);
    let decodes = cases.iter().filter(|case| case.name.contains("/decode/"));
    // Context by context, the caches beside each other.
    let mut pairs: Vec<(&Case, &Case)> = decodes
        .filter_map(|decode| {
            let is_its = |case: &&&Case| {
                case.name.contains("/prefill/")
                    && (&case.cache, case.context) == (&decode.cache, decode.context)
            };
            Some((*cases.iter().find(is_its)?, *decode))
        })
        .collect();
    pairs.sort_by_key(|(prefill, _)| prefill.context);
    for (prefill, decode) in pairs {
        let faster = |case: &Case| match case.figures.get("ratio_to_yardstick") {
            None => Cell::text(""),
            Some(ratio) => {
                let [low, high] = ["high", "low"]
                    .map(|end| 1.0 / case.figure(&format!("ratio_to_yardstick_{end}")));
                Cell::text(format!("{:.2} [{low:.2}, {high:.2}]", 1.0 / ratio))
            }
        };
        let (spread, num_samples) = decode.summary.map_or((f64::NAN, 0), |summary| {
            (100.0 * summary.mad_ns / summary.median_ns, summary.num_samples)
        });
        sheet.push(vec![
            Cell::text(decode.cache.clone().unwrap_or_default()),
            Cell::Number(decode.context.unwrap_or(0) as f64, 0),
            figure(prefill, "tokens_per_second", 1.0, 0),
            faster(prefill),
            figure(decode, "tokens_per_second", 1.0, 1),
            faster(decode),
            Cell::Number(spread, 0),
            figure(decode, "rss_peak_bytes", (1 << 20) as f64, 0),
            Cell::Number(num_samples as f64, 0),
        ]);
    }
    sheet
}

fn slopes_sheet(cases: &[&Case]) -> Sheet {
    let columns = [
        "cache",
        "ns/token",
        "± ns/token",
        "of least samples",
        "ns/KiB",
        "offset µs",
        "R²",
        "notes",
    ];
    let mut sheet = Sheet::new("One layer: step time over what is read", &columns);
    for case in cases {
        sheet.push(vec![
            short_name(case),
            figure(case, "slope_ns_per_token", 1.0, 3),
            figure(case, "slope_error_ns_per_token", 1.0, 3),
            figure(case, "slope_of_least_ns_per_token", 1.0, 3),
            figure(case, "slope_ns_per_kib", 1.0, 2),
            figure(case, "offset_ns", 1e3, 1),
            figure(case, "r_squared", 1.0, 4),
            notes(case),
        ]);
    }
    sheet
}

fn bytes_sheet(title: &str, cases: &[&Case]) -> Sheet {
    let columns = [
        "cache@context",
        "device MiB predicted",
        "device counted",
        "host MiB predicted",
        "host counted",
        "% of full f16 on the device",
    ];
    let mut sheet = Sheet::new(title, &columns);
    const MIB: f64 = (1 << 20) as f64;
    for case in cases {
        let share = 100.0 * case.figure("device_bytes_counted") / case.figure("full_bytes");
        sheet.push(vec![
            short_name(case),
            figure(case, "device_bytes_predicted", MIB, 3),
            figure(case, "device_bytes_counted", MIB, 3),
            figure(case, "host_bytes_predicted", MIB, 3),
            figure(case, "host_bytes_counted", MIB, 3),
            Cell::Number(share, 2),
        ]);
    }
    sheet
}

fn phases_sheet(cases: &[&Case]) -> Sheet {
    let columns = [
        "phase/cache@context",
        "tokens/s",
        "ms",
        "MAD ms",
        "min ms",
        "samples",
        "× full",
        "95 %",
        "tokens as full",
        "notes",
    ];
    let mut sheet = Sheet::new("Prefill, first token and decoding", &columns);
    for case in cases {
        let mut row = vec![short_name(case), figure(case, "tokens_per_second", 1.0, 1)];
        row.extend(times(case, 1e6, 2));
        row.extend(ratio(case));
        row.push(figure(case, "tokens_as_full", 1.0, 0));
        row.push(notes(case));
        sheet.push(row);
    }
    sheet
}

fn resident_sheet(cases: &[&Case]) -> Sheet {
    let columns = ["phase/cache@context", "before MiB", "peak MiB", "steady MiB"];
    let mut sheet = Sheet::new("Resident memory as the system sees it", &columns);
    const MIB: f64 = (1 << 20) as f64;
    for case in cases {
        sheet.push(vec![
            short_name(case),
            figure(case, "rss_loaded_bytes", MIB, 1),
            figure(case, "rss_peak_bytes", MIB, 1),
            figure(case, "rss_steady_bytes", MIB, 1),
        ]);
    }
    sheet
}

fn instructions_sheet(cases: &[&Case]) -> Sheet {
    let mut sheet = Sheet::new("Instructions", &["kernel", "instructions", "notes"]);
    for case in cases {
        let count = case.instructions.unwrap_or(0) as f64;
        sheet.push(vec![short_name(case), Cell::Number(count, 0), notes(case)]);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;
    use crate::samples::Samples;

    #[test]
    fn every_suite_has_a_table_and_what_is_missing_an_empty_field() {
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 1));
        let samples: Samples = [2000.0, 3000.0].into_iter().collect();
        for suite in SUITES {
            let case = Case::new(suite, format!("{suite}/full@512")).timed(&samples);
            let case = case.with("device_bytes_read", 1048576.0).with("slope_ns_per_token", 1.0);
            record.cases.push(case.with("rss_peak_bytes", 1.0).with("device_bytes_counted", 1.0));
        }
        for phase in ["prefill", "decode"] {
            let case = Case::new(peers::SUITE, format!("peers/{phase}/full@512")).timed(&samples);
            record.cases.push(Case { cache: Some("full@512".to_owned()), ..case });
        }
        for suite in SUITES {
            let shown: String = of_suite(&record, suite).iter().map(Sheet::markdown).collect();
            assert!(shown.contains("full@512"), "{suite}: {shown}");
        }
        let attention: String =
            of_suite(&record, attention::SUITE).iter().map(Sheet::markdown).collect();
        assert!(attention.contains("| 2.5") && attention.contains("1.000"), "{attention}");
        assert!(of_suite(&Record::new(&Environment::detect(Level::SCALAR, 1)), "model").is_empty());
    }
}
