//! The whole system through the public calls of model, eval and cache, held to numbers that other
//! programs computed and to the bars that the project promises.
//!
//! The small checkpoints of `tests/fixtures` are always there. The default model is where
//! `HETEROKV_MODEL` says; `HETEROKV_LONG=1` runs every bar in full. The references beside the workspace
//! (`../shared`, or where `HETEROKV_SHARED` says) may be absent. A test that lacks something says
//! `SKIPPED: ` and why.

#![expect(clippy::print_stdout, reason = "measured numbers and skips are printed")]
#![expect(clippy::unwrap_used, reason = "what tests share may unwrap as tests do")]

mod determinism;
mod device;
mod distance;
mod evict;
mod files;
mod golden;
mod harness;
mod head_profiles;
mod hostile;
mod mixes;
mod passkey;
mod profiles;
mod quality;
mod report;
mod sessions;
mod smollm;
mod speed;
mod tiny;
