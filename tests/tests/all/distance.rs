//! How far apart two rows of numbers are, and the lines on which it is printed.

/// The largest |a − b|; NaN where either holds one, so that no comparison with a bar can pass.
#[track_caller]
pub(crate) fn max_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "rows of one length");
    assert!(!a.is_empty(), "nothing to compare");
    let distances = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    // `f64::max` would drop a NaN.
    let further = |worst: f64, x: f64| if worst.is_nan() || x <= worst { worst } else { x };
    distances.fold(0.0, further)
}

/// The bits of a row: equal only where every number is the same, NaN included.
pub(crate) fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// The index of the highest value, the lowest of equals.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut top = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[top] {
            top = i;
        }
    }
    top as u32
}

/// Measured numbers beside their bars: every one is printed, and all that missed are told at the end.
#[derive(Debug, Default)]
pub(crate) struct Bars {
    missed: Vec<String>,
    num_held: usize,
}

impl Bars {
    /// `value` must be at most `bar`.
    pub(crate) fn at_most(&mut self, what: &str, value: f64, bar: f64) {
        self.hold(what, value, "<=", bar, value <= bar);
    }

    /// `value` must be at least `bar`.
    pub(crate) fn at_least(&mut self, what: &str, value: f64, bar: f64) {
        self.hold(what, value, ">=", bar, value >= bar);
    }

    fn hold(&mut self, what: &str, value: f64, relation: &str, bar: f64, is_held: bool) {
        let verdict = if is_held { "ok" } else { "MISSED" };
        let line = format!("{what:<52} {value:>11.6} {relation} {bar:<9.6} {verdict}");
        println!("{line}");
        self.num_held += usize::from(is_held);
        if !is_held {
            self.missed.push(line);
        }
    }

    /// Fails if anything missed its bar, or if nothing was measured.
    #[track_caller]
    pub(crate) fn finish(self) {
        assert!(self.missed.is_empty(), "missed bars:\n{}", self.missed.join("\n"));
        assert!(self.num_held > 0, "nothing was measured");
    }
}

#[test]
fn a_nan_stays_a_nan_and_misses_every_bar() {
    assert_eq!(max_distance(&[1.0, -2.0], &[1.5, -2.0]), 0.5);
    assert!(max_distance(&[f32::NAN, 1.0], &[0.0, 1.0]).is_nan());
    let mut bars = Bars::default();
    bars.at_most("nan", f64::NAN, 1.0);
    bars.at_least("nan", f64::NAN, 1.0);
    assert_eq!((bars.missed.len(), bars.num_held), (2, 0));
}
