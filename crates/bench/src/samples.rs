//! Repeated measurements of one quantity and what is said of them.

/// At least one measurement, in the order taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = f64> {
        self.0.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle of the sorted samples, the mean of the two middle ones of an even number; NaN of none.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted.len().wrapping_sub(1) / 2, sorted.len() / 2);
        match (sorted.get(low), sorted.get(high)) {
            (Some(low), Some(high)) => 0.5 * (low + high),
            _ => f64::NAN,
        }
    }

    /// Median absolute deviation from the median, not scaled; NaN of none.
    pub(crate) fn mad(&self) -> f64 {
        let median = self.median();
        self.iter().map(|x| (x - median).abs()).collect::<Self>().median()
    }

    /// All of them, in the order taken.
    pub(crate) fn as_slice(&self) -> &[f64] {
        &self.0
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Standard deviation; 0 of a single sample.
    pub(crate) fn deviation(&self) -> f64 {
        let mean = self.0.iter().sum::<f64>() / self.0.len() as f64;
        let squares: f64 = self.0.iter().map(|x| (x - mean).powi(2)).sum();
        (squares / (self.0.len() as f64 - 1.0).max(1.0)).sqrt()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_those_of_the_samples() {
        let odd: Samples = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!((odd.median(), odd.min(), odd.max(), odd.deviation()), (2.0, 1.0, 3.0, 1.0));
        let even: Samples = [4.0, 1.0, 2.0, 3.0].into_iter().collect();
        assert_eq!(even.median(), 2.5);
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!((one.median(), one.deviation(), one.len()), (7.0, 0.0, 1));
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn the_median_absolute_deviation_ignores_one_outlier() {
        let samples: Samples = [1.0, 2.0, 3.0, 4.0, 1000.0].into_iter().collect();
        assert_eq!(samples.mad(), 1.0);
        let same: Samples = [2.0; 4].into_iter().collect();
        assert_eq!(same.mad(), 0.0);
        assert!(Samples::default().mad().is_nan());
    }
}
