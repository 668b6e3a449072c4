//! Expected attention: what queries to come are expected to give, from the statistics of a prompt's
//! queries.
//!
//! The definition is that of NVIDIA kvpress 0.5.5, `ExpectedAttentionPress`: queries before RoPE
//! are taken as normal, with the mean μ and the covariance Σ of the prompt's; RoPE is replaced by
//! its average R over the next positions; a key k then has the expected weight exp(k·Rμ / √d +
//! kᵀRΣRᵀk / 2d), normalised over the tokens.

use super::keys::{norm, rows};
use crate::{Error, Result};

/// How a model turns queries by position, in the half-split pairing: channel `i` with
/// `i + head_dim / 2`.
#[derive(Clone, Copy, Debug)]
pub struct RotaryTurns<'a> {
    /// Angle per position of each pair, `[head_dim / 2]`, f32, radians.
    pub inverse_frequencies: &'a [f32],
    /// What cosine and sine are multiplied by, above 0: 1 except for YaRN.
    pub attention_factor: f32,
}

/// Statistics of the queries of one KV head's group, before RoPE.
#[derive(Clone, Debug)]
pub struct ExpectedQueries {
    /// `[head_dim / 2]`.
    inverse_frequencies: Vec<f64>,
    attention_factor: f64,
    sinks: usize,
    num_future: usize,
    heads: Vec<Moments>,
}

/// Sums over the queries of one head.
#[derive(Clone, Debug)]
struct Moments {
    count: usize,
    /// `[head_dim]`.
    sum: Vec<f64>,
    /// Upper triangle of the sum of outer products, row by row: row `i` has columns `i..head_dim`.
    outer: Vec<f64>,
}

/// What is expected of one query head at the positions to come.
#[derive(Clone, Debug)]
struct Expectation {
    /// `[head_dim]`, times 1 / √d.
    mean: Vec<f64>,
    /// Upper triangle as in [`Moments`], times 1 / 2d, what is off the diagonal doubled.
    quadratic: Vec<f64>,
}

/// What is expected of queries behind a prompt: scores tokens that come later as those of the
/// prompt were scored, under the same normaliser and from the same position on.
#[derive(Clone, Debug)]
pub struct ExpectedScores {
    heads: Vec<Normalised>,
    head_dim: usize,
}

/// What is expected of one query head, and the prompt's normaliser.
#[derive(Clone, Debug)]
struct Normalised {
    expectation: Expectation,
    /// The largest logit of the prompt; none of a prompt of sinks alone.
    largest: f64,
    /// One over the sum of the prompt's terms and over the number of heads.
    scale: f64,
}

impl ExpectedScores {
    /// The score of a token of post-RoPE `key` and `value`, both `[head_dim]`, f32; infinite behind
    /// a prompt of sinks alone, where there is nothing that it could be compared with.
    ///
    /// # Errors
    /// [`Error::Length`].
    pub fn score(&self, key: &[f32], value: &[f32]) -> Result<f32> {
        for (what, row) in [("key", key), ("value", value)] {
            if row.len() != self.head_dim {
                let (actual, expected) = (row.len(), self.head_dim);
                return Err(Error::Length { what, actual, expected });
            }
        }
        let weight =
            |head: &Normalised| (head.expectation.logit(key) - head.largest).exp() * head.scale;
        Ok((self.heads.iter().map(weight).sum::<f64>() * norm(value)) as f32)
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        Self::num_numbers(self.heads.len(), self.head_dim) * size_of::<f64>()
    }

    /// The numbers that it is, of a group of `group_size` query heads.
    #[must_use]
    pub fn num_numbers(group_size: usize, head_dim: usize) -> usize {
        group_size * (head_dim + head_dim * (head_dim + 1) / 2 + 2)
    }

    /// All of them, by which [`ExpectedScores::from_numbers`] makes the same.
    pub fn numbers(&self) -> impl Iterator<Item = f64> {
        self.heads.iter().flat_map(|head| {
            let Normalised { expectation: Expectation { mean, quadratic }, largest, scale } = head;
            mean.iter().chain(quadratic).chain([largest, scale]).copied()
        })
    }

    /// What has these `numbers`.
    ///
    /// # Errors
    /// [`Error::Zero`] for heads of no channels, [`Error::Length`] where they are not those of
    /// whole heads.
    pub fn from_numbers(head_dim: usize, numbers: &[f64]) -> Result<Self> {
        if head_dim == 0 {
            return Err(Error::Zero { what: "channels of a head" });
        }
        let of_head = Self::num_numbers(1, head_dim);
        if !numbers.len().is_multiple_of(of_head) {
            let (actual, expected) = (numbers.len(), numbers.len().next_multiple_of(of_head));
            return Err(Error::Length { what: "expected scores", actual, expected });
        }
        let head = |numbers: &[f64]| {
            let (mean, rest) = numbers.split_at(head_dim);
            let (quadratic, last) = rest.split_at(rest.len() - 2);
            let expectation = Expectation { mean: mean.to_vec(), quadratic: quadratic.to_vec() };
            Normalised { expectation, largest: last[0], scale: last[1] }
        };
        Ok(Self { heads: numbers.chunks_exact(of_head).map(head).collect(), head_dim })
    }
}

