//! Queries as tables in f32, for kernels that score planes of nibbles and know no format.

use super::{KeyCoder, PLANE_BYTES, Precision, PreparedQueries, STRIP, Tail};

/// What the nibbles of a coder's planes come to under some queries.
///
/// A block of the coder's codes is a strip of 32 tokens: [`num_planes`](Self::num_planes) planes of 16 bytes, then the
/// [`tail`](Self::tail)s of its tokens. The score of a token under head h is
///
/// ```text
/// scale · (offset[h] + Σ over planes p of tables[h, p, nibble of the token in p]) + zero · sum[h] + bias[h]
/// ```
///
/// with the scale and zero of the token's tail; `sm_scale` is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlaneTables {
    /// Planes of a strip.
    pub num_planes: usize,
    /// What follows them.
    pub tail: Tail,
    /// `[num_heads, num_planes, 16]`, f32.
    pub tables: Vec<f32>,
    /// Offset, sum, bias and 0 of each head `[num_heads]`.
    pub finals: Vec<[f32; 4]>,
}

impl KeyCoder {
    /// The tables of `queries [num_heads, head_dim]`, post-RoPE; none where this coder's codes do not lie in planes
    /// alone. A query that is not finite gives tables that are not.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    #[must_use]
    pub fn plane_tables(&self, queries: &[f32], sm_scale: f32) -> Option<PlaneTables> {
        if self.layout.block_tokens != STRIP {
            return None;
        }
        let mut prepared =
            PreparedQueries { plane_tables: Some(Vec::new()), ..PreparedQueries::default() };
        self.prepare(queries, sm_scale, Precision::Exact, &mut prepared);
        let num_heads = prepared.num_heads;
        let tables = prepared.plane_tables.take().filter(|tables| !tables.is_empty())?;
        let num_planes = tables.len() / (16 * num_heads);
        let tail_bytes = (self.layout.block_bytes - num_planes * PLANE_BYTES) / STRIP;
        let tails = [Tail::None, Tail::Exponent, Tail::Scale, Tail::ScaleZero];
        let tail = tails.into_iter().find(|tail| tail.bytes() == tail_bytes)?;
        let finals = (0..num_heads).map(|head| prepared.finals(head)).collect();
        Some(PlaneTables { num_planes, tail, tables, finals })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FitInput, KeyFormat, Level};

    /// The formula of the tables, on the decoder's own nibbles, is the product of the query with the decoded key.
    #[test]
    fn tables_score_what_the_decoder_decodes() {
        const HEAD_DIM: usize = 64;
        const TOKENS: usize = 512;
        let keys: Vec<f32> = (0..TOKENS * HEAD_DIM)
            .map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % HEAD_DIM) as f32 / 16.0))
            .collect();
        let level = Level::detect();
        let energy = [1.0; HEAD_DIM];
        let input =
            FitInput { head_dim: HEAD_DIM, keys: &keys, query_energy: &energy, seed: 0, level };
        let queries: Vec<f32> = (0..2 * HEAD_DIM).map(|i| (i as f32 * 1.7).cos()).collect();
        let (mut num_checked, mut num_framed) = (0, 0);
        for name in [
            "int4-token",
            "int2-token",
            "int6-token",
            "int3-token",
            "lm1",
            "lm2",
            "lm4",
            "lm2-plain",
            "alloc/1",
            "alloc/2.5",
            "alloc/6",
            "pq/4x16",
            "opq/4x16",
            "rot-int4-token",
        ] {
            let coder = KeyCoder::fit(name.parse().unwrap(), &input).unwrap();
            let mut codes = vec![0; coder.layout().bytes(TOKENS)];
            coder.encode(level, 0, &keys, &mut codes).unwrap();
            let mut decoded = vec![0.0; keys.len()];
            coder.decode(0, &codes, &mut decoded);
            let tables = coder.plane_tables(&queries, 0.125).unwrap_or_else(|| panic!("{name}"));
            let frame = coder.query_frame();
            assert_eq!(frame.is_some(), coder.format().has_query_frame(), "{name}");
            let num_planes = if frame.is_some() { tables.num_planes } else { 0 };
            assert_eq!(coder.format().num_planes(HEAD_DIM), num_planes, "{name}");
            if let Some(frame) = frame {
                assert_same(&frame.tables(&queries, 0.125).unwrap(), &tables, name);
                num_framed += 1;
            }
            let block = coder.layout().block_bytes;
            for token in [0, 1, 8, 17, 31, 32, 319] {
                let strip = &codes[token / STRIP * block..][..block];
                let (planes, tails) = strip.split_at(tables.num_planes * PLANE_BYTES);
                let (place, shift) = crate::keys::place_of(token % STRIP);
                let (scale, zero) = tables.tail.read(tails, token % STRIP);
                for head in 0..2 {
                    let of_head = &tables.tables[head * tables.num_planes * 16..];
                    let nibbles =
                        planes.chunks(PLANE_BYTES).map(|plane| plane[place] >> shift & 15);
                    let sum: f32 = nibbles
                        .enumerate()
                        .map(|(plane, nibble)| of_head[plane * 16 + usize::from(nibble)])
                        .sum();
                    let [offset, query_sum, bias, _] = tables.finals[head];
                    let score = scale * (offset + sum) + zero * query_sum + bias;
                    let key = &decoded[token * HEAD_DIM..][..HEAD_DIM];
                    let query = &queries[head * HEAD_DIM..][..HEAD_DIM];
                    let exact: f32 = query.iter().zip(key).map(|(q, k)| 0.125 * q * k).sum();
                    assert!((score - exact).abs() < 2e-4, "{name} {token}: {score} and {exact}");
                    num_checked += 1;
                }
            }
        }
        assert_eq!((num_checked, num_framed), (14 * 7 * 2, 12), "all but product quantization");
        for name in ["f16", "int8-token", "int4-channel/32", "lm3", "pq/4x256", "pq/4x16+x1"] {
            let format: KeyFormat = name.parse().unwrap();
            let coder = KeyCoder::fit(format, &input).unwrap();
            assert_eq!(coder.plane_tables(&queries, 0.125), None, "{name}");
            let frame = coder.query_frame();
            assert_eq!(frame.is_some(), format.has_query_frame(), "{name}");
            let has_planes = frame.is_some_and(|frame| frame.tables(&queries, 0.125).is_some());
            assert!(!has_planes && format.num_planes(HEAD_DIM) == 0, "{name}");
        }
    }

    /// Sums in another order differ by roundings alone.
    fn assert_same(a: &PlaneTables, b: &PlaneTables, name: &str) {
        assert_eq!((a.num_planes, a.tail), (b.num_planes, b.tail), "{name}");
        let close = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len(), "{name}");
            let largest = b.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest;
            assert!(a.iter().zip(b).all(is_close), "{name}");
        };
        close(&a.tables, &b.tables);
        // A sum is looked at where tokens have a zero.
        let has_zero = f32::from(a.tail == Tail::ScaleZero);
        let finals = |tables: &PlaneTables| -> Vec<f32> {
            let of = |[offset, sum, bias, _]: &[f32; 4]| [*offset, has_zero * sum, *bias];
            tables.finals.iter().flat_map(of).collect()
        };
        close(&finals(a), &finals(b));
    }
}
