//! Times the two products of block weights and checks their answers.
//!
//! ```text
//! cargo run --release -p heterokv-quant --example gemv [THREADS]
//! ```
//!
//! Prints, per source type and compute form: one decoding step over the shapes of a SmolLM2-135M layer
//! stack (106 M weights) and its output projection (28 M), GB/s of weights read, and for prefill GFLOP/s.
//! The best of several runs, as the machine may be shared. Every timed answer is compared with an f64
//! product of the same weights.
#![expect(clippy::print_stdout, reason = "an example prints what it measures")]

use std::time::Instant;

use half::f16;
use heterokv_quant::{
    Level,
    weights::{Activations, ComputeType, TensorType, WeightMatrix, gemv_many},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const KV: usize = 192;
const MLP: usize = 1536;
const VOCABULARY: usize = 49152;
const REPEATS: usize = 60;

/// What an answer may be off by, of the sum of magnitudes, where vectors are not rounded or to 16 bits.
const STEP_BOUND: f64 = 2e-5;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Layer {
    q: WeightMatrix,
    k: WeightMatrix,
    v: WeightMatrix,
    o: WeightMatrix,
    gate: WeightMatrix,
    up: WeightMatrix,
    down: WeightMatrix,
}

fn main() -> Outcome<()> {
    let num_threads = match std::env::args().nth(1) {
        Some(word) => word.parse()?,
        None => std::thread::available_parallelism()?.get(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build()?;
    let level = Level::detect();
    println!("{num_threads} threads, level {level}");
    pool.install(|| {
        for (ty, compute) in [
            (TensorType::Q4_1, ComputeType::Q8),
            (TensorType::F32, ComputeType::Q8),
            (TensorType::F32, ComputeType::F16),
            (TensorType::F32, ComputeType::F32),
        ] {
            decode_step(ty, compute, level)?;
        }
        for (ty, compute) in [
            (TensorType::Q4_1, ComputeType::Q8),
            (TensorType::Q4_1, ComputeType::Q8A8),
            (TensorType::F32, ComputeType::Q8A8),
            (TensorType::F32, ComputeType::Q8),
            (TensorType::F32, ComputeType::F16),
            (TensorType::F32, ComputeType::F32),
        ] {
            for (rows, cols) in [(HIDDEN, HIDDEN), (KV, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP)] {
                prefill(ty, compute, level, [rows, cols])?;
            }
            prefill(ty, compute, level, [4096, 4096])?;
        }
        Ok(())
    })
}

/// Weights as a checkpoint would hold them, uniform in ±0.05: f32, or blocks of Q4_1.
fn matrix(
    rng: &mut StdRng,
    shape: [usize; 2],
    ty: TensorType,
    compute: ComputeType,
    level: Level,
) -> Outcome<WeightMatrix> {
    let num_blocks = shape[0] * shape[1] / ty.block_len();
    let mut bytes = Vec::with_capacity(num_blocks * ty.block_bytes());
    for _ in 0..num_blocks {
        match ty {
            TensorType::Q4_1 => {
                let step = rng.random_range(0.004f32..0.006);
                bytes.extend(f16::from_f32(step).to_le_bytes());
                bytes.extend(f16::from_f32(-7.5 * step).to_le_bytes());
                bytes.extend(std::array::from_fn::<u8, 16, _>(|_| rng.random()));
            }
            _ => bytes.extend(rng.random_range(-0.05f32..0.05).to_le_bytes()),
        }
    }
    Ok(WeightMatrix::from_tensor(ty, &bytes, shape, |row| row, compute, level)?)
}

fn vector(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn decode_step(ty: TensorType, compute: ComputeType, level: Level) -> Outcome<()> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut make = |rows, cols| matrix(&mut rng, [rows, cols], ty, compute, level);
    let mut layers = Vec::with_capacity(LAYERS);
    for _ in 0..LAYERS {
        layers.push(Layer {
            q: make(HIDDEN, HIDDEN)?,
            k: make(KV, HIDDEN)?,
            v: make(KV, HIDDEN)?,
            o: make(HIDDEN, HIDDEN)?,
            gate: make(MLP, HIDDEN)?,
            up: make(MLP, HIDDEN)?,
            down: make(HIDDEN, MLP)?,
        });
    }
    let parts = |l: &Layer| {
        [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].map(|m| (m.bytes(), m.rows() * m.cols()))
    };
    let output = make(VOCABULARY, HIDDEN)?;
    let all = layers.iter().flat_map(parts).chain([(output.bytes(), output.rows() * HIDDEN)]);
    let (num_bytes, num_weights) = all.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));

    let (hidden, wide) = (vector(&mut rng, HIDDEN), vector(&mut rng, MLP));
    let [mut q, mut k, mut v, mut o] = [HIDDEN, KV, KV, HIDDEN].map(|len| vec![0.0; len]);
    let [mut gate, mut up, mut down] = [MLP, MLP, HIDDEN].map(|len| vec![0.0; len]);
    let mut logits = vec![0.0; VOCABULARY];
    let mut best_s = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        for layer in &layers {
            let mut x = Activations::new(&hidden);
            gemv_many(
                &mut x,
                &mut [(&layer.q, &mut q[..]), (&layer.k, &mut k[..]), (&layer.v, &mut v[..])],
            )?;
            layer.o.gemv(&hidden, &mut o)?;
            gemv_many(&mut x, &mut [(&layer.gate, &mut gate[..]), (&layer.up, &mut up[..])])?;
            layer.down.gemv(&wide, &mut down)?;
        }
        output.gemv(&hidden, &mut logits)?;
        best_s = best_s.min(start.elapsed().as_secs_f64());
    }
    let mut worst = 0.0f64;
    for layer in layers.iter().rev().take(1) {
        for (w, x, y) in [
            (&layer.q, &hidden, &q),
            (&layer.k, &hidden, &k),
            (&layer.v, &hidden, &v),
            (&layer.o, &hidden, &o),
            (&layer.gate, &hidden, &gate),
            (&layer.up, &hidden, &up),
            (&layer.down, &wide, &down),
            (&output, &hidden, &logits),
        ] {
            worst = worst.max(check(w, x, y, STEP_BOUND)?);
        }
    }
    println!(
        "decode {ty} as {compute}: {:.1} M weights, {:.2} ms, {:.1} GB/s, worst error {worst:.1e}",
        num_weights as f64 / 1e6,
        best_s * 1e3,
        num_bytes as f64 / best_s / 1e9,
    );
    Ok(())
}

