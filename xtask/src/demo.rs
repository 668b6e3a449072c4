//! `cargo xtask demo`: a question over a long text, answered by the public command that anybody can type.
//!
//! The text is the pass-key test of the long-context literature (Mohtashami and Jaggi, "Landmark Attention",
//! 2023): one line that matters, half way through hundreds that do not. Prose would be prettier, but a model as
//! small as the default one does not find the key in 7,900 tokens of a novel even with the full cache.

use std::env::consts::EXE_SUFFIX;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::model_file;
use crate::process;
use crate::workspace::Workspace;

const TASK: &str = "There is an important piece of information hidden inside a lot of irrelevant text. \
                    Find it and memorize it. I will quiz you about it.\n";
const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
const PASS_KEY: &str = "68213";
const QUESTION: &str = "What is the pass key? The pass key is";

/// Tokens of one [`FILLER`] by the default model's tokenizer.
const FILLER_TOKENS: usize = 25;
/// Tokens of all the rest, the question included.
const OTHER_TOKENS: usize = 29 + 26 + 11;

/// What to show.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A GGUF file to run instead of the default model, which is then not downloaded
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// How long the context is at most, in tokens of the default model
    #[arg(long, value_name = "TOKENS", default_value_t = 7900)]
    context: usize,
    /// The cache, as `heterokv generate --cache` takes it
    #[arg(long, value_name = "SPEC", default_value = "hca:12.5%")]
    cache: String,
}

/// Builds the program, gets the model, writes the text and runs `heterokv generate` on it; true if that went well.
///
/// # Errors
/// If the context is too short for one line, the program does not build, or the model cannot be had.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let text = text(options.context)?;
    process::run_or_fail(&mut workspace.cargo(&["build", "--release", "--package", "heterokv"]))?;
    let model = match &options.model {
        Some(path) => std::path::absolute(path)?,
        None => model_file::obtain_default()?,
    };
    let target = workspace.target_folder()?;
    let file = target.join("demo").join("context.txt");
    write(&file, &text.written)?;
    println!(
        "one of {} lines is the pass key {PASS_KEY}; with the question the text has {} tokens of the default model",
        text.num_lines, text.num_tokens
    );
    let program = target.join("release").join(format!("heterokv{EXE_SUFFIX}"));
    let root = workspace.root();
    // From the root the paths are short, and the line printed can be typed there again.
    let near = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_owned();
    let mut command = Command::new(near(&program));
    command.current_dir(root).arg("generate").arg("--model").arg(&model);
    command.arg("--file").arg(near(&file)).args(["--prompt", QUESTION]);
    // The answer is one sentence; the filler after it would be the model imitating its prompt.
    command.args(["--cache", &options.cache, "--max-tokens", "16", "--stop", ".", "--stats"]);
    process::run(&mut command)
}

/// The text before the question.
struct Text {
    written: String,
    num_lines: usize,
    /// With the question.
    num_tokens: usize,
}

/// As many lines as fit, the key after half of them.
fn text(num_context_tokens: usize) -> Result<Text> {
    let num_fillers = num_context_tokens.saturating_sub(OTHER_TOKENS) / FILLER_TOKENS;
    ensure!(
        num_fillers > 0,
        "a context of {num_context_tokens} tokens holds no text; {} are the least",
        OTHER_TOKENS + FILLER_TOKENS
    );
    let before = FILLER.repeat(num_fillers / 2);
    let after = FILLER.repeat(num_fillers - num_fillers / 2);
    let key = format!("The pass key is {PASS_KEY}. Remember it. {PASS_KEY} is the pass key.\n");
    Ok(Text {
        written: format!("{TASK}{before}{key}{after}\n"),
        num_lines: 2 + num_fillers,
        num_tokens: OTHER_TOKENS + num_fillers * FILLER_TOKENS,
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_long_as_asked_for_and_holds_the_key_half_way() {
        for (num_context_tokens, num_tokens) in [(91, 91), (115, 91), (116, 116), (7900, 7891)] {
            let text = text(num_context_tokens).expect("it holds a line");
            assert_eq!(text.num_tokens, num_tokens);
            assert_eq!(text.written.trim_end().lines().count(), text.num_lines);
            let (before, after) = text.written.split_once(PASS_KEY).expect("the key is there");
            let (num_before, num_after) =
                (before.matches(FILLER).count(), after.matches(FILLER).count());
            assert!(num_after - num_before <= 1, "{num_before} lines before, {num_after} after");
        }
    }

    #[test]
    fn a_context_without_room_is_an_error() {
        assert!(text(0).is_err());
        assert!(text(90).is_err());
    }

    /// The same words as the golden prompt, whose tokens an independent tokenizer counted.
    #[test]
    fn the_tokens_are_those_of_the_golden_prompt() {
        let workspace = Workspace::around_this_package().expect("we are in it");
        let shared = match std::env::var_os("HETEROKV_SHARED") {
            Some(folder) => PathBuf::from(folder),
            None => workspace.root().join("../shared"),
        };
        let path = shared.join("golden/passkey_7900.json");
        let Ok(json) = fs::read_to_string(&path) else {
            println!("SKIPPED: {} is not there", path.display());
            return;
        };
        let golden: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        let middle = &golden[2];
        assert_eq!(middle["depth"], 0.5);
        let num_tokens = middle["num_tokens"].as_u64().expect("it is a number");
        let text = text(usize::try_from(num_tokens).expect("it is small")).expect("it holds lines");
        assert_eq!(text.num_tokens as u64, num_tokens);
        assert_eq!(middle["prompt"], format!("{}{QUESTION}", text.written));
    }
}
