//! `heterokv inspect`: what a checkpoint holds, without reading its weights.

use std::collections::BTreeMap;

use anyhow::Result;
use heterokv_model::config::ContextLimit;
use heterokv_model::rope_config::RopeScaling;
use heterokv_model::text::ModelText;
use heterokv_model::{Checkpoint, ModelConfig};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::failure;
use crate::load::{model_name, open_checkpoint};
use crate::output::{bytes, count, print_line, table, tokens};

/// Tensors of one type.
#[derive(Default, Serialize)]
struct OfType {
    tensors: usize,
    weights: usize,
    bytes: usize,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    model: &'a str,
    architecture: &'a str,
    num_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_qo_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_context_tokens: usize,
    tie_word_embeddings: bool,
    tensors: &'a BTreeMap<String, OfType>,
    tokenizer: Option<&'a str>,
    tokenizer_error: Option<&'a str>,
    chat_template: bool,
    end_tokens: &'a [String],
    fingerprint: &'a str,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let checkpoint = open_checkpoint(&args.model)?;
    let name = model_name(&args.model);
    let config = checkpoint.config();
    let types = by_type(&checkpoint);
    let text =
        ModelText::of(&checkpoint).map_err(|error| failure::one_line(&anyhow::Error::new(error)));
    let fingerprint = checkpoint.fingerprint().to_string();
    let ends = end_tokens(config, text.as_ref().ok());
    if args.json {
        let output = Output {
            model: &name,
            architecture: config.architecture.name(),
            num_layers: config.num_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_qo_heads: config.num_qo_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            max_context_tokens: config.max_context_tokens,
            tie_word_embeddings: config.tie_word_embeddings,
            tensors: &types,
            tokenizer: text.as_ref().ok().map(|text| text.tokenizer.kind()),
            tokenizer_error: text.as_ref().err().map(String::as_str),
            chat_template: text.as_ref().is_ok_and(|text| text.chat_template.is_some()),
            end_tokens: &ends,
            fingerprint: &fingerprint,
        };
        print_line(&serde_json::to_string(&output)?)?;
        return Ok(());
    }
    print_line(&facts(&name, config, &text, &ends, &fingerprint))?;
    let header = ["tensors", "number", "weights", "bytes"].map(str::to_owned);
    let row = |name: &str, of: &OfType| {
        vec![name.to_owned(), count(of.tensors), count(of.weights), bytes(of.bytes as u64)]
    };
    let mut rows: Vec<Vec<String>> = types.iter().map(|(ty, of)| row(ty, of)).collect();
    let sum = |get: fn(&OfType) -> usize| types.values().map(get).sum::<usize>();
    let all = OfType {
        tensors: sum(|t| t.tensors),
        weights: sum(|t| t.weights),
        bytes: sum(|t| t.bytes),
    };
    rows.push(row("all", &all));
    print_line(&format!("\n{}", table(&header, &rows)))?;
    if args.tensors {
        let header = ["name", "type", "rows", "columns", "bytes"].map(str::to_owned);
        let rows: Vec<Vec<String>> = checkpoint
            .tensors()
            .map(|tensor| {
                let shape = [tensor.rows, tensor.cols].map(count);
                let size = bytes(tensor.bytes.len() as u64);
                vec![
                    tensor.name.to_owned(),
                    tensor.ty.to_string(),
                    shape[0].clone(),
                    shape[1].clone(),
                    size,
                ]
            })
            .collect();
        print_line(&format!("\n{}", table(&header, &rows)))?;
    }
    Ok(())
}

fn by_type(checkpoint: &Checkpoint) -> BTreeMap<String, OfType> {
    let mut types: BTreeMap<String, OfType> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let of = types.entry(tensor.ty.to_string()).or_default();
        of.tensors += 1;
        of.weights += tensor.rows * tensor.cols;
        of.bytes += tensor.bytes.len();
    }
    types
}

