//! The program as a user meets it: what it prints, and how it fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
#[cfg(target_os = "linux")]
mod device;
mod evals;
mod fixture;
mod heads;
mod host;
mod runs;
mod session;
mod sizes;
