//! Speed of prefill attention on this machine, in GFLOP/s of the causal half.
//!
//! ```text
//! cargo run --release -p heterokv-attn --example prefill_speed [TOKENS] [RUNS]
//! ```
//!
//! The heads are those of SmolLM2-135M (9 query heads, 3 KV heads, 64 channels) and of an 8B Llama (32,
//! 8, 128). Some rows of every timed result are compared with the f64 reference before its time counts.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Instant;

use heterokv_attn::reference::head_attention;
use heterokv_attn::{HeadShape, PrefillInput, PrefillOutput, prefill};
use heterokv_quant::Level;
use heterokv_testkit::{Inputs, Tolerance, assert_close};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<NonZeroUsize>());
    let num_tokens = arguments.next().transpose()?.map_or(4096, NonZeroUsize::get);
    let num_runs = arguments.next().transpose()?.map_or(5, NonZeroUsize::get);
    let seed = 7;
    let level = Level::detect();
    println!("level {level}, {} threads, {num_tokens} tokens", rayon::current_num_threads());
    for (name, shape) in
        [("9/3x64", HeadShape::new(9, 3, 64)?), ("32/8x128", HeadShape::new(32, 8, 128)?)]
    {
        let mut inputs = Inputs::new(seed);
        let q = inputs.gaussian_rows(num_tokens, shape.qo_row_len(), 1.0);
        let k = inputs.gaussian_rows(num_tokens, shape.kv_row_len(), 1.0);
        let v = inputs.gaussian_rows(num_tokens, shape.kv_row_len(), 1.0);
        let mut out = vec![0.0; q.len()];
        let mut seconds = Vec::new();
        for _ in 0..num_runs {
            out.fill(f32::NAN);
            let start = Instant::now();
            let input = PrefillInput { q: &q, k: &k, v: &v };
            prefill(level, &shape, input, PrefillOutput { out: &mut out, lse: None })?;
            seconds.push(start.elapsed().as_secs_f64());
            for token in [0, num_tokens / 2, num_tokens - 1] {
                let seen: Vec<usize> = (0..=token).collect();
                for head in [0, shape.num_qo_heads - 1] {
                    let expected = head_attention(&shape, &q, &k, &v, (token, head), &seen);
                    let start = (token * shape.num_qo_heads + head) * shape.head_dim;
                    let actual = &out[start..start + shape.head_dim];
                    let tolerance = Tolerance { absolute: 2e-6, relative: 1e-5 };
                    assert_close(name, seed, actual, &expected.out, tolerance);
                }
            }
        }
        seconds.sort_by(f64::total_cmp);
        // Two products of 2 * head_dim operations for every (query, key) pair of every query head.
        let num_pairs = (num_tokens * (num_tokens + 1) / 2 * shape.num_qo_heads) as f64;
        let gflop = num_pairs * 4.0 * shape.head_dim as f64 / 1e9;
        println!(
            "{name}: best {:.1} GFLOP/s, median {:.1} ({:.3} s and {:.3} s for {gflop:.1} GFLOP)",
            gflop / seconds[0],
            gflop / seconds[seconds.len() / 2],
            seconds[0],
            seconds[seconds.len() / 2],
        );
    }
    Ok(())
}
