//! The file that [`HeadProfile::save`] writes.

use serde::Deserialize;
use serde_json::Value;

use super::{HeadMeasure, HeadProfile, Measured, check_weights, concat};
use crate::model_file::{FileKind, ModelIdentity};

/// Version of the file's layout.
const VERSION: u64 = 1;

/// The file as it is read; what is left of it after its version is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(rename = "heterokv_heads")]
    _version: u64,
    model: String,
    num_layers: usize,
    num_kv_heads: usize,
    head_dim: usize,
    prompt_tokens: usize,
    steps: usize,
    top_k: usize,
    tau_stable: f64,
    tau_sim: f64,
    similarity: String,
    /// `[num_layers][num_kv_heads]`, as all below.
    roles: Vec<Vec<String>>,
    stability: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
    #[serde(default)]
    budget_weights: Option<Vec<Vec<f64>>>,
}

/// What every version of the file says.
#[derive(Deserialize)]
struct Versioned {
    heterokv_heads: u64,
}

/// The file's text: a line for each field, and in lists one for each layer.
pub(super) fn text(profile: &HeadProfile, measured: &Measured) -> String {
    let Measured { model, measure, stability } = measured;
    let quoted = |text: String| Value::from(text).to_string();
    let rows = |items: Vec<String>| {
        let rows = items.chunks_exact(model.num_kv_heads);
        let rows: Vec<String> = rows.map(|row| format!("    [{}]", row.join(", "))).collect();
        format!("[\n{}\n  ]", rows.join(",\n"))
    };
    let numbers = |numbers: &[f64]| rows(numbers.iter().map(f64::to_string).collect());
    let roles = profile.roles.iter().map(|role| quoted(role.to_string())).collect();
    let mut fields = vec![
        (FileKind::Heads.mark(), VERSION.to_string()),
        ("model", quoted(model.fingerprint().to_owned())),
        ("num_layers", model.num_layers.to_string()),
        ("num_kv_heads", model.num_kv_heads.to_string()),
        ("head_dim", model.head_dim.to_string()),
        ("prompt_tokens", measure.prompt_tokens.to_string()),
        ("steps", measure.steps.to_string()),
        ("top_k", measure.top_k.to_string()),
        ("tau_stable", measure.tau_stable.to_string()),
        ("tau_sim", measure.tau_sim.to_string()),
        ("similarity", quoted(measure.similarity.to_string())),
        ("roles", rows(roles)),
        ("stability", numbers(stability)),
        ("weights", numbers(&profile.weights)),
    ];
    fields
        .extend(profile.budget_weights.iter().map(|weights| ("budget_weights", numbers(weights))));
    let lines: Vec<String> =
        fields.into_iter().map(|(name, value)| format!("  \"{name}\": {value}")).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// Reads the bytes of the file, or says what is wrong with them.
pub(super) fn parse(bytes: &[u8]) -> Result<HeadProfile, String> {
    let in_words = |error: serde_json::Error| error.to_string();
    let Versioned { heterokv_heads: version } = serde_json::from_slice(bytes).map_err(in_words)?;
    if version != VERSION {
        return Err(format!("it is of version {version}, this program reads {VERSION}"));
    }
    let contents: Contents = serde_json::from_slice(bytes).map_err(in_words)?;
    let shape @ [num_layers, num_kv_heads, _] =
        [contents.num_layers, contents.num_kv_heads, contents.head_dim];
    let refused = |error: crate::Error| error.to_string();
    let model = ModelIdentity::new(contents.model, shape).map_err(refused)?;
    let words = concat("roles", &contents.roles, num_layers, num_kv_heads)?;
    let roles: Result<Vec<_>, _> = words.iter().map(|word| word.parse()).collect();
    let numbers = |what, rows: &[Vec<f64>]| concat(what, rows, num_layers, num_kv_heads);
    let weights = numbers("weights", &contents.weights)?;
    let measure = HeadMeasure {
        prompt_tokens: contents.prompt_tokens,
        steps: contents.steps,
        top_k: contents.top_k,
        tau_stable: contents.tau_stable,
        tau_sim: contents.tau_sim,
        similarity: contents.similarity.parse()?,
    };
    let stability = numbers("stability", &contents.stability)?;
    let roles = roles.map_err(|error: heterokv_evict::Error| error.to_string())?;
    let measured = Measured { model, measure, stability };
    let mut profile = HeadProfile::of(measured, roles).map_err(refused)?;
    check_weights(&weights, |index| profile.roles[index].is_compressed(), num_kv_heads)
        .map_err(|reason| format!("its weights: {reason}"))?;
    profile.weights = weights;
    match contents.budget_weights {
        None => Ok(profile),
        Some(rows) => {
            profile.with_budget_weights(numbers("budget weights", &rows)?).map_err(refused)
        }
    }
}
