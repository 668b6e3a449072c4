//! Axes: from values to places, and which numbers are written along them.

use super::text::short;

/// Numbers along an axis at most.
const MAX_TICKS: usize = 7;

/// An axis that all values fit on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// What it shows, with the unit.
    pub(super) title: String,
    /// Numbers along it: the place from 0 to 1, and the text.
    pub(super) ticks: Vec<(f64, String)>,
    is_log: bool,
    low: f64,
    high: f64,
}

/// Where the numbers of a logarithmic axis are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ladder {
    /// 1, 10, 100, with 2 and 5 between where there are few.
    Tens,
    /// This times powers of two.
    Doublings(f64),
}

impl Axis {
    /// An even axis from 0 or below; none where no value is finite.
    pub(super) fn even(title: &str, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (low, high) = ends(values.into_iter().filter(|x| x.is_finite()))?;
        Self::between(title, low.min(0.0), high)
    }

    /// An even axis that needs no 0; none where no value is finite.
    pub(super) fn close(title: &str, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (low, high) = ends(values.into_iter().filter(|x| x.is_finite()))?;
        Self::between(title, low, high)
    }

    fn between(title: &str, low: f64, high: f64) -> Option<Self> {
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        let rough = (high - low) / 5.0;
        let ten = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * ten).into_iter().find(|&step| step >= rough)?;
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let numbers = (0..=(last - first) as usize).map(|i| (first + i as f64) * step);
        Some(Self::with(title, false, numbers.collect(), short))
    }

    /// A logarithmic axis of the values that are above 0; none where there is none.
    pub(super) fn log(
        title: &str,
        values: impl IntoIterator<Item = f64>,
        ladder: Ladder,
        text: impl Fn(f64) -> String,
    ) -> Option<Self> {
        let (low, high) = ends(values.into_iter().filter(|x| x.is_finite() && *x > 0.0))?;
        let mut numbers: Vec<f64> = match ladder {
            Ladder::Tens => {
                let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
                let each: &[f64] = if last - first > 2 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let of_ten = |ten: i32| each.iter().map(move |m| m * 10f64.powi(ten));
                (first - 1..=last + 1).flat_map(of_ten).collect()
            }
            Ladder::Doublings(unit) => {
                let of = |x: f64| (x / unit).log2();
                let (first, last) = (of(low).floor() as i32, of(high).ceil() as i32);
                (first - 1..=last + 1).map(|power| unit * 2f64.powi(power)).collect()
            }
        };
        // A hair beyond a number is that number: sums of decimals end there.
        let first = numbers.iter().rposition(|&x| x <= low * 1.000_001)?;
        let last = numbers.iter().position(|&x| x >= high * 0.999_999)?;
        let (first, last) =
            if first < last { (first, last) } else { (last.saturating_sub(1), first + 1) };
        numbers.truncate(last + 1);
        Some(Self::with(title, true, numbers.split_off(first), text))
    }

    /// From the first of `numbers` to the last, which differ; as many are written as there is room for.
    fn with(title: &str, is_log: bool, numbers: Vec<f64>, text: impl Fn(f64) -> String) -> Self {
        let (low, high) = (numbers[0], numbers[numbers.len() - 1]);
        let mut axis = Self { title: title.to_owned(), ticks: vec![], is_log, low, high };
        let every = numbers.len().div_ceil(MAX_TICKS);
        axis.ticks = numbers.iter().step_by(every).map(|&x| (axis.place(x), text(x))).collect();
        axis
    }

    /// Where on the axis a value is, from 0 to 1; what is off it is at the nearer end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let of = |x: f64| if self.is_log { x.ln() } else { x };
        let place = if self.is_log && value <= 0.0 {
            0.0
        } else {
            (of(value) - of(self.low)) / (of(self.high) - of(self.low))
        };
        if place.is_nan() { 0.0 } else { place.clamp(0.0, 1.0) }
    }
}

/// The least and the largest; none of nothing.
fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, x| match ends {
        None => Some((x, x)),
        Some((low, high)) => Some((low.min(x), high.max(x))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn numbers_are_round_and_hold_all_values() {
        let axis = Axis::even("", [3.0, 47.0]).unwrap();
        assert_eq!(texts(&axis), ["0", "10", "20", "30", "40", "50"]);
        assert!((axis.place(25.0) - 0.5).abs() < 1e-12);
        let axis = Axis::log("", [0.0003, 0.4, 0.0], Ladder::Tens, short).unwrap();
        assert_eq!(texts(&axis), ["1e-4", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(axis.place(0.0), 0.0, "what a logarithm cannot show is at the bottom");
        let axis = Axis::log("", [12.5, 100.0], Ladder::Doublings(100.0), short).unwrap();
        assert_eq!(texts(&axis), ["12.5", "25", "50", "100"]);
        assert!((axis.place(50.0) - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn one_value_and_odd_ones_have_an_axis_or_none() {
        for value in [0.0, -2.0, 5e-300, 1e300] {
            let axis = Axis::close("", [value]).unwrap();
            assert!(axis.low <= value && value <= axis.high && axis.low < axis.high, "{axis:?}");
            assert!((2..=MAX_TICKS).contains(&axis.ticks.len()), "{axis:?}");
        }
        let axis = Axis::log("", [0.01], Ladder::Tens, short).unwrap();
        assert!(axis.low < 0.01 && 0.01 < axis.high);
        assert_eq!(Axis::even("", [f64::NAN, f64::INFINITY]), None);
        assert_eq!(Axis::log("", [0.0, -1.0], Ladder::Tens, short), None);
        let wide = Axis::log("", [1e-300, 1e300], Ladder::Tens, short).unwrap();
        assert!(wide.ticks.len() <= MAX_TICKS);
    }
}
