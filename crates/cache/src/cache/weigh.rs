//! Softmax weights of a step over what the heads of a layer hold, for a policy to look at.

use heterokv_attn::simd::exp_weights;
use heterokv_quant::Level;
use rayon::prelude::*;

/// Tokens that one thread weighs at a time.
const PART_TOKENS: usize = 1 << 14;

/// The scores of the tokens that a KV head holds, as they lie.
pub(super) struct HeldScores<'a> {
    group_size: usize,
    /// In the order of the tokens' positions.
    pieces: Vec<Piece<'a>>,
}

/// Scores of neighbouring tokens.
struct Piece<'a> {
    /// `[group_size, stride]`, of which the tokens are those from `first` on.
    scores: &'a [f32],
    stride: usize,
    first: usize,
    len: usize,
}

impl<'a> HeldScores<'a> {
    /// Of exact rows as tasks have them, each `[group_size, rows]`, with those of coded keys
    /// `[group_size, num_coded]` between the first `num_resident` rows and the others.
    pub(super) fn new(
        group_size: usize,
        num_resident: usize,
        exact: impl Iterator<Item = &'a [f32]>,
        coded: &'a [f32],
    ) -> Self {
        let piece = |scores: &'a [f32], first: usize, end: usize| Piece {
            scores,
            stride: scores.len() / group_size,
            first,
            len: end - first,
        };
        let (mut pieces, mut window) = (Vec::new(), Vec::new());
        let mut left = num_resident;
        for scores in exact {
            let num_rows = scores.len() / group_size;
            let resident = left.min(num_rows);
            left -= resident;
            pieces.push(piece(scores, 0, resident));
            window.push(piece(scores, resident, num_rows));
        }
        pieces.push(piece(coded, 0, coded.len() / group_size));
        pieces.extend(window);
        pieces.retain(|piece| piece.len > 0);
        Self { group_size, pieces }
    }

    fn num_tokens(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// Copies the scores of the tokens from `first` on for one query head.
    fn copy_to(&self, query_head: usize, first: usize, mut scores: &mut [f32]) {
        let mut skipped = first;
        for piece in &self.pieces {
            if skipped >= piece.len {
                skipped -= piece.len;
                continue;
            }
            let row = &piece.scores[query_head * piece.stride + piece.first..][..piece.len];
            let row = &row[skipped..];
            skipped = 0;
            let (part, rest) = scores.split_at_mut(row.len().min(scores.len()));
            part.copy_from_slice(&row[..part.len()]);
            if rest.is_empty() {
                return;
            }
            scores = rest;
        }
    }
}

/// Fills `weights [num_kv_heads][group_size, num_held]` with the softmax weights of scores under
/// the log-sum-exp of each query head, `lse [num_kv_heads][group_size]`; nothing for a head whose
/// scores are not there.
pub(super) fn weigh_held(
    level: Level,
    heads: &[Option<HeldScores<'_>>],
    lse: &[&[f32]],
    weights: &mut [Vec<f32>],
) {
    let mut parts = Vec::new();
    for ((head, lse), weights) in heads.iter().zip(lse).zip(weights) {
        let Some(head) = head else {
            weights.clear();
            continue;
        };
        let num_tokens = head.num_tokens();
        weights.resize(head.group_size * num_tokens, 0.0);
        let rows = weights.chunks_exact_mut(num_tokens.max(1)).zip(*lse).enumerate();
        for (query_head, (row, &lse)) in rows {
            let of_row = row.chunks_mut(PART_TOKENS).enumerate();
            parts.extend(of_row.map(|(part, weights)| (head, query_head, part, lse, weights)));
        }
    }
    parts.into_par_iter().for_each(|(head, query_head, part, lse, weights)| {
        head.copy_to(query_head, part * PART_TOKENS, weights);
        let _ = exp_weights(level, weights, lse);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_in_the_order_of_positions() {
        // Two query heads. Five rows stay, then come three coded ones, then the rest of the second
        // task and the third.
        let score = |token: usize, head: usize| -((token + 100 * head) as f32) / 16.0;
        let exact = |tokens: std::ops::Range<usize>, end_of_first: usize| -> Vec<f32> {
            let position = move |row: usize| if row < end_of_first { row } else { row + 3 };
            (0..2)
                .flat_map(|head| tokens.clone().map(move |row| score(position(row), head)))
                .collect()
        };
        let tasks = [exact(0..4, 5), exact(4..9, 5), exact(9..11, 5)];
        let coded: Vec<f32> =
            (0..2).flat_map(|head| (5..8).map(move |token| score(token, head))).collect();
        let held = || HeldScores::new(2, 5, tasks.iter().map(Vec::as_slice), &coded);
        let lse = [&[0.5, -1.0][..], &[0.0, 0.0]];
        let mut weights = vec![vec![7.0; 3]; 2];
        weigh_held(Level::detect(), &[Some(held()), None], &lse, &mut weights);
        assert!(weights[1].is_empty(), "no scores, no weights");
        assert_eq!(weights[0].len(), 2 * 14);
        for (i, weight) in weights[0].iter().enumerate() {
            let expected = (score(i % 14, i / 14) - lse[0][i / 14]).exp();
            assert!((weight / expected - 1.0).abs() < 1e-6, "{i}: {weight} and {expected}");
        }
        let mut part = [0.0; 6];
        held().copy_to(1, 3, &mut part);
        assert_eq!(part, std::array::from_fn(|i| score(3 + i, 1)), "across three pieces");
    }

    #[test]
    fn long_rows_are_weighed_in_parts() {
        let len = PART_TOKENS + 9;
        let scores: Vec<f32> = (0..len).map(|token| -((token % 50) as f32)).collect();
        let held = HeldScores::new(1, len, scores.chunks(4000), &[]);
        let mut weights = vec![Vec::new()];
        weigh_held(Level::detect(), &[Some(held)], &[&[2.0]], &mut weights);
        let expected: Vec<f32> = scores.iter().map(|score| (score - 2.0).exp()).collect();
        let is_near = |(x, e): (&f32, &f32)| (x / e - 1.0).abs() < 1e-6;
        assert!(weights[0].iter().zip(&expected).all(is_near) && weights[0].len() == len);
    }
}
