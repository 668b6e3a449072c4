//! What all samples of a cache come to: the figures that tables, reports and the gate share.

use std::collections::HashSet;

use serde::Serialize;

use crate::bootstrap::{Interval, STEP_BLOCK, mean_interval, wilson_interval};
use crate::divergence::{Steps, median};
use crate::hash::hex_digest;
use crate::{Outcome, Row, Run};

/// A named number, with its interval where it is a mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its name: a field of [`Summary`](crate::Summary), or `score`.
    pub name: &'static str,
    /// The number.
    pub value: f64,
    /// Lower end of the 95 % interval; none where it is no mean, or of too little.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

/// What all samples of one cache come to, on one task and context length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Aggregate {
    /// What computed.
    pub engine: String,
    /// The model as people call it.
    pub model: String,
    /// What tells it from every other model.
    pub fingerprint: String,
    /// Name of the task.
    pub task: String,
    /// Tokens of context that were asked for.
    pub context: usize,
    /// The cache as it was named.
    pub cache: String,
    /// [`Row::cache_digest`].
    pub cache_digest: String,
    /// Commit of the code.
    pub commit: String,
    /// What tells the program from every other build of it.
    pub build: String,
    /// See [`Run::conditions`].
    pub conditions: String,
    /// Digest of which samples these are: of [`Row::sample_digest`] of all.
    pub samples: String,
    /// Rows, each one sample.
    pub num_samples: usize,
    /// Steps of all samples whose distributions were compared.
    pub num_steps: usize,
    /// Answers of all samples.
    pub num_answers: usize,
    /// The fields of [`Summary`](crate::Summary) over the steps of all samples, in its order and without the count,
    /// where there are steps; `score`, the mean over all answers, where there are answers.
    pub figures: Vec<Figure>,
    /// Device bytes over those of a full f16 cache: the largest of all samples and steps; none where nothing was
    /// counted.
    pub ratio: Option<f64>,
    /// Device bytes: the largest; none where nothing was counted.
    pub device_bytes: Option<usize>,
    /// Host bytes: the largest; none where nothing was counted.
    pub host_bytes: Option<usize>,
    /// Coded rows fetched per KV head over tokens held: the mean of the samples that count them.
    pub rows_read: Option<f64>,
    /// Seconds of a step: the median of the samples' medians; none where there was no step.
    pub step_seconds: Option<f64>,
    /// Tokens of the prompts over the seconds that they took, per second, of prompts that no other cache took at the
    /// same time; none where there is no such prompt.
    pub prefill_rate: Option<f64>,
}

impl Aggregate {
    /// The figure of that name.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

/// One aggregate for each engine, model, task, context length and cache, in the order in which rows first show them.
///
/// Rows of other code, other conditions or other numbers of steps are apart, and the same measurement twice counts
/// once. Steps of samples are put behind each other, and answers too, so that each counts the same. Intervals are of
/// 95 %: of steps by bootstrap in blocks of 16 (Künsch 1989), of answers that are right or wrong, one a sample, Wilson's
/// (1927), of other answers by bootstrap of samples. Empty where there is no row.
#[must_use]
pub fn aggregate(rows: &[Row]) -> Vec<Aggregate> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in distinct(rows) {
        match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.iter().map(|group| of_group(group)).collect()
}

/// The rows without those that are the same measurement as one before, from files that overlap.
pub(crate) fn distinct(rows: &[Row]) -> Vec<&Row> {
    let mut known = HashSet::new();
    let mut distinct = Vec::new();
    for row in rows {
        let Row { task, sample, context, cache, inputs, run, .. } = row;
        if known.insert((&run.engine, task, sample, context, cache, inputs)) {
            distinct.push(row);
        }
    }
    distinct
}

/// Rows that are alike in this are samples of the same: another build, other conditions, another cache of the same name
/// or as many steps more are something else.
fn key(row: &Row) -> impl PartialEq + '_ {
    let num_steps = match &row.outcome {
        Outcome::Divergence { steps, .. } => steps.len(),
        Outcome::Answers { .. } => 0,
    };
    let Run { engine, version, build, commit, conditions, fingerprint, .. } = &row.run;
    let of_run = (engine, version, build, commit, conditions, fingerprint);
    (of_run, &row.task, row.context, num_steps, (&row.cache, &row.cache_digest))
}

