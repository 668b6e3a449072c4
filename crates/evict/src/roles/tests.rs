//! Roles against their definition, and the laws that hold for every layer.

use proptest::prelude::*;

use super::*;

use HeadRole::{Anchor, Pivot, Volatile};

fn satellite(pivot: usize) -> HeadRole {
    HeadRole::Satellite { pivot }
}

/// A layer: stability `[h]` and symmetric similarity `[h, h]`, both of few values, so that there are ties.
#[derive(Clone, Debug)]
struct Layer {
    stability: Vec<f64>,
    similarity: Vec<f64>,
}

impl Layer {
    fn num_heads(&self) -> usize {
        self.stability.len()
    }

    fn roles(&self) -> Vec<HeadRole> {
        classify(&self.stability, &self.similarity, TAU, TAU).unwrap()
    }

    /// The layer whose head i is head `order[i]` of this one.
    fn permuted(&self, order: &[usize]) -> Self {
        let pairs = order.iter().flat_map(|&i| order.iter().map(move |&j| (i, j)));
        Self {
            stability: order.iter().map(|&i| self.stability[i]).collect(),
            similarity: pairs.map(|(i, j)| self.similarity[i * self.num_heads() + j]).collect(),
        }
    }
}

const TAU: f64 = 0.5;

fn layer() -> impl Strategy<Value = Layer> {
    (0usize..9).prop_flat_map(|n| {
        let tenths =
            |len| prop::collection::vec((0u32..=10).prop_map(|x| f64::from(x) / 10.0), len);
        (tenths(n), tenths(n * n)).prop_map(move |(stability, mut similarity)| {
            for (i, j) in (0..n).flat_map(|i| (0..i).map(move |j| (i, j))) {
                similarity[i * n + j] = similarity[j * n + i];
            }
            Layer { stability, similarity }
        })
    })
}

fn layer_and_order() -> impl Strategy<Value = (Layer, Vec<usize>)> {
    layer().prop_flat_map(|layer| {
        let order: Vec<usize> = (0..layer.num_heads()).collect();
        (Just(layer), Just(order).prop_shuffle())
    })
}

/// The definition with another tie rule: of heads with equally many neighbours the one that comes first in `order`
/// becomes a pivot. Shares nothing with `classify`.
fn by_definition(layer: &Layer, order: &[usize]) -> Vec<HeadRole> {
    let n = layer.num_heads();
    let mut left: Vec<usize> = order.to_vec();
    let mut roles: Vec<HeadRole> =
        layer.stability.iter().map(|&s| if s >= TAU { Anchor } else { Volatile }).collect();
    loop {
        let is_near = |a: usize, b: usize| a != b && layer.similarity[a * n + b] >= TAU;
        let degree = |head: usize| left.iter().filter(|&&other| is_near(head, other)).count();
        let most = left.iter().map(|&head| degree(head)).max().unwrap_or(0);
        if most == 0 {
            return roles;
        }
        let pivot = *left.iter().find(|&&head| degree(head) == most).unwrap();
        roles[pivot] = Pivot;
        left.retain(|&head| head != pivot);
        let (near, far) = left.iter().copied().partition(|&head| is_near(pivot, head));
        let (near, far): (Vec<usize>, Vec<usize>) = (near, far);
        near.into_iter().for_each(|head| roles[head] = satellite(pivot));
        left = far;
    }
}

proptest! {
    #[test]
    fn equals_the_definition(layer in layer()) {
        let order: Vec<usize> = (0..layer.num_heads()).collect();
        prop_assert_eq!(layer.roles(), by_definition(&layer, &order));
    }

    /// Roles go with the heads; ties go to the lower of the new indices.
    #[test]
    fn permuting_heads_permutes_roles((layer, order) in layer_and_order()) {
        let expected = by_definition(&layer, &order);
        for (head, role) in layer.permuted(&order).roles().into_iter().enumerate() {
            let role = match role {
                HeadRole::Satellite { pivot } => satellite(order[pivot]),
                role => role,
            };
            prop_assert_eq!(role, expected[order[head]]);
        }
    }

    #[test]
    fn every_head_has_the_role_of_its_neighbours(layer in layer()) {
        let (roles, n) = (layer.roles(), layer.num_heads());
        check_roles(&roles).unwrap();
        let is_near = |a: usize, b: usize| a != b && layer.similarity[a * n + b] >= TAU;
        for (head, role) in roles.iter().enumerate() {
            match *role {
                HeadRole::Satellite { pivot } => {
                    prop_assert!(roles[pivot] == Pivot && is_near(head, pivot));
                }
                Pivot => prop_assert!(roles.contains(&satellite(head))),
                alone => {
                    prop_assert_eq!(alone == Anchor, layer.stability[head] >= TAU);
                    let is_alone = |role: &HeadRole| matches!(role, Anchor | Volatile);
                    prop_assert!((0..n).all(|i| !(is_alone(&roles[i]) && is_near(head, i))));
                }
            }
        }
    }

    #[test]
    fn weights_have_a_mean_of_one_and_fall_with_stability(layer in layer()) {
        let roles = layer.roles();
        let weights = stability_weights(&layer.stability, &roles).unwrap();
        let held = |i: &usize| roles[*i].is_compressed();
        let held: Vec<usize> = (0..roles.len()).filter(held).collect();
        for (head, weight) in weights.iter().enumerate() {
            prop_assert_eq!(*weight > 0.0, held.contains(&head));
        }
        if !held.is_empty() {
            let mean = weights.iter().sum::<f64>() / held.len() as f64;
            prop_assert!((mean - 1.0).abs() < 1e-9, "{}", mean);
        }
        for (&a, &b) in held.iter().flat_map(|a| held.iter().map(move |b| (a, b))) {
            if layer.stability[a] < layer.stability[b] {
                prop_assert!(weights[a] > weights[b]);
            }
        }
    }
}

