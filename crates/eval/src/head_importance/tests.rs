//! Budgets by importance: their sums, their order, and the search among them.

use proptest::prelude::*;

use super::*;

fn importance() -> HeadImportance {
    // Two layers of four heads, of which the second changes the stream three times as much.
    let heads = vec![0.1, 0.9, 0.3, 0.5, 0.2, 0.8, 0.4, 0.6];
    HeadImportance::new(4, heads, vec![0.2, 0.6]).unwrap()
}

#[test]
fn classes_are_of_equal_size_and_ordered_by_importance() {
    let weights = importance().budget_weights(&[4.0, 2.0, 1.5, 0.5], 0.0).unwrap();
    assert_eq!(weights, [0.25, 2.0, 0.75, 1.0, 0.25, 2.0, 0.75, 1.0]);
    // Where layers count as much as heads, heads of the first fall behind those of the second.
    let weights = importance().budget_weights(&[4.0, 2.0, 1.5, 0.5], 1.0).unwrap();
    assert_eq!(weights, [0.25, 1.0, 0.25, 0.75, 0.75, 2.0, 1.0, 2.0]);
    assert_eq!(importance().budget_weights(&[3.0; 4], 0.5).unwrap(), [1.0; 8]);
    assert_eq!(ranks(&[0.5, 0.1, 0.5, 0.9]), [2.5, 1.0, 2.5, 4.0]);
    let one = HeadImportance::new(1, vec![0.5], vec![0.5]).unwrap();
    assert_eq!(one.budget_weights(&[4.0, 2.0, 1.5, 0.5], 1.0).unwrap(), [1.0]);
}

proptest! {
    #[test]
    fn the_sum_is_fixed_and_the_more_important_never_has_less(
        heads in prop::collection::vec((0u32..8).prop_map(|x| f64::from(x) / 8.0), 1..50),
        mut multipliers in prop::array::uniform4(0.01f64..10.0),
        lambda in 0.0f64..2.0,
    ) {
        multipliers.sort_by(|a, b| b.total_cmp(a));
        let importance = HeadImportance::new(heads.len(), heads.clone(), vec![0.3]).unwrap();
        let weights = importance.budget_weights(&multipliers, lambda).unwrap();
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        prop_assert!((mean - 1.0).abs() < 1e-9, "{}", mean);
        for (a, b) in (0..heads.len()).flat_map(|a| (0..heads.len()).map(move |b| (a, b))) {
            prop_assert!(heads[a] <= heads[b] || weights[a] >= weights[b]);
        }
    }
}

#[test]
fn the_search_finds_what_costs_least() {
    let importance = importance();
    let grid = BudgetGrid::default();
    // What is looked for is in the grid: a loss of 0 there, and of more everywhere else.
    let wanted = importance.budget_weights(&grid.multipliers[2], 0.5).unwrap();
    let distance = |weights: &[f64]| -> f64 {
        weights.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum()
    };
    let mut asked = Vec::new();
    let mut objective = |budgets: &[Vec<f64>]| {
        asked.extend_from_slice(budgets);
        Ok(budgets.iter().map(|weights| distance(weights)).collect())
    };
    let choice = importance.search(&grid, &mut objective).unwrap();
    assert_eq!((&choice.weights, choice.multipliers), (&wanted, grid.multipliers[2]));
    assert_eq!((choice.loss, choice.lambda, choice.num_tried), (0.0, 0.5, asked.len()));
    assert_eq!(choice.equal_loss, distance(&[1.0; 8]));
    // Equal budgets come first and once, also where the grid has them, and no other comes twice.
    assert_eq!(asked[0], [1.0; 8]);
    let equals = BudgetGrid { multipliers: vec![[3.0; 4]], lambdas: vec![0.0, 1.0] };
    let mut loss_of = |budgets: &[Vec<f64>]| Ok(vec![7.0; budgets.len()]);
    assert_eq!(importance.search(&equals, &mut loss_of).unwrap().num_tried, 1);
    let repeated = |(i, weights)| asked[..i].contains(weights);
    assert!(!asked.iter().enumerate().any(repeated));
    // Of equal losses the first; and the worst is not what is found.
    let equal = importance.search(&grid, &mut loss_of).unwrap();
    assert_eq!((equal.weights, equal.multipliers), (vec![1.0; 8], [1.0; 4]));
    let mut away = |budgets: &[Vec<f64>]| Ok(budgets.iter().map(|w| -distance(w)).collect());
    assert_ne!(importance.search(&grid, &mut away).unwrap().weights, wanted);
}

#[test]
fn what_cannot_be_searched_is_an_error() {
    let (importance, grid) = (importance(), BudgetGrid::default());
    let mut last_is_none = |budgets: &[Vec<f64>]| {
        let mut losses = vec![0.0; budgets.len() - 1];
        losses.push(f64::NAN);
        Ok(losses)
    };
    let error = importance.search(&grid, &mut last_is_none);
    assert!(matches!(error, Err(Error::Budget { what: "the loss of a budget", .. })), "{error:?}");
    let error = importance.search(&grid, &mut |_| Err(Error::NoContinuation));
    assert!(matches!(error, Err(Error::NoContinuation)), "{error:?}");
    let error = importance.search(&grid, &mut |_| Ok(vec![0.0])).unwrap_err();
    assert!(error.to_string().contains("losses"), "{error}");
    for value in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        let error = importance.budget_weights(&[1.0, value, 1.0, 1.0], 0.0).unwrap_err();
        assert!(matches!(error, Error::Budget { what: "a multiplier of a budget", .. }), "{error}");
    }
    for lambda in [f64::NAN, -0.5, f64::INFINITY] {
        let error = importance.budget_weights(&[1.0; 4], lambda).unwrap_err();
        assert!(matches!(error, Error::Budget { what: "the power of layers", .. }), "{error}");
    }
    for (value, layers) in [(f64::NAN, 0.5), (-1.0, 0.5), (0.5, f64::NAN), (0.5, -1.0)] {
        let error = HeadImportance::new(2, vec![0.5, value], vec![layers]).unwrap_err();
        assert!(matches!(error, Error::Importance { layer: 0, .. }), "{error}");
    }
    assert!(matches!(HeadImportance::new(2, vec![0.5; 3], vec![0.5]), Err(Error::Cache(_))));
    assert!(matches!(HeadImportance::new(2, vec![], vec![]), Err(Error::Cache(_))));
}

#[test]
fn cosines_are_of_directions() {
    assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
    assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
    assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), 0.0);
    assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    assert_eq!(cosines(&[1.0, 0.0, 1.0, 0.0], &[1.0, 0.0, 0.0, 1.0], 2), 1.0);
    assert!(cosine(&[f32::NAN], &[1.0]).is_nan());
}