/// `rows` has at least one.
fn of_group(rows: &[&Row]) -> Aggregate {
    let mut steps: Vec<&Steps> = Vec::new();
    let mut scores: Vec<Vec<f64>> = Vec::new();
    for row in rows {
        match &row.outcome {
            Outcome::Divergence { steps: of_row, .. } => steps.push(of_row),
            Outcome::Answers { answers, .. } => {
                scores.push(answers.iter().map(|answer| answer.score).collect());
            }
        }
    }
    let mut figures = of_steps(&steps);
    let num_answers = scores.iter().map(Vec::len).sum();
    if num_answers > 0 {
        let sum: f64 = scores.iter().flatten().sum();
        figures.push(score(sum / num_answers as f64, &scores));
    }
    let memory = || rows.iter().flat_map(|row| &row.memory);
    let counted: Vec<f64> = rows.iter().filter_map(|row| row.rows_read).collect();
    let step_seconds: Vec<f64> =
        rows.iter().filter(|row| row.time.num_steps > 0).map(|row| row.time.step_seconds).collect();
    let is_timed = |row: &&&Row| row.time.prefill_seconds > 0.0 && row.time.prefill_caches == 1;
    let timed = || rows.iter().filter(is_timed);
    let prefill_seconds: f64 = timed().map(|row| row.time.prefill_seconds).sum();
    let prefill_tokens: usize = timed().map(|row| row.num_tokens).sum();
    let first = rows[0];
    Aggregate {
        engine: first.run.engine.clone(),
        model: first.run.model.clone(),
        fingerprint: first.run.fingerprint.clone(),
        task: first.task.clone(),
        context: first.context,
        cache: first.cache.clone(),
        cache_digest: first.cache_digest.clone(),
        commit: first.run.commit.clone(),
        build: first.run.build.clone(),
        conditions: first.run.conditions.clone(),
        samples: samples_digest(rows),
        num_samples: rows.len(),
        num_steps: steps.iter().map(|steps| steps.len()).sum(),
        num_answers,
        figures,
        ratio: memory()
            .filter(|memory| memory.full_bytes > 0)
            .map(|memory| memory.ratio())
            .reduce(f64::max),
        device_bytes: memory().map(|memory| memory.device.total()).max(),
        host_bytes: memory().map(|memory| memory.host_bytes).max(),
        rows_read: (!counted.is_empty())
            .then(|| counted.iter().sum::<f64>() / counted.len() as f64),
        step_seconds: (!step_seconds.is_empty()).then(|| median(&step_seconds)),
        prefill_rate: (prefill_seconds > 0.0).then(|| prefill_tokens as f64 / prefill_seconds),
    }
}

/// See [`Aggregate::samples`].
fn samples_digest(rows: &[&Row]) -> String {
    let mut digests: Vec<&[u8]> = rows.iter().map(|row| row.sample_digest.as_bytes()).collect();
    digests.sort_unstable();
    hex_digest(digests)
}

/// The mean of all answers. Its interval is Wilson's where each sample is one answer, right or wrong; else that of
/// samples drawn as wholes, since answers over one context have much in common.
fn score(value: f64, samples: &[Vec<f64>]) -> Figure {
    let is_binary =
        samples.iter().all(|sample| matches!(sample[..], [score] if score == 0.0 || score == 1.0));
    let interval = if is_binary {
        Some(wilson_interval(value, samples.len()))
    } else {
        let mean_of =
            |sample: &Vec<f64>| vec![sample.iter().sum::<f64>() / sample.len().max(1) as f64];
        mean_interval(&samples.iter().map(mean_of).collect::<Vec<_>>(), 1)
    };
    let (low, high) = interval.map(|Interval { low, high }| (low, high)).unzip();
    Figure { name: "score", value, low, high }
}

