//! Bits allocated over channels: reverse water-filling with measured distortions.
//!
//! What matters of a coded key is the error of q·k, and an error of channel c counts by the mean of
//! q_c². Post-RoPE keys, once centred, keep very different energies per channel, and so do queries; a
//! rotation would level them and a uniform width would spend bits where no query looks. Here each
//! channel has its own step, fitted, and each chunk of eight channels (of similar weighted energy) its
//! own width, found greedily: every next byte per token goes to the chunk whose weighted error it lowers
//! most.
//!
//! A token has one byte besides its codes: a scale in eighths of an octave, chosen by the error that it
//! leaves. Without it the few tokens far from the rest are clipped, and those are the ones that heads
//! attend to.
//!
//! Codes are mid-rise: `x ≈ centre + scale · step · (code − (2^bits − 1) / 2)`; width 0 means the centre
//! alone.

use std::ops::RangeInclusive;

use half::f16;
use rayon::prelude::*;

use super::codec::Codec;
use super::codes::TokenCodes;
use super::moves::StripCells;
use super::{
    AllocatedChannel, ChannelCodes, Encoding, FitInput, FrameCodes, PreparedQueries, QueryFrame,
    Tables, Tail, TokenRule, channel_means, exponent_scale,
};
use crate::Level;
use crate::bits::{CHUNK, MAX_BITS};
use crate::saturate::{in_f16_range, to_f16};
use crate::simd::keys::Values;
use crate::simd::scale_errors::{ScaledChunk, nearest_code, scale_errors};

/// Steps tried per width, as multiples of the step that is optimal for a normal distribution. Post-RoPE
/// channels of high frequency are bounded, not normal, and want smaller ones.
const STEP_FACTORS: [f32; 9] = [0.6, 0.7, 0.8, 0.88, 0.94, 1.0, 1.08, 1.2, 1.4];

/// Steps of the uniform mid-rise quantizer of 1 to 8 bits that is optimal for the standard normal
/// distribution (Max 1960, table II, continued numerically).
const NORMAL_STEPS: [f32; MAX_BITS as usize] =
    [1.5956, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308];

/// Tokens on which the distortion of a channel is measured.
const FIT_TOKENS: usize = 2048;

/// What the weight of a channel can be, 1 on average: exact in f16 at both ends.
pub(super) const WEIGHTS: RangeInclusive<f32> = 1.0 / 8192.0..=8192.0;

/// Scales tried for a token, in eighths of an octave from the ratio of its spread to the usual one: first
/// from far below, for a token of which one channel stands out, to somewhat above; then around the best.
const COARSE_SCALES: [i32; 13] = [-48, -40, -32, -24, -20, -16, -12, -8, -4, 0, 4, 8, 12];
const FINE_SCALES: [i32; 6] = [-3, -2, -1, 1, 2, 3];

#[derive(Clone, Debug)]
pub(super) struct Alloc {
    /// Channel of each coded position `[head_dim]`.
    order: Vec<u16>,
    /// By coded position `[head_dim]`.
    centre: Vec<f16>,
    /// By coded position `[head_dim]`.
    step: Vec<f16>,
    /// Weight of an error, by coded position `[head_dim]`.
    weight: Vec<f16>,
    codes: TokenCodes,
    /// The tables above by chunk of channels, in f32.
    scaled: Vec<ScaledChunk>,
}

/// The fitted arrays, by coded position, and the widths by chunk.
pub(super) struct AllocTables {
    pub(super) order: Vec<u16>,
    pub(super) centre: Vec<f16>,
    pub(super) step: Vec<f16>,
    pub(super) weight: Vec<f16>,
    pub(super) widths: Vec<u8>,
}

/// One channel's distortion and best step at each width.
struct Channel {
    index: usize,
    weight: f32,
    weighted_energy: f64,
    distortion: [f64; MAX_BITS as usize + 1],
    step: [f32; MAX_BITS as usize + 1],
}

