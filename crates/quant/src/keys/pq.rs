//! Product quantization: a codebook per group of channels, scored through per-query tables.
//!
//! HCAttention (arXiv 2507.19823; PQCache, arXiv 2407.12820): the table `T[g][c] = <q_g, C[g][c]>` costs
//! the same for every context length, after which a token's score is one look-up per group. A group
//! joins channels of the same rotary planes, `i` with `i + head_dim / 2`: post-RoPE keys move on rings
//! in those planes, which a two-dimensional codebook follows and adjacent channels would not show.
//! Clusters are fitted with each channel weighted by the queries' energy there.

use half::f16;
use rayon::prelude::*;

use super::codec::Codec;
use super::kmeans::{Centroids, kmeans};
use super::{FitInput, PreparedQueries, Tables};
use crate::Level;
use crate::rotation::SplitMix64;
use crate::saturate::to_f16;

/// Query heads that share one pass over the codes.
const LANES: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Pq {
    width: usize,
    code_bits: usize,
    head_dim: usize,
    /// `[num_groups, num_centroids, width]`.
    codebooks: Vec<f16>,
    /// Square root of the queries' energy `[head_dim]`, by which distances are weighted.
    weights: Vec<f16>,
}

impl Pq {
    pub(super) fn fit(width: u8, code_bits: u8, input: &FitInput<'_>) -> Self {
        let (width, head_dim) = (usize::from(width), input.head_dim);
        let weights = weights_of(input.query_energy);
        let mut seeds = SplitMix64(input.seed);
        let seeds: Vec<u64> = (0..head_dim / width).map(|_| seeds.next()).collect();
        let codebooks = seeds.into_par_iter().enumerate().flat_map_iter(|(group, seed)| {
            let channels: Vec<usize> = channels_of(group, width, head_dim).collect();
            let points: Vec<f32> = input
                .keys
                .chunks_exact(head_dim)
                .flat_map(|key| channels.iter().map(|&c| key[c] * weights[c].to_f32()))
                .collect();
            let centroids = kmeans(&points, width, 1 << code_bits, seed);
            let unweighted = centroids
                .iter()
                .enumerate()
                .map(|(i, x)| x / weights[channels[i % width]].to_f32())
                .map(to_f16);
            unweighted.collect::<Vec<_>>()
        });
        let codebooks = codebooks.collect();
        Self { width, code_bits: usize::from(code_bits), head_dim, codebooks, weights }
    }

    pub(super) fn restore(
        width: u8,
        code_bits: u8,
        codebooks: Vec<f16>,
        weights: Vec<f16>,
    ) -> Self {
        let head_dim = weights.len();
        Self { width: width.into(), code_bits: code_bits.into(), head_dim, codebooks, weights }
    }

    fn num_groups(&self) -> usize {
        self.head_dim / self.width
    }

    fn row_bytes(&self) -> usize {
        (self.num_groups() * self.code_bits).div_ceil(8)
    }

    fn codebook(&self, group: usize) -> &[f16] {
        let len = self.width << self.code_bits;
        &self.codebooks[group * len..][..len]
    }

    fn look_up(&self, table: &[[f32; LANES]], row: &[u8]) -> [f32; LANES] {
        let mut sums = [0.0; LANES];
        let mut add = |entry: &[f32; LANES]| {
            for (sum, x) in sums.iter_mut().zip(entry) {
                *sum += x;
            }
        };
        if self.code_bits == 8 {
            for (group, &code) in table.as_chunks::<256>().0.iter().zip(row) {
                add(&group[usize::from(code)]);
            }
        } else {
            for (group, entries) in table.chunks_exact(1 << self.code_bits).enumerate() {
                add(&entries[read_code(row, group, self.code_bits)]);
            }
        }
        sums
    }
}

impl Codec for Pq {
    fn tables(&self) -> Tables {
        vec![("codebooks", self.codebooks.clone()), ("weights", self.weights.clone())]
    }