/// The figures of steps, one list a sample; none of no step.
fn of_steps(samples: &[&Steps]) -> Vec<Figure> {
    let mut all = Steps::default();
    for steps in samples {
        all.extend(steps);
    }
    let Some(summary) = all.summary() else { return Vec::new() };
    let of_each = |values: fn(&Steps) -> Vec<f64>| -> Vec<Vec<f64>> {
        samples.iter().map(|steps| values(steps)).collect()
    };
    let kl = of_each(|steps| steps.kl.clone());
    let top1 = of_each(|steps| steps.top1.iter().map(|&agrees| f64::from(agrees)).collect());
    let top5 = of_each(|steps| steps.top5.clone());
    let moved = of_each(|steps| {
        let pairs = steps.nll.iter().zip(&steps.full_nll);
        pairs.map(|(nll, full)| (-nll).exp() - (-full).exp()).collect()
    });
    vec![
        mean("kl_mean", summary.kl_mean, &kl, STEP_BLOCK),
        plain("kl_median", summary.kl_median),
        plain("kl_p99", summary.kl_p99),
        plain("kl_max", summary.kl_max),
        mean("top1", summary.top1, &top1, STEP_BLOCK),
        mean("top5", summary.top5, &top5, STEP_BLOCK),
        plain("ppl", summary.ppl),
        plain("full_ppl", summary.full_ppl),
        plain("ppl_change", summary.ppl_change),
        mean("probability_change", summary.probability_change, &moved, STEP_BLOCK),
    ]
}

fn plain(name: &'static str, value: f64) -> Figure {
    Figure { name, value, low: None, high: None }
}