/// Every token that ends a reply, with its text where there is a tokenizer.
fn end_tokens(config: &ModelConfig, text: Option<&ModelText>) -> Vec<String> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend(text.iter().flat_map(|text| text.tokenizer.end_ids()));
    ids.sort_unstable();
    ids.dedup();
    let show = |id: u32| {
        let bytes = text.and_then(|text| text.tokenizer.token_bytes(id).ok());
        match bytes {
            Some(bytes) => format!("{} ({id})", String::from_utf8_lossy(bytes)),
            None => id.to_string(),
        }
    };
    ids.into_iter().map(show).collect()
}

/// How RoPE was stretched; nothing where it was not.
fn in_words(scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", all frequencies divided by {factor}"),
        RopeScaling::Llama3 { factor, original_context_tokens, .. } => format!(
            ", low frequencies divided by {factor} as in Llama 3.1, from {}",
            tokens(*original_context_tokens)
        ),
        RopeScaling::Yarn { factor, original_context_tokens, .. } => {
            format!(", YaRN by {factor} from {}", tokens(*original_context_tokens))
        }
        RopeScaling::Factors(factors) => {
            let (least, most) =
                factors.iter().fold((f32::INFINITY, 0.0f32), |(l, m), &x| (l.min(x), m.max(x)));
            format!(", {} frequencies divided by {least} to {most}", count(factors.len()))
        }
    }
}

fn facts(
    name: &str,
    config: &ModelConfig,
    text: &Result<ModelText, String>,
    ends: &[String],
    fingerprint: &str,
) -> String {
    let on = |on: bool, word: &'static str| on.then_some(word);
    let extras: Vec<&str> = [
        on(config.tie_word_embeddings, "tied embeddings"),
        on(config.qk_norm, "norms over the heads of q and k"),
        on(config.biases.qkv, "biases on q, k, v"),
        on(config.biases.attn_output, "bias on the attention output"),
        on(config.biases.mlp, "biases in the MLP"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let context = match config.context_limit {
        ContextLimit::Trained => format!("{} tokens", count(config.max_context_tokens)),
        ContextLimit::SlidingWindow { trained_tokens } => format!(
            "{} tokens, its sliding window (trained for {})",
            count(config.max_context_tokens),
            count(trained_tokens)
        ),
    };
    let (tokenizer, template) = match text {
        Ok(text) => (
            format!("{}, {} tokens", text.tokenizer.kind(), count(text.tokenizer.num_tokens())),
            if text.chat_template.is_some() { "yes" } else { "no" }.to_owned(),
        ),
        Err(error) => (format!("none ({error})"), "no".to_owned()),
    };
    let heads = format!(
        "{} query, {} key-value, {} wide",
        config.num_qo_heads, config.num_kv_heads, config.head_dim
    );
    let rope = format!("base {}{}", config.rope.theta, in_words(&config.rope.scaling));
    let mut rows = vec![
        ("model", name.to_owned()),
        ("architecture", config.architecture.name().to_owned()),
        ("layers", config.num_layers.to_string()),
        ("heads", heads),
        ("hidden size", count(config.hidden_size)),
        ("MLP width", count(config.intermediate_size)),
        ("vocabulary", count(config.vocab_size)),
        ("RoPE", rope),
    ];
    if !extras.is_empty() {
        rows.push(("has", extras.join(", ")));
    }
    rows.extend([
        ("context", context),
        ("tokenizer", tokenizer),
        ("chat template", template),
        ("end tokens", ends.join(", ")),
        ("fingerprint", fingerprint.to_owned()),
    ]);
    let lines: Vec<String> =
        rows.iter().map(|(name, value)| format!("{name:<15}{value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_is_told_in_words() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_context_tokens: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.1,
            truncate: true,
        };
        for (scaling, words) in [
            (RopeScaling::None, ""),
            (RopeScaling::Linear { factor: 2.0 }, ", all frequencies divided by 2"),
            (yarn, ", YaRN by 4 from 4,096 tokens"),
            (RopeScaling::Factors(vec![1.0, 1.0, 2.5, 8.0]), ", 4 frequencies divided by 1 to 8"),
        ] {
            assert_eq!(in_words(&scaling), words);
        }
    }
}
