//! Post-RoPE keys, queries and values of a model over a text, as they pass through its attention.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use heterokv_eval::{FitRows, HeadRows, Pieces, visit_fit_rows, visit_layers};
use heterokv_model::text::{EncodeOptions, ModelText};
use heterokv_model::{Checkpoint, ComputeType, Model};
use heterokv_quant::Level;

use super::EXACT;
use super::data::{DataSet, HeadData, tokens_needed};

/// What is dumped.
pub(crate) struct Dump<'a> {
    /// The checkpoint.
    pub(crate) model: &'a Path,
    /// The text.
    pub(crate) corpus: &'a Path,
    /// Token of the text at which the window begins.
    pub(crate) offset: usize,
    pub(crate) num_coded: usize,
    pub(crate) num_steps: usize,
    /// Layers, spread over the depth of the model.
    pub(crate) num_layers: usize,
    /// Tokens from the beginning of the text that profiles are fitted on; 0 for none.
    pub(crate) profile_tokens: usize,
    pub(crate) level: Level,
}

/// Where the text of the quality tests is, unless it is somewhere else.
pub(crate) fn default_corpus() -> PathBuf {
    let shared = std::env::var_os("HETEROKV_SHARED").map(PathBuf::from);
    let shared =
        shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    shared.join("data/moby-dick.txt")
}

/// Runs the model over the window, and over the text for profiles, and takes the heads of some layers.
///
/// # Errors
/// A text or model that cannot be had, a text that is too short, and profiles fitted on the window itself.
pub(crate) fn dump(dump: &Dump<'_>, say: &dyn Fn(&str)) -> Result<DataSet> {
    let Dump { offset, num_coded, num_steps, profile_tokens, .. } = *dump;
    ensure!(
        profile_tokens <= offset,
        "profiles on tokens 0..{profile_tokens} would be fitted on the window from {offset} on"
    );
    let text = fs::read_to_string(dump.corpus).with_context(|| {
        format!("cannot read {}; pass a text by --corpus PATH", dump.corpus.display())
    })?;
    let checkpoint = Checkpoint::open(dump.model)?;
    let options = EncodeOptions { add_special: false, parse_special: true };
    let tokens = ModelText::of(&checkpoint)?.tokenizer.encode(&text, options)?;
    let window = offset..offset + tokens_needed(num_coded, num_steps);
    ensure!(
        tokens.len() >= window.end,
        "the text has {} tokens, the window ends at {}",
        tokens.len(),
        window.end
    );
    let model = Model::load(&checkpoint, ComputeType::Q8, dump.level)?;
    let layers = spread(model.config().num_layers, dump.num_layers);
    say(&format!("{}: tokens {window:?}, layers {layers:?}", dump.corpus.display()));
    let rows = capture(&model, &tokens[window], &layers)?;
    let heads = rows.iter().enumerate();
    let mut heads: Vec<HeadData> = heads
        .map(|(index, rows)| HeadData::split(index, rows, num_coded, num_steps))
        .collect::<Result<_>>()?;
    if profile_tokens > 0 {
        say(&format!("profile: tokens 0..{profile_tokens}"));
        // In pieces of the window's length, so that positions are those of the window.
        let pieces = Pieces { tokens: num_coded, sinks: EXACT.sinks };
        let mut profiles: Vec<FitRows> = Vec::new();
        visit_fit_rows(&model, &tokens[..profile_tokens], pieces, &mut |layer, rows| {
            if layers.contains(&layer) {
                profiles.extend(rows);
            }
            Ok(())
        })?;
        let with_profiles = heads.into_iter().zip(profiles);
        heads = with_profiles.map(|(head, p)| head.with_profile(p.keys, p.query_energy)).collect();
    }
    Ok(DataSet {
        name: "Keys of the model".to_owned(),
        details: format!(
            "{} over {}, tokens from {offset} on; {} layers of {} KV heads, {num_coded} tokens coded, \
             {num_steps} tokens ask",
            stem(dump.model),
            stem(dump.corpus),
            layers.len(),
            model.config().num_kv_heads,
        ),
        files: ["quant-quality-model", "quant-front-model"],
        is_dumped: true,
        heads,
    })
}

/// A file's name, which unlike its path says the same on every machine.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// `num_layers` of `total`, the first and the last among them.
fn spread(total: usize, num_layers: usize) -> Vec<usize> {
    let num_layers = num_layers.clamp(1, total);
    let last = (num_layers - 1).max(1);
    (0..num_layers).map(|i| (i * (total - 1) + last / 2) / last).collect()
}

/// The rows of every KV head of `layers`, layer by layer.
fn capture(model: &Model, tokens: &[u32], layers: &[usize]) -> Result<Vec<HeadRows>> {
    let mut captured: Vec<HeadRows> = Vec::new();
    visit_layers(model, &[tokens], &mut |rows| {
        if layers.contains(&rows.layer) {
            captured.extend(rows.heads);
        }
        Ok(())
    })?;
    Ok(captured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_spread_over_the_depth() {
        assert_eq!(spread(30, 8), [0, 4, 8, 12, 17, 21, 25, 29]);
        assert_eq!(spread(30, 1), [0]);
        assert_eq!(spread(2, 8), [0, 1]);
    }

    #[test]
    fn what_is_missing_is_told_with_the_option_that_names_it() {
        let missing = Path::new("no-such-file");
        let wanted = Dump {
            model: missing,
            corpus: missing,
            offset: 100,
            num_coded: 64,
            num_steps: 1,
            num_layers: 1,
            profile_tokens: 100,
            level: Level::SCALAR,
        };
        let told = |wanted: &Dump<'_>| match dump(wanted, &|_| {}) {
            Ok(_) => panic!("there is no such file"),
            Err(error) => format!("{error:#}"),
        };
        assert!(told(&wanted).contains("--corpus PATH"), "{}", told(&wanted));
        let overlapping = Dump { profile_tokens: 101, ..wanted };
        assert!(told(&overlapping).contains("window from 100 on"), "{}", told(&overlapping));
    }
}