#[test]
fn a_layer_by_hand() {
    // Heads 1 and 4 have two neighbours each, and the first becomes a pivot; then 4 has one left, which is head 5.
    let edges = [(0, 1), (1, 2), (4, 2), (4, 5)];
    let mut similarity = vec![0.1; 49];
    for (a, b) in edges {
        similarity[a * 7 + b] = 0.4;
        similarity[b * 7 + a] = 0.4;
    }
    let stability = [0.9, 0.1, 0.5, 0.3, 0.2, 0.6, 0.29];
    let roles = classify(&stability, &similarity, 0.3, 0.4).unwrap();
    let expected = [satellite(1), Pivot, satellite(1), Anchor, Pivot, satellite(4), Volatile];
    assert_eq!(roles, expected);
    // The negative control: a threshold above all similarities leaves every head alone.
    let apart = classify(&stability, &similarity, 0.3, 0.41).unwrap();
    assert_eq!(apart, [Anchor, Volatile, Anchor, Anchor, Volatile, Anchor, Volatile]);

    let weights = stability_weights(&stability, &roles).unwrap();
    let inverse = [1.0 / 0.9, 1.0 / 0.5, 1.0 / 0.3, 1.0 / 0.6];
    let mean = inverse.iter().sum::<f64>() / 4.0;
    for (head, inverse) in [0, 2, 3, 5].into_iter().zip(inverse) {
        assert!((weights[head] - inverse / mean).abs() < 1e-5, "{head}: {weights:?}");
    }
    assert_eq!([weights[1], weights[4], weights[6]], [0.0; 3]);
    // A head that never looks twice at the same tokens has a weight that is large and a number.
    let weights = stability_weights(&[0.0, 1.0], &[Anchor, Anchor]).unwrap();
    assert!(weights[0] > 1.99 && weights[1] > 0.0 && weights[1] < 1e-5, "{weights:?}");
}

#[test]
fn what_is_no_layer_is_an_error() {
    for value in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        let error = classify(&[0.5, value], &[1.0; 4], TAU, TAU).unwrap_err();
        assert!(matches!(error, Error::Overlap { what: "stability", head: 1, .. }), "{error}");
        let error = classify(&[0.5; 2], &[1.0, value, value, 1.0], TAU, TAU).unwrap_err();
        assert!(matches!(error, Error::Overlap { what: "similarity", .. }), "{error}");
        let error = stability_weights(&[value], &[Pivot]).unwrap_err();
        assert!(matches!(error, Error::Overlap { what: "stability", head: 0, .. }), "{error}");
    }
    for value in [f64::NAN, 0.0, -1.0, 1.01] {
        for (what, [stable, sim]) in [("tau_stable", [value, TAU]), ("tau_sim", [TAU, value])] {
            let error = classify(&[], &[], stable, sim).unwrap_err();
            assert!(matches!(error, Error::Range { what: w, .. } if w == what), "{error}");
        }
    }
    for len in [0, 3, 5] {
        let error = classify(&[0.5; 2], &vec![0.5; len], TAU, TAU).unwrap_err();
        assert!(matches!(error, Error::Length { expected: 4, .. }), "{error}");
    }
    let error = classify(&[0.5; 2], &[1.0, 0.2, 0.3, 1.0], TAU, TAU).unwrap_err();
    assert_eq!(error, Error::Asymmetric { first: 0, second: 1 });
    let error = stability_weights(&[0.5; 2], &[Anchor]).unwrap_err();
    assert!(matches!(error, Error::Length { what: "roles", .. }), "{error}");
    assert!(classify(&[], &[], 1.0, 1.0).unwrap().is_empty());
    assert_eq!(stability_weights(&[0.5], &[Volatile]).unwrap(), [0.0]);
}

#[test]
fn roles_that_do_not_go_together_are_refused() {
    check_roles(&[]).unwrap();
    check_roles(&[satellite(1), Pivot, Anchor, Volatile]).unwrap();
    for (roles, error) in [
        (&[satellite(1), Anchor][..], Error::NoPivot { head: 0, pivot: 1 }),
        (&[satellite(0)], Error::NoPivot { head: 0, pivot: 0 }),
        (&[Pivot, satellite(9)], Error::NoSatellite { head: 0 }),
        (&[Anchor, satellite(usize::MAX)], Error::NoPivot { head: 1, pivot: usize::MAX }),
        (&[Pivot, satellite(0), Pivot], Error::NoSatellite { head: 2 }),
    ] {
        assert_eq!(check_roles(roles).unwrap_err(), error);
    }
}

#[test]
fn roles_are_read_as_they_are_written() {
    for role in [Anchor, Volatile, Pivot, satellite(0), satellite(17)] {
        assert_eq!(role.to_string().parse::<HeadRole>().unwrap(), role);
    }
    for word in ["", "Anchor", "satellite", "satellite:", "satellite:-1", "satellite:01", "pivot:1"]
    {
        let error = word.parse::<HeadRole>().unwrap_err();
        assert!(error.to_string().contains("known are anchor, volatile"), "{error}");
    }
}