fn prefill(
    ty: TensorType,
    compute: ComputeType,
    level: Level,
    [rows, cols]: [usize; 2],
) -> Outcome<()> {
    let mut rng = StdRng::seed_from_u64(2);
    let w = matrix(&mut rng, [rows, cols], ty, compute, level)?;
    for n in [2, 8, 32, 512] {
        let x = vector(&mut rng, n * cols);
        let mut y = vec![0.0; n * rows];
        let mut best_s = f64::INFINITY;
        for _ in 0..REPEATS.min(20_000_000_000 / (n * rows * cols)).max(1) {
            let start = Instant::now();
            w.gemm(&x, n, &mut y)?;
            best_s = best_s.min(start.elapsed().as_secs_f64());
        }
        let mut worst = 0.0f64;
        // Several vectors are rounded to 8 bits for the `q8a8` form, up to four to 16.
        let bound = if compute == ComputeType::Q8A8 && n > 4 { 4e-3 } else { STEP_BOUND };
        for t in [0, n - 1] {
            worst = worst.max(check(&w, &x[t * cols..][..cols], &y[t * rows..][..rows], bound)?);
        }
        println!(
            "prefill {ty} as {compute}: [{rows}, {cols}] x {n}: {:.3} ms, {:.1} GFLOP/s, worst error {worst:.1e}",
            best_s * 1e3,
            2.0 * (n * rows * cols) as f64 / best_s / 1e9,
        );
    }
    Ok(())
}

/// The largest error of `y` against an f64 product of the decoded weights, relative to the largest
/// sum of magnitudes that a row can reach; an error above `bound` is a failure.
fn check(w: &WeightMatrix, x: &[f32], y: &[f32], bound: f64) -> Outcome<f64> {
    let mut row = vec![0.0; w.cols()];
    let mut worst = 0.0f64;
    for (r, &actual) in y.iter().enumerate() {
        w.row(r, &mut row)?;
        let terms = || row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
        let error = (f64::from(actual) - terms().sum::<f64>()).abs();
        let relative = error / terms().map(f64::abs).sum::<f64>();
        let within = relative <= bound;
        if !within {
            return Err(format!("row {r}: {actual} is off by {error}").into());
        }
        worst = worst.max(relative);
    }
    Ok(worst)
}
