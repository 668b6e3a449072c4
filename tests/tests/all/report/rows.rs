//! Rows of every kind of outcome, as many as a small run gives.

use heterokv_cache::DeviceBytes;
use heterokv_eval::{Answer, Memory, Outcome, Row, Run, Steps, Time};

/// A cache with its share of the bytes and its mean divergence.
const CACHES: [(&str, &str, f64, f64); 8] = [
    ("heterokv", "full", 1.0, 0.0),
    ("heterokv", "hca:25%", 0.25, 0.002),
    ("heterokv", "hca:12.5%", 0.125, 0.011),
    ("heterokv", "hca:6.25%", 0.0625, 0.09),
    ("heterokv", "hca-rescore:25%", 0.26, 0.0009),
    ("heterokv", EVIL, 0.13, 0.03),
    ("llama.cpp", "q8_0", 0.53, 0.004),
    ("llama.cpp", "q4_0", 0.28, 0.021),
];

const CONTEXTS: [usize; 4] = [512, 1024, 2048, 4096];

const DEPTHS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// A name that must stay a name.
pub(crate) const EVIL: &str = "hca:key-bits=4,<script>throw new Error(\"x\")</script>";

/// 232 rows: two samples of divergence per cache and context, needles at five depths, and one of questions.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for context in CONTEXTS {
        for cache in CACHES {
            for sample in 0..2 {
                let steps = steps(cache.3, 96, sample);
                let summary = steps.summary().unwrap();
                rows.push(row(
                    "kl",
                    sample,
                    context,
                    cache,
                    Outcome::Divergence { summary, steps },
                ));
            }
            for depth in DEPTHS {
                let score =
                    (1.0 - cache.3 * 12.0 * context as f64 / 4096.0 * (1.2 - depth)).max(0.0);
                let mut needle = row("needle", 0, context, cache, answers(&[score]));
                needle.depth = Some(depth);
                needle.sample = format!("depth {depth}");
                rows.push(needle);
            }
        }
    }
    for cache in CACHES {
        rows.push(row("multiturn", 0, 2048, cache, answers(&[1.0, 1.0 - cache.3, 0.5, 1.0, 0.0])));
    }
    rows
}

/// Numbers from 0 to 1 that look like chance and never change.
fn noise(seed: usize, place: usize) -> f64 {
    let x = (seed * 7919 + place + 1) as f64 * 12.9898;
    (x.sin() * 43758.547).rem_euclid(1.0)
}

fn steps(mean: f64, num_steps: usize, seed: usize) -> Steps {
    let mut steps = Steps::default();
    for place in 0..num_steps {
        let chance = noise(seed, place);
        let growth = 0.5 + place as f64 / num_steps as f64;
        let kl = mean * growth * -(1.0 - 0.999 * chance).ln();
        steps.kl.push(kl);
        steps.top1.push(u8::from(kl < 3.0 * mean + f64::EPSILON));
        steps.top5.push(if kl < mean { 1.0 } else { 0.8 });
        steps.full_nll.push(2.0 + chance);
        steps.nll.push(2.0 + chance + kl);
    }
    steps
}

fn answers(scores: &[f64]) -> Outcome {
    let answer = |(place, &score): (usize, &f64)| Answer {
        question: format!("What is number {place}?"),
        reply: EVIL.to_owned(),
        references: vec!["42".to_owned()],
        metric: "substring".to_owned(),
        score,
    };
    Outcome::Answers {
        score: scores.iter().sum::<f64>() / scores.len() as f64,
        answers: scores.iter().enumerate().map(answer).collect(),
    }
}

fn row(
    task: &str,
    sample: usize,
    context: usize,
    (engine, cache, share, _): (&str, &str, f64, f64),
    outcome: Outcome,
) -> Row {
    let memory = |num_tokens: usize| {
        let full_bytes = num_tokens * 23_040;
        let coded = (full_bytes as f64 * share) as usize;
        let device = if cache == "full" {
            DeviceBytes { resident: full_bytes, ..DeviceBytes::default() }
        } else {
            DeviceBytes {
                resident: 92_160,
                window: 737_280,
                codes: coded,
                tables: 460_800,
                ..DeviceBytes::default()
            }
        };
        let has_plan = engine == "heterokv";
        Memory {
            num_tokens,
            device,
            host_bytes: full_bytes / 2,
            predicted_device_bytes: has_plan.then_some(device.total()),
            full_bytes,
        }
    };
    Row {
        version: heterokv_eval::ROW_VERSION,
        task: task.to_owned(),
        sample: sample.to_string(),
        context,
        num_tokens: context,
        depth: None,
        cache: cache.to_owned(),
        spec: cache.to_owned(),
        cache_digest: String::new(),
        sample_digest: String::new(),
        inputs: String::new(),
        outcome,
        rows_read: (engine == "heterokv" && cache != "full").then_some(0.07 + share / 10.0),
        memory: [0, 32, 64, 96].map(|behind| memory(context + behind)).to_vec(),
        time: Time {
            prefill_seconds: context as f64 * 0.004,
            prefill_caches: 6,
            step_seconds: 0.02 + context as f64 * share * 4e-6 + noise(sample, context) * 1e-3,
            num_steps: 96,
        },
        run: Run {
            engine: engine.to_owned(),
            version: "0.1.0".to_owned(),
            build: String::new(),
            commit: "096ab38f2c5d+".to_owned(),
            model: "SmolLM2-135M-Instruct".to_owned(),
            fingerprint: "7c1f3e5a90b2d4c6".to_owned(),
            conditions: "Q4_1 weights, 8-bit activations, AVX2".to_owned(),
            threads: 2,
            seed: 1,
            command: "heterokv eval --model SmolLM2-135M-Instruct.Q4_1.gguf --task kl,needle,multiturn \
                      --context 512,1024,2048,4096 --cache full,hca:25%,hca:12.5%,hca:6.25%,hca-rescore:25% \
                      --seed 1 --peers -o results.jsonl"
                .to_owned(),
            date: "2026-11-28".to_owned(),
        },
    }
}
