//! Benchmarks of heterokv: each verifies its answer, times it beside yardsticks of the same run, and prints samples.
//!
//! A suite measures everything that it compares in one run and interleaved: a sample of a candidate stands
//! between samples of its yardsticks, so that whatever disturbs the machine hits them alike, and a ratio is
//! the median of ratios of neighbours. An answer is checked before and after it is timed; a wrong one ends
//! the run.
//!
//! [`run`] is the whole program. Programs of others come in as [`Peers`], by the same traits as our own
//! formats, from a package outside the workspace (`crates/bench/peers`) that depends on this one.
//!
//! The suite `quant` measures kernels by format. The others (`steps`) measure decode steps and whole prompts by cache
//! and context, against what the machine was found to read in the same run, and keep a record with which a
//! later run is compared. `gpu`, `offload`, `load`, `evict` and `speed` have options of their own, as `quant` has: kernels on a
//! device, the host store, a cache with more rows than RAM may hold, caches that leave tokens out, and decode steps and
//! prompts beside llama.cpp, held to bars.
//!
//! What this crate never does: decide how the library computes.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the body of a program: results go to stdout, progress to stderr"
)]

#[cfg(doctest)]
#[doc = include_str!("../../../docs/offload.md")]
struct OffloadPage;

mod args;
mod attention;
mod bars;
mod bootstrap;
mod caches;
mod compare;
mod conditions;
mod encode;
mod end_to_end;
mod environment;
mod evict;
mod formats;
mod gpu;
mod instructions;
mod interleave;
mod load;
mod machine;
mod memory;
mod model_step;
mod offload;
mod outcome;
mod page;
mod peers;
mod prompt_rows;
pub mod quality;
mod rate_distortion;
mod record;
mod rounding;
mod samples;
pub mod scan;
mod selection;
mod settings;
mod sheet;
mod slope;
mod speed;
mod steps;
mod subject;
mod suite;
pub mod synthetic;
mod tables;
mod throughput;
mod train;
mod values;

pub use args::Options;
pub use suite::{Peers, run};
