//! Comparers, seeded inputs, guard bands and negative controls for the tests of heterokv.
//!
//! A test that compares a fast path with a reference has four ways to lie: the comparer accepts
//! what it should not (NaN, an empty slice), the inputs are too tame, the kernel never wrote its
//! output, or the check cannot fail at all. Each module here closes one of them:
//!
//! - [`mod@compare`] judges f32 results against an f64 reference, with tolerances that are derived.
//! - [`inputs`] makes rows from a seed, the same on every platform, with the outliers real keys have.
//! - [`guard`] pre-fills outputs with poison and watches the memory around them.
//! - [`controls`] damages a right answer in the ways kernels go wrong and demands to see it refused.
//!
//! This crate is for tests only: it is never published, no library depends on it outside its tests,
//! and it knows no kernel, no format and no model.

pub mod compare;
pub mod controls;
pub mod guard;
pub mod inputs;

pub use compare::{
    Mismatch, Summary, Tolerance, assert_close, compare, normalised_mean_square_error,
};
pub use controls::{Controls, Sabotage};
pub use guard::{GuardBreach, Guarded};
pub use inputs::Inputs;