impl ExpectedQueries {
    /// Without any query so far. The first `sinks` tokens count neither as queries nor as keys;
    /// queries are expected at the `num_future` positions behind the prompt (kvpress: 4 and 512).
    ///
    /// # Errors
    /// [`Error::Zero`] for a group of no heads, heads of no pairs, or no future position;
    /// [`Error::Range`] for an attention factor that is not above 0 and finite, or an angle that is
    /// not finite.
    pub fn new(
        turns: RotaryTurns<'_>,
        group_size: usize,
        sinks: usize,
        num_future: usize,
    ) -> Result<Self> {
        let counts = [
            ("query heads of a group", group_size),
            ("pairs of a head", turns.inverse_frequencies.len()),
            ("future positions", num_future),
        ];
        if let Some(&(what, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::Zero { what });
        }
        let factor = f64::from(turns.attention_factor);
        if !(factor > 0.0 && factor.is_finite()) {
            let (what, range) = ("attention factor", "(0, infinity)");
            return Err(Error::Range { what, range, value: factor });
        }
        if let Some(&angle) = turns.inverse_frequencies.iter().find(|angle| !angle.is_finite()) {
            let (what, range) = ("angle per position", "the finite numbers");
            return Err(Error::Range { what, range, value: f64::from(angle) });
        }
        let head_dim = 2 * turns.inverse_frequencies.len();
        let none = Moments {
            count: 0,
            sum: vec![0.0; head_dim],
            outer: vec![0.0; head_dim * (head_dim + 1) / 2],
        };
        Ok(Self {
            inverse_frequencies: turns.inverse_frequencies.iter().map(|&x| x.into()).collect(),
            attention_factor: factor,
            sinks,
            num_future,
            heads: vec![none; group_size],
        })
    }

    /// Adds the post-RoPE query `[head_dim]`, f32, of query head `head` at `position`; one of a
    /// sink adds nothing.
    ///
    /// # Errors
    /// [`Error::Index`] for a head that there is not, [`Error::Length`] for another `head_dim`.
    pub fn add(&mut self, head: usize, position: usize, query: &[f32]) -> Result<()> {
        let (pairs, count) = (self.inverse_frequencies.len(), self.heads.len());
        if head >= count {
            return Err(Error::Index { what: "query head", index: head, count });
        }
        if query.len() != 2 * pairs {
            let (actual, expected) = (query.len(), 2 * pairs);
            return Err(Error::Length { what: "query", actual, expected });
        }
        if position < self.sinks {
            return Ok(());
        }
        let mut unturned = vec![0.0; 2 * pairs];
        for (pair, &angle) in self.inverse_frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * angle).sin_cos();
            let (a, b) = (f64::from(query[pair]), f64::from(query[pair + pairs]));
            unturned[pair] = (a * cos + b * sin) / self.attention_factor;
            unturned[pair + pairs] = (b * cos - a * sin) / self.attention_factor;
        }
        self.heads[head].add(&unturned);
        Ok(())
    }

    /// Scores `[n]`, f32, of post-RoPE `keys` and `values [n, head_dim]` of the KV head: the
    /// expected weight, mean over the query heads, times the norm of the value. Sinks are infinite,
    /// so that they stay (kvpress: the largest score + 1). `next_position` is the first of the
    /// positions to come: `n` behind a prompt. No tokens: none.
    ///
    /// # Errors
    /// [`Error::Rows`] and [`Error::Length`] where keys and values are not as many whole rows,
    /// [`Error::NoQueries`] where a query head was shown none. Rows that are not numbers give
    /// scores that are none.
    pub fn scores(&self, keys: &[f32], values: &[f32], next_position: usize) -> Result<Vec<f32>> {
        Ok(self.expect(keys, values, next_position)?.1)
    }

    /// [`ExpectedQueries::scores`], and what scores a token that comes later by the same measure.
    ///
    /// # Errors
    /// As there.
    pub fn expect(
        &self,
        keys: &[f32],
        values: &[f32],
        next_position: usize,
    ) -> Result<(ExpectedScores, Vec<f32>)> {
        let head_dim = 2 * self.inverse_frequencies.len();
        if keys.len() != values.len() {
            let (actual, expected) = (values.len(), keys.len());
            return Err(Error::Length { what: "values", actual, expected });
        }
        if self.heads.iter().any(|head| head.count == 0) {
            return Err(Error::NoQueries { sinks: self.sinks });
        }
        let keys: Vec<&[f32]> = rows("keys", keys, head_dim)?.skip(self.sinks).collect();
        let average = self.average_turns(next_position);
        let mut weights = vec![0.0; keys.len()];
        let mut heads = Vec::with_capacity(self.heads.len());
        for head in &self.heads {
            let expectation = head.expectation(&average);
            let logits: Vec<f64> = keys.iter().map(|key| expectation.logit(key)).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let terms: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
            let scale = 1.0 / terms.iter().sum::<f64>() / self.heads.len() as f64;
            weights.iter_mut().zip(terms).for_each(|(weight, term)| *weight += term * scale);
            heads.push(Normalised { expectation, largest, scale });
        }
        let num_tokens = values.len() / head_dim;
        let mut scores = vec![f32::INFINITY; self.sinks.min(num_tokens)];
        let values = rows("values", values, head_dim)?.skip(self.sinks);
        scores.extend(weights.iter().zip(values).map(|(x, value)| (x * norm(value)) as f32));
        Ok((ExpectedScores { heads, head_dim }, scores))
    }

    /// Cosine and sine of each pair, averaged over the positions to come.
    fn average_turns(&self, next_position: usize) -> Vec<(f64, f64)> {
        let scale = self.attention_factor / self.num_future as f64;
        let average = |angle: &f64| {
            let turns =
                (0..self.num_future).map(|i| ((next_position + i) as f64 * angle).sin_cos());
            let (sin, cos) = turns.fold((0.0, 0.0), |sum, turn| (sum.0 + turn.0, sum.1 + turn.1));
            (cos * scale, sin * scale)
        };
        self.inverse_frequencies.iter().map(average).collect()
    }
}

