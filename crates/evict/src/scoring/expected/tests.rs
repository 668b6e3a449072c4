//! Expected attention against its definition: whole matrices, one entry at a time.

use super::*;
use crate::keep_best;

const HEAD_DIM: usize = 6;
const ANGLES: [f32; 3] = [1.0, 0.21, 0.013];

/// Numbers between −1 and 1 that a seed gives.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    std::iter::repeat_with(number).take(count).collect()
}

/// The matrix that turns a row to a position, times a factor: `[head_dim][head_dim]`.
fn turning(position: usize, factor: f64) -> Vec<Vec<f64>> {
    let mut matrix = vec![vec![0.0; HEAD_DIM]; HEAD_DIM];
    for (pair, &angle) in ANGLES.iter().enumerate() {
        let (sin, cos) = (position as f64 * f64::from(angle)).sin_cos();
        let other = pair + HEAD_DIM / 2;
        (matrix[pair][pair], matrix[other][other]) = (cos * factor, cos * factor);
        (matrix[pair][other], matrix[other][pair]) = (-sin * factor, sin * factor);
    }
    matrix
}

fn times(matrix: &[Vec<f64>], row: &[f64]) -> Vec<f64> {
    matrix.iter().map(|line| line.iter().zip(row).map(|(a, b)| a * b).sum()).collect()
}

struct Case {
    factor: f64,
    sinks: usize,
    num_future: usize,
    /// Pre-RoPE queries `[head][position][head_dim]`.
    queries: Vec<Vec<Vec<f64>>>,
    /// `[position][head_dim]`.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Case {
    fn new(factor: f64, sinks: usize, num_tokens: usize, group_size: usize) -> Self {
        let rows = |seed, scale: f64, offset: f64| -> Vec<Vec<f64>> {
            let numbers = numbers(seed, num_tokens * HEAD_DIM);
            let scaled: Vec<f64> = numbers.iter().map(|x| x * scale + offset).collect();
            scaled.chunks(HEAD_DIM).map(<[f64]>::to_vec).collect()
        };
        Self {
            factor,
            sinks,
            num_future: 9,
            queries: (0..group_size).map(|head| rows(head as u64 + 1, 2.0, 0.5)).collect(),
            keys: rows(100, 3.0, 0.0),
            values: rows(200, 1.0, 0.0),
        }
    }

    fn expected_queries(&self) -> ExpectedQueries {
        let turns =
            RotaryTurns { inverse_frequencies: &ANGLES, attention_factor: self.factor as f32 };
        let mut queries =
            ExpectedQueries::new(turns, self.queries.len(), self.sinks, self.num_future).unwrap();
        for (head, rows) in self.queries.iter().enumerate() {
            for (position, row) in rows.iter().enumerate() {
                let turned = times(&turning(position, self.factor), row);
                let turned: Vec<f32> = turned.iter().map(|&x| x as f32).collect();
                queries.add(head, position, &turned).unwrap();
            }
        }
        queries
    }

    fn scores(&self) -> Vec<f32> {
        let flat =
            |rows: &[Vec<f64>]| -> Vec<f32> { rows.concat().iter().map(|&x| x as f32).collect() };
        let (keys, values) = (flat(&self.keys), flat(&self.values));
        self.expected_queries().scores(&keys, &values, self.keys.len()).unwrap()
    }

    /// The score of each token behind the sinks.
    fn by_definition(&self) -> Vec<f64> {
        let d = HEAD_DIM as f64;
        let num_tokens = self.keys.len();
        let mut average = vec![vec![0.0; HEAD_DIM]; HEAD_DIM];
        for position in num_tokens..num_tokens + self.num_future {
            let matrix = turning(position, self.factor);
            for (sum, x) in average.iter_mut().flatten().zip(matrix.iter().flatten()) {
                *sum += x / self.num_future as f64;
            }
        }
        let mut scores = vec![0.0; num_tokens - self.sinks];
        for rows in &self.queries {
            let rows = &rows[self.sinks..];
            let count = rows.len() as f64;
            let mean: Vec<f64> =
                (0..HEAD_DIM).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / count).collect();
            let covariance = |i: usize, j: usize| {
                rows.iter().map(|row| (row[i] - mean[i]) * (row[j] - mean[j])).sum::<f64>() / count
            };
            let turned = times(&average, &mean);
            let logit = |key: &Vec<f64>| {
                let first: f64 = turned.iter().zip(key).map(|(m, k)| m * k).sum();
                let mut second = 0.0;
                for (i, j) in (0..HEAD_DIM).flat_map(|i| (0..HEAD_DIM).map(move |j| (i, j))) {
                    for (a, b) in (0..HEAD_DIM).flat_map(|a| (0..HEAD_DIM).map(move |b| (a, b))) {
                        second +=
                            key[i] * average[i][a] * covariance(a, b) * average[j][b] * key[j];
                    }
                }
                first / d.sqrt() + second / d / 2.0
            };
            let terms: Vec<f64> =
                self.keys[self.sinks..].iter().map(|key| logit(key).exp()).collect();
            let sum: f64 = terms.iter().sum();
            for (score, term) in scores.iter_mut().zip(terms) {
                *score += term / sum / self.queries.len() as f64;
            }
        }
        let norm = |row: &Vec<f64>| row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let values = self.values[self.sinks..].iter().map(norm);
        scores.iter().zip(values).map(|(score, norm)| score * norm).collect()
    }
}

