//! What a layer does beside attention.

use heterokv_attn::device::{DeviceMatrix, Embed, Linear, RmsNorm, Rope, SwiGlu};
use heterokv_gpu::{Bound, Gpu};
use heterokv_shaders::WeightForm;
use heterokv_testkit::{Controls, Inputs};

use crate::devices::{Expected, places_or_skip, run};
use crate::matrices::Matrix;
use crate::sites::{Output, Site, upload};

/// Rows and columns: one, around the 256 threads of a row, a prime, and more rows than a workgroup has threads.
const NORMS: [(usize, usize); 6] = [(1, 2), (3, 255), (2, 256), (5, 257), (1, 577), (300, 64)];

#[test]
fn rms_norm() {
    rms_norm_on(places_or_skip());
}

pub(crate) fn rms_norm_on<S: Site<Memories = Gpu>>(sites: &[S]) {
    for (case, &(rows, cols)) in NORMS.iter().enumerate() {
        let mut inputs = Inputs::new(100 + case as u64);
        let x = inputs.gaussian_rows(rows, cols, 3.0);
        let weight = inputs.gaussian_rows(1, cols, 1.0);
        let eps = 1e-5;
        let mut exact = Vec::new();
        let mut naive = Vec::new();
        for row in x.chunks_exact(cols) {
            let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = 1.0 / (squares / cols as f64 + f64::from(eps)).sqrt();
            exact.extend(
                row.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)),
            );
            let squares: f32 = row.iter().map(|x| x * x).sum();
            let scale = 1.0 / (squares / cols as f32 + eps).sqrt();
            naive.extend(row.iter().zip(&weight).map(|(x, w)| x * scale * w));
        }
        let controls = Controls { num_heads: 1, head_dim: cols };
        let expected = Expected { exact, naive, norm: 4.0, controls };
        for site in sites {
            let gpu = site.memories();
            let (weight, x) = (upload(gpu, &weight), upload(gpu, &x));
            let y = Output::new(gpu, rows * cols);
            let norm = RmsNorm {
                rows,
                cols,
                eps,
                weight: Bound::all(&weight),
                x: Bound::all(&x),
                y: y.bound(),
            };
            site.run(&[norm.launch().unwrap()]);
            let label = format!("rms_norm {rows} x {cols} on {}", site.name());
            expected.check(&y.read(gpu, &label), &label, inputs.seed());
        }
    }
}

/// Vectors, rows and columns: one vector and several; around the 8 rows of a workgroup and the tiles of 32; blocks fewer
/// and more than threads.
const LINEARS: [(usize, usize, usize); 8] = [
    (1, 1, 32),
    (1, 7, 288),
    (4, 9, 64),
    (2, 576, 1536),
    (5, 31, 32),
    (32, 32, 96),
    (33, 65, 64),
    (40, 130, 576),
];

#[test]
fn linear() {
    linear_on(places_or_skip());
}

pub(crate) fn linear_on<S: Site<Memories = Gpu>>(sites: &[S]) {
    for (case, &(tokens, rows, cols)) in LINEARS.iter().enumerate() {
        for form in WeightForm::ALL {
            let mut inputs = Inputs::new(200 + case as u64);
            let matrix = Matrix::random(&mut inputs, form, [rows, cols]);
            let x = inputs.gaussian_rows(tokens, cols, 1.0);
            let bias = inputs.gaussian_rows(1, rows, 1.0);
            let before = inputs.gaussian_rows(tokens, rows, 1.0);
            for adds in [false, true] {
                let (mut exact, mut naive) = (Vec::new(), Vec::new());
                for (x, before) in x.chunks_exact(cols).zip(before.chunks_exact(rows)) {
                    for row in 0..rows {
                        let start = if adds { before[row] } else { 0.0 } + bias[row];
                        let pairs = || x.iter().zip(matrix.row(row));
                        let sum: f64 = pairs().map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                        let start_exact =
                            if adds { f64::from(before[row]) } else { 0.0 } + f64::from(bias[row]);
                        exact.push(start_exact + sum);
                        naive.push(start + pairs().map(|(x, w)| x * w).sum::<f32>());
                    }
                }
                let controls = Controls { num_heads: 1, head_dim: rows };
                let expected = Expected { exact, naive, norm: (cols as f64).sqrt(), controls };
                for site in sites {
                    let gpu = site.memories();
                    let on_device =
                        DeviceMatrix::upload(gpu, form, matrix.shape, Some(&bias), &mut &matrix)
                            .unwrap();
                    let x = upload(gpu, &x);
                    let y = if adds {
                        Output::of(gpu, &before)
                    } else {
                        Output::new(gpu, tokens * rows)
                    };
                    let linear = Linear {
                        matrix: &on_device,
                        tokens,
                        x: Bound::all(&x),
                        y: y.bound(),
                        adds,
                    };
                    site.run(&linear.launches().unwrap());
                    let label =
                        format!("linear {tokens} x {rows} x {cols} {form:?} on {}", site.name());
                    expected.check(&y.read(gpu, &label), &label, inputs.seed());
                }
            }
        }
    }
}

#[test]
fn embed() {
    embed_on(places_or_skip());
}

