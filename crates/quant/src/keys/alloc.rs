//! Bits allocated over channels: reverse water-filling with measured distortions.
//!
//! What matters of a coded key is the error of q·k, and an error of channel c counts by the mean of
//! q_c². Post-RoPE keys, once centred, keep very different energies per channel, and so do queries; a
//! rotation would level them and a uniform width would spend bits where no query looks. Here each
//! channel has its own step, fitted, and each chunk of eight channels (of similar weighted energy) its
//! own width, found greedily: every next byte per token goes to the chunk whose weighted error it lowers
//! most. Nothing is stored per token but the codes.
//!
//! Codes are mid-rise: `x ≈ centre + step · (code − (2^bits − 1) / 2)`; width 0 means the centre alone.

use half::f16;
use rayon::prelude::*;

use super::{FitInput, PreparedQueries, channel_means};
use crate::bits::{CHUNK, MAX_BITS, pack_row};
use crate::simd::keys::{CodedRows, Tail, Values};

/// Steps tried per width, as multiples of the step that is optimal for a normal distribution. Post-RoPE
/// channels of high frequency are bounded, not normal, and want smaller ones.
const STEP_FACTORS: [f32; 9] = [0.6, 0.7, 0.8, 0.88, 0.94, 1.0, 1.08, 1.2, 1.4];

/// Steps of the uniform mid-rise quantizer of 1 to 8 bits that is optimal for the standard normal
/// distribution (Max 1960, table II, continued numerically).
const NORMAL_STEPS: [f32; MAX_BITS as usize] =
    [1.5956, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308];

/// Tokens on which the distortion of a channel is measured.
const FIT_TOKENS: usize = 1024;

#[derive(Clone, Debug)]
pub(super) struct Alloc {
    /// Channel of each coded position `[head_dim]`.
    order: Vec<u16>,
    /// By coded position `[head_dim]`.
    centre: Vec<f16>,
    /// By coded position `[head_dim]`.
    step: Vec<f16>,
    rows: CodedRows,
}

/// One channel's distortion and best step at each width.
struct Channel {
    index: usize,
    weighted_energy: f64,
    distortion: [f64; MAX_BITS as usize + 1],
    step: [f32; MAX_BITS as usize + 1],
}

impl Alloc {
    pub(super) fn fit(row_bytes: usize, input: &FitInput<'_>) -> Self {
        let head_dim = input.head_dim;
        let centre = channel_means(input.keys, head_dim);
        let mut channels: Vec<Channel> = (0..head_dim)
            .into_par_iter()
            .map(|c| Channel::measure(c, centre[c].to_f32(), input))
            .collect();
        channels.sort_by(|a, b| b.weighted_energy.total_cmp(&a.weighted_energy));
        let widths = allocate(&channels, row_bytes);
        let step = channels.iter().enumerate().map(|(i, channel)| {
            let bits = usize::from(widths[i / CHUNK]);
            f16::from_f32(channel.step[bits].min(65_504.0))
        });
        let step = step.collect();
        let order: Vec<u16> = channels.iter().map(|channel| channel.index as u16).collect();
        let centre = order.iter().map(|&c| centre[usize::from(c)]).collect();
        Self::restore(order, centre, step, widths)
    }

    pub(super) fn restore(
        order: Vec<u16>,
        centre: Vec<f16>,
        step: Vec<f16>,
        widths: Vec<u8>,
    ) -> Self {
        let rows = CodedRows::new(widths, Values::Integer, Tail::None);
        Self { order, centre, step, rows }
    }

    pub(super) fn rows(&self) -> &CodedRows {
        &self.rows
    }

    pub(super) fn tables(&self) -> (&[u16], &[f16], &[f16], &[u8]) {
        (&self.order, &self.centre, &self.step, self.rows.widths())
    }

    pub(super) fn encode(&self, key: &[f32], out: &mut [u8]) {
        let codes: Vec<u8> = (0..key.len())
            .map(|i| {
                let x = key[usize::from(self.order[i])] - self.centre[i].to_f32();
                mid_rise(x, self.step[i].to_f32(), self.rows.widths()[i / CHUNK])
            })
            .collect();
        pack_row(&codes, self.rows.widths(), out);
    }

    pub(super) fn decode(&self, row: &[u8], out: &mut [f32]) {
        crate::bits::for_each_code(row, self.rows.widths(), |i, code| {
            let x = self.step[i].to_f32() * (f32::from(code) - self.middle(i));
            out[usize::from(self.order[i])] = self.centre[i].to_f32() + x;
        });
    }

