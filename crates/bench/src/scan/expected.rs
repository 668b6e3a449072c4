//! What the scores of a scan must be: the decoded keys times the queries, in f64.

use anyhow::{Context, Result, ensure};
use heterokv_testkit::{Tolerance, compare};

use super::{PERIOD_TOKENS, ScanTask};

/// The right scores of a task, and how far from them is still right.
#[derive(Debug)]
pub struct Expected {
    /// `[num_heads, PERIOD_TOKENS]`.
    scores: Vec<f64>,
    tolerance: Tolerance,
}

impl Expected {
    /// The scores of keys `decoded [PERIOD_TOKENS, head_dim]`, over and over. Allowed are the roundings of
    /// f32 sums of products.
    #[must_use]
    pub fn new(task: &ScanTask<'_>, decoded: &[f32]) -> Self {
        let head_dim = task.keys.head_dim;
        let sm_scale = f64::from(task.keys.sm_scale());
        let scores = task.queries.chunks_exact(head_dim).flat_map(|query| {
            decoded.chunks_exact(head_dim).map(move |key| sm_scale * dot(query, key))
        });
        // One rounding per product and sum, by Cauchy and Schwarz: of the key itself and of what is added
        // to it as zero, centre or offset of the codes, which is below eight times its largest element.
        let roundings = head_dim as f64 * f64::from(f32::EPSILON) / 2.0;
        let offset = 8.0 * decoded.iter().map(|&x| f64::from(x).abs()).fold(0.0, f64::max);
        let keys = largest_norm(decoded, head_dim) + offset * (head_dim as f64).sqrt();
        let absolute = roundings * sm_scale * largest_norm(task.queries, head_dim) * keys;
        Self { scores: scores.collect(), tolerance: Tolerance { absolute, relative: 0.0 } }
    }

    /// Allows scores to be further from right by `distance`.
    #[must_use]
    pub fn allowing(mut self, distance: f64) -> Self {
        self.tolerance.absolute += distance;
        self
    }

    /// Compares `scores [num_heads, n]` of tokens that begin at `position` in the stream.
    ///
    /// # Errors
    /// A score that is wrong, and scores of no tokens.
    pub fn check(&self, name: &str, scores: &[f32], position: usize) -> Result<()> {
        let num_heads = self.scores.len() / PERIOD_TOKENS;
        let num_tokens = scores.len() / num_heads;
        ensure!(num_tokens > 0, "{name}: no scores");
        let heads = scores.chunks_exact(num_tokens).zip(self.scores.chunks_exact(PERIOD_TOKENS));
        for (head, (scores, expected)) in heads.enumerate() {
            let stream = expected.iter().cycle().skip(position % PERIOD_TOKENS);
            let stream: Vec<f64> = stream.take(num_tokens).copied().collect();
            compare(scores, &stream, self.tolerance).with_context(|| {
                format!("{name}: scores of head {head} from token {position} on")
            })?;
        }
        Ok(())
    }

    /// Compares the largest scores `[num_heads]` of a stream of `num_tokens` tokens.
    ///
    /// # Errors
    /// One that is wrong.
    pub fn check_maxima(&self, name: &str, maxima: &[f32], num_tokens: usize) -> Result<()> {
        let different = num_tokens.min(PERIOD_TOKENS);
        let largest = |scores: &[f64]| scores[..different].iter().copied().fold(f64::MIN, f64::max);
        let expected: Vec<f64> = self.scores.chunks_exact(PERIOD_TOKENS).map(largest).collect();
        compare(maxima, &expected, self.tolerance)
            .with_context(|| format!("{name}: the largest score of each head"))?;
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The largest Euclidean norm of `rows [n, head_dim]`.
fn largest_norm(rows: &[f32], head_dim: usize) -> f64 {
    rows.chunks_exact(head_dim).map(|row| dot(row, row).sqrt()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use heterokv_quant::Level;
    use heterokv_testkit::Controls;

    use super::*;
    use crate::scan::{Arithmetic, ScanKeys};

    #[test]
    fn right_scores_pass_anywhere_in_the_stream_and_wrong_ones_do_not() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        let keys = ScanKeys::new(64);
        let task = ScanTask {
            keys: &keys,
            queries: keys.queries(3).expect("there are three"),
            arithmetic: Arithmetic::Exact,
            num_bytes: 0,
            level: Level::SCALAR,
            pool: &pool,
        };
        let expected = Expected::new(&task, &keys.keys);
        let position = 3 * PERIOD_TOKENS - 100;
        let scores: Vec<f32> = task
            .queries
            .chunks(64)
            .flat_map(|q| {
                let token = |i: usize| &keys.keys[(position + i) % PERIOD_TOKENS * 64..][..64];
                (0..300).map(move |i| (0.125 * dot(q, token(i))) as f32)
            })
            .collect();
        expected.check("right", &scores, position).expect("they are right");
        assert!(expected.check("shifted", &scores, position + 1).is_err());
        assert!(expected.check("none", &[], 0).is_err());
        let tried = Controls { num_heads: 3, head_dim: 300 }
            .assert_rejects(&scores, |scores| expected.check("wrong", scores, position));
        assert!(tried.len() >= 7, "{tried:?}");
        let largest = |row: &[f64]| row.iter().copied().fold(f64::MIN, f64::max) as f32;
        let mut maxima: Vec<f32> = expected.scores.chunks(PERIOD_TOKENS).map(largest).collect();
        expected.check_maxima("right", &maxima, PERIOD_TOKENS).expect("they are right");
        maxima[2] *= 1.001;
        assert!(expected.check_maxima("wrong", &maxima, PERIOD_TOKENS).is_err());
    }
}