impl Alloc {
    /// Fits rows of `code_bytes` bytes of codes.
    pub(super) fn fit(code_bytes: usize, input: &FitInput<'_>) -> Self {
        let head_dim = input.head_dim;
        let centre = channel_means(input.keys, head_dim);
        let sample = Sample::new(input, &centre);
        let energies = input.query_energy.iter().map(|&energy| f64::from(energy));
        let mean = energies.sum::<f64>() / head_dim as f64;
        let unit = if mean > 0.0 { 1.0 / mean } else { 0.0 };
        let mut channels: Vec<Channel> = (0..head_dim)
            .into_par_iter()
            .map(|c| Channel::measure(c, (unit * f64::from(input.query_energy[c])) as f32, &sample))
            .collect();
        channels.sort_by(|a, b| b.weighted_energy.total_cmp(&a.weighted_energy));
        let widths = allocate(&channels, code_bytes);
        let step = channels.iter().enumerate().map(|(i, channel)| {
            let bits = usize::from(widths[i / CHUNK]);
            to_f16(channel.step[bits])
        });
        let order: Vec<u16> = channels.iter().map(|channel| channel.index as u16).collect();
        Self::restore(AllocTables {
            step: step.collect(),
            centre: order.iter().map(|&c| centre[usize::from(c)]).collect(),
            weight: channels
                .iter()
                .map(|c| to_f16(c.weight.clamp(*WEIGHTS.start(), *WEIGHTS.end())))
                .collect(),
            order,
            widths,
        })
    }

    pub(super) fn restore(tables: AllocTables) -> Self {
        let AllocTables { order, centre, step, weight, widths } = tables;
        let scaled = widths.iter().enumerate().map(|(chunk, &bits)| {
            let chunk = |table: &[f16]| -> [f32; CHUNK] {
                std::array::from_fn(|i| table[chunk * CHUNK + i].to_f32())
            };
            let (steps, weights) = (chunk(&step), chunk(&weight));
            ScaledChunk {
                centre: chunk(&centre),
                step: steps,
                weight: std::array::from_fn(|i| weights[i] * steps[i] * steps[i]),
                middle: middle(bits),
                usual: (bits > 0).then(|| 1.0 / NORMAL_STEPS[usize::from(bits) - 1]),
            }
        });
        let scaled = scaled.collect();
        let codes = TokenCodes::new(widths, Values::Integer, Tail::Exponent);
        Self { order, centre, step, weight, codes, scaled }
    }

    /// Writes the `codes [head_dim]` of a key and returns the stored byte of its scale; `x` is working memory, a chunk for
    /// each of the coder's.
    fn codes_of(&self, level: Level, key: &[f32], x: &mut [[f32; CHUNK]], codes: &mut [u8]) -> u8 {
        // In units of each channel's step; coded channels come first, by falling weighted energy.
        x.fill([0.0; CHUNK]);
        let (mut spread, mut coded) = (0.0f32, 0.0f32);
        let order = self.order.as_chunks::<CHUNK>().0;
        for ((x, chunk), order) in x.iter_mut().zip(&self.scaled).zip(order) {
            let Some(usual) = chunk.usual else { continue };
            for (i, x) in x.iter_mut().enumerate().filter(|(i, _)| chunk.step[*i] > 0.0) {
                let key = in_f16_range(key[usize::from(order[i])]);
                *x = (key - chunk.centre[i]) / chunk.step[i];
                spread += (*x / usual) * (*x / usual);
                coded += 1.0;
            }
        }
        let ratio = (spread / coded.max(1.0)).sqrt().max(1e-4);
        let nearest = (8.0 * ratio.log2()).round() as i32;
        let mut best = (f32::INFINITY, nearest);
        self.try_scales(level, x, COARSE_SCALES.map(|step| nearest + step), &mut best);
        self.try_scales(level, x, FINE_SCALES.map(|step| best.1 + step), &mut best);
        let exponent = exponent_of(best.1);
        let inverse = 1.0 / exponent_scale(exponent);
        let chunks = x.iter().zip(&self.scaled).zip(codes.as_chunks_mut::<CHUNK>().0);
        for ((x, chunk), codes) in chunks {
            *codes = x.map(|x| nearest_code(x * inverse, chunk.middle) as u8);
        }
        exponent
    }

    /// Makes `best` the least of it and of the errors under scales in eighths of an octave; the first of equals.
    fn try_scales<const N: usize>(
        &self,
        level: Level,
        x: &[[f32; CHUNK]],
        eighths: [i32; N],
        best: &mut (f32, i32),
    ) {
        let scales = eighths.map(|eighths| exponent_scale(exponent_of(eighths)));
        let errors = scale_errors(level, x, &self.scaled, scales);
        for (error, eighths) in errors.into_iter().zip(eighths) {
            if error < best.0 {
                *best = (error, eighths);
            }
        }
    }

