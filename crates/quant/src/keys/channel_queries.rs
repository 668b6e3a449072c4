//! Queries in the frame of a coder, for kernels that score one code for each channel and know no format.

use super::{KeyCoder, Precision, PreparedQueries, Tail};

/// Queries beside which codes lie channel by channel.
///
/// The score of a token under head h is
///
/// ```text
/// scale · (offset[h] + Σ over channels c of queries[h, c] · value of the token's code of c) + zero · sum[h] + bias[h]
/// ```
///
/// with scale and zero as [`codes`](Self::codes) say, 1 and 0 where they say nothing; `sm_scale` is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelQueries {
    /// Where the codes lie, and what they stand for.
    pub codes: ChannelCodes,
    /// `[num_heads, head_dim]`, f32, in the order of the codes.
    pub queries: Vec<f32>,
    /// Offset, sum, bias and 0 of each head `[num_heads]`.
    pub finals: Vec<[f32; 4]>,
}

/// Codes of which each is one channel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelCodes {
    /// A row a token, in f16.
    Halves,
    /// Strips of 32 tokens: for each pair of channels two bytes of every token, then the tails. A byte stands for
    /// itself.
    Bytes {
        /// What has the scale and zero of a token.
        tail: Tail,
    },
    /// Blocks of tokens with a scale and zero for each channel, by which a code stands for `zero + scale · code`.
    Channels {
        /// Bits of a code: 8, 6, 4, 3 or 2.
        bits: u8,
        /// Tokens of a block.
        group_tokens: usize,
    },
}

impl KeyCoder {
    /// `queries [num_heads, head_dim]`, post-RoPE, in the frame of this coder; none where its codes do not lie channel by
    /// channel. A query that is not finite gives scores that are not.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn channel_queries(&self, queries: &[f32], sm_scale: f32) -> Option<ChannelQueries> {
        let codes = self.codec.channel_codes()?;
        let mut prepared = PreparedQueries::default();
        self.prepare(queries, sm_scale, Precision::Exact, &mut prepared);
        let finals = (0..prepared.num_heads).map(|head| prepared.finals(head)).collect();
        Some(ChannelQueries { codes, queries: prepared.queries, finals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FitInput, Level};

    #[test]
    fn queries_meet_codes_in_their_frame() {
        const HEAD_DIM: usize = 32;
        let keys: Vec<f32> = (0..256 * HEAD_DIM).map(|i| (i as f32 * 0.61).sin()).collect();
        let (level, energy) = (Level::detect(), [1.0; HEAD_DIM]);
        let input =
            FitInput { head_dim: HEAD_DIM, keys: &keys, query_energy: &energy, seed: 0, level };
        let query: Vec<f32> = (0..HEAD_DIM).map(|i| (i as f32 * 1.7).cos()).collect();
        for (name, codes) in [
            ("f16", ChannelCodes::Halves),
            ("int8-token", ChannelCodes::Bytes { tail: Tail::ScaleZero }),
            ("rot-int8-token", ChannelCodes::Bytes { tail: Tail::ScaleZero }),
            ("alloc/8", ChannelCodes::Bytes { tail: Tail::Exponent }),
            ("int2-channel/32", ChannelCodes::Channels { bits: 2, group_tokens: 32 }),
            ("rot-int4-channel/64", ChannelCodes::Channels { bits: 4, group_tokens: 64 }),
        ] {
            let coder = KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
            let of_query = coder.channel_queries(&query, 0.5).unwrap();
            let frame = coder.query_frame().unwrap();
            assert!(coder.format().has_query_frame(), "{name}");
            assert_same(&frame.queries(&query, 0.5).unwrap(), &of_query, name);
            assert_eq!((of_query.codes, of_query.finals.len()), (codes, 1), "{name}");
            // A rotation keeps lengths, and nothing else moves a query but steps, which only `alloc` has.
            let energy = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
            let ratio = energy(&of_query.queries) / energy(&query);
            assert_eq!((ratio - 0.25).abs() < 1e-5, name != "alloc/8", "{name}: {ratio}");
        }
        for name in ["int4-token", "lm3", "pq/4x16", "int8-token/32", "bf16"] {
            let coder = KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
            assert_eq!(coder.channel_queries(&query, 0.5), None, "{name}");
            let framed = coder.query_frame().and_then(|frame| frame.queries(&query, 0.5));
            assert_eq!(framed, None, "{name}");
        }
    }

    /// Sums in another order differ by roundings alone.
    fn assert_same(a: &ChannelQueries, b: &ChannelQueries, name: &str) {
        assert_eq!(a.codes, b.codes, "{name}");
        let close = |a: &[f32], b: &[f32]| {
            let largest = b.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest;
            assert!(a.len() == b.len() && a.iter().zip(b).all(is_close), "{name}");
        };
        close(&a.queries, &b.queries);
        // A sum is looked at where tokens have a zero.
        let has_zero = matches!(a.codes, ChannelCodes::Bytes { tail: Tail::ScaleZero });
        let seen = |all: &ChannelQueries| -> Vec<f32> {
            let of = |[offset, sum, bias, _]: &[f32; 4]| {
                [*offset, if has_zero { *sum } else { 0.0 }, *bias]
            };
            all.finals.iter().flat_map(of).collect()
        };
        close(&seen(a), &seen(b));
    }
}
