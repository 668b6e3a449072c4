//! The one place of this crate that holds unsafe code: a [`Level`] and the kernels behind it.
//!
//! A level is chosen once ([`Level::detect`]), kept in a value, passed down and shown to the user.
//! Kernels match on it; there is no detection per call and no global function pointer.

pub(crate) mod bytes;
pub(crate) mod f16_keys;
pub(crate) mod keys;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub(crate) mod largest;
pub(crate) mod nearest;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod planes;
pub(crate) mod prefetch;
pub(crate) mod rows;
pub(crate) mod scale_errors;
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
    #[cfg(target_arch = "x86_64")]
    Avx512,
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

    /// AVX-512 with its look-ups and dot products of bytes (F, BW, VBMI and VNNI) beside all of
    /// [`Level::avx2`], if this CPU has them. Kernels that have no form for it run their AVX2 one.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn avx512() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni");
        Self::avx2().filter(|_| has).map(|_| Self(Kind::Avx512))
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
        levels.extend(Self::avx2().into_iter().chain(Self::avx512()));
        #[cfg(target_arch = "aarch64")]
        levels.extend(Self::neon());
        levels
    }

    /// True when kernels may use AVX2, FMA and F16C. A value of this level cannot be made on a CPU
    /// that lacks them, which is what the `unsafe` calls of every `simd` module rest on.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn is_avx2(self) -> bool {
        matches!(self.0, Kind::Avx2 | Kind::Avx512)
    }

    /// True when kernels may use AVX-512 F, BW, VBMI and VNNI beside what [`Level::is_avx2`] stands for; a
    /// value of this level cannot be made on a CPU that lacks one of them.
    #[cfg(target_arch = "x86_64")]
    #[must_use]
    pub fn is_avx512(self) -> bool {
        self.0 == Kind::Avx512
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
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512+vbmi+vnni",
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
        } else if cfg!(target_arch = "x86_64") {
            &["scalar", "avx2+fma+f16c", "avx512+vbmi+vnni"]
        } else {
            &["scalar"]
        };
        assert_eq!(names, expected[..levels.len()]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_level_may_use_what_those_below_it_may() {
        let may = |level: Level| (level.is_avx2(), level.is_avx512());
        let all = [(false, false), (true, false), (true, true)];
        let levels = Level::available();
        assert_eq!(levels.iter().copied().map(may).collect::<Vec<_>>(), all[..levels.len()]);
    }
}