    /// The code value that stands for the centre.
    fn middle(&self, position: usize) -> f32 {
        self.scaled[position / CHUNK].middle
    }
}

impl Codec for Alloc {
    fn tables(&self) -> Tables {
        let integers = |x: u16| f16::from_f32(f32::from(x));
        vec![
            ("order", self.order.iter().copied().map(integers).collect()),
            ("centre", self.centre.clone()),
            ("step", self.step.clone()),
            ("weight", self.weight.clone()),
            ("widths", self.codes.widths().iter().map(|&b| integers(b.into())).collect()),
        ]
    }

    fn encode(&self, level: Level, first_token: usize, keys: &[f32], blocks: &mut [u8]) {
        let mut x = vec![[0.0; CHUNK]; self.scaled.len()];
        let mut codes = vec![0; self.order.len()];
        for (i, key) in keys.chunks_exact(self.order.len()).enumerate() {
            let exponent = self.codes_of(level, key, &mut x, &mut codes);
            self.codes.write(blocks, first_token + i, &codes, &[exponent]);
        }
    }

    fn decode(&self, first_token: usize, blocks: &[u8], out: &mut [f32]) {
        let mut codes = vec![0; self.order.len()];
        for (token, out) in out.chunks_exact_mut(self.order.len()).enumerate() {
            let (scale, _) = self.codes.read(blocks, first_token + token, &mut codes);
            for (i, &code) in codes.iter().enumerate() {
                let x = scale * self.step[i].to_f32() * (f32::from(code) - self.middle(i));
                out[usize::from(self.order[i])] = self.centre[i].to_f32() + x;
            }
        }
    }

    fn prepare(&self, prepared: &mut PreparedQueries) {
        let head_dim = self.order.len();
        let mut reordered = vec![0.0; head_dim];
        for (head, query) in prepared.queries.chunks_exact_mut(head_dim).enumerate() {
            let (mut bias, mut middle) = (0.0, 0.0);
            let chunks = reordered.as_chunks_mut::<CHUNK>().0.iter_mut().zip(&self.scaled);
            for ((out, chunk), order) in chunks.zip(self.order.as_chunks::<CHUNK>().0) {
                for i in 0..CHUNK {
                    let q = query[usize::from(order[i])];
                    out[i] = q * chunk.step[i];
                    bias += q * chunk.centre[i];
                    middle += out[i] * chunk.middle;
                }
            }
            prepared.bias[head] = bias;
            // The scale of a token multiplies what its codes are relative to, too.
            prepared.offsets.push(-middle);
            query.copy_from_slice(&reordered);
        }
        self.codes.prepare(prepared);
    }

    fn query_frame(&self) -> Option<QueryFrame> {
        let mut frame = QueryFrame::plain(FrameCodes::of(&self.codes)?, self.order.len());
        for (i, &order) in self.order.iter().enumerate() {
            frame.channels[i].order = order;
            frame.channels[i].scale = self.step[i].to_f32();
            frame.channels[i].offset = -self.middle(i);
            frame.channels[usize::from(order)].centre = self.centre[i].to_f32();
        }
        Some(frame)
    }

    fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        blocks: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        self.codes.score(level, prepared, blocks, num_tokens, out, stride);
    }

    fn rounding(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        blocks: &[u8],
        token: usize,
    ) -> f32 {
        self.codes.rounding(prepared, head, blocks, token)
    }

    fn strip_cells(&self) -> Option<StripCells> {
        self.codes.strip_cells()
    }

    fn encoding(&self) -> Option<Encoding> {
        let chunk_channels = |(chunk, scaled): (usize, &ScaledChunk)| {
            let scaled = scaled.clone();
            (0..CHUNK).map(move |i| AllocatedChannel {
                channel: self.order[chunk * CHUNK + i].into(),
                centre: scaled.centre[i],
                step: scaled.step[i],
                weight: scaled.weight[i],
                middle: scaled.middle,
                usual: scaled.usual.unwrap_or(0.0),
            })
        };
        let channels = self.scaled.iter().enumerate().flat_map(chunk_channels).collect();
        let rule = TokenRule::Allocated { channels };
        Some(Encoding::Tokens { rule, strips: self.codes.strips()? })
    }

    fn channel_codes(&self) -> Option<ChannelCodes> {
        self.codes.channel_codes()
    }
}

/// The stored byte of a scale of `eighths` of an octave.
fn exponent_of(eighths: i32) -> u8 {
    (eighths + 128).clamp(0, 255) as u8
}