pub(crate) fn embed_on<S: Site<Memories = Gpu>>(sites: &[S]) {
    let (rows, cols) = (300, 96);
    for form in WeightForm::ALL {
        let mut inputs = Inputs::new(300);
        let matrix = Matrix::random(&mut inputs, form, [rows, cols]);
        let ids: Vec<u32> = vec![299, 0, 17, 17, 255, 256];
        let naive: Vec<f32> = ids.iter().flat_map(|&id| matrix.row(id as usize).to_vec()).collect();
        let exact = naive.iter().map(|&x| f64::from(x)).collect();
        let controls = Controls { num_heads: 1, head_dim: cols };
        let expected = Expected { exact, naive, norm: 1.0, controls };
        for site in sites {
            let gpu = site.memories();
            let on_device =
                DeviceMatrix::upload(gpu, form, matrix.shape, None, &mut &matrix).unwrap();
            let on_device_ids = upload(gpu, &ids);
            let y = Output::new(gpu, ids.len() * cols);
            let embed = Embed {
                matrix: &on_device,
                ids: Bound::all(&on_device_ids),
                tokens: ids.len(),
                y: y.bound(),
            };
            site.run(&embed.launches().unwrap());
            let label = format!("embed {form:?} on {}", site.name());
            expected.check(&y.read(gpu, &label), &label, inputs.seed());
        }
    }
}

#[test]
fn rope() {
    rope_on(places_or_skip());
}

pub(crate) fn rope_on<S: Site<Memories = Gpu>>(sites: &[S]) {
    for (case, &(tokens, num_heads, head_dim)) in
        [(1, 1, 2), (1, 9, 64), (3, 3, 128), (7, 5, 80), (70, 2, 6)].iter().enumerate()
    {
        let mut inputs = Inputs::new(400 + case as u64);
        let half = head_dim / 2;
        let x = inputs.gaussian_rows(tokens, num_heads * head_dim, 2.0);
        let angles: Vec<f32> = (0..tokens * half).map(|_| 100.0 * inputs.unit()).collect();
        let turns: Vec<f32> = angles.iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        let (mut exact, mut naive) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for token in 0..tokens {
            for head in 0..num_heads {
                let start = (token * num_heads + head) * head_dim;
                for i in 0..half {
                    let (cos, sin) =
                        (turns[2 * (token * half + i)], turns[2 * (token * half + i) + 1]);
                    let (low, high) = (x[start + i], x[start + half + i]);
                    naive[start + i] = low * cos - high * sin;
                    naive[start + half + i] = high * cos + low * sin;
                    let [cos, sin, low, high] = [cos, sin, low, high].map(f64::from);
                    exact[start + i] = low * cos - high * sin;
                    exact[start + half + i] = high * cos + low * sin;
                }
            }
        }
        let expected =
            Expected { exact, naive, norm: 2.0, controls: Controls { num_heads, head_dim } };
        for site in sites {
            let gpu = site.memories();
            let on_device = upload(gpu, &turns);
            let y = Output::of(gpu, &x);
            let rope =
                Rope { tokens, num_heads, head_dim, turns: Bound::all(&on_device), x: y.bound() };
            site.run(&[rope.launch().unwrap()]);
            let label = format!("rope {tokens} x {num_heads} x {head_dim} on {}", site.name());
            expected.check(&y.read(gpu, &label), &label, inputs.seed());
        }
    }
}

#[test]
fn swiglu() {
    swiglu_on(places_or_skip());
}

pub(crate) fn swiglu_on<S: Site<Memories = Gpu>>(sites: &[S]) {
    for len in [4, 252, 256, 1536, 4100] {
        let mut inputs = Inputs::new(500 + len as u64);
        let gate = inputs.gaussian_rows(1, len, 4.0);
        let up = inputs.gaussian_rows(1, len, 1.0);
        let pairs = || gate.iter().zip(&up);
        let exact = pairs()
            .map(|(&gate, &up)| f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * f64::from(up))
            .collect();
        let naive = pairs().map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        let controls = Controls { num_heads: 1, head_dim: 4 };
        let expected = Expected { exact, naive, norm: 8.0, controls };
        for site in sites {
            let gpu = site.memories();
            let (gate, up) = (upload(gpu, &gate), upload(gpu, &up));
            let y = Output::new(gpu, len);
            let swiglu = SwiGlu { len, gate: Bound::all(&gate), up: Bound::all(&up), y: y.bound() };
            site.run(&[swiglu.launch().unwrap()]);
            let label = format!("swiglu {len} on {}", site.name());
            expected.check(&y.read(gpu, &label), &label, inputs.seed());
        }
    }
}

/// Of nothing there is nothing to do, and nothing is written.
#[test]
fn no_tokens_are_no_work() {
    let places = places_or_skip();
    let mut inputs = Inputs::new(600);
    let matrix = Matrix::random(&mut inputs, WeightForm::Q8, [8, 32]);
    for place in places {
        let gpu = place.device.gpu();
        let on_device =
            DeviceMatrix::upload(gpu, matrix.form, matrix.shape, None, &mut &matrix).unwrap();
        let x = upload(gpu, &[0.0f32; 32]);
        let y = Output::new(gpu, 8);
        run(&place.device, |commands| {
            let (x, y) = (Bound::all(&x), y.bound());
            let linear = Linear { matrix: &on_device, tokens: 0, x, y, adds: false };
            place.device.linear(commands, &linear)?;
            place.device.embed(commands, &Embed { matrix: &on_device, ids: x, tokens: 0, y })?;
            let rope = Rope { tokens: 0, num_heads: 2, head_dim: 4, turns: x, x: y };
            place.device.rope(commands, &rope)?;
            place.device.swiglu(commands, &SwiGlu { len: 0, gate: x, up: x, y })?;
            place
                .device
                .rms_norm(commands, &RmsNorm { rows: 0, cols: 8, eps: 1e-5, weight: x, x, y })
        });
        let untouched = y.read(gpu, &place.name);
        assert!(untouched.iter().all(|x| x.is_nan()), "{}: {untouched:?}", place.name);
    }
}
