//! The files that the authors of HeteroCache publish: a number for the type of each head, its weight, and for each
//! layer the satellites of every pivot. They name no model, nor how it was measured.

use std::collections::BTreeMap;

use heterokv_evict::HeadRole;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{HeadProfile, check_layers, check_weights, concat};
use crate::model_file::ModelIdentity;

const ANCHOR: u64 = 1;
const VOLATILE: u64 = 2;
const PIVOT: u64 = 3;
const SATELLITE: u64 = 4;

/// The number of each type.
const TYPES: [(&str, u64); 4] =
    [("anchor", ANCHOR), ("volatile", VOLATILE), ("pivot", PIVOT), ("satellite", SATELLITE)];

/// What stands for the weight of a head that keeps all tokens.
const NO_WEIGHT: f64 = -1.0;

#[derive(Deserialize)]
struct Contents {
    meta: Meta,
    /// The number of a type `[num_layers][num_kv_heads]`.
    classification_matrix: Vec<Vec<u64>>,
    /// `[num_layers][num_kv_heads]`.
    allocation_matrix: Vec<Vec<f64>>,
    /// Satellites by pivot, for each layer.
    leader_member_relations: Vec<BTreeMap<String, Vec<usize>>>,
}

#[derive(Deserialize)]
struct Meta {
    type_map: BTreeMap<String, u64>,
    /// Heads of each type.
    #[serde(default)]
    counts: Option<BTreeMap<String, usize>>,
}

/// What such a file has, and ours has not.
#[derive(Deserialize)]
struct Beginning {
    #[serde(rename = "classification_matrix")]
    _types: IgnoredAny,
}

/// Whether a file is one of those.
pub(super) fn is_published(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Beginning>(bytes).is_ok()
}

/// Reads the bytes of such a file, or says what is wrong with them.
pub(super) fn parse(bytes: &[u8]) -> Result<HeadProfile, String> {
    let contents: Contents = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Contents { meta, classification_matrix, allocation_matrix, leader_member_relations } =
        contents;
    if meta.type_map != TYPES.map(|(name, number)| (name.to_owned(), number)).into() {
        return Err(format!("its types are not those known, {TYPES:?}"));
    }
    let num_layers = classification_matrix.len();
    let num_kv_heads = classification_matrix.first().map_or(0, Vec::len);
    // Of the model no more is known than that it has heads.
    ModelIdentity::new(String::new(), [num_layers, num_kv_heads, 1])
        .map_err(|error| error.to_string())?;
    let types = concat("types", &classification_matrix, num_layers, num_kv_heads)?;
    let allocation = concat("weights", &allocation_matrix, num_layers, num_kv_heads)?;
    if leader_member_relations.len() != num_layers {
        let found = leader_member_relations.len();
        return Err(format!("it has pivots of {found} layers, not {num_layers}"));
    }
    let mut roles = Vec::with_capacity(types.len());
    for (layer, pivots) in leader_member_relations.iter().enumerate() {
        let types = &types[layer * num_kv_heads..][..num_kv_heads];
        roles.extend(layer_roles(types, pivots).map_err(|why| format!("layer {layer}: {why}"))?);
    }
    check_layers(&roles, num_kv_heads)?;
    if let Some(counts) = meta.counts {
        for (name, number) in TYPES {
            let found = types.iter().filter(|&&of_head| of_head == number).count();
            if counts.get(name) != Some(&found) {
                let said = counts.get(name).copied().unwrap_or(0);
                return Err(format!("it has {found} heads of type {name} and says {said}"));
            }
        }
    }
    let weight = |(&weight, role): (&f64, &HeadRole)| {
        if weight == NO_WEIGHT && !role.is_compressed() { 0.0 } else { weight }
    };
    let weights: Vec<f64> = allocation.iter().zip(&roles).map(weight).collect();
    check_weights(&weights, |index| roles[index].is_compressed(), num_kv_heads)
        .map_err(|reason| format!("its weights: {reason}"))?;
    Ok(HeadProfile {
        num_layers,
        num_kv_heads,
        roles,
        weights,
        budget_weights: None,
        measured: None,
    })
}

/// The roles of one layer by the types of its heads and the satellites of each pivot.
fn layer_roles(
    types: &[u64],
    pivots: &BTreeMap<String, Vec<usize>>,
) -> Result<Vec<HeadRole>, String> {
    let mut pivot_of = vec![None; types.len()];
    for (name, satellites) in pivots {
        let pivot = name.parse::<usize>().ok().filter(|pivot| pivot.to_string() == *name);
        let pivot = pivot.ok_or_else(|| format!("pivot '{name}' is not the number of a head"))?;
        if types.get(pivot) != Some(&PIVOT) {
            return Err(format!("head {pivot} has satellites and is no pivot"));
        }
        for &head in satellites {
            let known = pivot_of.get_mut(head);
            let known =
                known.ok_or_else(|| format!("satellite {head} of head {pivot} does not exist"))?;
            if types[head] != SATELLITE {
                return Err(format!("head {head} is listed as a satellite and is none"));
            }
            if let Some(other) = known.replace(pivot) {
                return Err(format!("head {head} is a satellite of heads {other} and {pivot}"));
            }
        }
    }
    let role = |(head, &number): (usize, &u64)| match (number, pivot_of[head]) {
        (ANCHOR, _) => Ok(HeadRole::Anchor),
        (VOLATILE, _) => Ok(HeadRole::Volatile),
        (PIVOT, _) => Ok(HeadRole::Pivot),
        (SATELLITE, Some(pivot)) => Ok(HeadRole::Satellite { pivot }),
        (SATELLITE, None) => Err(format!("head {head} is a satellite without a pivot")),
        _ => Err(format!("head {head} is of type {number}, which is not known")),
    };
    types.iter().enumerate().map(role).collect()
}
