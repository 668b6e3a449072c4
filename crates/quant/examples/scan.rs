use heterokv_quant::*;
use std::time::Instant;
fn main() {
    let d = 64usize; let g = 3;
    let n: usize = 128 * 1024 * 4; 
    let mut x = 1u32;
    let mut rnd = || { x ^= x << 13; x ^= x >> 17; x ^= x << 5; (x as f32 / u32::MAX as f32) * 2.0 - 1.0 };
    let keys: Vec<f32> = (0..8192 * d).map(|_| rnd()).collect();
    let queries: Vec<f32> = (0..g * d).map(|_| rnd()).collect();
    let level = Level::detect();
    for name in std::env::args().skip(1) {
        let f: KeyFormat = name.parse().unwrap();
        let c = KeyCoder::fit(f, &FitInput { head_dim: d, keys: &keys, query_energy: &vec![1.0; d], seed: 0 }).unwrap();
        let l = c.layout();
        let mut codes = vec![0u8; l.bytes(8192)];
        c.encode(0, &keys, &mut codes).unwrap();
        for p in [Precision::Exact, Precision::Select] {
            let mut pq = PreparedQueries::default();
            c.prepare(&queries, 0.125, p, &mut pq);
            let mut out = vec![0f32; g * 1024];
            let mut m = vec![f32::NEG_INFINITY; g];
            let bytes = l.bytes(1024);
            let mut best = f64::MAX;
            for _ in 0..5 {
                let t = Instant::now();
                for i in 0..n / 1024 {
                    c.score(level, &pq, &codes[(i % 8) * bytes..][..bytes], 1024, ScoreRows { scores: &mut out, stride: 1024, maxima: &mut m });
                }
                best = best.min(t.elapsed().as_secs_f64());
            }
            println!("{name:20} {p:?} {:.2} ns/key  {} B/key", best * 1e9 / n as f64, l.block_bytes / l.block_tokens);
        }
    }
}
