//! The twins of the attention kernels in CUDA C++, as text.
//!
//! A twin has the stem of its kernel, which is its entry point's name too, and the same grid. Its first argument is
//! `Params` by value; its buffers follow as pointers, in the order of [`Shader::bindings`], `const` where they are only
//! read. What twins share are files in `cuda/parts`, which stand in the text in place of the lines that include them: the
//! compiler of the run time has no folder to look in.

use std::fmt::Write as _;

use crate::Shader;

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

/// Kernels that have no twin: those of a layer beside its attention, those that fill pages and prepare queries for a whole
/// model, those of keys that do not lie in nibble planes, those that encode keys, and those that pick a token. They come
/// through wgpu alone.
pub const CUDA_GAPS: [&str; 18] = [
    "embed",
    "rms_norm",
    "gemv",
    "gemm",
    "rope",
    "swiglu",
    "query_energy",
    "store_rows",
    "prepare_planes",
    "prepare_groups",
    "score_keys",
    "score_groups",
    "encode_integers",
    "encode_levels",
    "encode_allocated",
    "encode_channels",
    "argmax",
    "sample",
];

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
};

macro_rules! parts {
    ($($name:literal,)*) => {
        &[$(($name, include_str!(concat!("../cuda/", $name))),)*]
    };
}

const PARTS: &[(&str, &str)] = parts! {
    "parts/choice.cuh",
    "parts/half.cuh",
    "parts/infinity.cuh",
    "parts/reduce.cuh",
    "parts/scan.cuh",
    "parts/warp.cuh",
};

impl Shader {
    /// Its twin in CUDA C++; none of those in [`CUDA_GAPS`].
    #[must_use]
    pub fn cuda(&self) -> Option<CudaKernel> {
        let twin = TWINS.iter().find(|twin| twin.name == self.name)?;
        Some(CudaKernel { name: twin.name, threads: twin.threads, text: twin.text() })
    }
}

impl Twin {
    /// The body with its parts in place, and with lines that tell a compiler where each comes from.
    fn text(&self) -> String {
        let mut text = String::new();
        for (number, line) in (1..).zip(self.body.lines()) {
            match included(line) {
                Some((name, part)) => {
                    // Writing to a string does not fail.
                    let _ = write!(text, "#line 1 \"{name}\"\n{part}");
                    let _ = writeln!(text, "#line {} \"{}.cu\"", number + 1, self.name);
                }
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// The part that a line includes.
fn included(line: &str) -> Option<(&'static str, &'static str)> {
    let name = line.strip_prefix("#include \"")?.strip_suffix('"')?;
    PARTS.iter().find(|(part, _)| *part == name).copied()
}

#[cfg(test)]
mod tests;
