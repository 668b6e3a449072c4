//! Every key format against its definition, over head dims and inputs that keys take.

mod bounds;
mod distortion;
mod moves;
mod names;
mod scores;
mod sizes;
mod stored;

use heterokv_testkit::{Guarded, Inputs};

use super::*;

/// One of every family and size that a name can ask for.
fn formats() -> Vec<KeyFormat> {
    let mut names: Vec<String> = ["f16", "bf16", "fp8"].map(String::from).to_vec();
    for bits in [8, 6, 4, 3, 2] {
        names.push(format!("int{bits}-token"));
        names.extend([32, 64, 128].map(|channels| format!("int{bits}-token/{channels}")));
        names.extend([32, 64, 128].map(|tokens| format!("int{bits}-channel/{tokens}")));
        names.extend(["token", "token/32", "channel/64"].map(|s| format!("rot-int{bits}-{s}")));
    }
    names.extend(
        ["rot-int4-token/64", "rot-int4-channel/32", "rot-int4-channel/128"].map(String::from),
    );
    names.extend((1..=4).flat_map(|bits| [format!("lm{bits}"), format!("lm{bits}-plain")]));
    for width in [2, 4] {
        names.extend([16, 32, 64, 128, 256].map(|centroids| format!("pq/{width}x{centroids}")));
    }
    names.extend(
        ["pq/8x16", "pq/8x256", "pq/4x512", "pq/8x2048", "opq/2x16", "opq/4x256", "opq/8x64"]
            .map(String::from),
    );
    names.extend(["pq/2x16+x1", "pq/4x256+x2", "opq/4x32+x8"].map(String::from));
    names.extend(["0.5", "1", "1.25", "2", "3.25", "4", "6", "8"].map(|b| format!("alloc/{b}")));
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// Formats with each head dim that they hold.
fn shapes(head_dims: &[usize]) -> Vec<(KeyFormat, usize)> {
    let pairs = formats().into_iter().flat_map(|f| head_dims.iter().map(move |&d| (f, d)));
    pairs.filter(|(format, head_dim)| format.layout(*head_dim).is_ok()).collect()
}

/// Enough tokens to fit any format, in whole groups.
fn fit_tokens(format: KeyFormat, head_dim: usize) -> usize {
    format.layout(head_dim).unwrap().min_fit_tokens.max(256)
}

fn fitted(format: KeyFormat, head_dim: usize, keys: &[f32]) -> KeyCoder {
    let query_energy = &vec![1.0; head_dim];
    KeyCoder::fit(
        format,
        &FitInput { head_dim, keys, query_energy, seed: 11, level: Level::detect() },
    )
    .unwrap()
}

fn encoded(coder: &KeyCoder, keys: &[f32]) -> Vec<u8> {
    let mut out = Guarded::new(coder.layout().bytes(keys.len() / coder.head_dim));
    coder.encode(Level::detect(), 0, keys, out.payload_mut()).unwrap();
    out.check_bands().unwrap().to_vec()
}

/// All tokens that `codes` has room for.
fn decoded(coder: &KeyCoder, codes: &[u8]) -> Vec<f32> {
    let layout = coder.layout();
    let blocks = codes.len() / layout.block_bytes;
    let mut out = Guarded::new(blocks * layout.block_tokens * coder.head_dim);
    coder.decode(0, codes, out.payload_mut());
    out.check().unwrap().to_vec()
}

/// What keys may look like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Input {
    Gaussian,
    HeavyChannels,
    ConstantChannels,
    Zeros,
    MixedZeros,
    Subnormal,
    Outliers,
}

impl Input {
    const ALL: [Self; 7] = [
        Self::Gaussian,
        Self::HeavyChannels,
        Self::ConstantChannels,
        Self::Zeros,
        Self::MixedZeros,
        Self::Subnormal,
        Self::Outliers,
    ];

    /// Keys `[num_tokens, head_dim]`.
    fn keys(self, inputs: &mut Inputs, num_tokens: usize, head_dim: usize) -> Vec<f32> {
        let len = num_tokens * head_dim;
        match self {
            Self::Gaussian => inputs.gaussian_rows(num_tokens, head_dim, 1.0),
            Self::HeavyChannels => inputs.heavy_channels(num_tokens, head_dim, 3, 30.0),
            Self::ConstantChannels => (0..len).map(|i| (i % head_dim) as f32 * 0.7 - 9.0).collect(),
            Self::Zeros => vec![0.0; len],
            Self::MixedZeros => (0..len).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect(),
            Self::Subnormal => {
                (0..len).map(|_| inputs.gaussian() * f32::MIN_POSITIVE / 16.0).collect()
            }
            Self::Outliers => {
                let mut keys = inputs.gaussian_rows(num_tokens, head_dim, 1.0);
                for i in (0..len).step_by(97) {
                    keys[i] *= 1e4;
                }
                keys
            }
        }
    }
}

fn table<'a>(tables: &'a Tables, name: &str) -> &'a [half::f16] {
    &tables.iter().find(|(n, _)| *n == name).expect("the table of that name").1
}
