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
//! What this crate never does: decide how the library computes, or keep a figure from one run to the next.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the body of a program: results go to stdout, progress to stderr"
)]

mod args;
mod bars;
mod conditions;
mod encode;
mod environment;
mod formats;
mod outcome;
mod page;
pub mod quality;
mod rate_distortion;
mod rounding;
mod samples;
pub mod scan;
mod sheet;
mod suite;
pub mod synthetic;
mod throughput;
mod train;
mod values;

pub use args::Options;
pub use suite::{Peers, run};