#[track_caller]
fn worst(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let error = |(&a, &b): (&f32, &f64)| (f64::from(a) / b - 1.0).abs();
    actual.iter().zip(expected).map(error).fold(0.0, f64::max)
}

#[test]
fn scores_are_the_definition() {
    for (factor, sinks, num_tokens, group_size) in
        [(1.0, 0, 12, 1), (1.0, 4, 15, 3), (1.3, 2, 40, 2), (1.0, 3, 5, 1)]
    {
        let case = Case::new(factor, sinks, num_tokens, group_size);
        let scores = case.scores();
        assert!(scores[..sinks].iter().all(|&score| score == f32::INFINITY));
        let worst = worst(&scores[sinks..], &case.by_definition());
        assert!(worst < 1e-5, "factor {factor}, {sinks} sinks: {worst}");
        let kept = keep_best(&scores, sinks + 1, 0, 0).unwrap();
        assert!((0..sinks as u32).all(|sink| kept.contains(&sink)), "sinks stay by their scores");
    }
}

/// The negative control: each part of the definition matters.
#[test]
fn what_differs_is_seen() {
    let case = Case::new(1.3, 2, 40, 2);
    let expected = case.by_definition();
    let changed = [
        Case { factor: 1.31, ..Case::new(1.31, 2, 40, 2) },
        Case { num_future: 10, ..Case::new(1.3, 2, 40, 2) },
        Case { queries: case.queries[..1].to_vec(), ..Case::new(1.3, 2, 40, 2) },
        Case { values: case.keys.clone(), ..Case::new(1.3, 2, 40, 2) },
    ];
    for (which, changed) in changed.iter().enumerate() {
        let worst = worst(&changed.scores()[2..], &expected);
        assert!(worst > 1e-3, "change {which} went unseen: {worst}");
    }
}

#[test]
fn few_tokens_are_all_sinks() {
    let case = Case::new(1.0, 2, 9, 1);
    let queries = case.expected_queries();
    assert_eq!(queries.scores(&[1.0; 6], &[1.0; 6], 9), Ok(vec![f32::INFINITY]));
    assert_eq!(queries.scores(&[], &[], 9), Ok(vec![]));
}

#[test]
fn bad_input_is_refused_by_name() {
    let turns = RotaryTurns { inverse_frequencies: &ANGLES, attention_factor: 1.0 };
    let new =
        |turns, group_size, num_future| ExpectedQueries::new(turns, group_size, 4, num_future);
    assert!(matches!(new(turns, 0, 1), Err(Error::Zero { .. })));
    assert!(matches!(new(turns, 1, 0), Err(Error::Zero { .. })));
    let none = RotaryTurns { inverse_frequencies: &[], ..turns };
    assert!(matches!(new(none, 1, 1), Err(Error::Zero { .. })));
    let wild = RotaryTurns { inverse_frequencies: &[f32::NAN], ..turns };
    assert!(matches!(new(wild, 1, 1), Err(Error::Range { .. })));
    for attention_factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let turns = RotaryTurns { attention_factor, ..turns };
        assert!(matches!(new(turns, 1, 1), Err(Error::Range { .. })));
    }
    let mut queries = new(turns, 2, 1).unwrap();
    let query = [0.5; HEAD_DIM];
    assert!(matches!(queries.add(2, 5, &query), Err(Error::Index { .. })));
    assert!(matches!(queries.add(0, 5, &query[1..]), Err(Error::Length { .. })));
    queries.add(0, 5, &query).unwrap();
    queries.add(1, 3, &query).unwrap();
    let scores = |queries: &ExpectedQueries, keys, values| {
        queries.scores(&vec![1.0; keys], &vec![1.0; values], 6)
    };
    assert_eq!(scores(&queries, 6, 6), Err(Error::NoQueries { sinks: 4 }), "only a sink's query");
    queries.add(1, 4, &query).unwrap();
    assert!(scores(&queries, 36, 36).is_ok());
    assert!(matches!(scores(&queries, 36, 30), Err(Error::Length { .. })));
    assert!(matches!(scores(&queries, 35, 35), Err(Error::Rows { .. })));
}

#[test]
fn expected_scores_are_their_numbers() {
    let case = Case::new(1.0, 4, 40, 2);
    let flat =
        |rows: &[Vec<f64>]| -> Vec<f32> { rows.concat().iter().map(|&x| x as f32).collect() };
    let (keys, values) = (flat(&case.keys), flat(&case.values));
    let (expected, _) = case.expected_queries().expect(&keys, &values, 40).unwrap();
    let mut numbers: Vec<f64> = expected.numbers().collect();
    assert_eq!(numbers.len(), ExpectedScores::num_numbers(2, HEAD_DIM));
    assert_eq!(expected.num_bytes(), 8 * numbers.len());
    let score = |of: &ExpectedScores| of.score(&keys[..HEAD_DIM], &values[..HEAD_DIM]).unwrap();
    let same = ExpectedScores::from_numbers(HEAD_DIM, &numbers).unwrap();
    assert_eq!(score(&same).to_bits(), score(&expected).to_bits());
    assert!(matches!(ExpectedScores::from_numbers(0, &numbers), Err(Error::Zero { .. })));
    let cut = ExpectedScores::from_numbers(HEAD_DIM, &numbers[1..]);
    assert!(matches!(cut, Err(Error::Length { .. })));
    numbers[0] += 1.0;
    let other = ExpectedScores::from_numbers(HEAD_DIM, &numbers).unwrap();
    assert_ne!(score(&other), score(&expected));
}
