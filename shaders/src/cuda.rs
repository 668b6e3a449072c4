//! The twins of kernels in CUDA C++, as text.
//!
//! A twin has the stem of its kernel, which is its entry point's name too, and the same grid. Its first argument is
//! `Params` by value; its buffers follow as pointers, in the order of [`Shader::bindings`], `const` where they are only
//! read. What twins share are files in `cuda/parts`, which stand in the text in place of the lines that include them: the
//! compiler of the run time has no folder to look in. The line `#include KEYS` stands for the parts of a form of keys.

use std::fmt::Write as _;

use crate::{KeyForm, Shader, Variant};

/// A kernel in CUDA C++.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    /// The entry point.
    pub name: &'static str,
    /// Threads of a block, in one dimension.
    pub threads: u32,
    /// All of its text.
    pub text: String,
}

/// Kernels that have no twin: those of a layer beside its attention. They come through wgpu alone.
pub const CUDA_GAPS: [&str; 6] = ["embed", "rms_norm", "gemv", "gemm", "rope", "swiglu"];

struct Twin {
    name: &'static str,
    threads: u32,
    body: &'static str,
}

macro_rules! twins {
    ($($name:literal: $threads:literal,)*) => {
        &[$(Twin {
            name: $name,
            threads: $threads,
            body: include_str!(concat!("../cuda/", $name, ".cu")),
        },)*]
    };
}

const TWINS: &[Twin] = twins! {
    "prefill": 64,
    "query_energy": 64,
    "store_rows": 64,
    "frame_queries": 64,
    "group_tables": 128,
    "score_planes": 128,
    "score_lse": 256,
    "top_p_begin": 256,
    "top_p_count": 256,
    "top_p_find": 256,
    "top_p_ties": 256,
    "scan_counts": 256,
    "top_p_take": 256,
    "attend_rows": 64,
    "merge_states": 64,
    "score_keys": 128,
    "score_groups": 128,
    "encode_integers": 64,
    "encode_levels": 64,
    "encode_allocated": 128,
    "encode_channels": 64,
    "argmax": 256,
    "sample": 256,
};

macro_rules! parts {
    ($($name:literal,)*) => {
        &[$(($name, include_str!(concat!("../cuda/", $name))),)*]
    };
}

const PARTS: &[(&str, &str)] = parts! {
    "parts/affine.cuh",
    "parts/choice.cuh",
    "parts/half.cuh",
    "parts/halves.cuh",
    "parts/infinity.cuh",
    "parts/key_source.cuh",
    "parts/keys_bytes.cuh",
    "parts/keys_channels.cuh",
    "parts/keys_halves.cuh",
    "parts/logits.cuh",
    "parts/octaves.cuh",
    "parts/reduce.cuh",
    "parts/rotation.cuh",
    "parts/scan.cuh",
    "parts/strips.cuh",
    "parts/tails.cuh",
    "parts/warp.cuh",
    "parts/windows.cuh",
};

/// The parts of a form of keys.
fn parts_of_keys(form: KeyForm) -> &'static [&'static str] {
    match form {
        KeyForm::Halves => &["parts/keys_halves.cuh"],
        KeyForm::Bytes => &["parts/tails.cuh", "parts/keys_bytes.cuh"],
        KeyForm::Channels => &["parts/octaves.cuh", "parts/windows.cuh", "parts/keys_channels.cuh"],
    }
}

impl Shader {
    /// Its twin in CUDA C++ in a variant, of which twins look at the form of keys alone; none of those in [`CUDA_GAPS`].
    #[must_use]
    pub fn cuda(&self, variant: Variant) -> Option<CudaKernel> {
        let twin = TWINS.iter().find(|twin| twin.name == self.name)?;
        Some(CudaKernel { name: twin.name, threads: twin.threads, text: twin.text(variant.keys) })
    }
}

impl Twin {
    /// The body with its parts in place, and with lines that tell a compiler where each comes from.
    fn text(&self, keys: KeyForm) -> String {
        let mut text = String::new();
        for (number, line) in (1..).zip(self.body.lines()) {
            let parts = included(line, keys);
            // Writing to a string does not fail.
            for (name, part) in &parts {
                let _ = write!(text, "#line 1 \"{name}\"\n{part}");
            }
            let _ = match parts[..] {
                [] => writeln!(text, "{line}"),
                _ => writeln!(text, "#line {} \"{}.cu\"", number + 1, self.name),
            };
        }
        text
    }
}

/// The parts that a line includes.
fn included(line: &str, keys: KeyForm) -> Vec<(&'static str, &'static str)> {
    let quoted = line.strip_prefix("#include \"").and_then(|name| name.strip_suffix('"'));
    let names = if line == "#include KEYS" { parts_of_keys(keys) } else { quoted.as_slice() };
    let part = |name| PARTS.iter().find(|(part, _)| part == name).copied();
    names.iter().filter_map(part).collect()
}

#[cfg(test)]
mod tests;
