//! How far a ratio of medians can be trusted: the percentile bootstrap (Efron, "Bootstrap methods: another look
//! at the jackknife", Annals of Statistics 7, 1979).

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::samples::Samples;

/// Times that samples are drawn anew.
const RESAMPLES: usize = 2000;

/// Share of the draws that lies outside of the interval, half of it on each side.
const OUTSIDE: f64 = 0.05;

/// Same samples, same interval.
const SEED: u64 = 0xB007;

/// A ratio and the 95 % interval around it; all NaN where there was nothing to draw from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// `new` over `old`, samples of two runs: the ratio of their medians, both drawn anew.
pub(crate) fn of_medians(new: &[f64], old: &[f64]) -> Ratio {
    let ratio = |new: &[f64], old: &[f64]| median(new) / median(old);
    let mut rng = StdRng::seed_from_u64(SEED);
    let draws = (0..RESAMPLES).map(|_| ratio(&drawn(new, &mut rng), &drawn(old, &mut rng)));
    around(ratio(new, old), draws.collect())
}

/// `new` over `old`, of which the i-th samples were taken beside each other: the median of their ratios, the pairs
/// drawn anew.
pub(crate) fn of_pairs(new: &[f64], old: &[f64]) -> Ratio {
    let ratios: Vec<f64> = new.iter().zip(old).map(|(new, old)| new / old).collect();
    let mut rng = StdRng::seed_from_u64(SEED);
    let draws = (0..RESAMPLES).map(|_| median(&drawn(&ratios, &mut rng)));
    around(median(&ratios), draws.collect())
}

fn around(median: f64, mut draws: Vec<f64>) -> Ratio {
    draws.sort_by(f64::total_cmp);
    let outside = (0.5 * OUTSIDE * draws.len() as f64) as usize;
    Ratio { median, low: draws[outside], high: draws[draws.len() - 1 - outside] }
}

fn drawn(samples: &[f64], rng: &mut StdRng) -> Vec<f64> {
    samples.iter().map(|_| samples[rng.random_range(0..samples.len())]).collect()
}

fn median(samples: &[f64]) -> f64 {
    samples.iter().copied().collect::<Samples>().median()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Around 100, with noise of a few percent.
    fn noisy(factor: f64) -> Vec<f64> {
        [97.0, 104.0, 100.0, 99.0, 103.0, 101.0, 98.0].map(|x| factor * x).to_vec()
    }

    #[test]
    fn the_interval_holds_the_ratio_and_no_more_than_the_noise() {
        let same = of_medians(&noisy(1.0), &noisy(1.0));
        assert!(same.low < 1.0 && same.high > 1.0 && same.median == 1.0, "{same:?}");
        assert!(same.low > 0.9 && same.high < 1.1, "{same:?}");
        let slower = of_medians(&noisy(1.3), &noisy(1.0));
        assert!(slower.low > 1.15 && (slower.median - 1.3).abs() < 1e-12, "{slower:?}");
    }

    #[test]
    fn pairs_see_what_drift_hides() {
        // The machine slows down to a third during the run, and one is a tenth slower than the other all along.
        let old: Vec<f64> = (0..9).map(|i| 100.0 + 25.0 * f64::from(i)).collect();
        let new: Vec<f64> = old.iter().map(|x| 1.1 * x).collect();
        let pairs = of_pairs(&new, &old);
        assert!(pairs.low > 1.099 && pairs.high < 1.101, "{pairs:?}");
        assert!(of_medians(&new, &old).low < 1.0);
    }

    #[test]
    fn nothing_gives_no_ratio_and_one_pair_no_width() {
        assert!(of_pairs(&[], &[]).low.is_nan() && of_medians(&[], &[1.0]).median.is_nan());
        assert_eq!(of_pairs(&[3.0], &[2.0]), Ratio { median: 1.5, low: 1.5, high: 1.5 });
    }
}
