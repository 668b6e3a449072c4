//! How far two sets of positions are the same, and the middle of such figures.

/// |X ∩ Y| / min(|X|, |Y|) of two sets of positions, each ascending without repeats; 1 where one is
/// empty, since it lies in every other (HeteroCache, arXiv 2601.13684).
#[must_use]
pub fn overlap(x: &[u32], y: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0usize);
    while i < x.len() && j < y.len() {
        let (a, b) = (x[i], y[j]);
        shared += usize::from(a == b);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    match x.len().min(y.len()) {
        0 => 1.0,
        least => shared as f64 / least as f64,
    }
}

/// The middle one of some values, or the mean of the two that are; 0 of none. The values are sorted
/// by it.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn overlap_is_that_of_sets(
            x in prop::collection::btree_set(0u32..40, 0..30),
            y in prop::collection::btree_set(0u32..40, 0..30),
        ) {
            let [a, b] = [&x, &y].map(|set| set.iter().copied().collect::<Vec<u32>>());
            let shared = x.intersection(&y).count() as f64;
            let expected = match x.len().min(y.len()) {
                0 => 1.0,
                least => shared / least as f64,
            };
            prop_assert_eq!(overlap(&a, &b), expected);
            prop_assert_eq!(overlap(&b, &a), expected);
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [0.3]), 0.3);
        assert_eq!(median(&mut [0.9, 0.1, 0.2]), 0.2);
        assert_eq!(median(&mut [0.5, 0.0, 1.0, 0.25]), 0.375);
    }
}