    /// Encodes `keys [n, head_dim]`; the weighted codebook of a group is laid out once for all of them.
    fn encode(&self, first_token: usize, keys: &[f32], codes: &mut [u8]) {
        let row_bytes = self.row_bytes();
        let num_tokens = keys.len() / self.head_dim;
        let out = &mut codes[first_token * row_bytes..][..num_tokens * row_bytes];
        out.fill(0);
        let mut distances = vec![0.0; 1 << self.code_bits];
        for group in 0..self.num_groups() {
            let channels: Vec<usize> = channels_of(group, self.width, self.head_dim).collect();
            let weights: Vec<f32> = channels.iter().map(|&c| self.weights[c].to_f32()).collect();
            let rows = self.codebook(group).iter().enumerate();
            let rows: Vec<f32> = rows.map(|(i, x)| x.to_f32() * weights[i % self.width]).collect();
            let centroids = Centroids::from_rows(&rows, self.width);
            let mut point = vec![0.0; self.width];
            for (key, out) in keys.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(row_bytes))
            {
                for ((x, &c), weight) in point.iter_mut().zip(&channels).zip(&weights) {
                    *x = key[c] * weight;
                }
                let (code, _) = centroids.nearest(&point, &mut distances);
                write_code(out, group, self.code_bits, code);
            }
        }
    }

    fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        let rows = codes[first_token * self.row_bytes()..].chunks_exact(self.row_bytes());
        for (row, out) in rows.zip(out.chunks_exact_mut(self.head_dim)) {
            for group in 0..self.num_groups() {
                let centroid =
                    &self.codebook(group)[read_code(row, group, self.code_bits) * self.width..];
                for (c, x) in channels_of(group, self.width, self.head_dim).zip(centroid) {
                    out[c] = x.to_f32();
                }
            }
        }
    }

    /// Fills the tables `[ceil(num_heads / LANES), num_groups, num_centroids, LANES]`.
    fn prepare(&self, prepared: &mut PreparedQueries) {
        let centroids = self.codebooks.len() / self.width;
        let num_batches = prepared.num_heads.div_ceil(LANES);
        prepared.table.clear();
        prepared.table.resize(num_batches * centroids * LANES, 0.0);
        for (head, query) in prepared.queries.chunks_exact(self.head_dim).enumerate() {
            let table = &mut prepared.table[head / LANES * centroids * LANES..];
            for group in 0..self.num_groups() {
                let first = group << self.code_bits;
                for (i, centroid) in self.codebook(group).chunks_exact(self.width).enumerate() {
                    let products = channels_of(group, self.width, self.head_dim)
                        .zip(centroid)
                        .map(|(c, x)| query[c] * x.to_f32());
                    table[(first + i) * LANES + head % LANES] = products.sum();
                }
            }
        }
    }

    fn score(
        &self,
        _level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        _num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let row_bytes = self.row_bytes();
        let centroids = self.codebooks.len() / self.width;
        for (batch, table) in prepared.table.chunks_exact(centroids * LANES).enumerate() {
            let (table, _) = table.as_chunks::<LANES>();
            let heads = (prepared.num_heads - batch * LANES).min(LANES);
            for (token, row) in codes.chunks_exact(row_bytes).enumerate() {
                let sums = self.look_up(table, row);
                for (lane, sum) in sums[..heads].iter().enumerate() {
                    out[(batch * LANES + lane) * stride + token] = *sum;
                }
            }
        }
    }
}

/// The channels of `group`: half of them from the lower half of the head, half their rotary partners.
fn channels_of(group: usize, width: usize, head_dim: usize) -> impl Iterator<Item = usize> {
    let half = width / 2;
    (0..width).map(move |e| group * half + e % half + e / half * (head_dim / 2))
}

/// Square roots of the energies over their mean, kept away from 0 so that no channel is free.
fn weights_of(query_energy: &[f32]) -> Vec<f16> {
    let mean = query_energy.iter().sum::<f32>() / query_energy.len().max(1) as f32;
    let relative = |energy: f32| if mean > 0.0 { energy / mean } else { 1.0 };
    query_energy.iter().map(|&e| f16::from_f32(relative(e).clamp(1e-4, 1e4).sqrt())).collect()
}

fn write_code(row: &mut [u8], index: usize, bits: usize, code: usize) {
    let first = index * bits;
    for bit in 0..bits {
        row[(first + bit) / 8] |= ((code >> bit & 1) as u8) << ((first + bit) % 8);
    }
}

/// Reads a code of at most 8 bits, which spans at most two bytes.
fn read_code(row: &[u8], index: usize, bits: usize) -> usize {
    let first = index * bits;
    let high = row.get(first / 8 + 1).copied().unwrap_or(0);
    let word = u16::from_le_bytes([row[first / 8], high]);
    usize::from(word >> (first % 8)) & ((1 << bits) - 1)
}