fn middle(bits: u8) -> f32 {
    f32::from((1u16 << bits) - 1) / 2.0
}

/// Centred tokens, each over its own spread, on which channels are measured.
struct Sample {
    num_tokens: usize,
    /// `[head_dim, num_tokens]`.
    columns: Vec<f32>,
}

impl Sample {
    fn new(input: &FitInput<'_>, centre: &[f16]) -> Self {
        let head_dim = input.head_dim;
        let stride = (input.keys.len() / head_dim).div_ceil(FIT_TOKENS).max(1);
        let tokens: Vec<Vec<f32>> = input
            .keys
            .chunks_exact(head_dim)
            .step_by(stride)
            .map(|key| key.iter().zip(centre).map(|(k, c)| in_f16_range(*k) - c.to_f32()).collect())
            .collect();
        let num_tokens = tokens.len();
        let mean_square = |c: usize| {
            tokens.iter().map(|token| token[c] * token[c]).sum::<f32>() / num_tokens as f32
        };
        let energies: Vec<f32> = (0..head_dim).map(mean_square).collect();
        let spread = |token: &[f32]| {
            let relative = token.iter().zip(&energies).filter(|(_, e)| **e > 0.0);
            let (sum, count) =
                relative.fold((0.0, 0), |(sum, count), (x, e)| (sum + x * x / e, count + 1));
            (sum / count.max(1) as f32).sqrt()
        };
        let scales: Vec<f32> = tokens.iter().map(|token| 1.0 / spread(token).max(1e-6)).collect();
        let columns = (0..head_dim)
            .flat_map(|c| tokens.iter().zip(&scales).map(move |(token, scale)| token[c] * scale))
            .collect();
        Self { num_tokens, columns }
    }

    fn channel(&self, c: usize) -> &[f32] {
        &self.columns[c * self.num_tokens..][..self.num_tokens]
    }
}

impl Channel {
    fn measure(index: usize, weight: f32, sample: &Sample) -> Self {
        let values = sample.channel(index);
        let energy = values.iter().map(|x| f64::from(x * x)).sum::<f64>();
        let energy = energy / values.len().max(1) as f64;
        // Kept above 0: a channel that no query of the fit looked at still needs a step.
        let weight = weight.max(1e-30);
        let weighted_energy = f64::from(weight) * energy;
        let mut channel = Self {
            index,
            weight,
            weighted_energy,
            distortion: [weighted_energy; MAX_BITS as usize + 1],
            step: [0.0; MAX_BITS as usize + 1],
        };
        for bits in 1..=MAX_BITS {
            let normal = NORMAL_STEPS[usize::from(bits) - 1] * energy.sqrt() as f32;
            for factor in STEP_FACTORS {
                let step = to_f16(normal * factor).to_f32();
                let error = f64::from(weight) * mean_squared_error(values, step, bits);
                if error < channel.distortion[usize::from(bits)] {
                    channel.distortion[usize::from(bits)] = error;
                    channel.step[usize::from(bits)] = step;
                }
            }
        }
        channel
    }
}

fn mean_squared_error(values: &[f32], step: f32, bits: u8) -> f64 {
    let (middle, inverse) = (middle(bits), if step > 0.0 { 1.0 / step } else { 0.0 });
    let squared = |x: f32| {
        let error = x - step * (nearest_code(x * inverse, middle) - middle);
        error * error
    };
    let (chunks, rest) = values.as_chunks::<CHUNK>();
    let mut sums = [0.0f32; CHUNK];
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += squared(x);
        }
    }
    let sum: f64 = sums.iter().map(|&x| f64::from(x)).sum();
    let rest: f64 = rest.iter().map(|&x| f64::from(squared(x))).sum();
    (sum + rest) / values.len().max(1) as f64
}

/// Gives `code_bytes` bytes, one bit of eight channels each, to the chunks of `channels` where each next
/// one lowers the weighted error most.
fn allocate(channels: &[Channel], code_bytes: usize) -> Vec<u8> {
    let chunks: Vec<[f64; MAX_BITS as usize + 1]> = channels
        .chunks_exact(CHUNK)
        .map(|chunk| std::array::from_fn(|bits| chunk.iter().map(|c| c.distortion[bits]).sum()))
        .collect();
    let mut widths = vec![0u8; chunks.len()];
    for _ in 0..code_bytes.min(chunks.len() * usize::from(MAX_BITS)) {
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