impl Moments {
    fn add(&mut self, query: &[f64]) {
        self.count += 1;
        self.sum.iter_mut().zip(query).for_each(|(sum, x)| *sum += x);
        let mut outer = self.outer.as_mut_slice();
        for (i, x) in query.iter().enumerate() {
            let row;
            (row, outer) = outer.split_at_mut(query.len() - i);
            row.iter_mut().zip(&query[i..]).for_each(|(sum, y)| *sum += x * y);
        }
    }

    fn expectation(&self, average: &[(f64, f64)]) -> Expectation {
        let head_dim = self.sum.len();
        let d = head_dim as f64;
        let mut mean: Vec<f64> = self.sum.iter().map(|x| x / self.count as f64).collect();
        let mut covariance = vec![0.0; head_dim * head_dim];
        let mut outer = self.outer.iter();
        for i in 0..head_dim {
            for (j, sum) in (i..head_dim).zip(&mut outer) {
                let value = sum / self.count as f64 - mean[i] * mean[j];
                covariance[i * head_dim + j] = value;
                covariance[j * head_dim + i] = value;
            }
        }
        turn(&mut mean, average);
        // R Σ Rᵀ: the rows are turned, and the rows of what is then transposed.
        for _ in 0..2 {
            covariance.chunks_exact_mut(head_dim).for_each(|row| turn(row, average));
            transpose(&mut covariance, head_dim);
        }
        mean.iter_mut().for_each(|x| *x /= d.sqrt());
        let entry =
            |i: usize, j: usize| covariance[i * head_dim + j] / d / if i == j { 2.0 } else { 1.0 };
        let quadratic = (0..head_dim).flat_map(|i| (i..head_dim).map(move |j| (i, j)));
        Expectation { mean, quadratic: quadratic.map(|(i, j)| entry(i, j)).collect() }
    }
}

impl Expectation {
    /// The logarithm of the expected weight of a key, before it is normalised.
    fn logit(&self, key: &[f32]) -> f64 {
        let key: Vec<f64> = key.iter().map(|&x| f64::from(x)).collect();
        let mut products: Vec<f64> = self.mean.clone();
        let mut quadratic = self.quadratic.as_slice();
        // Products column by column, which needs no sum across lanes.
        for (i, x) in key.iter().enumerate() {
            let row;
            (row, quadratic) = quadratic.split_at(key.len() - i);
            products[i..].iter_mut().zip(row).for_each(|(product, y)| *product += x * y);
        }
        products.iter().zip(&key).map(|(product, x)| product * x).sum()
    }
}

/// Turns a row `[head_dim]` by the (averaged) cosine and sine of each pair.
fn turn(row: &mut [f64], turns: &[(f64, f64)]) {
    let (low, high) = row.split_at_mut(turns.len());
    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

fn transpose(matrix: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            matrix.swap(i * n + j, j * n + i);
        }
    }
}

#[cfg(test)]
mod tests;
