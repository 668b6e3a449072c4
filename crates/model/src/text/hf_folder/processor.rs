//! The `post_processor` of `tokenizer.json`, as the ids before and after every text.

use serde_json::Value;

use super::model::{children, invalid, name_of};
use crate::text::{Error, Result};

/// Ids before and after a text.
pub(super) fn around(value: &Value) -> Result<(Vec<u32>, Vec<u32>)> {
    if value.is_null() {
        return Ok(Default::default());
    }
    let name = name_of(value);
    match name.as_str() {
        // It moves offsets, which nothing here uses.
        "ByteLevel" => Ok(Default::default()),
        "BertProcessing" | "RobertaProcessing" => {
            let id = |field: &str| id_of(&value[field][1]);
            Ok((vec![id("cls")?], vec![id("sep")?]))
        }
        "TemplateProcessing" => template(value),
        "Sequence" => {
            let mut whole = (Vec::new(), Vec::new());
            for step in children(value, "processors")? {
                let (prefix, suffix) = around(step)?;
                whole.0.splice(0..0, prefix);
                whole.1.extend(suffix);
            }
            Ok(whole)
        }
        _ => Err(Error::UnsupportedPart { part: "post_processor", name }),
    }
}

/// The `single` template: special tokens around one sequence.
fn template(value: &Value) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut prefix = Vec::new();
    let mut suffix = Vec::new();
    let mut num_texts = 0_usize;
    for piece in children(value, "single")? {
        if piece["Sequence"].is_object() {
            num_texts += 1;
            continue;
        }
        let name = piece["SpecialToken"]["id"].as_str().ok_or_else(wrong_template)?;
        let ids = children(&value["special_tokens"][name], "ids")?;
        let side = if num_texts == 0 { &mut prefix } else { &mut suffix };
        for id in ids {
            side.push(id_of(id)?);
        }
    }
    if num_texts == 1 { Ok((prefix, suffix)) } else { Err(wrong_template()) }
}

fn id_of(value: &Value) -> Result<u32> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| invalid("post_processor", "made of token ids"))
}

fn wrong_template() -> Error {
    invalid("post_processor.single", "special tokens around one sequence")
}
