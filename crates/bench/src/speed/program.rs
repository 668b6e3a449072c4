//! The program `heterokv` itself: the memory of `generate` on a long prompt, and the time to the first token of a short one.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use heterokv_model::Checkpoint;
use heterokv_model::text::{ModelText, SpecialTokens};
use serde::Deserialize;

use super::{SUITE, case_name};
use crate::record::{Case, Record};
use crate::samples::Samples;

/// The cache that both are measured with.
pub(super) const CACHE: &str = "hca:12.5%";

/// The case of the memory.
pub(super) const GENERATE: &str = "heterokv generate";

/// The case of the first token.
pub(super) const FIRST_TOKEN: &str = "speed/first token/second run";

/// The short prompt.
const SHORT: &str = "The whale rose and";

/// A program and what it reads.
pub(super) struct Program<'a> {
    /// The file of `heterokv`.
    pub(super) path: &'a Path,
    pub(super) model: &'a Path,
    pub(super) num_threads: usize,
}

/// What the program prints with `--json`, as far as it is read here.
#[derive(Deserialize)]
struct Output {
    prompt_tokens: usize,
    generated_tokens: usize,
    peak_memory_bytes: Option<u64>,
}

impl Program<'_> {
    fn command(&self, max_tokens: usize) -> Command {
        let mut command = Command::new(self.path);
        command.args(["generate", "--cache", CACHE, "--json", "--temperature", "0"]);
        command.arg("--model").arg(self.model);
        command.args(["--max-tokens", &max_tokens.to_string()]);
        command.args(["--threads", &self.num_threads.to_string()]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn run(&self, command: &mut Command) -> Result<Output> {
        let shown = self.path.display();
        let output = command.output().with_context(|| format!("cannot start {shown}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{shown} failed: {}", said.trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("{shown} did not report"))
    }

    /// The most memory on a prompt of `tokens`.
    ///
    /// # Errors
    /// A program that fails, and a prompt that it reads as other tokens, more than a few of them.
    pub(super) fn memory(&self, tokens: &[u32], folder: &Path, record: &mut Record) -> Result<()> {
        let text = ModelText::of(&Checkpoint::open(self.model)?)?;
        let file = folder.join("prompt.txt");
        let written = text.tokenizer.decode(tokens, SpecialTokens::Show)?;
        fs::write(&file, written).context("cannot write the prompt")?;
        let output = self.run(self.command(8).arg("--file").arg(&file))?;
        // A text that ends within a word may end in other tokens.
        let is_near = output.prompt_tokens.abs_diff(tokens.len()) <= 8;
        ensure!(is_near, "{} tokens were read as {}", tokens.len(), output.prompt_tokens);
        let name = case_name("memory", GENERATE, tokens.len());
        let case = Case { context: Some(tokens.len()), ..Case::new(SUITE, name) };
        let peak = output.peak_memory_bytes.map_or(f64::NAN, |bytes| bytes as f64);
        record.cases.push(case.with("rss_peak_bytes", peak));
        Ok(())
    }

    /// The time of whole runs that end with the first token, behind one that brings the files in.
    ///
    /// # Errors
    /// A program that fails or gives no token.
    pub(super) fn first_token(&self, num_rounds: usize, record: &mut Record) -> Result<()> {
        let run = || -> Result<f64> {
            let start = Instant::now();
            let output = self.run(self.command(1).args(["--prompt", SHORT]))?;
            let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
            ensure!(output.generated_tokens == 1, "{} tokens came", output.generated_tokens);
            Ok(nanoseconds)
        };
        run()?;
        let later: Samples =
            (0..num_rounds).map(|_| run()).collect::<Result<Vec<_>>>()?.into_iter().collect();
        record.cases.push(Case::new(SUITE, FIRST_TOKEN).timed(&later));
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use heterokv_quant::Level;

    use super::*;
    use crate::environment::Environment;

    /// A program that does what the shell is told.
    fn program(folder: &Path, script: &str) -> std::path::PathBuf {
        let path = folder.join("program");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    }

    fn first_token(script: &str, num_rounds: usize) -> (Result<()>, Record) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = program(folder.path(), script);
        let program = Program { path: &path, model: Path::new("a-model"), num_threads: 2 };
        let mut record = Record::new(&Environment::detect(Level::SCALAR, 2));
        (program.first_token(num_rounds, &mut record), record)
    }

    #[test]
    fn the_first_token_is_timed_in_runs_behind_one_that_is_not() {
        let report = r#"{"prompt_tokens": 4, "generated_tokens": 1, "peak_memory_bytes": 5}"#;
        let script = format!("test \"$1\" = generate && echo '{report}'");
        let (done, record) = first_token(&script, 3);
        done.expect("it gives a token");
        let case = record.case(FIRST_TOKEN).expect("it is there");
        assert_eq!(case.samples_ns.len(), 3);
        assert!(case.samples_ns.iter().all(|&nanoseconds| nanoseconds > 0.0));
    }

    #[test]
    fn a_program_that_fails_or_does_not_report_ends_the_run() {
        for (script, expected) in [
            ("echo no model >&2; exit 1", "no model"),
            ("echo nothing", "did not report"),
            (r#"echo '{"prompt_tokens": 4, "generated_tokens": 0}'"#, "0 tokens came"),
        ] {
            let (done, record) = first_token(script, 1);
            let told = format!("{:#}", done.expect_err(script));
            assert!(told.contains(expected) && record.cases.is_empty(), "{told}");
        }
    }
}
