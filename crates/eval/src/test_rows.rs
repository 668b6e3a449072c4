//! Rows for the tests of what is made of rows.

use heterokv_cache::DeviceBytes;

use crate::{Answer, Memory, Outcome, Row, Run, Steps, Time};

/// A row of steps with these divergences, of a cache of a quarter of the bytes.
pub(crate) fn divergence(task: &str, context: usize, cache: &str, kl: &[f64]) -> Row {
    let steps = Steps {
        kl: kl.to_vec(),
        top1: vec![1; kl.len()],
        top5: vec![0.8; kl.len()],
        nll: vec![2.5; kl.len()],
        full_nll: vec![2.0; kl.len()],
    };
    let summary = steps.summary().unwrap();
    row(task, context, cache, Outcome::Divergence { summary, steps })
}

/// A row of answers with these scores.
pub(crate) fn answers(
    task: &str,
    context: usize,
    cache: &str,
    depth: Option<f64>,
    scores: &[f64],
) -> Row {
    let answer = |&score: &f64| Answer {
        question: "where?".to_owned(),
        reply: "here".to_owned(),
        references: vec!["here".to_owned()],
        metric: "substring".to_owned(),
        score,
    };
    let answers: Vec<Answer> = scores.iter().map(answer).collect();
    let score = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    Row { depth, ..row(task, context, cache, Outcome::Answers { score, answers }) }
}

fn row(task: &str, context: usize, cache: &str, outcome: Outcome) -> Row {
    Row {
        version: crate::ROW_VERSION,
        task: task.to_owned(),
        sample: "0".to_owned(),
        context,
        num_tokens: context,
        depth: None,
        cache: cache.to_owned(),
        spec: cache.to_owned(),
        cache_digest: cache.to_owned(),
        sample_digest: format!("{task} {context}"),
        inputs: crate::hash::hex_digest([format!("{outcome:?}").as_bytes()]),
        outcome,
        rows_read: None,
        memory: vec![Memory {
            num_tokens: context,
            device: DeviceBytes {
                resident: 10,
                window: 20,
                codes: 60,
                tables: 10,
                ..DeviceBytes::default()
            },
            host_bytes: 400,
            predicted_device_bytes: Some(100),
            full_bytes: 400,
        }],
        time: Time { prefill_seconds: 2.0, prefill_caches: 1, step_seconds: 0.025, num_steps: 64 },
        run: Run {
            engine: "heterokv".to_owned(),
            version: "0.1.0".to_owned(),
            build: "b".to_owned(),
            commit: "0123abc".to_owned(),
            model: "SmolLM2-135M".to_owned(),
            fingerprint: "f00d".to_owned(),
            conditions: "8-bit weights, AVX2".to_owned(),
            threads: 2,
            seed: 1,
            command: "heterokv eval --task kl".to_owned(),
            date: "2026-11-28".to_owned(),
        },
    }
}