    pub(super) fn prepare(&self, prepared: &mut PreparedQueries) {
        let head_dim = self.order.len();
        let mut reordered = vec![0.0; head_dim];
        for (head, query) in prepared.queries.chunks_exact_mut(head_dim).enumerate() {
            let mut bias = 0.0;
            for (i, scaled) in reordered.iter_mut().enumerate() {
                let q = query[usize::from(self.order[i])];
                *scaled = q * self.step[i].to_f32();
                bias += q * self.centre[i].to_f32() - *scaled * self.middle(i);
            }
            prepared.bias[head] = bias;
            query.copy_from_slice(&reordered);
        }
    }

    /// The code value that stands for the centre.
    fn middle(&self, position: usize) -> f32 {
        middle(self.rows.widths()[position / CHUNK])
    }
}

fn middle(bits: u8) -> f32 {
    f32::from((1u16 << bits) - 1) / 2.0
}

fn mid_rise(x: f32, step: f32, bits: u8) -> u8 {
    if bits == 0 || step == 0.0 {
        return 0;
    }
    let max_code = f32::from((1u16 << bits) - 1);
    (x / step + middle(bits)).round().clamp(0.0, max_code) as u8
}

impl Channel {
    fn measure(index: usize, centre: f32, input: &FitInput<'_>) -> Self {
        let num_tokens = input.keys.len() / input.head_dim;
        let stride = num_tokens.div_ceil(FIT_TOKENS).max(1);
        let sample: Vec<f32> = (0..num_tokens)
            .step_by(stride)
            .map(|t| input.keys[t * input.head_dim + index].clamp(-65_504.0, 65_504.0) - centre)
            .collect();
        let energy = sample.iter().map(|x| f64::from(x * x)).sum::<f64>();
        let energy = energy / sample.len().max(1) as f64;
        // Kept above 0: a channel that no query of the fit looked at still needs a step.
        let weight = f64::from(input.query_energy[index]).max(1e-30);
        let mut channel = Self {
            index,
            weighted_energy: weight * energy,
            distortion: [weight * energy; MAX_BITS as usize + 1],
            step: [0.0; MAX_BITS as usize + 1],
        };
        for bits in 1..=MAX_BITS {
            let normal = NORMAL_STEPS[usize::from(bits) - 1] * energy.sqrt() as f32;
            for factor in STEP_FACTORS {
                let step = f16::from_f32((normal * factor).min(65_504.0)).to_f32();
                let error = weight * mean_squared_error(&sample, step, bits);
                if error < channel.distortion[usize::from(bits)] {
                    channel.distortion[usize::from(bits)] = error;
                    channel.step[usize::from(bits)] = step;
                }
            }
        }
        channel
    }
}

fn mean_squared_error(sample: &[f32], step: f32, bits: u8) -> f64 {
    let middle = middle(bits);
    let sum: f64 = sample
        .iter()
        .map(|&x| {
            let decoded = step * (f32::from(mid_rise(x, step, bits)) - middle);
            f64::from((x - decoded) * (x - decoded))
        })
        .sum();
    sum / sample.len().max(1) as f64
}

/// Gives `row_bytes` bytes, one bit of eight channels each, to the chunks of `channels` where each next
/// one lowers the weighted error most.
fn allocate(channels: &[Channel], row_bytes: usize) -> Vec<u8> {
    let chunks: Vec<[f64; MAX_BITS as usize + 1]> = channels
        .chunks_exact(CHUNK)
        .map(|chunk| std::array::from_fn(|bits| chunk.iter().map(|c| c.distortion[bits]).sum()))
        .collect();
    let mut widths = vec![0u8; chunks.len()];
    for _ in 0..row_bytes.min(chunks.len() * usize::from(MAX_BITS)) {
        let gain = |i: usize| {
            let bits = usize::from(widths[i]);
            if widths[i] == MAX_BITS {
                f64::NEG_INFINITY
            } else {
                chunks[i][bits] - chunks[i][bits + 1]
            }
        };
        // The first of equals, so that the result does not depend on the order of comparison.
        let best = (0..chunks.len()).rev().max_by(|&a, &b| gain(a).total_cmp(&gain(b)));
        if let Some(best) = best {
            widths[best] += 1;
        }
    }
    widths
}
