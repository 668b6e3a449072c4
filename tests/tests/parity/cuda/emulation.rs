//! Kernels in CUDA C++ on the CPU: each compiled with `tests/cuda/emulation.hpp` into a program, which a launch runs once.

use std::cell::RefCell;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use heterokv_attn::device::{Launch, Operand};
use heterokv_shaders::{Access, CudaKernel, Shader, Variant};

use super::Wanted;
use crate::sites::{Memories, Site};
use crate::wrong::{Edit, Spoilable};

const SHIM: &str = include_str!("../../../cuda/emulation.hpp");

/// The compiler of C++ that is here.
#[derive(Clone)]
pub(super) struct Emulator {
    compiler: OsString,
    /// What is wrong with kernels on purpose.
    edit: Option<Edit>,
}

/// Memory of the host.
pub(super) type Words = RefCell<Vec<u32>>;

/// Part of it, in words.
#[derive(Clone, Copy)]
pub(super) struct WordsPart<'a> {
    words: &'a Words,
    start: usize,
    len: usize,
}

/// The emulator as the one place that cases run on; none without a compiler.
pub(super) fn sites() -> &'static [Emulator] {
    static EMULATOR: OnceLock<Vec<Emulator>> = OnceLock::new();
    let found = EMULATOR.get_or_init(|| Emulator::find().into_iter().collect());
    if found.is_empty() {
        let what = "the emulation needs Linux and a C++ compiler; on Debian, apt-get install g++";
        Wanted::here().miss(what);
    }
    found
}

impl Emulator {
    fn find() -> Option<Self> {
        // Fibers and the ends of a section of memory are the system's.
        if !cfg!(target_os = "linux") {
            return None;
        }
        let known = ["c++", "g++", "clang++"].map(OsString::from);
        let mut names = env::var_os("CXX").into_iter().chain(known);
        let works = |name: &OsString| {
            let mut command = Command::new(name);
            command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        Some(Self { compiler: names.find(works)?, edit: None })
    }

    /// The program of a kernel, compiled once for each text.
    fn program(&self, kernel: &CudaKernel) -> PathBuf {
        let text = format!("{SHIM}\n{}\nEMULATED({})\n", kernel.text, kernel.name);
        let mut hasher = DefaultHasher::new();
        (&self.compiler, &text).hash(&mut hasher);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
        let program = folder.join(format!("{}-{:016x}", kernel.name, hasher.finish()));
        if program.exists() {
            return program;
        }
        fs::create_dir_all(&folder).unwrap();
        // Other tests may compile the same meanwhile: the last one gives it its name.
        let room = tempfile::tempdir_in(&folder).unwrap();
        let (source, ours) = (room.path().join("source.cpp"), room.path().join("program"));
        fs::write(&source, &text).unwrap();
        let mut command = Command::new(&self.compiler);
        // A fortified jump refuses one to another stack.
        command.args(["-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-o"]);
        let output = command.arg(&ours).arg(&source).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not compile: {messages}", kernel.name);
        fs::rename(&ours, &program).unwrap();
        program
    }

    /// What a kernel makes of the buffers that it writes, or what it does wrong.
    pub(super) fn execute(
        &self,
        kernel: &CudaKernel,
        launch: &Launch<Vec<u32>>,
    ) -> Result<Vec<Vec<u32>>, String> {
        let mut input = launch.grid.to_vec();
        input.extend([kernel.threads, launch.params.len() as u32]);
        input.extend(&launch.params);
        input.push(launch.buffers.len() as u32);
        for buffer in &launch.buffers {
            input.push(buffer.len() as u32);
            input.extend(buffer);
        }
        let mut command = Command::new(self.program(kernel));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It reads all of it before it writes; one that refuses it may end sooner.
        let sent = child.stdin.take().unwrap().write_all(bytemuck::cast_slice(&input));
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            return Err(format!("{message} ({})", output.status));
        }
        sent.unwrap();
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&output.stdout);
        let mut rest = &words[..];
        let accesses = launch.shader.bindings.iter().zip(&launch.buffers);
        let written =
            accesses.filter(|(access, _)| **access == Access::Write).map(|(_, buffer)| {
                let (own, behind) = rest.split_at(buffer.len());
                rest = behind;
                own.to_vec()
            });
        Ok(written.collect())
    }
}

impl Memories for Emulator {
    type Memory = Words;
    type Part<'a> = WordsPart<'a>;

    fn upload_words(&self, words: &[u32]) -> Words {
        RefCell::new(words.to_vec())
    }

    fn part(memory: &Words, start: u64, num_bytes: u64) -> WordsPart<'_> {
        WordsPart { words: memory, start: start as usize / 4, len: num_bytes as usize / 4 }
    }

    fn words(&self, memory: &Words) -> Vec<u32> {
        memory.borrow().clone()
    }
}

impl Operand for WordsPart<'_> {
    fn num_bytes(&self) -> u64 {
        4 * self.len as u64
    }
}

impl<'a> From<&'a Words> for WordsPart<'a> {
    fn from(words: &'a Words) -> Self {
        Self { words, start: 0, len: words.borrow().len() }
    }
}

impl Site for Emulator {
    type Memories = Self;

    fn name(&self) -> &str {
        "CUDA source emulated on the CPU"
    }

    fn memories(&self) -> &Self {
        self
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn run(&self, launches: &[Launch<WordsPart<'_>>]) {
        for launch in launches {
            let mut kernel = launch.shader.cuda(launch.variant).unwrap();
            if let Some(edit) = self.edit {
                kernel.text = edit.apply(kernel.name, kernel.text);
            }
            let words =
                |part: &WordsPart<'_>| part.words.borrow()[part.start..][..part.len].to_vec();
            let input = Launch {
                shader: launch.shader,
                variant: launch.variant,
                params: launch.params.clone(),
                buffers: launch.buffers.iter().map(words).collect(),
                grid: launch.grid,
            };
            let written = self.execute(&kernel, &input);
            let written = written
                .unwrap_or_else(|error| panic!("{} on {}: {error}", kernel.name, self.name()));
            let outputs = launch.shader.bindings.iter().zip(&launch.buffers);
            let outputs = outputs.filter(|(access, _)| **access == Access::Write);
            for ((_, part), words) in outputs.zip(written) {
                part.words.borrow_mut()[part.start..][..part.len].copy_from_slice(&words);
            }
        }
    }
}

impl Spoilable for Emulator {
    fn text(shader: &Shader, variant: Variant) -> Option<String> {
        shader.cuda(variant).map(|kernel| kernel.text)
    }

    fn with(&self, edit: Edit) -> Self {
        Self { edit: Some(edit), ..self.clone() }
    }
}

#[cfg(test)]
mod tests;
