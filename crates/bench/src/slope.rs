//! Step time as a straight line over what a step reads.
//!
//! The offset of the line is what every step costs, and its slope is what each further byte or token costs. A codec
//! whose time per token does not fall with its bits decodes more than it reads: it is not fused.

/// A straight line through points by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    /// Rise of y per unit of x.
    pub(crate) slope: f64,
    /// Standard error of the slope; 0 through two points, which any line goes through.
    pub(crate) slope_error: f64,
    /// y at x = 0.
    pub(crate) offset: f64,
    /// Share of the variance of y that the line explains; 1 through two points.
    pub(crate) r_squared: f64,
}

/// The line through `points`, as (x, y); none through fewer than two different x.
pub(crate) fn fit(points: &[(f64, f64)]) -> Option<Line> {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x_mean, y_mean) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        points.iter().map(|&(x, y)| of(x - x_mean, y - y_mean)).sum()
    };
    let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
    if points.len() < 2 || xx.is_nan() || xx <= 0.0 {
        return None;
    }
    let slope = xy / xx;
    let left = sum(&|x, y| (y - slope * x).powi(2));
    let slope_error = if points.len() > 2 { (left / (n - 2.0) / xx).sqrt() } else { 0.0 };
    let r_squared = if yy > 0.0 { 1.0 - left / yy } else { 1.0 };
    Some(Line { slope, slope_error, offset: y_mean - slope * x_mean, r_squared })
}

/// Whether a codec of `fewer` bits costs less per token than one of more, both with their errors: by more than both
/// errors together can explain.
pub(crate) fn falls(fewer: &Line, more: &Line) -> bool {
    more.slope - fewer.slope > fewer.slope_error.hypot(more.slope_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again_and_noise_widens_its_error() {
        let exact: Vec<(f64, f64)> =
            [1.0, 2.0, 4.0, 8.0].iter().map(|&x| (x, 3.0 + 2.5 * x)).collect();
        let line = fit(&exact).expect("four points");
        assert!((line.slope - 2.5).abs() < 1e-12 && (line.offset - 3.0).abs() < 1e-12, "{line:?}");
        assert!(line.slope_error < 1e-9 && line.r_squared > 1.0 - 1e-12, "{line:?}");
        let noisy: Vec<(f64, f64)> =
            exact.iter().enumerate().map(|(i, &(x, y))| (x, y + [2.0, -2.0][i % 2])).collect();
        let noisy = fit(&noisy).expect("four points");
        assert!(noisy.slope_error > 0.1 && noisy.r_squared < line.r_squared, "{noisy:?}");
    }

    #[test]
    fn no_line_goes_through_one_place() {
        assert_eq!(fit(&[]), None);
        assert_eq!(fit(&[(1.0, 2.0)]), None);
        assert_eq!(fit(&[(1.0, 2.0), (1.0, 3.0)]), None);
    }

    #[test]
    fn equal_slopes_and_slopes_within_their_errors_do_not_fall() {
        let line = |slope, slope_error| Line { slope, slope_error, offset: 0.0, r_squared: 1.0 };
        assert!(falls(&line(1.0, 0.1), &line(2.0, 0.1)));
        assert!(!falls(&line(2.0, 0.0), &line(2.0, 0.0)));
        assert!(!falls(&line(1.9, 0.2), &line(2.0, 0.2)));
        assert!(!falls(&line(2.0, 0.1), &line(1.0, 0.1)));
    }
}
