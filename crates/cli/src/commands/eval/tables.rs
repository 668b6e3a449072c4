//! Tables of what was measured, one for each task and length.

use heterokv_cache::CacheSpec;
use heterokv_eval::{Aggregate, Figure};

use super::{ENGINE, is_of};
use crate::output::{bytes, is_above_promise, percent, table, tokens};

/// A table for each task and length, caches in order.
pub(super) fn show(aggregates: &[Aggregate], specs: &[CacheSpec]) -> String {
    let mut groups: Vec<Vec<&Aggregate>> = Vec::new();
    for aggregate in aggregates {
        let key = |aggregate: &Aggregate| (aggregate.task.clone(), aggregate.context);
        match groups.iter_mut().find(|group| key(group[0]) == key(aggregate)) {
            Some(group) => group.push(aggregate),
            None => groups.push(vec![aggregate]),
        }
    }
    let spec = |aggregate: &Aggregate| specs.iter().find(|spec| is_of(aggregate, spec));
    let has_engines = aggregates.iter().any(|aggregate| aggregate.engine != ENGINE);
    let mut text: Vec<String> = groups
        .iter()
        .map(|group| {
            let rows: Vec<Vec<String>> = group
                .iter()
                .map(|aggregate| row(aggregate, spec(aggregate), has_engines))
                .collect();
            format!("{}\n\n{}", heading(group[0]), table(&header(group[0]), &rows))
        })
        .collect();
    text.extend(footnote(aggregates, specs));
    text.join("\n\n")
}

fn heading(aggregate: &Aggregate) -> String {
    let Aggregate { task, num_samples, num_steps, num_answers, .. } = aggregate;
    let context = tokens(aggregate.context);
    let samples =
        if *num_samples == 1 { "1 sample".to_owned() } else { format!("{num_samples} samples") };
    match num_steps {
        0 => {
            let plural = if *num_answers == 1 { "" } else { "s" };
            format!(
                "{task}, {context}: {samples}, {num_answers} answer{plural} scored from 0 to 100 %"
            )
        }
        steps => format!("{task}, {context}: {samples}, {steps} steps, KL(full || cache) in nats"),
    }
}

fn header(aggregate: &Aggregate) -> Vec<String> {
    let outcome: &[&str] = match aggregate.num_steps {
        0 => &["score", "95 %"],
        _ => &["KL mean", "95 %", "KL p99", "top-1", "top-5", "perplexity", "change"],
    };
    let rest = ["rows read", "device", "host", "ratio", "tok/s"];
    let names = [&["cache"], outcome, &rest].concat();
    names.into_iter().map(str::to_owned).collect()
}

fn row(aggregate: &Aggregate, spec: Option<&CacheSpec>, has_engines: bool) -> Vec<String> {
    let Aggregate { engine, cache, .. } = aggregate;
    let mut cells = vec![if has_engines { format!("{engine} {cache}") } else { cache.clone() }];
    let number = |name: &str, show: &dyn Fn(f64) -> String| {
        or_dash(aggregate.figure(name), |figure| show(figure.value))
    };
    if aggregate.num_steps == 0 {
        cells.push(number("score", &percent));
        cells.push(interval(aggregate.figure("score"), &|x| format!("{:.0}", 100.0 * x)));
    } else {
        cells.push(number("kl_mean", &nats));
        cells.push(interval(aggregate.figure("kl_mean"), &nats));
        cells.push(number("kl_p99", &nats));
        cells.push(number("top1", &percent));
        cells.push(number("top5", &percent));
        cells.push(number("ppl", &|x| format!("{x:.3}")));
        cells.push(number("ppl_change", &|x| format!("{:+.2} %", 100.0 * x)));
    }
    let mark = if is_above(aggregate, spec) { "*" } else { "" };
    cells.push(or_dash(aggregate.rows_read, percent));
    cells.push(or_dash(aggregate.device_bytes, |n| bytes(n as u64)));
    cells.push(or_dash(aggregate.host_bytes, |n| bytes(n as u64)));
    cells.push(or_dash(aggregate.ratio, |ratio| format!("{}{mark}", percent(ratio))));
    cells.push(or_dash(aggregate.step_seconds, |seconds| format!("{:.1}", 1.0 / seconds)));
    cells
}

/// What is not there is a dash.
fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or("-".to_owned(), show)
}

fn is_above(aggregate: &Aggregate, spec: Option<&CacheSpec>) -> bool {
    aggregate.ratio.zip(spec).is_some_and(|(ratio, spec)| is_above_promise(ratio, spec))
}

fn nats(value: f64) -> String {
    format!("{value:.5}")
}

fn interval(figure: Option<&Figure>, show: &dyn Fn(f64) -> String) -> String {
    match figure.and_then(|figure| figure.low.zip(figure.high)) {
        Some((low, high)) => format!("{}-{}", show(low), show(high)),
        None => "-".to_owned(),
    }
}

/// What the mark at a ratio stands for; none where there is none.
fn footnote(aggregates: &[Aggregate], specs: &[CacheSpec]) -> Option<String> {
    let mut promises: Vec<String> = Vec::new();
    for spec in specs {
        let Some(promise) = spec.promise() else { continue };
        let of_spec = |aggregate: &&Aggregate| is_of(aggregate, spec);
        if aggregates.iter().filter(of_spec).any(|aggregate| is_above(aggregate, Some(spec))) {
            let from = tokens(promise.min_tokens);
            promises.push(format!("{spec} keeps {} % from {from} on", promise.percent));
        }
    }
    (!promises.is_empty()).then(|| format!("* {}", promises.join(", ")))
}