fn mean(name: &'static str, value: f64, groups: &[Vec<f64>], block: usize) -> Figure {
    let interval = mean_interval(groups, block);
    let (low, high) = interval.map(|Interval { low, high }| (low, high)).unzip();
    Figure { name, value, low, high }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rows::{answers, divergence};

    #[test]
    fn samples_of_the_same_are_put_together_in_the_order_of_appearance() {
        let mut second = divergence("kl", 512, "b", &[3.0, 0.0]);
        second.memory[0].device.codes += 100;
        second.time.step_seconds = 0.5;
        second.sample = "1".to_owned();
        second.rows_read = Some(0.25);
        let rows = [
            divergence("kl", 512, "b", &[1.0, 2.0]),
            divergence("kl", 512, "a", &[7.0]),
            second,
            divergence("kl", 1024, "b", &[9.0]),
        ];
        let aggregates = aggregate(&rows);
        let keys: Vec<_> = aggregates.iter().map(|d| (d.cache.as_str(), d.context)).collect();
        assert_eq!(keys, [("b", 512), ("a", 512), ("b", 1024)]);
        let first = &aggregates[0];
        assert_eq!((first.num_samples, first.num_steps, first.num_answers), (2, 4, 0));
        assert_eq!(first.figure("kl_mean").unwrap().value, 1.5);
        assert_eq!(first.figure("kl_max").unwrap().value, 3.0);
        assert_eq!(first.figure("score"), None);
        assert_eq!(
            (first.device_bytes, first.ratio, first.host_bytes),
            (Some(200), Some(0.5), Some(400))
        );
        assert_eq!((first.rows_read, first.step_seconds), (Some(0.25), Some(0.2625)));
        assert_eq!(first.prefill_rate, Some(256.0));
    }

    #[test]
    fn figures_are_those_of_the_summary_of_all_steps() {
        let kl: Vec<f64> = (0..80).map(|i| f64::from(i) / 80.0).collect();
        let other: Vec<f64> = kl.iter().map(|kl| kl * kl).collect();
        let rows = [divergence("kl", 512, "a", &kl), divergence("kl", 512, "a", &other)];
        let mut all = Steps::default();
        for row in &rows {
            let Outcome::Divergence { steps, .. } = &row.outcome else { unreachable!() };
            all.extend(steps);
        }
        let summary = serde_json::to_value(all.summary().unwrap()).unwrap();
        let aggregates = aggregate(&rows);
        let named: Vec<&str> = aggregates[0].figures.iter().map(|figure| figure.name).collect();
        let fields = summary.as_object().unwrap();
        assert_eq!(named.len(), fields.len() - 1, "all but the count: {named:?}");
        for figure in &aggregates[0].figures {
            assert_eq!(figure.value, fields[figure.name].as_f64().unwrap(), "{}", figure.name);
            let is_mean = ["kl_mean", "top1", "top5", "probability_change"].contains(&figure.name);
            assert_eq!(figure.low.is_some() && figure.high.is_some(), is_mean, "{}", figure.name);
        }
        let kl_mean = aggregates[0].figure("kl_mean").unwrap();
        assert!(kl_mean.low.unwrap() < kl_mean.value && kl_mean.value < kl_mean.high.unwrap());
    }

    #[test]
    fn other_code_is_apart_and_the_same_row_counts_once() {
        let row = divergence("kl", 512, "a", &[1.0, 2.0]);
        let mut newer = row.clone();
        newer.run.commit = "later".to_owned();
        newer.inputs = "later".to_owned();
        let longer = divergence("kl", 512, "a", &[1.0, 2.0, 3.0]);
        let mut rebuilt = row.clone();
        (rebuilt.run.build, rebuilt.inputs) = ("other".to_owned(), "rebuilt".to_owned());
        let mut fitted = row.clone();
        (fitted.cache_digest, fitted.inputs) = ("a profile".to_owned(), "fitted".to_owned());
        let apart = aggregate(&[row.clone(), rebuilt, fitted]);
        assert_eq!(apart.iter().map(|one| one.num_samples).collect::<Vec<_>>(), [1, 1, 1]);
        let aggregates = aggregate(&[row.clone(), newer, row, longer]);
        let seen: Vec<_> = aggregates
            .iter()
            .map(|one| (one.commit.as_str(), one.num_samples, one.num_steps))
            .collect();
        assert_eq!(seen, [("0123abc", 1, 2), ("later", 1, 2), ("0123abc", 1, 3)]);
    }

    #[test]
    fn what_was_not_counted_is_none_and_not_zero() {
        let mut row = divergence("kl", 512, "a", &[1.0]);
        row.memory.clear();
        row.time = crate::Time {
            prefill_seconds: 0.0,
            prefill_caches: 0,
            step_seconds: 0.0,
            num_steps: 0,
        };
        let aggregate = &aggregate(&[row])[0];
        assert_eq!(
            (aggregate.ratio, aggregate.device_bytes, aggregate.host_bytes),
            (None, None, None)
        );
        assert_eq!(
            (aggregate.rows_read, aggregate.step_seconds, aggregate.prefill_rate),
            (None, None, None)
        );
    }

    #[test]
    fn answers_count_one_by_one() {
        let rows = [
            answers("needle", 512, "a", Some(0.0), &[1.0, 0.0, 0.5]),
            answers("needle", 512, "a", Some(1.0), &[1.0]),
        ];
        let aggregates = aggregate(&rows);
        let score = aggregates[0].figure("score").unwrap();
        assert_eq!((score.value, aggregates[0].num_answers), (0.625, 4));
        assert_eq!(score.low, None, "two samples say nothing of others");
        let right: Vec<Row> =
            (0..4).map(|at| answers("needle", 512, "a", Some(f64::from(at)), &[1.0])).collect();
        let mut right = right;
        for (row, name) in right.iter_mut().zip(["0", "1", "2", "3"]) {
            row.sample = name.to_owned();
        }
        let aggregates = aggregate(&right);
        let score = aggregates[0].figure("score").unwrap();
        assert!((score.low.unwrap() - 0.51).abs() < 0.001 && score.high.unwrap() > 0.999);
        assert_eq!(aggregate(&[]), []);
        let none = aggregate(&[answers("needle", 512, "a", None, &[])]);
        assert_eq!(none[0].figures, []);
    }
}
