//! The vector code of this crate and the one place of it that holds unsafe code.
//!
//! Which instructions run is a [`Level`](heterokv_quant::Level), chosen once by the caller and passed
//! down. Every operation has a portable form, and the AVX2 and AVX-512 forms are held to it and to f64 by tests.
//! All loads and stores go through slices whose lengths are asserted at the dispatching function.

pub mod exp;
pub(crate) mod pack;
mod silu;
pub(crate) mod strip;
#[cfg(target_arch = "x86_64")]
mod strip_avx2;
#[cfg(target_arch = "x86_64")]
mod strip_avx512;
#[cfg(test)]
mod tests;

pub use exp::{exp_weight, exp_weights};
pub use silu::swiglu;
