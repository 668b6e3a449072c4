//! The one place of this crate that holds unsafe code: a [`Level`] and the kernels behind it.
//!
//! A level is chosen once ([`Level::detect`]), kept in a value, passed down and shown to the user.
//! Kernels match on it; there is no detection per call and no global function pointer.

pub(crate) mod bytes;
pub(crate) mod f16_keys;
pub(crate) mod keys;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod planes;
pub(crate) mod rows;
mod tails;
pub(crate) mod vectors;
pub(crate) mod weights;

use std::fmt;

/// The instruction set that row kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// Portable code, on every CPU.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The best level of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Self::SCALAR)
    }

    /// AVX2 with FMA and F16C, if this CPU has all three.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn avx2() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(Kind::Avx2))
    }

    /// NEON, if this CPU has it. Kernels that have no form for it run their scalar one.
    #[cfg(target_arch = "aarch64")]
    #[must_use]
    pub fn neon() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(Kind::Neon))
    }

    /// Every level that this CPU can run, slowest first. Tests go through all of them.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        levels.extend(Self::avx2());
        #[cfg(target_arch = "aarch64")]
        levels.extend(Self::neon());
        levels
    }

    /// True when kernels may use AVX2, FMA and F16C. A value of this level cannot be made on a CPU
    /// that lacks them, which is what the `unsafe` calls of every `simd` module rest on.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn is_avx2(self) -> bool {
        self.0 == Kind::Avx2
    }

    /// True when kernels may use NEON; a value of this level cannot be made on a CPU that lacks it.
    #[cfg(target_arch = "aarch64")]
    #[must_use]
    pub fn is_neon(self) -> bool {
        self.0 == Kind::Neon
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2+fma+f16c",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_the_scalar_level_first_and_its_best_last() {
        let levels = Level::available();
        assert_eq!(levels[0], Level::SCALAR);
        assert_eq!(levels.last(), Some(&Level::detect()));
        let names: Vec<String> = levels.iter().map(Level::to_string).collect();
        // The 64-bit ARM targets of Rust's standard library all have NEON.
        let expected: &[&str] = if cfg!(target_arch = "aarch64") {
            &["scalar", "neon"]
        } else if cfg!(target_arch = "x86_64") && levels.len() == 2 {
            &["scalar", "avx2+fma+f16c"]
        } else {
            &["scalar"]
        };
        assert_eq!(names, expected);
    }
}
